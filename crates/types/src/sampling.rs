//! How tokens are drawn.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Invalid;

/// Most stop texts of a response.
const MAX_STOP_TEXTS: usize = 16;

/// What a person asks for, not yet checked, in the meaning of transformers' `GenerationConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits, at least 0; 0 is greedy. Log-probs are taken after this division.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps the k most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens of at least this share of the best token's probability, in [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) the logits of tokens seen before, above 0; 1 changes
    /// nothing.
    pub repetition_penalty: f32,
    /// The most response tokens, the end-of-sequence token included; at least 1.
    pub max_new_tokens: u32,
    /// Texts that end the response when they appear in it; at most 16, none of them empty.
    pub stop: Vec<String>,
    /// Token ids that end the response, beside the model's own end-of-sequence ids.
    pub stop_token_ids: Vec<u32>,
    /// Do not stop at the model's end-of-sequence ids (for benchmarks of fixed length).
    pub ignore_eos: bool,
}

impl Default for SamplingParams {
    /// The untruncated distribution: what exact ratios need.
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

impl SamplingParams {
    /// Greedy decoding of at most this many tokens.
    pub fn greedy(max_new_tokens: u32) -> Self {
        Self { temperature: 0.0, max_new_tokens, ..Self::default() }
    }

    /// The first parameter that is out of its range.
    fn problem(&self) -> Option<Invalid> {
        let Self { temperature, top_p, min_p, repetition_penalty: penalty, .. } = *self;
        let (name, value, range) = if !temperature.is_finite() || temperature < 0.0 {
            ("temperature", temperature.to_string(), "at least 0")
        } else if !(top_p > 0.0 && top_p <= 1.0) {
            ("top_p", top_p.to_string(), "in (0, 1]")
        } else if !(0.0..=1.0).contains(&min_p) {
            ("min_p", min_p.to_string(), "in [0, 1]")
        } else if !penalty.is_finite() || penalty <= 0.0 {
            ("repetition_penalty", penalty.to_string(), "above 0")
        } else if self.max_new_tokens == 0 {
            ("max_new_tokens", "0".to_owned(), "at least 1")
        } else if self.stop.len() > MAX_STOP_TEXTS {
            ("stop", format!("{} texts", self.stop.len()), "at most 16 texts")
        } else if self.stop.iter().any(String::is_empty) {
            ("stop", "an empty text".to_owned(), "a non-empty text")
        } else {
            return None;
        };
        Some(Invalid::new(name, format!("is {value}, must be {range}")))
    }
}

/// How the tokens of a response are drawn: [`SamplingParams`], each in its range.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "SamplingParams", into = "SamplingParams")]
pub struct Sampling(SamplingParams);

impl TryFrom<SamplingParams> for Sampling {
    type Error = Invalid;

    fn try_from(params: SamplingParams) -> Result<Self, Invalid> {
        Self::new(params)
    }
}

impl From<Sampling> for SamplingParams {
    fn from(sampling: Sampling) -> Self {
        sampling.0
    }
}

impl Sampling {
    /// Draws with these parameters.
    ///
    /// # Errors
    /// Names the first parameter that is out of its range, its value and the range.
    pub fn new(params: SamplingParams) -> Result<Self, Invalid> {
        match params.problem() {
            Some(invalid) => Err(invalid),
            None => Ok(Self(params)),
        }
    }

    /// The same, but always the most probable token.
    #[must_use]
    pub fn into_greedy(self) -> Self {
        Self(SamplingParams { temperature: 0.0, ..self.0 })
    }

    /// The same at another temperature.
    ///
    /// # Errors
    /// Names the temperature that is out of its range.
    pub fn at_temperature(self, temperature: f32) -> Result<Self, Invalid> {
        Self::new(SamplingParams { temperature, ..self.0 })
    }

    /// Divides the logits; 0 is greedy.
    pub fn temperature(&self) -> f32 {
        self.0.temperature
    }

    /// Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub fn top_p(&self) -> f32 {
        self.0.top_p
    }

    /// Keeps the k most probable tokens; 0 keeps all.
    pub fn top_k(&self) -> u32 {
        self.0.top_k
    }

    /// Keeps tokens of at least this share of the best token's probability; 0 keeps all.
    pub fn min_p(&self) -> f32 {
        self.0.min_p
    }

    /// Divides or multiplies the logits of tokens seen before; 1 changes nothing.
    pub fn repetition_penalty(&self) -> f32 {
        self.0.repetition_penalty
    }

    /// The most response tokens, at least 1.
    pub fn max_new_tokens(&self) -> u32 {
        self.0.max_new_tokens
    }

    /// Texts that end the response when they appear in it.
    pub fn stop(&self) -> &[String] {
        &self.0.stop
    }

    /// Token ids that end the response, beside the model's own end-of-sequence ids.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.0.stop_token_ids
    }

    /// Whether the model's end-of-sequence ids do not end the response.
    pub fn ignores_eos(&self) -> bool {
        self.0.ignore_eos
    }

    /// Whether some tokens of the vocabulary cannot be drawn, so that the surviving mass has to be recorded.
    pub fn truncates(&self) -> bool {
        self.0.temperature > 0.0 && (self.0.top_p < 1.0 || self.0.top_k > 0 || self.0.min_p > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_neither_truncates_nor_fails() {
        assert_eq!(Sampling::new(SamplingParams::default()).unwrap(), Sampling::default());
        assert!(!Sampling::default().truncates());
        let top_k = |params| Sampling::new(SamplingParams { top_k: 50, ..params }).unwrap();
        assert!(top_k(SamplingParams::default()).truncates());
        assert!(!top_k(SamplingParams::greedy(8)).truncates());
        assert!(!top_k(SamplingParams::default()).into_greedy().truncates());
    }

    #[test]
    fn bad_values_are_named() {
        let params = SamplingParams::default;
        let bad = [
            (SamplingParams { temperature: f32::NAN, ..params() }, "temperature"),
            (SamplingParams { top_p: 0.0, ..params() }, "top_p"),
            (SamplingParams { min_p: 1.5, ..params() }, "min_p"),
            (SamplingParams { repetition_penalty: 0.0, ..params() }, "repetition_penalty"),
            (SamplingParams { max_new_tokens: 0, ..params() }, "max_new_tokens"),
            (SamplingParams { stop: vec![String::new()], ..params() }, "stop"),
            (SamplingParams { stop: vec!["x".to_owned(); 17], ..params() }, "stop"),
        ];
        for (params, name) in bad {
            let stored = serde_json::to_string(&params).unwrap();
            assert_eq!(Sampling::new(params).unwrap_err().what, name);
            assert!(serde_json::from_str::<Sampling>(&stored).is_err(), "{stored}");
        }
    }
}
