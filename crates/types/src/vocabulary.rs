//! Which token each id is: by it two members know that they read the same tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Tokens at a vocabulary's end that another may lack.
const ENDS: usize = 256;
/// What a token's text is preceded by in the hash: its id and its length.
const HEAD_BYTES: usize = 8;

/// Which token each id is, as far as two of them need to be compared.
///
/// The hash is BLAKE3 over the tokens in the order of their ids: of each the id and the length of its text
/// (32 bits each, little endian), then the text. It is of what the tokenizer says and not of its files, two
/// of which may say the same, nor of a network, whose embedding is often larger.
///
/// Vocabularies agree where one goes on behind the other's end: many a folder has a token or two more, for
/// padding, that no other uses. So the hashes of what a vocabulary was before its last tokens are known, too.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "VocabularyFields", into = "VocabularyFields")]
pub struct Vocabulary {
    tokens: u64,
    hash: [u8; 32],
    /// The first bytes of the hash without the last token, without the last two, and so on.
    shorter: Vec<u64>,
}

impl Vocabulary {
    /// That of a member that has no tokenizer because it reads no text: it agrees with all others.
    pub fn none() -> Self {
        Self::of::<&str>([])
    }

    /// That of these ids and tokens, in the order of the ids.
    pub fn of<T: AsRef<str>>(
        tokens: impl IntoIterator<Item = (u32, T), IntoIter: ExactSizeIterator>,
    ) -> Self {
        let tokens = tokens.into_iter();
        let total = tokens.len();
        let mut hasher = blake3::Hasher::new();
        let mut shorter = Vec::new();
        for (place, (id, token)) in tokens.enumerate() {
            if place > 0 && place + ENDS >= total {
                shorter.push(beginning(hasher.finalize().as_bytes()));
            }
            let text = token.as_ref().as_bytes();
            let mut head = [0; HEAD_BYTES];
            head[..4].copy_from_slice(&id.to_le_bytes());
            head[4..].copy_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            hasher.update(&head).update(text);
        }
        shorter.reverse();
        Self { tokens: total as u64, hash: *hasher.finalize().as_bytes(), shorter }
    }

    /// The vocabulary that another process states.
    ///
    /// # Errors
    /// When there are more hashes of what it was than that can be.
    pub fn stated(tokens: u64, hash: [u8; 32], shorter: Vec<u64>) -> Result<Self, Invalid> {
        let most = tokens.saturating_sub(1).min(ENDS as u64);
        if shorter.len() as u64 > most {
            let problem = format!("has {} hashes without its last tokens, at most {most} fit", shorter.len());
            return Err(Invalid::new(format!("vocabulary of {tokens} tokens"), problem));
        }
        Ok(Self { tokens, hash, shorter })
    }

    /// Tokens that have an id; 0 where there is no tokenizer.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The hash of all of them.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The first bytes of the hash without the last token, without the last two, and so on.
    pub fn shorter(&self) -> &[u64] {
        &self.shorter
    }

    /// Whether every id that both know is the same token.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let (short, long) = if self.tokens <= other.tokens { (self, other) } else { (other, self) };
        match usize::try_from(long.tokens - short.tokens) {
            _ if short.tokens == 0 => true,
            Ok(0) => short.hash == long.hash,
            Ok(more) => long.shorter.get(more - 1) == Some(&beginning(&short.hash)),
            Err(_) => false,
        }
    }
}

fn beginning(hash: &[u8; 32]) -> u64 {
    hash[..8].iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

impl fmt::Display for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, hash, .. } = self;
        let short: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        write!(f, "{tokens} tokens, vocabulary {short}")
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vocabulary({self})")
    }
}

/// A [`Vocabulary`] as it is stored.
#[derive(Serialize, Deserialize)]
struct VocabularyFields {
    tokens: u64,
    hash: [u8; 32],
    shorter: Vec<u64>,
}

impl TryFrom<VocabularyFields> for Vocabulary {
    type Error = Invalid;

    fn try_from(fields: VocabularyFields) -> Result<Self, Invalid> {
        Self::stated(fields.tokens, fields.hash, fields.shorter)
    }
}

impl From<Vocabulary> for VocabularyFields {
    fn from(vocabulary: Vocabulary) -> Self {
        let Vocabulary { tokens, hash, shorter } = vocabulary;
        Self { tokens, hash, shorter }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(count: u32) -> Vec<(u32, String)> {
        (0..count).map(|id| (id, format!("t{id}"))).collect()
    }

    fn vocabulary(tokens: Vec<(u32, String)>) -> Vocabulary {
        Vocabulary::of(tokens)
    }

    #[test]
    fn a_token_a_text_and_an_order_make_another_vocabulary() {
        let ours = vocabulary(letters(1000));
        assert!(ours.agrees_with(&vocabulary(letters(1000))));
        for (id, text) in [(0usize, "x"), (500, "t50"), (999, "t99")] {
            let mut others = letters(1000);
            others[id].1 = text.to_owned();
            assert!(!ours.agrees_with(&vocabulary(others)), "token {id}");
        }
        let mut swapped = letters(1000);
        swapped[3].1 = "t4".to_owned();
        swapped[4].1 = "t3".to_owned();
        assert!(!ours.agrees_with(&vocabulary(swapped)));
        let moved = letters(1000).into_iter().map(|(id, token)| (id + 1, token)).collect();
        assert!(!ours.agrees_with(&vocabulary(moved)), "the ids count");
        let glued = vocabulary(vec![(0, "ab".to_owned()), (1, "c".to_owned())]);
        let cut = vocabulary(vec![(0, "a".to_owned()), (1, "bc".to_owned())]);
        assert!(!glued.agrees_with(&cut), "where a token ends counts");
    }

    #[test]
    fn tokens_behind_the_others_end_are_no_difference() {
        let ours = vocabulary(letters(300));
        for more in [1, 2, 255, 256] {
            let longer = vocabulary(letters(300 + more));
            assert!(ours.agrees_with(&longer) && longer.agrees_with(&ours), "{more} more");
            let mut others = letters(300 + more);
            others[299].1 = "another".to_owned();
            assert!(!ours.agrees_with(&vocabulary(others)), "{more} more, and one differs");
        }
        assert!(!ours.agrees_with(&vocabulary(letters(557))), "so many more are another tokenizer");
        assert!(vocabulary(letters(1)).agrees_with(&vocabulary(letters(3))));
    }

    #[test]
    fn who_reads_no_text_agrees_with_everybody() {
        let none = Vocabulary::none();
        assert_eq!(none.tokens(), 0);
        assert!(none.agrees_with(&none) && none.agrees_with(&vocabulary(letters(5))));
        assert!(vocabulary(letters(5)).agrees_with(&none));
    }

    /// Members of two releases compare what they say: the hash may not change.
    #[test]
    fn the_hash_is_that_of_the_documentation() {
        let pairs = vec![(0, "a".to_owned()), (7, "\u{120}b".to_owned())];
        let ours = vocabulary(pairs);
        let mut bytes = Vec::new();
        for (id, text) in [(0u32, "a"), (7, "\u{120}b")] {
            bytes.extend(id.to_le_bytes());
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        assert_eq!(ours.hash(), blake3::hash(&bytes).as_bytes());
        let first = blake3::hash(&bytes[..9]);
        let first = u64::from_le_bytes(first.as_bytes()[..8].try_into().unwrap());
        assert_eq!(ours.shorter(), [first]);
    }

    #[test]
    fn what_is_stated_is_bounded_and_survives_storage() {
        assert!(Vocabulary::stated(3, [0; 32], vec![1, 2]).is_ok());
        assert!(Vocabulary::stated(3, [0; 32], vec![1, 2, 3]).is_err());
        assert!(Vocabulary::stated(0, [0; 32], vec![1]).is_err());
        assert!(Vocabulary::stated(9999, [0; 32], vec![0; ENDS + 1]).is_err());
        let ours = vocabulary(letters(300));
        let stored = serde_json::to_string(&ours).unwrap();
        assert_eq!(serde_json::from_str::<Vocabulary>(&stored).unwrap(), ours);
        assert!(ours.to_string().starts_with("300 tokens, vocabulary "), "{ours}");
    }
}
