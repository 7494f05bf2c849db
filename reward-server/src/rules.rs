//! Scorers that need nothing but the response: matches with a field, form, length, repetition.

use std::borrow::Cow;
use std::collections::HashSet;

use extraction::answer_text;
use regex::Regex;
use serde_json::Value;

use crate::config::{ExactMatch, Format, LengthPenalty, NumericMatch, RepetitionPenalty};
use crate::number::{self, closing_brace};
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

/// Takes the answer out of what a response says once it has thought: the last match's first group, or the
/// whole match. One that ends inside of braces goes on to the brace that closes them, which no regular
/// expression can.
#[derive(Debug, Clone)]
struct Extraction(Option<Regex>);

impl Extraction {
    fn new(pattern: Option<&str>) -> Result<Self, ScoreError> {
        pattern.map(compiled).transpose().map(Self)
    }

    /// A text as it is compared: as LaTeX where answers stand between braces, as in `\boxed{}`.
    fn spelt<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.0 {
            Some(pattern) if pattern.as_str().contains(r"\{") => Cow::Owned(latex(text)),
            _ => Cow::Borrowed(text),
        }
    }

    fn answer<'a>(&self, response: &'a str) -> Option<&'a str> {
        let answer = answer_text(response);
        let Some(pattern) = &self.0 else { return Some(answer) };
        let last = pattern.captures_iter(answer).last()?;
        let found = last.get(1).or_else(|| last.get(0))?;
        let opened = found.as_str().matches('{').count();
        if opened > found.as_str().matches('}').count()
            && let Some(length) = closing_brace(&answer[found.start()..])
        {
            return answer.get(found.start()..found.start() + length.max(found.len()));
        }
        Some(found.as_str())
    }
}

/// LaTeX in one of its spellings: `\frac` for `\dfrac` and `\tfrac`, no space beside brackets and commas.
fn latex(text: &str) -> String {
    const BESIDE: [char; 7] = ['(', ')', '[', ']', '{', '}', ','];
    let text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac");
    let mut spelt = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if !character.is_whitespace() {
            spelt.push(character);
            continue;
        }
        while characters.next_if(|next| next.is_whitespace()).is_some() {}
        let neighbours = [spelt.chars().last(), characters.peek().copied()];
        if neighbours.iter().all(|neighbour| neighbour.is_some_and(|neighbour| !BESIDE.contains(&neighbour)))
        {
            spelt.push(' ');
        }
    }
    spelt
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
        let response = input.marked_response();
        let Some(answer) = self.extraction.answer(&response) else { return Ok(0.0) };
        let (answer, expected) =
            (self.extraction.spelt(answer.trim()), self.extraction.spelt(expected.trim()));
        // A number has several spellings, and the data set's was lost when it was read.
        if field(input, &self.config.field)?.is_number()
            && let (Some(answer), Some(expected)) = (number::whole(&answer), number::whole(&expected))
        {
            return Ok(truth(answer.equals(&expected)));
        }
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
}

impl Numeric {
    pub(crate) fn new(config: NumericMatch) -> Result<Self, ScoreError> {
        let extraction = Extraction::new(config.pattern.as_deref())?;
        Ok(Self { config, extraction })
    }

    /// 1 where the answer's number is the field's, else 0. Whole numbers are compared exactly unless a
    /// tolerance is configured.
    pub(crate) fn score(&self, input: &ScorerInput) -> Result<f64, ScoreError> {
        let name = &self.config.field;
        let label = field(input, name)?;
        let expected = number::of_field(label).ok_or_else(|| {
            let problem =
                format!("field {name:?} holds {label}, which is not one number: use kind = \"math\"");
            ScoreError::unsupported(problem)
        })?;
        let response = input.marked_response();
        let answer = self.extraction.answer(&response);
        let found = answer.and_then(|answer| match self.config.pattern {
            Some(_) => number::whole(answer).or_else(|| number::last(answer)),
            None => number::of_answer(answer),
        });
        let Some(found) = found else { return Ok(0.0) };
        Ok(truth(found.matches(&expected, self.config.tolerance)))
    }
}

/// 0 up to `free_tokens`, -1 from `max_tokens` on, linear between (DAPO, arXiv 2503.14476, equation 13).
fn length_penalty(config: &LengthPenalty, input: &ScorerInput) -> f64 {
    let over = input.response_tokens().len().saturating_sub(config.free_tokens) as f64;
    -(over / (config.max_tokens - config.free_tokens) as f64).min(1.0)
}

/// `-(1 - distinct / all)` over the response's n-grams of tokens; 0 for a response shorter than one n-gram.
fn repetition_penalty(config: &RepetitionPenalty, input: &ScorerInput) -> f64 {
    let tokens = input.response_tokens();
    let all = tokens.windows(config.ngram);
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
        && (!format.code_block || extraction::has_code_block(text))
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

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn input(response: &str, label: Value) -> ScorerInput {
        let Value::Object(fields) = json!({ "label": label }) else { unreachable!("an object literal") };
        ScorerInput {
            tokens: vec![0].into(),
            response_start: 1,
            given: Vec::new(),
            beginnings: Vec::new(),
            prompt: String::new(),
            response: response.to_owned(),
            episode: String::new(),
            prompt_end: String::new(),
            fields,
            truncated: false,
            reward: None,
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
    fn whole_numbers_are_exact_unless_a_tolerance_is_configured() {
        let score = |tolerance: Option<f64>, response: &str, label: Value| {
            let numeric = Numeric::new(NumericMatch { tolerance, ..NumericMatch::default() }).unwrap();
            numeric.score(&input(response, label)).unwrap()
        };
        assert_eq!(score(None, "1000000006", json!(1_000_000_007)), 0.0);
        assert_eq!(score(Some(1e-6), "1000000006", json!(1_000_000_007)), 1.0);
        assert_eq!(score(None, "0.66666667", json!(2.0 / 3.0)), 1.0);
        assert_eq!(score(None, "<think>42</think> I do not know", json!(42)), 0.0);
        let numeric = Numeric::new(NumericMatch::default()).unwrap();
        let thinking = ScorerInput { prompt_end: "<think>\n".to_owned(), ..input("42 or", json!(42)) };
        assert_eq!(numeric.score(&thinking).unwrap(), 0.0, "the prompt has begun its thoughts");
        let thought = ScorerInput { prompt_end: "<think>\n".to_owned(), ..input("41?</think>42", json!(42)) };
        assert_eq!(numeric.score(&thought).unwrap(), 1.0);
        for label in [json!(true), json!([1]), json!("x = 3 or x = 7")] {
            let numeric = Numeric::new(NumericMatch::default()).unwrap();
            let error = numeric.score(&input("1", label.clone())).unwrap_err();
            assert_eq!(error.reason, types::FailReason::Unsupported);
            assert!(error.detail.contains(&label.to_string()), "{error}");
        }
    }

    #[test]
    fn a_pattern_of_braces_takes_nested_ones() {
        let pattern = || Some(r"\\boxed\{([^}]*)\}".to_owned());
        let numeric = Numeric::new(NumericMatch { pattern: pattern(), ..NumericMatch::default() }).unwrap();
        for (response, label, score) in [
            (r"so \boxed{42}. That took 3 steps", "42", 1.0),
            (r"so \boxed{\frac{3}{4}}", "3/4", 1.0),
            (r"so \boxed{\frac{1}{4}}", "3/4", 0.0),
            (r"so \boxed{\frac{1}{2}}", "1", 0.0),
            (r"<think>\boxed{42}</think> I do not know", "42", 0.0),
            (r"\boxed{42} or \boxed{41}", "42", 0.0),
            (r"\boxed{\text{forty-two}}", "42", 0.0),
        ] {
            assert_eq!(numeric.score(&input(response, json!(label))).unwrap(), score, "{response}");
        }
        let exact = Exact::new(ExactMatch { pattern: pattern(), ..ExactMatch::default() }).unwrap();
        let fraction = input(r"\boxed{\frac{3}{4}}", json!(r"\frac{3}{4}"));
        assert_eq!(exact.score(&fraction).unwrap(), 1.0);
        assert_eq!(exact.score(&input(r"\boxed{42}", json!(42.0))).unwrap(), 1.0);
        let large = "123456789012345678901234567890";
        for (response, label, score) in [
            (r"\boxed{\dfrac{3}{4}}".to_owned(), r"\frac{3}{4}".to_owned(), 1.0),
            (r"\boxed{\tfrac{3}{4}}".to_owned(), r"\dfrac{3}{4}".to_owned(), 1.0),
            (r"\boxed{\dfrac{3}{5}}".to_owned(), r"\frac{3}{4}".to_owned(), 0.0),
            (r"\boxed{ (1, 2) }".to_owned(), "(1,2)".to_owned(), 1.0),
            (r"\boxed{(1, 2)}".to_owned(), "(2, 1)".to_owned(), 0.0),
            (r"\boxed{x  y}".to_owned(), "x y".to_owned(), 1.0),
            (r"\boxed{xy}".to_owned(), "x y".to_owned(), 0.0),
            (format!(r"\boxed{{{large}}}"), large.to_owned(), 1.0),
            (format!(r"\boxed{{{large}}}"), large.replace("890", "891"), 0.0),
        ] {
            let found = exact.score(&input(&response, json!(label))).unwrap();
            assert_eq!(found, score, "{response} {label}");
        }
        let whole = Exact::new(ExactMatch::default()).unwrap();
        assert_eq!(whole.score(&input("(1, 2)", json!("(1,2)"))).unwrap(), 0.0, "a text is no LaTeX");
    }

    /// Each answer of GSM8K's test set, by its own label and by the whole rationale, and by the next row's.
    #[test]
    fn gsm8ks_rationales_have_their_labels_numbers() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/gsm8k_test.jsonl.gz");
        let rows: Vec<Map<String, Value>> =
            service::jsonl::read(&path).unwrap().map(|line| line.unwrap().parse().unwrap()).collect();
        let answers: Vec<&str> = rows.iter().map(|row| row["answer"].as_str().unwrap()).collect();
        let numeric = Numeric::new(NumericMatch::default()).unwrap();
        let score = |response: &str, label: &str| numeric.score(&input(response, json!(label))).unwrap();
        assert_eq!(answers.len(), 1319);
        for (rationale, next) in answers.iter().zip(answers[1..].iter().chain(&answers[..1])) {
            let (label, other) =
                (rationale.rsplit("#### ").next().unwrap(), next.rsplit("#### ").next().unwrap());
            assert_eq!((score(rationale, label), score(rationale, rationale)), (1.0, 1.0), "{rationale}");
            assert_eq!(score(label, rationale), 1.0, "{label}");
            let same = label.replace(',', "") == other.replace(',', "");
            assert_eq!(score(rationale, other), f64::from(u8::from(same)), "{label} {other}");
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
}
