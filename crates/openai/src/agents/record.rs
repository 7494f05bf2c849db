//! What was drawn and given in one episode, and how calls go on from each other.
//!
//! A call goes on from a sequence where its conversation is the one before with the reply and more behind it,
//! and the chat template writes the text of the sequence's exact tokens in front of what is new (as an
//! environment's turns go on); or where its whole text begins so. The new text alone is encoded. Everything
//! else begins a further sequence: a history that was rewritten, another agent's conversation, two calls that
//! go on from the same place.

use std::sync::Arc;
use std::time::SystemTime;

use engine::{Finished, PromptEncoder};
use model::Tokenizer;
use model::tokenizer::Error;
use serde_json::{Value, json};
use types::{DrawnTurn, EpisodeEnd, FinishReason, PromptContent, RolloutId, Sampling, Turns};

use super::Played;
use crate::chat::{Chat, Reply};
use crate::request::Asked;

/// The sequences of an episode.
#[derive(Debug)]
pub(super) struct Record {
    sequences: Vec<Sequence>,
    most_sequences: usize,
    /// The time that templates are told: one moment, or a day that ends would rewrite the prompt.
    now: SystemTime,
    calls: u32,
    /// How the last call ended.
    last_finish: FinishReason,
}

/// Calls that go on from each other.
#[derive(Debug)]
struct Sequence {
    prompt_tokens: Arc<[u32]>,
    /// Prompt, turns and what was given between them.
    tokens: Vec<u32>,
    /// The text of all of them.
    text: String,
    /// The conversation as it was last, where it is one.
    said: Option<Said>,
    turns: Turns,
}

/// A conversation with its last reply.
#[derive(Debug)]
struct Said {
    chat: Chat,
    reply: Reply,
    /// Its messages with what the policy wrote in the place of what the agent was told, the last included.
    written: Vec<Value>,
}

/// A call, and where it goes on.
#[derive(Debug)]
pub(crate) struct Joined {
    /// What the engine goes on from.
    pub(super) prompt_tokens: Arc<[u32]>,
    /// The sequence, and how many tokens it had.
    behind: Option<(usize, usize)>,
    /// What is new behind it; the whole prompt where it is behind none.
    given: Vec<u32>,
    /// The text of the prompt.
    text: String,
    conversation: Option<Conversation>,
}

/// The conversation of a call, with what the policy wrote in the place of what the agent was told.
#[derive(Debug)]
struct Conversation {
    chat: Chat,
    written: Vec<Value>,
}

/// Why a call cannot be.
#[derive(Debug)]
pub(super) enum Unjoined {
    /// Another sequence would be one too many.
    Full { most: usize },
    /// The prompt cannot be rendered or encoded.
    Unreadable(anyhow::Error),
}

impl From<anyhow::Error> for Unjoined {
    fn from(error: anyhow::Error) -> Self {
        Self::Unreadable(error)
    }
}

impl Record {
    pub(super) fn new(most_sequences: usize, now: SystemTime) -> Self {
        let last_finish = FinishReason::Stop;
        Self { sequences: Vec::new(), most_sequences, now, calls: 0, last_finish }
    }

    /// Where a call goes on.
    pub(super) fn join(&self, encoder: &PromptEncoder, asked: Asked) -> Result<Joined, Unjoined> {
        let joined = match asked {
            Asked::Chat(chat) => self.join_chat(encoder, chat)?,
            Asked::Prompt(PromptContent::Tokens(tokens)) => self.join_tokens(encoder, &tokens)?,
            Asked::Prompt(content) => {
                let text = match &content {
                    PromptContent::Text(text) => text.clone(),
                    PromptContent::Messages(_) | PromptContent::Tokens(_) => String::new(),
                };
                match self.behind_text(&text, false) {
                    Some(number) => self.go_on(encoder, number, text, None)?,
                    None => Joined::alone(encoder.encode(&content)?, text, None),
                }
            }
            Asked::Joined(tokens) => self.join_tokens(encoder, &tokens)?,
        };
        if joined.behind.is_none() && self.sequences.len() >= self.most_sequences {
            return Err(Unjoined::Full { most: self.most_sequences });
        }
        Ok(joined)
    }

    fn join_chat(&self, encoder: &PromptEncoder, chat: Chat) -> anyhow::Result<Joined> {
        // The newest first: of two that are alike it is the one that the agent has heard of last.
        for (number, sequence) in self.sequences.iter().enumerate().rev() {
            let Some(said) = &sequence.said else { continue };
            let Some(behind) = chat.behind(&said.chat, &said.reply) else { continue };
            let written = [&said.written, behind].concat();
            // A template that refuses such messages, or rewrites what came before, does not go on.
            let text = chat.render(encoder, &written, self.now).unwrap_or_default();
            if text.len() > sequence.text.len() && text.starts_with(&sequence.text) {
                return self.go_on(encoder, number, text, Some(Conversation { chat, written }));
            }
        }
        let text = chat.render(encoder, chat.messages(), self.now)?;
        let written = chat.messages().to_vec();
        let conversation = Some(Conversation { chat, written });
        match self.behind_text(&text, true) {
            Some(number) => self.go_on(encoder, number, text, conversation),
            None => {
                // A template writes its special tokens itself.
                let tokens = encoder.tokenizer().encode(&text, false)?;
                Ok(Joined::alone(tokens.into(), text, conversation))
            }
        }
    }

    fn join_tokens(&self, encoder: &PromptEncoder, tokens: &[u32]) -> anyhow::Result<Joined> {
        let behind =
            self.sequences.iter().enumerate().filter(|(_, sequence)| tokens.starts_with(&sequence.tokens));
        let longest = behind.max_by_key(|(_, sequence)| sequence.tokens.len());
        let text = encoder.tokenizer().decode(tokens, false)?;
        Ok(match longest {
            None => Joined::alone(tokens.into(), text, None),
            Some((number, sequence)) => Joined {
                prompt_tokens: tokens.into(),
                behind: Some((number, sequence.tokens.len())),
                given: tokens[sequence.tokens.len()..].to_vec(),
                text,
                conversation: None,
            },
        })
    }

    /// The longest sequence whose text a text begins with.
    fn behind_text(&self, text: &str, is_chat: bool) -> Option<usize> {
        let alike =
            self.sequences.iter().enumerate().filter(|(_, sequence)| {
                sequence.said.is_some() == is_chat && text.starts_with(&sequence.text)
            });
        alike.max_by_key(|(_, sequence)| sequence.text.len()).map(|(number, _)| number)
    }

    /// A call whose text begins with that of a sequence: what is new is encoded behind the exact tokens.
    fn go_on(
        &self,
        encoder: &PromptEncoder,
        number: usize,
        text: String,
        conversation: Option<Conversation>,
    ) -> anyhow::Result<Joined> {
        let sequence = &self.sequences[number];
        let new = &text[sequence.text.len()..];
        let given = match new {
            "" => Vec::new(),
            new => encoder.tokenizer().encode_response(&sequence.tokens, new)?,
        };
        Ok(Joined {
            prompt_tokens: [sequence.tokens.as_slice(), &given].concat().into(),
            behind: Some((number, sequence.tokens.len())),
            given,
            text,
            conversation,
        })
    }

    /// Keeps what was drawn in a call.
    ///
    /// # Errors
    /// When the tokens have no text.
    pub(super) fn keep(
        &mut self,
        tokenizer: &Tokenizer,
        (joined, reply): (Joined, Reply),
        (finished, sampling): (&Finished, &Sampling),
    ) -> Result<(), Error> {
        let Joined { prompt_tokens, behind, given, mut text, conversation } = joined;
        let drawn = &finished.response_tokens;
        let is_ending =
            |token: &u32| tokenizer.eos_ids().contains(token) || sampling.stop_token_ids().contains(token);
        let written = match drawn.split_last() {
            Some((last, before)) if finished.finish_reason == FinishReason::Stop && is_ending(last) => before,
            _ => drawn,
        };
        let content = tokenizer.response_text(&prompt_tokens, written, false)?;
        text.push_str(&tokenizer.response_text(&prompt_tokens, drawn, false)?);
        let said = conversation.map(|Conversation { chat, mut written }| {
            written.push(json!({"role": "assistant", "content": content}));
            Said { chat, reply, written }
        });
        let turn = DrawnTurn {
            tokens: drawn.clone(),
            logprobs: finished.rollout_logprobs.clone(),
            surviving_mass: finished.surviving_mass.clone(),
            spans: finished.spans.clone(),
        };
        self.calls += 1;
        self.last_finish = finished.finish_reason;
        let place = behind.and_then(|(number, length)| {
            // Another call may have gone on from there meanwhile.
            self.sequences.get_mut(number).filter(|sequence| sequence.tokens.len() == length)
        });
        match place {
            Some(sequence) => {
                sequence.tokens.extend_from_slice(&given);
                sequence.tokens.extend_from_slice(drawn);
                (sequence.text, sequence.said) = (text, said);
                sequence.turns.give(&given);
                sequence.turns.draw(turn);
            }
            None => {
                let tokens = [&*prompt_tokens, drawn.as_slice()].concat();
                let mut turns = Turns::default();
                turns.draw(turn);
                self.sequences.push(Sequence { prompt_tokens, tokens, text, said, turns });
            }
        }
        Ok(())
    }

    /// Tokens that were drawn.
    pub(super) fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.turns.tokens()).sum()
    }

    /// The episode that it is, cut off by a bound or not; none where nothing was drawn.
    pub(super) fn finish(
        &mut self,
        id: RolloutId,
        cut: Option<EpisodeEnd>,
        reward: Option<f32>,
    ) -> Option<Played> {
        let sequences = self.sequences.len();
        let mut each = std::mem::take(&mut self.sequences).into_iter();
        let Sequence { prompt_tokens, mut turns, .. } = each.next()?;
        for Sequence { prompt_tokens, turns: further, .. } in each {
            turns.append(&prompt_tokens, further);
        }
        let end = match (cut, self.last_finish) {
            (Some(end), _) => end,
            (None, FinishReason::Length) => EpisodeEnd::Length,
            (None, FinishReason::Stop) => EpisodeEnd::Finished,
        };
        let finish_reason = if end.is_cut() { FinishReason::Length } else { FinishReason::Stop };
        let given_tokens = turns.given_tokens();
        let rollout = turns.into_rollout(id, prompt_tokens, finish_reason, reward);
        Some(Played { rollout, end, calls: self.calls, sequences, given_tokens })
    }
}

impl Joined {
    /// A call that goes on from none.
    fn alone(prompt_tokens: Arc<[u32]>, text: String, conversation: Option<Conversation>) -> Self {
        Self { given: Vec::new(), prompt_tokens, behind: None, text, conversation }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;

    use model::{ChatTemplate, SpecialTokens};
    use types::{PolicyVersion, PromptId, Rollout, Span};

    use super::*;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
                          {% if m.tool_calls %}[calls]{% endif %}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn encoder() -> PromptEncoder {
        let special = SpecialTokens { eos: Some("<|im_end|>".to_owned()), ..SpecialTokens::default() };
        // Words are tokens, so that letters one by one are what no encoder would write.
        let texts = ["hello", "hello", "hello", "hello"];
        let tokenizer = model::tokenizer::train_bpe(texts.iter(), 270, &special).unwrap();
        let template = ChatTemplate::new(CHATML, BTreeMap::new()).unwrap();
        PromptEncoder::new(Arc::new(tokenizer), Some(template))
    }

    fn record() -> Record {
        Record::new(3, SystemTime::UNIX_EPOCH)
    }

    fn chat(encoder: &PromptEncoder, messages: &Value) -> Asked {
        let fields = serde_json::from_value(json!({ "messages": messages })).unwrap();
        Asked::Chat(Chat::read(fields, encoder.template()).unwrap_or_else(|error| panic!("{error:?}")))
    }

    fn text(text: &str) -> Asked {
        Asked::Prompt(PromptContent::Text(text.to_owned()))
    }

    fn told(text: &str) -> Reply {
        Reply { text: text.to_owned(), calls: Vec::new() }
    }

    /// The policy writes a text letter by letter.
    fn letters(encoder: &PromptEncoder, text: &str, ends: bool) -> Finished {
        let tokenizer = encoder.tokenizer();
        let mut tokens: Vec<u32> =
            text.chars().flat_map(|c| tokenizer.encode(&c.to_string(), false).unwrap()).collect();
        tokens.extend(tokenizer.eos_ids().iter().filter(|_| ends));
        let count = NonZeroU32::new(u32::try_from(tokens.len()).unwrap()).unwrap();
        Finished {
            id: 0,
            rollout_logprobs: vec![-1.0; tokens.len()],
            response_tokens: tokens,
            surviving_mass: None,
            top_logprobs: Vec::new(),
            spans: vec![Span { version: PolicyVersion(1), tokens: count }],
            cache_spans: Vec::new(),
            finish_reason: if ends { FinishReason::Stop } else { FinishReason::Length },
            stop_text: None,
        }
    }

    fn keep(record: &mut Record, encoder: &PromptEncoder, call: (Joined, Reply), drawn: &Finished) {
        record.keep(encoder.tokenizer(), call, (drawn, &Sampling::default())).unwrap();
    }

    fn decoded(encoder: &PromptEncoder, tokens: &[u32]) -> String {
        encoder.tokenizer().decode(tokens, false).unwrap()
    }

    fn played(mut record: Record) -> (Rollout, Played) {
        let id = RolloutId { prompt: PromptId { epoch: 0, ordinal: 1 }, sibling: 0, attempt: 0 };
        let played = record.finish(id, None, Some(0.5)).unwrap();
        (Rollout::new(played.rollout.clone()).unwrap(), played)
    }

    #[test]
    fn a_chat_goes_on_from_the_exact_tokens() {
        let (encoder, mut record) = (encoder(), record());
        let mut messages = vec![json!({"role": "user", "content": "hello?"})];
        let first = record.join(&encoder, chat(&encoder, &json!(messages))).unwrap();
        assert!(first.behind.is_none());
        let drawn = letters(&encoder, "hello", true);
        assert_ne!(encoder.tokenizer().encode("hello", false).unwrap(), drawn.response_tokens[..5]);
        let before = [&*first.prompt_tokens, &drawn.response_tokens].concat();
        keep(&mut record, &encoder, (first, told("hello")), &drawn);
        // As the package `openai` sends it back, with fields that say nothing.
        messages.push(json!({"role": "assistant", "content": "hello", "refusal": null}));
        messages.push(json!({"role": "user", "content": "more"}));
        let second = record.join(&encoder, chat(&encoder, &json!(messages))).unwrap();
        assert_eq!(second.behind, Some((0, before.len())));
        assert!(second.prompt_tokens.starts_with(&before), "tokens were encoded again");
        let new = "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(decoded(&encoder, &second.given), new);
        keep(&mut record, &encoder, (second, told("hello")), &letters(&encoder, "hello", false));
        let (rollout, played) = played(record);
        assert_eq!((played.calls, played.sequences, played.end), (2, 1, EpisodeEnd::Length));
        assert_eq!((rollout.beginnings(), rollout.reward()), (vec![], Some(0.5)));
        assert_eq!(rollout.turns().len(), 2);
        let whole = decoded(&encoder, &rollout.sequence());
        assert!(whole.contains("assistant\nhello<|im_end|>\n<|im_start|>user\nmore"), "{whole}");
    }

    #[test]
    fn a_call_that_the_policy_wrote_in_its_own_way_goes_on() {
        let (encoder, mut record) = (encoder(), record());
        let mut messages = vec![json!({"role": "user", "content": "6*7?"})];
        let first = record.join(&encoder, chat(&encoder, &json!(messages))).unwrap();
        let written = "<tool_call>{ \"name\":\"f\",  \"arguments\":{\"x\":1} }</tool_call>";
        let arguments = json!({"x": 1}).as_object().unwrap().clone();
        let call = model::chat::ToolCall { id: None, name: "f".to_owned(), arguments };
        let reply = Reply { text: String::new(), calls: vec![call] };
        keep(&mut record, &encoder, (first, reply), &letters(&encoder, written, true));
        let function = json!({"name": "f", "arguments": "{\"x\": 1}"});
        let call = json!({"id": "call_1", "type": "function", "function": function});
        messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
        messages.push(json!({"role": "tool", "tool_call_id": "call_1", "content": "42"}));
        let second = record.join(&encoder, chat(&encoder, &json!(messages))).unwrap();
        assert!(second.behind.is_some(), "the template would have written the call otherwise");
        assert!(decoded(&encoder, &second.prompt_tokens).contains(written));
        // Another call than the one that was made is another history.
        messages[1]["tool_calls"][0]["function"]["arguments"] = json!("{\"x\": 2}");
        assert!(record.join(&encoder, chat(&encoder, &json!(messages))).unwrap().behind.is_none());
    }

    #[test]
    fn what_does_not_go_on_is_a_further_sequence() {
        let (encoder, mut record) = (encoder(), record());
        let question = json!([{"role": "user", "content": "hello?"}]);
        let (one, other) = (
            record.join(&encoder, chat(&encoder, &question)).unwrap(),
            record.join(&encoder, chat(&encoder, &question)).unwrap(),
        );
        let prompt = one.prompt_tokens.clone();
        keep(&mut record, &encoder, (one, told("a")), &letters(&encoder, "a", true));
        // Begun at the same time: two answers to one question, neither of which saw the other.
        keep(&mut record, &encoder, (other, told("b")), &letters(&encoder, "b", true));
        let summary = json!([{"role": "user", "content": "in short: a"}]);
        let third = record.join(&encoder, chat(&encoder, &summary)).unwrap();
        keep(&mut record, &encoder, (third, told("c")), &letters(&encoder, "c", true));
        let fourth = json!([{"role": "user", "content": "in shorter"}]);
        let refused = record.join(&encoder, chat(&encoder, &fourth)).unwrap_err();
        assert!(matches!(refused, Unjoined::Full { most: 3 }), "{refused:?}");
        assert_eq!(record.tokens(), 6);
        let (rollout, played) = played(record);
        assert_eq!((played.calls, played.sequences, played.end), (3, 3, EpisodeEnd::Finished));
        let turn = prompt.len() + 2;
        assert_eq!(rollout.beginnings(), [turn, 2 * turn]);
        let sequence = rollout.sequence();
        assert!(sequence.starts_with(&prompt) && sequence[turn..].starts_with(&prompt));
    }

    #[test]
    fn texts_and_tokens_go_on_too() {
        let (encoder, mut record) = (encoder(), record());
        let first = record.join(&encoder, text("6*7 is ")).unwrap();
        let drawn = letters(&encoder, "hello", false);
        let before = [&*first.prompt_tokens, &drawn.response_tokens].concat();
        keep(&mut record, &encoder, (first, told("hello")), &drawn);
        let second = record.join(&encoder, text("6*7 is hello and ")).unwrap();
        assert_eq!(
            (second.behind, decoded(&encoder, &second.given).as_str()),
            (Some((0, before.len())), " and ")
        );
        // With nothing in between the policy goes on with its turn.
        let on = record.join(&encoder, text("6*7 is hello")).unwrap();
        assert_eq!((on.behind, on.given.len(), &*on.prompt_tokens), (Some((0, before.len())), 0, &*before));
        let tokens = [before.as_slice(), &[7]].concat();
        let third = record.join(&encoder, Asked::Prompt(PromptContent::Tokens(tokens.clone()))).unwrap();
        assert_eq!((third.behind, third.given), (Some((0, before.len())), vec![7]));
        let other =
            record.join(&encoder, Asked::Prompt(PromptContent::Tokens(tokens[1..].to_vec()))).unwrap();
        assert!(other.behind.is_none());
    }
}
