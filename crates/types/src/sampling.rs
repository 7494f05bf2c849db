//! How tokens are drawn.

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Sampling parameters of a response, in the meaning of transformers' `GenerationConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy. Log-probs are taken after this division.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens of at least this share of the best token's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens seen before; 1 changes nothing.
    pub repetition_penalty: f32,
    /// The most response tokens, the end-of-sequence token included.
    pub max_new_tokens: u32,
    /// Texts that end the response when they appear in it.
    pub stop: Vec<String>,
    /// Token ids that end the response, beside the model's own end-of-sequence ids.
    pub stop_token_ids: Vec<u32>,
    /// Do not stop at the model's end-of-sequence ids (for benchmarks of fixed length).
    pub ignore_eos: bool,
}

impl Default for Sampling {
    /// The untruncated distribution: what exact ratios need (algorithms.md 7.14).
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_new_tokens: 256,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
        }
    }
}

impl Sampling {
    /// Greedy decoding.
    pub fn greedy(max_new_tokens: u32) -> Self {
        Self { temperature: 0.0, max_new_tokens, ..Self::default() }
    }

    /// Whether some tokens of the vocabulary cannot be drawn, so that the surviving mass has to be recorded.
    pub fn truncates(&self) -> bool {
        self.temperature > 0.0 && (self.top_p < 1.0 || self.top_k > 0 || self.min_p > 0.0)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the parameter, its value and the legal range.
    pub fn validate(&self) -> Result<(), Invalid> {
        let check = |ok: bool, name: &str, value: String, range: &str| {
            if ok { Ok(()) } else { Err(Invalid::new(name, format!("is {value}, must be {range}"))) }
        };
        let t = self.temperature;
        check(t.is_finite() && t >= 0.0, "temperature", t.to_string(), "at least 0")?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p.to_string(), "in (0, 1]")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p.to_string(), "in [0, 1]")?;
        let penalty = self.repetition_penalty;
        check(penalty.is_finite() && penalty > 0.0, "repetition_penalty", penalty.to_string(), "above 0")?;
        check(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens.to_string(), "at least 1")?;
        check(self.stop.len() <= 16, "stop", format!("{} texts", self.stop.len()), "at most 16 texts")?;
        check(!self.stop.iter().any(String::is_empty), "stop", "an empty text".into(), "a non-empty text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_neither_truncates_nor_fails() {
        assert!(Sampling::default().validate().is_ok());
        assert!(!Sampling::default().truncates());
        assert!(Sampling { top_k: 50, ..Sampling::default() }.truncates());
        assert!(!Sampling { top_k: 50, ..Sampling::greedy(8) }.truncates());
    }

    #[test]
    fn bad_values_are_named() {
        let bad = [
            (Sampling { temperature: f32::NAN, ..Sampling::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Sampling::default() }, "top_p"),
            (Sampling { min_p: 1.5, ..Sampling::default() }, "min_p"),
            (Sampling { max_new_tokens: 0, ..Sampling::default() }, "max_new_tokens"),
            (Sampling { stop: vec![String::new()], ..Sampling::default() }, "stop"),
        ];
        for (sampling, name) in bad {
            assert_eq!(sampling.validate().unwrap_err().what, name);
        }
    }
}
