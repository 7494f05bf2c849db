//! What a reward server says about a response for people: nobody trains on it.

use std::collections::BTreeMap;

/// Most bytes of a text that travel; of a longer one the middle is left out.
const MAX_TEXT_BYTES: usize = 8 << 10;
/// Most scorers of a run.
const SCORERS_LIMIT: usize = 256;
/// Longest name of a scorer, in bytes.
const NAME_BYTES: usize = 128;
/// Largest number of a scorer, and smallest one below zero: as large as a score may be. What is said of a run
/// holds sums of them and of their squares, which have to be numbers too.
const LARGEST_NUMBER: f64 = f32::MAX as f64;

/// Each scorer's own number, and the texts that the scorers read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Remarks {
    /// By scorer, its number as it was before weights and gates: at most as large as an `f32` can be.
    pub numbers: BTreeMap<String, f64>,
    /// By scorer, what it added to the score: its number, standardised, clipped and weighted; as large
    /// at most. Empty where there is one scorer.
    pub contributions: BTreeMap<String, f64>,
    /// The texts; absent where nobody had a tokenizer.
    pub texts: Option<Texts>,
}

/// A prompt and a response as text, each of at most 8 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    prompt: String,
    response: String,
}

impl Texts {
    /// The texts, without the middle of what is too long.
    pub fn new(prompt: &str, response: &str) -> Self {
        Self { prompt: without_middle(prompt), response: without_middle(response) }
    }

    /// What the policy was given.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// What it answered.
    pub fn response(&self) -> &str {
        &self.response
    }
}

impl Remarks {
    /// What is wrong with them.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.numbers.len() > SCORERS_LIMIT {
            return Some(format!("has numbers of {} scorers, at most {SCORERS_LIMIT}", self.numbers.len()));
        }
        let wrong = |(name, number): &(&String, &f64)| name.len() > NAME_BYTES || !is_sound(**number);
        let (name, number) = self.numbers.iter().chain(&self.contributions).find(wrong)?;
        let name: String = name.chars().take(NAME_BYTES).collect();
        Some(format!(
            "scorer {name:?} says {number:e}, must be from -3.4e38 to 3.4e38, and its name at most {NAME_BYTES} bytes"
        ))
    }
}

fn is_sound(number: f64) -> bool {
    (-LARGEST_NUMBER..=LARGEST_NUMBER).contains(&number)
}

/// A text of at most [`MAX_TEXT_BYTES`]: its beginning and its end.
fn without_middle(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    // What says how much is left out takes less than 64 bytes.
    let half = (MAX_TEXT_BYTES - 64) / 2;
    let (head, tail) = (text.floor_char_boundary(half), text.ceil_char_boundary(text.len() - half));
    format!("{}\n[... {} bytes left out ...]\n{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_beginning_and_its_end() {
        let long = format!("begins {}ends", "ä".repeat(MAX_TEXT_BYTES));
        let texts = Texts::new("short", &long);
        assert_eq!(texts.prompt(), "short");
        let response = texts.response();
        assert!(response.len() <= MAX_TEXT_BYTES, "{} bytes", response.len());
        assert!(response.starts_with("begins ä") && response.ends_with("ends"), "{response}");
        assert!(response.contains("bytes left out"));
        assert_eq!(Texts::new("short", response), texts, "a second cut changes nothing");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let remarks = |name: &str, number| Remarks {
            numbers: [(name.to_owned(), number)].into(),
            ..Remarks::default()
        };
        assert_eq!(remarks("regex", 1.0).problem(), None);
        let added =
            Remarks { contributions: [("regex".to_owned(), f64::INFINITY)].into(), ..remarks("regex", 1.0) };
        assert!(added.problem().unwrap().contains("\"regex\" says inf"));
        assert!(remarks("regex", f64::NAN).problem().unwrap().contains("\"regex\" says NaN"));
        assert!(remarks(&"x".repeat(1000), 1.0).problem().is_some());
        // Sums over many of them, and over their squares, have to be numbers too.
        let largest = f64::from(f32::MAX);
        assert_eq!(remarks("regex", -largest).problem(), None);
        for number in [1e39, -1e200, f64::MAX] {
            let problem = remarks("regex", number).problem().unwrap();
            assert!(problem.contains("\"regex\" says") && problem.contains("3.4e38"), "{problem}");
        }
    }
}
