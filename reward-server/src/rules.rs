//! Scorers that need nothing but the response: matches with a field, form, length, repetition.

use std::collections::HashSet;

use regex::Regex;
use serde_json::Value;

use crate::config::{ExactMatch, Format, LengthPenalty, NumericMatch, RepetitionPenalty};
use crate::score_error::ScoreError;
use crate::scorer_input::ScorerInput;

/// A scorer that is nothing but a rule on the response.
#[derive(Debug)]
pub(crate) enum TextRule {
    Regex(Regex),
    Exact(Exact),
    Numeric(Numeric),
    Length(LengthPenalty),
    Repetition(RepetitionPenalty),
    Format(Format),
}

impl TextRule {
    /// The rule's number.
    ///
    /// # Errors
    /// Where the prompt lacks the field that the rule compares with.
    pub(crate) fn score(&self, input: &ScorerInput) -> Result<f64, ScoreError> {
        match self {
            Self::Regex(pattern) => Ok(regex(pattern, input)),
            Self::Exact(exact) => exact.score(input),
            Self::Numeric(numeric) => numeric.score(input),
            Self::Length(penalty) => Ok(length_penalty(penalty, input)),
            Self::Repetition(penalty) => Ok(repetition_penalty(penalty, input)),
            Self::Format(wanted) => Ok(format(wanted, input)),
        }
    }
}

/// A regular expression of the configuration, which has checked it.
fn compiled(pattern: &str) -> Result<Regex, ScoreError> {
    Regex::new(pattern).map_err(|error| ScoreError::error(error.to_string()))
}

/// 1 where `pattern` is found in the response, else 0.
fn regex(pattern: &Regex, input: &ScorerInput) -> f64 {
    truth(pattern.is_match(&input.response))
}

fn truth(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// The field of the prompt that an answer is compared with.
fn field<'a>(input: &'a ScorerInput, name: &str) -> Result<&'a Value, ScoreError> {
    let found = input.fields.get(name).filter(|value| !value.is_null());
    found.ok_or_else(|| ScoreError::unsupported(format!("the prompt has no field {name:?} to compare with")))
}

/// Takes the answer out of a response: the last match's first group, or the whole match.
#[derive(Debug, Clone)]
struct Extraction(Option<Regex>);

impl Extraction {
    fn new(pattern: Option<&str>) -> Result<Self, ScoreError> {
        pattern.map(compiled).transpose().map(Self)
    }

    fn answer<'a>(&self, response: &'a str) -> Option<&'a str> {
        let Some(pattern) = &self.0 else { return Some(response) };
        let last = pattern.captures_iter(response).last()?;
        last.get(1).or_else(|| last.get(0)).map(|found| found.as_str())
    }
}

/// Compares with a field's text.
#[derive(Debug, Clone)]
pub(crate) struct Exact {
    config: ExactMatch,
    extraction: Extraction,
}

impl Exact {
    pub(crate) fn new(config: ExactMatch) -> Result<Self, ScoreError> {
        let extraction = Extraction::new(config.pattern.as_deref())?;
        Ok(Self { config, extraction })
    }

    /// 1 where the trimmed answer equals the trimmed field, else 0.
    pub(crate) fn score(&self, input: &ScorerInput) -> Result<f64, ScoreError> {
        let expected = match field(input, &self.config.field)? {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let Some(answer) = self.extraction.answer(&input.response) else { return Ok(0.0) };
        let (answer, expected) = (answer.trim(), expected.trim());
        let equal = if self.config.ignore_case {
            answer.to_lowercase() == expected.to_lowercase()
        } else {
            answer == expected
        };
        Ok(truth(equal))
    }
}

/// Compares with a field's number.
#[derive(Debug, Clone)]
pub(crate) struct Numeric {
    config: NumericMatch,
    extraction: Extraction,
    number: Regex,
}

impl Numeric {
    pub(crate) fn new(config: NumericMatch) -> Result<Self, ScoreError> {
        let extraction = Extraction::new(config.pattern.as_deref())?;
        // Digits, perhaps in groups of three, a fraction, an exponent. Whether a minus is a sign,
        // `last_number` decides.
        let number = compiled(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?")?;
        Ok(Self { config, extraction, number })
    }

    /// 1 where the answer's last number is within the tolerance of the field's, else 0.
    pub(crate) fn score(&self, input: &ScorerInput) -> Result<f64, ScoreError> {
        let name = &self.config.field;
        let expected = match field(input, name)? {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => self.last_number(text),
            _ => None,
        };
        let expected =
            expected.ok_or_else(|| ScoreError::unsupported(format!("field {name:?} holds no number")))?;
        let answer = self.extraction.answer(&input.response).and_then(|answer| self.last_number(answer));
        let tolerance = self.config.tolerance * expected.abs().max(1.0);
        Ok(truth(answer.is_some_and(|answer| (answer - expected).abs() <= tolerance)))
    }

    fn last_number(&self, text: &str) -> Option<f64> {
        let found = self.number.find_iter(text).last()?;
        let before = text[..found.start()].chars().next_back();
        let operator = before.is_some_and(|c| c.is_alphanumeric() || c == ')' || c == ']');
        let digits = if operator { found.as_str().trim_start_matches('-') } else { found.as_str() };
        digits.replace(',', "").parse().ok()
    }
}

/// 0 up to `free_tokens`, -1 from `max_tokens` on, linear between (DAPO, arXiv 2503.14476, equation 13).
fn length_penalty(config: &LengthPenalty, input: &ScorerInput) -> f64 {
    let over = input.response_tokens().len().saturating_sub(config.free_tokens) as f64;
    -(over / (config.max_tokens - config.free_tokens) as f64).min(1.0)
}

/// `-(1 - distinct / all)` over the response's n-grams of tokens; 0 for a response shorter than one n-gram.
fn repetition_penalty(config: &RepetitionPenalty, input: &ScorerInput) -> f64 {
    let all = input.response_tokens().windows(config.ngram);
    let count = all.len();
    if count == 0 {
        return 0.0;
    }
    let distinct = all.collect::<HashSet<_>>().len();
    distinct as f64 / count as f64 - 1.0
}

/// 1 where everything that `format` asks for holds, else 0.
fn format(format: &Format, input: &ScorerInput) -> f64 {
    let text = input.response.trim();
    let holds = format.starts_with.as_deref().is_none_or(|wanted| text.starts_with(wanted))
        && format.ends_with.as_deref().is_none_or(|wanted| text.ends_with(wanted))
        && each_once_in_order(text, &format.in_order)
        && !format.excludes.iter().any(|excluded| text.contains(excluded.as_str()))
        && (!format.json || serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
        && (!format.code_block || last_code_block(text).is_some())
        && (!format.finished || !input.truncated);
    truth(holds)
}

fn each_once_in_order(text: &str, wanted: &[String]) -> bool {
    let mut end = 0;
    wanted.iter().all(|wanted| {
        let mut places = text.match_indices(wanted.as_str());
        match (places.next(), places.next()) {
            (Some((at, found)), None) if at >= end => {
                end = at + found.len();
                true
            }
            _ => false,
        }
    })
}

/// The inside of the last closed fenced block, without its fences.
pub(crate) fn last_code_block(text: &str) -> Option<&str> {
    let mut open: Option<usize> = None;
    let mut last = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with("```") {
            match open.take() {
                Some(start) => last = Some(&text[start..at]),
                None => open = Some(at + line.len()),
            }
        }
        at += line.len();
    }
    last
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(response: &str, label: Value) -> ScorerInput {
        let Value::Object(fields) = json!({ "label": label }) else { unreachable!("an object literal") };
        ScorerInput {
            tokens: vec![0].into(),
            response_start: 1,
            prompt: String::new(),
            response: response.to_owned(),
            fields,
            truncated: false,
        }
    }

    fn with_tokens(tokens: &[u32]) -> ScorerInput {
        ScorerInput { tokens: [&[0], tokens].concat().into(), ..input("", Value::Null) }
    }

    #[test]
    fn exact_match_compares_the_extracted_answer() {
        let exact = |config: ExactMatch, response: &str, label: Value| {
            Exact::new(config).unwrap().score(&input(response, label)).unwrap()
        };
        assert_eq!(exact(ExactMatch::default(), " Paris\n", json!("Paris")), 1.0);
        assert_eq!(exact(ExactMatch::default(), "paris", json!("Paris")), 0.0);
        assert_eq!(
            exact(ExactMatch { ignore_case: true, ..Default::default() }, "paris", json!("Paris")),
            1.0
        );
        let boxed = || ExactMatch { pattern: Some(r"\\boxed\{(.*?)\}".into()), ..Default::default() };
        assert_eq!(exact(boxed(), r"\boxed{1} no, \boxed{42}", json!(42)), 1.0);
        assert_eq!(exact(boxed(), "42", json!(42)), 0.0, "an answer that is not where it has to be");
    }

    #[test]
    fn a_prompt_without_the_field_is_unsupported_and_not_wrong() {
        let missing = input("x", Value::Null);
        let error = Exact::new(ExactMatch::default()).unwrap().score(&missing).unwrap_err();
        assert_eq!(error.reason, types::FailReason::Unsupported);
        let error =
            Numeric::new(NumericMatch::default()).unwrap().score(&input("1", json!("none"))).unwrap_err();
        assert_eq!(error.reason, types::FailReason::Unsupported);
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let numeric = Numeric::new(NumericMatch::default()).unwrap();
        let score = |response: &str, label: Value| numeric.score(&input(response, label)).unwrap();
        for (response, label) in [
            ("so it is 1,234.50.", json!(1234.5)),
            ("first 7, then -3", json!(-3)),
            ("The answer is 42", json!("6 * 7 = 42\n#### 42")),
            ("x = 10-4", json!(4)),
            ("1e3 apples", json!(1000)),
            (".5", json!(0.5)),
            ("0.3333333333", json!(1.0 / 3.0)),
        ] {
            assert_eq!(score(response, label.clone()), 1.0, "{response} is {label}");
        }
        for (response, label) in
            [("41", json!(42)), ("no idea", json!(42)), ("-42", json!(42)), ("42 or 43", json!(42))]
        {
            assert_eq!(score(response, label.clone()), 0.0, "{response} is not {label}");
        }
    }

    #[test]
    fn the_length_penalty_grows_linearly_between_its_bounds() {
        let config = LengthPenalty { free_tokens: 2, max_tokens: 6 };
        let penalty = |tokens: usize| length_penalty(&config, &with_tokens(&vec![7; tokens]));
        assert_eq!([1, 2, 3, 4, 6, 60].map(penalty), [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]);
    }

    #[test]
    fn the_repetition_penalty_is_the_share_of_repeated_ngrams() {
        let config = RepetitionPenalty { ngram: 2 };
        let penalty = |tokens: &[u32]| repetition_penalty(&config, &with_tokens(tokens));
        assert_eq!(penalty(&[1, 2, 3, 4]), 0.0);
        assert_eq!(penalty(&[1, 2, 1, 2, 1]), -0.5, "12 21 12 21: two of four");
        assert_eq!(penalty(&[1]), 0.0);
    }

    #[test]
    fn a_format_holds_when_all_that_is_asked_for_does() {
        let tags = ["<think>", "</think>", "<answer>", "</answer>"].map(str::to_owned).to_vec();
        let wanted = Format { starts_with: Some("<think>".into()), in_order: tags, ..Format::default() };
        let score = |wanted: &Format, response: &str| format(wanted, &input(response, Value::Null));
        assert_eq!(score(&wanted, " <think>a</think><answer>b</answer>"), 1.0);
        assert_eq!(score(&wanted, "<think>a</think><answer>b"), 0.0, "one is missing");
        assert_eq!(score(&wanted, "<think></answer><answer></think>"), 0.0, "in another order");
        assert_eq!(score(&wanted, "<think><think></think><answer></answer>"), 0.0, "one is there twice");
        let json = Format { json: true, ..Format::default() };
        assert_eq!((score(&json, r#" {"a": [1]} "#), score(&json, "{a: 1}")), (1.0, 0.0));
        let code = Format { code_block: true, excludes: vec!["import".into()], ..Format::default() };
        assert_eq!(score(&code, "so:\n```python\nx = 1\n```\n"), 1.0);
        assert_eq!(score(&code, "so:\n```python\nx = 1\n"), 0.0, "not closed");
        assert_eq!(score(&code, "```\nimport os\n```"), 0.0);
        let finished = Format { finished: true, ..Format::default() };
        assert_eq!(format(&finished, &ScorerInput { truncated: true, ..input("x", Value::Null) }), 0.0);
    }

    #[test]
    fn the_last_code_block_is_taken_without_its_fences() {
        let text = "a\n```python\nx = 1\n```\nb\n  ```\ny = 2\nz = 3\n  ```";
        assert_eq!(last_code_block(text), Some("y = 2\nz = 3\n"));
        assert_eq!(last_code_block("```\nx"), None);
    }
}
