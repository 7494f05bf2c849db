//! What the scorers see of a response.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use model::Tokenizer;
use serde_json::{Map, Value};
use types::{FinishReason, Rollout};

use crate::score_error::ScoreError;

/// A response with its prompt.
#[derive(Debug)]
pub(crate) struct ScorerInput {
    /// `[prompt + response]` token ids; of an episode with what was given between its turns.
    pub(crate) tokens: Arc<[u32]>,
    /// Where the response begins in `tokens`; at least one token precedes it.
    pub(crate) response_start: usize,
    /// The places in `tokens` of what was given between turns, in order; empty for one turn.
    pub(crate) given: Vec<Range<usize>>,
    /// The places in `tokens` where a further sequence begins that saw nothing of what stands in front.
    pub(crate) beginnings: Vec<usize>,
    /// The prompt as text; empty where no scorer reads text.
    pub(crate) prompt: String,
    /// The response as text, special tokens left out; empty where no scorer reads text. Of an episode the
    /// last turn: what the policy answers in the end, and nothing that an environment said.
    pub(crate) response: String,
    /// The text of all turns and of what was said between them, special tokens included; empty for one turn.
    pub(crate) episode: String,
    /// The text of the last tokens in front of that, special ones included; empty where no scorer reads text.
    pub(crate) prompt_end: String,
    /// The data set's line.
    pub(crate) fields: Map<String, Value>,
    /// The response was cut off.
    pub(crate) truncated: bool,
    /// What the environment of an episode said that it is worth.
    pub(crate) reward: Option<f32>,
}

impl ScorerInput {
    /// A rollout, with texts if there is a tokenizer to make them.
    ///
    /// # Errors
    /// Where the rollout's fields are no JSON object, or its tokens are none of the tokenizer's.
    pub(crate) fn of_rollout(rollout: &Rollout, tokenizer: Option<&Tokenizer>) -> Result<Self, ScoreError> {
        let fields = parse_fields(rollout.fields())?;
        let prompt = match fields.get("prompt") {
            Some(Value::String(prompt)) => prompt.clone(),
            // A chat or bare tokens: the text that the policy saw, markers of the template included.
            _ => prompt_text(tokenizer, rollout.prompt_tokens())?,
        };
        let tokens = rollout.sequence();
        let turns = rollout.turns();
        let last = turns.last().map_or(tokens.len(), |turn| turn.start);
        let (before, answer) = tokens.split_at(last);
        let behind = &tokens[rollout.prompt_tokens().len()..];
        let episode = if turns.len() > 1 { prompt_text(tokenizer, behind)? } else { String::new() };
        let end = &before[before.len().saturating_sub(extraction::THOUGHTS_TOKENS)..];
        Ok(Self {
            prompt_end: prompt_text(tokenizer, end)?,
            response: response_text(tokenizer, before, answer)?,
            episode,
            response_start: rollout.prompt_tokens().len(),
            given: turns.windows(2).map(|pair| pair[0].end..pair[1].start).collect(),
            beginnings: rollout.beginnings(),
            tokens: tokens.into(),
            prompt,
            fields,
            truncated: rollout.finish_reason() == FinishReason::Length,
            reward: rollout.reward(),
        })
    }

    /// The response with the mark that begins its thoughts, wherever that stands: what an answer is taken
    /// from.
    pub(crate) fn marked_response(&self) -> Cow<'_, str> {
        extraction::marked(&self.prompt_end, &self.response)
    }

    /// The response as people read it: every turn of an episode.
    pub(crate) fn whole_response(&self) -> &str {
        if self.episode.is_empty() { &self.response } else { &self.episode }
    }

    /// The response's token ids: what the policy drew, in all its turns.
    pub(crate) fn response_tokens(&self) -> Cow<'_, [u32]> {
        let behind = &self.tokens[self.response_start..];
        if self.given.is_empty() { Cow::Borrowed(behind) } else { Cow::Owned(self.drawn(behind.to_vec())) }
    }

    /// The sequences that the policy drew in, each with the place at which its response begins; one where it
    /// is no episode of several.
    pub(crate) fn sequences(&self) -> Vec<(Arc<[u32]>, usize)> {
        if self.beginnings.is_empty() {
            return vec![(Arc::clone(&self.tokens), self.response_start)];
        }
        let begins = std::iter::once(0).chain(self.beginnings.iter().copied());
        let ends = self.beginnings.iter().copied().chain(std::iter::once(self.tokens.len()));
        let places = begins.zip(ends);
        places
            .map(|(begin, end)| {
                let prompt_end = match begin {
                    0 => self.response_start,
                    // What was given there is its prompt.
                    _ => {
                        self.given.iter().find(|given| given.start == begin).map_or(begin, |given| given.end)
                    }
                };
                (self.tokens[begin..end].into(), prompt_end - begin)
            })
            .collect()
    }

    /// Those of some values for the tokens behind the prompt that are of tokens that the policy drew.
    pub(crate) fn drawn<T>(&self, mut values: Vec<T>) -> Vec<T> {
        for given in self.given.iter().rev() {
            values.drain(given.start - self.response_start..given.end - self.response_start);
        }
        values
    }
}

/// The text of a prompt with its special tokens; empty without a tokenizer.
fn prompt_text(tokenizer: Option<&Tokenizer>, prompt: &[u32]) -> Result<String, ScoreError> {
    let Some(tokenizer) = tokenizer else { return Ok(String::new()) };
    tokenizer.decode(prompt, false).map_err(undecodable)
}

/// The text of a response behind its prompt, without special tokens; empty without a tokenizer.
fn response_text(
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    response: &[u32],
) -> Result<String, ScoreError> {
    let Some(tokenizer) = tokenizer else { return Ok(String::new()) };
    tokenizer.response_text(prompt, response, true).map_err(undecodable)
}

fn undecodable(error: model::tokenizer::Error) -> ScoreError {
    ScoreError::error(error.to_string())
}

fn parse_fields(text: &str) -> Result<Map<String, Value>, ScoreError> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    let parsed = serde_json::from_str(text);
    parsed.map_err(|error| ScoreError::error(format!("the prompt's fields are no JSON object: {error}")))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use types::{Observation, PolicyVersion, PromptId, RolloutId, RolloutParts, Span};

    use super::*;

    /// A token for each byte.
    fn tokenizer() -> Tokenizer {
        let special = model::SpecialTokens::default();
        model::tokenizer::train_bpe(std::iter::empty::<&str>(), 256, &special).unwrap()
    }

    /// In the manner of Llama 2: pieces that carry their space, the first of which the decoder takes away.
    fn sentencepiece() -> Tokenizer {
        let mut vocab = serde_json::json!({ "<unk>": 0 });
        for (number, piece) in
            ["\u{2581}", "d", "e", "f", "(", ")", ":", "r", "t", "u", "n", "1"].iter().enumerate()
        {
            vocab[*piece] = (number + 1).into();
        }
        for byte in 0..256 {
            vocab[format!("<0x{byte:02X}>")] = (13 + byte).into();
        }
        let tokenizer = serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
                "vocab": vocab, "merges": [] },
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        Tokenizer::load(folder.path()).unwrap()
    }

    #[test]
    fn the_first_space_of_a_response_is_its_own() {
        let tokenizer = sentencepiece();
        let encode = |text: &str| tokenizer.encode(text, false).unwrap();
        let response = encode("    return 1");
        assert_eq!(tokenizer.decode(&response, true).unwrap(), "   return 1", "such a decoder it is");
        let count = NonZeroU32::new(u32::try_from(response.len()).unwrap()).unwrap();
        let rollout = Rollout::new(RolloutParts {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal: 1 }, sibling: 0, attempt: 0 },
            prompt_tokens: encode("def f():\n").into(),
            rollout_logprobs: vec![-1.0; response.len()],
            response_tokens: response,
            observations: Vec::new(),
            reward: None,
            surviving_mass: None,
            spans: vec![Span { version: PolicyVersion(0), tokens: count }],
            finish_reason: FinishReason::Stop,
            fields: r#"{"prompt": "def f():\n"}"#.into(),
        })
        .unwrap();
        let input = ScorerInput::of_rollout(&rollout, Some(&tokenizer)).unwrap();
        assert_eq!((input.prompt.as_str(), input.response.as_str()), ("def f():\n", "    return 1"));
        assert_eq!(input.whole_response(), input.response);
    }

    #[test]
    fn of_an_episode_scorers_see_what_the_policy_said() {
        let tokenizer = tokenizer();
        let encode = |text: &str| tokenizer.encode(text, false).unwrap();
        let (first, second) = (encode("print(6*7)"), encode(" 42"));
        let tokens = first.len() + second.len();
        let count = NonZeroU32::new(u32::try_from(tokens).unwrap()).unwrap();
        let tool = encode("[41]\n");
        let rollout = Rollout::new(RolloutParts {
            id: RolloutId { prompt: PromptId { epoch: 0, ordinal: 1 }, sibling: 0, attempt: 0 },
            prompt_tokens: encode("6*7?").into(),
            response_tokens: [first.clone(), second.clone()].concat(),
            observations: vec![Observation::new(u32::try_from(first.len()).unwrap(), tool.clone())],
            reward: None,
            rollout_logprobs: vec![-1.0; tokens],
            surviving_mass: None,
            spans: vec![Span { version: PolicyVersion(0), tokens: count }],
            finish_reason: FinishReason::Stop,
            fields: "{}".into(),
        })
        .unwrap();
        let input = ScorerInput::of_rollout(&rollout, Some(&tokenizer)).unwrap();
        assert_eq!((input.prompt.as_str(), input.response.as_str()), ("6*7?", " 42"));
        assert_eq!(input.prompt_end, "?print(6*7)[41]\n");
        assert_eq!(input.whole_response(), "print(6*7)[41]\n 42", "people see all of it");
        assert_eq!(*input.tokens, [encode("6*7?"), first.clone(), tool.clone(), second.clone()].concat());
        assert_eq!(*input.response_tokens(), [first, second].concat());
        assert_eq!(input.sequences(), [(Arc::clone(&input.tokens), input.response_start)]);
        let apart = ScorerInput { beginnings: vec![input.given[0].start], ..input };
        let (one, two) = (
            [encode("6*7?"), encode("print(6*7)")].concat().into(),
            [tool.clone(), encode(" 42")].concat().into(),
        );
        assert_eq!(apart.sequences(), [(one, 4), (two, tool.len())]);
        let input = apart;
        let places: Vec<usize> = (0..input.tokens.len() - input.response_start).collect();
        assert_eq!(input.drawn(places), (0..10).chain(15..18).collect::<Vec<_>>());
    }
}
