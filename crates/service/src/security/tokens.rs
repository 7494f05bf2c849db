//! The tokens of a run.
//!
//! A run has one secret. The token of each role follows from it (BLAKE3's key derivation), so that what one
//! role shows is of no use in the name of another. A token file holds the secret, or lines for single roles:
//!
//! ```text
//! # A secret: the tokens of all roles.
//! secret 6b0c...
//! # One role's token, to show and to know it by.
//! actor 1f97...
//! # To know a role's token by, and not to show it.
//! observer blake3:8e21...
//! ```
//!
//! Of several lines for a role all are believed and the first is shown: a new secret is first added below the
//! old one everywhere, then moved above it, and then the old one is taken out.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::stamp::Stamp;

/// The roles that tokens prove: the ring's members, people who look (`observer`) and who also decide
/// (`operator`), and programs that ask for rewards or text (`client`).
pub const ROLES: [&str; 6] = ["actor", "reward-server", "learner", "observer", "operator", "client"];

/// Roles whose tokens each process has to know.
const KNOWN_BY: [(&str, &[&str]); 4] = [
    ("coordinator", &["actor", "reward-server", "learner", "observer", "operator"]),
    ("reward-server", &["actor", "observer", "client"]),
    ("learner", &["actor", "observer"]),
    ("actor", &["actor", "observer", "client"]),
];

/// What separates these derivations from all others (BLAKE3's paper, section 2.3).
const CONTEXT: &str = "sluice 2026-11-29 token of a role";
/// Fewest letters of a secret or a token: 128 bits in hexadecimal digits.
const MIN_LETTERS: usize = 32;
/// Bytes that a new secret is made of.
const SECRET_BYTES: usize = 32;
/// Largest token file.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenProblem {
    /// It cannot be read.
    #[error("cannot read the token file {path}: {source}; `sluice token new {path}` writes one")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A line of it is none.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// It says nothing.
    #[error("{path} holds no secret and no token; `sluice token new` writes a file that does")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A run's secret.
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// A new one, from the system's random numbers.
    ///
    /// # Errors
    /// When there are none.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; SECRET_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The first one of a token file.
    ///
    /// # Errors
    /// When the file cannot be used or has none.
    pub fn read(path: &Path) -> Result<Self, TokenProblem> {
        let lines = lines(path)?;
        let secret = lines.into_iter().find_map(|line| match line {
            Line::Secret(secret) => Some(secret),
            Line::Token(..) | Line::Known(..) => None,
        });
        secret.ok_or_else(|| TokenProblem::Empty { path: path.to_owned() })
    }

    /// The token file that holds it.
    pub fn file(&self) -> String {
        format!("# The secret of a run: who reads this can be any of its roles.\nsecret {}\n", self.0)
    }

    /// The token that proves a role.
    pub fn token_of(&self, role: &str) -> String {
        let material = [self.0.as_bytes(), &[0], role.as_bytes()].concat();
        let key = blake3::derive_key(CONTEXT, &material);
        key.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The token file of one role: its own token, and what it knows the others' by. A role that only asks
/// (`observer`, `operator`, `client`) has its token alone.
pub fn role_file(secret: &Secret, role: &str) -> String {
    let mut file = format!("# What role {role} needs of its run's secret.\n");
    if ROLES.contains(&role) {
        file += &format!("{role} {}\n", secret.token_of(role));
    }
    let known = KNOWN_BY.iter().find(|(name, _)| *name == role).map_or(&[][..], |(_, known)| known);
    for other in known.iter().filter(|other| **other != role) {
        let token = secret.token_of(other);
        // The coordinator also looks at its members: their pages ask for an observer.
        if role == "coordinator" && *other == "observer" {
            file += &format!("{other} {token}\n");
        } else {
            file += &format!("{other} blake3:{}\n", blake3::hash(token.as_bytes()));
        }
    }
    file
}

/// A token that is believed.
struct Known {
    role: &'static str,
    hash: blake3::Hash,
    /// Where this process may show it.
    token: Option<String>,
}

impl Known {
    fn shown(role: &'static str, token: String) -> Self {
        Self { role, hash: blake3::hash(token.as_bytes()), token: Some(token) }
    }
}

/// The tokens of a file.
pub(super) struct Tokens(Vec<Known>);

impl Tokens {
    /// The role that a token proves. Takes as long for a wrong one as for a right one: only hashes are
    /// compared, in constant time, and always all of them.
    pub(super) fn role_of(&self, token: &str) -> Option<&'static str> {
        let shown = blake3::hash(token.as_bytes());
        let mut found = None;
        for known in &self.0 {
            let is_it = known.hash == shown;
            if is_it && found.is_none() {
                found = Some(known.role);
            }
        }
        found
    }

    /// The token that proves a role, where it may be shown.
    pub(super) fn of(&self, role: &str) -> Option<&str> {
        self.0.iter().filter(|known| known.role == role).find_map(|known| known.token.as_deref())
    }
}

/// A token file that was read.
pub(super) struct TokenFile {
    path: PathBuf,
    stamp: Stamp,
    tokens: Tokens,
}

impl TokenFile {
    pub(super) fn read(path: &Path) -> Result<Self, TokenProblem> {
        // The stamp first: what is written in between is read again.
        let stamp = stamp_of(path)?;
        let tokens = Tokens(lines(path)?.into_iter().flat_map(Line::tokens).collect());
        if tokens.0.is_empty() {
            return Err(TokenProblem::Empty { path: path.to_owned() });
        }
        if fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
            tracing::warn!(path = %path.display(), "everybody on this machine can read the token file: chmod 600");
        }
        Ok(Self { path: path.to_owned(), stamp, tokens })
    }

    /// The file as it is now, if it has changed.
    pub(super) fn newer(&self) -> Result<Option<Self>, TokenProblem> {
        if stamp_of(&self.path)? == self.stamp { Ok(None) } else { Self::read(&self.path).map(Some) }
    }

    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }
}

fn stamp_of(path: &Path) -> Result<Stamp, TokenProblem> {
    Stamp::of(path).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: io::Error) -> TokenProblem {
    TokenProblem::Read { path: path.to_owned(), source }
}

/// A line of a token file.
enum Line {
    Secret(Secret),
    Token(&'static str, String),
    Known(&'static str, blake3::Hash),
}

impl Line {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(char::is_whitespace).unwrap_or(("secret", text));
        let value = value.trim();
        if let Some(hash) = value.strip_prefix("blake3:") {
            let hash = blake3::Hash::from_hex(hash).map_err(|error| format!("no BLAKE3 hash: {error}"))?;
            return Ok(Self::Known(role(name)?, hash));
        }
        if value.len() < MIN_LETTERS || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            // Not the value itself: it may be what somebody believes to be a secret.
            return Err(format!(
                "a secret or token has at least {MIN_LETTERS} letters without spaces; `sluice token new` makes one"
            ));
        }
        match name {
            "secret" => Ok(Self::Secret(Secret(value.to_owned()))),
            name => Ok(Self::Token(role(name)?, value.to_owned())),
        }
    }

    fn tokens(self) -> Vec<Known> {
        match self {
            Self::Secret(secret) => ROLES.map(|role| Known::shown(role, secret.token_of(role))).into(),
            Self::Token(role, token) => vec![Known::shown(role, token)],
            Self::Known(role, hash) => vec![Known { role, hash, token: None }],
        }
    }
}

fn role(name: &str) -> Result<&'static str, String> {
    let found = ROLES.into_iter().find(|role| *role == name);
    found.ok_or_else(|| {
        format!("{name:?} is no role: a line begins with secret or one of {}", ROLES.join(", "))
    })
}

fn lines(path: &Path) -> Result<Vec<Line>, TokenProblem> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
    read.map_err(|source| unreadable(path, source))?;
    let written = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let written = written.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    written
        .map(|(line, text)| {
            Line::parse(text).map_err(|problem| TokenProblem::Line { path: path.to_owned(), line, problem })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::NamedTempFile, Result<TokenFile, TokenProblem>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let read = TokenFile::read(file.path());
        (file, read)
    }

    fn read(text: &str) -> TokenFile {
        file(text).1.unwrap()
    }

    const SECRET: &str = "6b0c6b0c6b0c6b0c6b0c6b0c6b0c6b0c";

    #[test]
    fn a_token_proves_one_role() {
        let (known, secret) = (read(SECRET), Secret(SECRET.to_owned()));
        for role in ROLES {
            assert_eq!(known.tokens().role_of(&secret.token_of(role)), Some(role));
            assert_eq!(known.tokens().of(role), Some(secret.token_of(role).as_str()));
        }
        for wrong in ["", "x", SECRET, &secret.token_of("nobody"), &secret.token_of("actor")[1..]] {
            assert_eq!(known.tokens().role_of(wrong), None, "{wrong}");
        }
        let other = Secret::random().unwrap();
        assert_eq!(known.tokens().role_of(&other.token_of("actor")), None);
        assert_ne!(other.token_of("actor"), Secret::random().unwrap().token_of("actor"));
    }

    #[test]
    fn a_roles_file_is_enough_for_its_role_and_for_no_other() {
        let secret = Secret(SECRET.to_owned());
        for (role, knows) in KNOWN_BY {
            let known = read(&role_file(&secret, role));
            for other in ROLES {
                let believed = known.tokens().role_of(&secret.token_of(other)).is_some();
                assert_eq!(believed, other == role || knows.contains(&other), "{role} of {other}");
                let shows = known.tokens().of(other).is_some();
                let looks = role == "coordinator" && other == "observer";
                assert_eq!(shows, other == role || looks, "{role} as {other}");
            }
        }
        let client = read(&role_file(&secret, "client"));
        assert_eq!(client.tokens().of("client"), Some(secret.token_of("client").as_str()));
        assert_eq!(client.tokens().0.len(), 1);
    }

    #[test]
    fn of_several_secrets_all_are_believed_and_the_first_is_shown() {
        let (old, new) = (Secret::random().unwrap(), Secret::random().unwrap());
        let known = read(&(old.file() + &new.file()));
        for secret in [&old, &new] {
            assert_eq!(known.tokens().role_of(&secret.token_of("learner")), Some("learner"));
        }
        assert_eq!(known.tokens().of("learner"), Some(old.token_of("learner").as_str()));
    }

    #[test]
    fn a_changed_file_is_seen() {
        let (on_disk, known) = file(SECRET);
        let known = known.unwrap();
        assert!(known.newer().unwrap().is_none());
        let other = Secret::random().unwrap();
        fs::write(on_disk.path(), other.file()).unwrap();
        let newer = known.newer().unwrap().unwrap();
        assert_eq!(newer.tokens().role_of(&other.token_of("actor")), Some("actor"));
        fs::write(on_disk.path(), "").unwrap();
        assert!(matches!(newer.newer(), Err(TokenProblem::Empty { .. })));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_without_the_secret() {
        for (text, line, said) in [
            ("# here\n\nsecret short\n", 3, "at least 32 letters"),
            ("boss 6b0c6b0c6b0c6b0c6b0c6b0c6b0c6b0c", 1, "\"boss\" is no role"),
            ("actor blake3:12", 1, "no BLAKE3 hash"),
            ("actor 6b0c6b0c6b0c6b0c6b0c6b0c6b0c6b0c and more", 1, "without spaces"),
        ] {
            let error = file(text).1.err().unwrap().to_string();
            assert!(error.contains(&format!(":{line}: ")) && error.contains(said), "{error}");
            assert!(!error.contains("6b0c"), "{error}");
        }
        assert!(file("# nothing\n").1.err().unwrap().to_string().contains("holds no secret"));
        let missing = TokenFile::read(Path::new("/nonexistent/token")).err().unwrap().to_string();
        assert!(missing.contains("sluice token new /nonexistent/token"), "{missing}");
    }
}
