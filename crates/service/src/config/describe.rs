//! What is said about a value that does not fit.

use super::Error;
use super::origin::{Origins, Source, join};

/// Where keys are that have the last name of one that is unknown.
pub(super) type Elsewhere<'e> = &'e dyn Fn(&str) -> Vec<String>;

/// Serde's message about `path`, with its origin and, for an unknown key, the nearest known one.
pub(super) fn describe(origins: &Origins, path: &str, message: &str, elsewhere: Elsewhere<'_>) -> Error {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field")
        && let Some((unknown, known)) = quoted.split_first()
    {
        // serde_path_to_error may or may not include the unknown key itself.
        let section = path.strip_suffix(unknown).map_or(path, |parent| parent.trim_end_matches('.'));
        let key = join(section, unknown);
        let nearest = known
            .iter()
            .map(|name| (strsim::damerau_levenshtein(unknown, name), *name))
            .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
            .min();
        let belongs = elsewhere(&key);
        let hint = match nearest {
            Some((_, name)) => format!("did you mean {}?", join(section, name)),
            None if belongs.is_empty() => format!("known here: {}", known.join(", ")),
            None => format!("did you mean {}? Known here: {}", belongs.join(" or "), known.join(", ")),
        };
        return Error::Value {
            origin: origin_of(origins, &key),
            problem: format!("unknown key {key}; {hint}"),
        };
    }
    let key = if path == "." { String::new() } else { format!("{path}: ") };
    Error::Value { origin: origin_of(origins, path), problem: format!("{key}{message}") }
}

fn origin_of(origins: &Origins, path: &str) -> String {
    match origins.of(path) {
        Some(Source::Set(origin) | Source::Derived(origin)) => origin.clone(),
        Some(Source::Default) | None => "the configuration".to_owned(),
    }
}
