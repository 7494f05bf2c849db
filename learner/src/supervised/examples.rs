//! Lines of JSON to token sequences.

mod chat;
mod error;
mod line;

use std::cell::Cell;
use std::iter::once;
use std::ops::Range;
use std::path::Path;

use tracing::warn;

use super::config::{AssistantTurns, TrainingConfig};
use super::mixture::{ExampleSource, Portion};
use super::report::ExampleCounts;
use super::text_encoder::TextEncoder;
use crate::error::{Error, Result};
use crate::lines;
pub(crate) use error::ExampleError;
use error::LineResult;
use line::{Content, ExampleLine};

/// A prompt and a response to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) prompt: Vec<u32>,
    pub(crate) response: Vec<u32>,
}

/// Tokens of which some are to be learnt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conversation {
    pub(crate) tokens: Vec<u32>,
    /// What is learnt of them, in order.
    pub(crate) learnt: Vec<Range<usize>>,
}

/// Two responses to one prompt, the first preferred.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PreferencePair {
    pub(crate) chosen: Answer,
    pub(crate) rejected: Answer,
    /// How much better the first is known to be.
    pub(crate) margin: f32,
}

/// A response that is wanted or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelledAnswer {
    pub(crate) answer: Answer,
    pub(crate) desirable: bool,
}

/// What an objective reads of a line.
pub(crate) trait Example: Sized {
    /// The example of a line.
    ///
    /// # Errors
    /// Fields that are missing or cannot be used.
    fn parse(reader: &ExampleReader<'_>, line: ExampleLine) -> LineResult<Self>;

    /// Tokens of its longest sequence.
    fn tokens(&self) -> usize;

    /// Tokens of all its sequences, and those of them that the objective is about.
    fn sizes(&self) -> Sizes;
}

/// How many tokens there are, and how many of them an objective is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) tokens: usize,
    pub(crate) learnt: usize,
}

impl Sizes {
    fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.learnt += other.learnt;
    }
}

/// Reads files of examples.
#[derive(Debug)]
pub(crate) struct ExampleReader<'a> {
    encoder: Option<&'a TextEncoder>,
    training: &'a TrainingConfig,
    turns: AssistantTurns,
    /// Whether a line was plain text, which no chat template is put around.
    has_plain_text: Cell<bool>,
}

/// Examples of one file, or of several.
#[derive(Debug)]
pub(crate) struct Examples<T> {
    pub(crate) examples: Vec<T>,
    /// Which of them are of which file.
    pub(crate) portions: Vec<Portion>,
    /// How many more were longer than allowed.
    pub(crate) too_long: usize,
    /// Of the examples.
    pub(crate) sizes: Sizes,
}

impl<T> Examples<T> {
    pub(crate) fn counts(&self) -> ExampleCounts {
        let Sizes { tokens, learnt } = self.sizes;
        ExampleCounts { used: self.examples.len(), too_long: self.too_long, tokens, learnt }
    }
}

impl<'a> ExampleReader<'a> {
    /// A reader that learns every turn of the assistant.
    pub(crate) fn new(encoder: Option<&'a TextEncoder>, training: &'a TrainingConfig) -> Self {
        Self { encoder, training, turns: AssistantTurns::All, has_plain_text: Cell::new(false) }
    }

    /// The same, with these turns of the assistant.
    pub(crate) fn with_turns(self, turns: AssistantTurns) -> Self {
        Self { turns, ..self }
    }

    /// Reads the examples of a file, or of several. Those longer than allowed are left out, and counted.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is no example, a file without any that is short enough.
    pub(crate) fn read<T: Example>(&self, source: ExampleSource<'_>) -> Result<Examples<T>> {
        let mut found =
            Examples { examples: Vec::new(), portions: Vec::new(), too_long: 0, sizes: Sizes::default() };
        for (path, times) in source.files() {
            let before = found.examples.len();
            self.read_file(path, &mut found)?;
            found.portions.push(Portion { examples: before..found.examples.len(), times });
        }
        Ok(found)
    }

    fn read_file<T: Example>(&self, path: &Path, found: &mut Examples<T>) -> Result<()> {
        let max_length = self.training.max_length;
        let (before, too_long_before) = (found.examples.len(), found.too_long);
        self.has_plain_text.set(false);
        lines::read(path, |line: ExampleLine| {
            let example = T::parse(self, line)?;
            if example.tokens() > max_length {
                found.too_long += 1;
            } else {
                found.sizes.add(example.sizes());
                found.examples.push(example);
            }
            Ok::<(), ExampleError>(())
        })?;
        let (path_shown, too_long) = (path.display(), found.too_long - too_long_before);
        if too_long > 0 {
            warn!(path = %path_shown, too_long, max_length, "examples left out");
        }
        if self.has_plain_text.get() && self.encoder.is_some_and(|encoder| encoder.template.is_some()) {
            warn!(
                path = %path_shown,
                "prompts are plain text and are taken as they stand, although the model has a chat template: give \
                 them as messages if the model is to be used as a chat"
            );
        }
        if found.examples.len() == before {
            let problem = match too_long {
                0 => "the file has no example".to_owned(),
                _ => format!(
                    "each of its {too_long} examples has more than training.max_length = {max_length} tokens"
                ),
            };
            return Err(Error::line(path, 1, problem));
        }
        Ok(())
    }

    fn encoder(&self) -> LineResult<&TextEncoder> {
        self.encoder.ok_or(ExampleError::NoTokenizer)
    }

    /// The tokens of a prompt, as the actors encode it.
    fn prompt(&self, text: &str) -> LineResult<Vec<u32>> {
        self.has_plain_text.set(true);
        Ok(self.encoder()?.tokenizer.encode(text, true)?)
    }

    /// The tokens of a response to a prompt, as an actor would draw them, its end included once.
    fn response(&self, prompt: &[u32], text: &str) -> LineResult<Vec<u32>> {
        let encoder = self.encoder()?;
        let mut tokens = encoder.tokenizer.encode_response(prompt, text)?;
        encoder.end_once(&mut tokens);
        Ok(tokens)
    }

    /// A text in answer to a text.
    fn plain(&self, prompt: &str, response: &str) -> LineResult<Answer> {
        let prompt = self.prompt(prompt)?;
        let response = self.response(&prompt, response)?;
        Answer::new(prompt, response)
    }
}

impl Answer {
    fn new(prompt: Vec<u32>, response: Vec<u32>) -> LineResult<Self> {
        if prompt.is_empty() {
            return Err(ExampleError::EmptyPrompt);
        }
        if response.is_empty() {
            return Err(ExampleError::EmptyResponse);
        }
        Ok(Self { prompt, response })
    }

    fn tokens(&self) -> usize {
        self.prompt.len() + self.response.len()
    }

    fn sizes(&self) -> Sizes {
        Sizes { tokens: self.tokens(), learnt: self.response.len() }
    }
}

impl Conversation {
    /// Number of tokens that are learnt.
    fn learnt_tokens(&self) -> usize {
        self.learnt.iter().map(Range::len).sum()
    }
}

impl From<Answer> for Conversation {
    fn from(Answer { prompt, response }: Answer) -> Self {
        let tokens = [prompt.as_slice(), &response].concat();
        Self { learnt: once(prompt.len()..tokens.len()).collect(), tokens }
    }
}

impl Example for Conversation {
    fn parse(reader: &ExampleReader<'_>, line: ExampleLine) -> LineResult<Self> {
        match line {
            ExampleLine { prompt_tokens: Some(prompt), response_tokens: Some(response), .. } => {
                Ok(Answer::new(prompt, response)?.into())
            }
            ExampleLine { messages: Some(messages), tools, .. } => {
                reader.conversation(&messages, tools.as_deref())
            }
            ExampleLine { prompt: Some(prompt), response: Some(response), tools, .. } => {
                Ok(reader.answer(&prompt, &response, tools.as_deref())?.into())
            }
            _ => Err(ExampleError::NoAnswer),
        }
    }

    fn tokens(&self) -> usize {
        self.tokens.len()
    }

    fn sizes(&self) -> Sizes {
        Sizes { tokens: self.tokens.len(), learnt: self.learnt_tokens() }
    }
}

impl Example for PreferencePair {
    fn parse(reader: &ExampleReader<'_>, line: ExampleLine) -> LineResult<Self> {
        let margin = line.margin.unwrap_or(0.0);
        if !margin.is_finite() {
            return Err(ExampleError::Margin(margin));
        }
        let (chosen, rejected) = match line {
            ExampleLine {
                prompt_tokens: Some(prompt),
                chosen_tokens: Some(chosen),
                rejected_tokens: Some(rejected),
                ..
            } => (Answer::new(prompt.clone(), chosen)?, Answer::new(prompt, rejected)?),
            ExampleLine {
                chosen: Some(chosen), rejected: Some(rejected), prompt, messages, tools, ..
            } => {
                // `messages` beside messages is the chosen conversation once more (ultrafeedback_binarized).
                let prompt = match (&chosen, prompt, messages) {
                    (Content::Text(_), None, Some(messages)) => Some(Content::Messages(messages)),
                    (_, prompt, _) => prompt,
                };
                reader.pair(prompt.as_ref(), &chosen, &rejected, tools.as_deref())?
            }
            _ => return Err(ExampleError::NoPair),
        };
        Ok(Self { chosen, rejected, margin })
    }

    fn tokens(&self) -> usize {
        self.chosen.tokens().max(self.rejected.tokens())
    }

    fn sizes(&self) -> Sizes {
        let mut sizes = self.chosen.sizes();
        sizes.add(self.rejected.sizes());
        sizes
    }
}

impl Example for LabelledAnswer {
    fn parse(reader: &ExampleReader<'_>, line: ExampleLine) -> LineResult<Self> {
        let desirable =
            line.label.as_ref().and_then(serde_json::Value::as_bool).ok_or(ExampleError::NoLabel)?;
        let answer = match line {
            ExampleLine { prompt_tokens: Some(prompt), response_tokens: Some(response), .. } => {
                Answer::new(prompt, response)?
            }
            ExampleLine { messages: Some(messages), tools, .. } => {
                reader.last_turn(&messages, tools.as_deref())?
            }
            ExampleLine { prompt: Some(prompt), response: Some(response), tools, .. } => {
                reader.answer(&prompt, &response, tools.as_deref())?
            }
            _ => return Err(ExampleError::NoAnswer),
        };
        Ok(Self { answer, desirable })
    }

    fn tokens(&self) -> usize {
        self.answer.tokens()
    }

    fn sizes(&self) -> Sizes {
        self.answer.sizes()
    }
}

#[cfg(test)]
mod tests {
    use model::tokenizer::train_bpe;
    use model::{ChatTemplate, SpecialTokens};
    use serde_json::{Value, json};

    use super::*;

    /// ChatML, the shape of many templates: a line break behind each end of turn.
    const CHAT: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn encoder(template: Option<&str>) -> TextEncoder {
        let special = SpecialTokens {
            eos: Some("<|im_end|>".to_owned()),
            additional: vec!["<|im_start|>".to_owned()],
            ..SpecialTokens::default()
        };
        let tokenizer = train_bpe(["user system assistant a b c d"].iter(), 300, &special).unwrap();
        let eos = tokenizer.eos_ids().first().copied();
        let template =
            template.map(|template| ChatTemplate::new(template, tokenizer.special().clone()).unwrap());
        TextEncoder { tokenizer, template, eos }
    }

    fn parse<T: Example>(encoder: &TextEncoder, turns: AssistantTurns, line: Value) -> LineResult<T> {
        let training = TrainingConfig::default();
        let reader = ExampleReader::new(Some(encoder), &training).with_turns(turns);
        T::parse(&reader, serde_json::from_value(line).unwrap())
    }

    fn said(role: &str, content: &str) -> Value {
        json!({"role": role, "content": content})
    }

    #[test]
    fn plain_text_is_warned_of_where_there_is_a_chat_template() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("examples.jsonl");
        let said_of = |encoder: &TextEncoder, line: &Value| {
            std::fs::write(&file, format!("{line}\n")).unwrap();
            let log = tempfile::NamedTempFile::new().unwrap();
            let subscriber =
                tracing_subscriber::fmt().with_ansi(false).with_writer(log.reopen().unwrap()).finish();
            let training = TrainingConfig::default();
            let read = || {
                let reader = ExampleReader::new(Some(encoder), &training);
                reader.read::<Conversation>(ExampleSource::file(&file)).unwrap()
            };
            let found = tracing::subscriber::with_default(subscriber, read);
            assert_eq!(found.examples.len(), 1);
            std::fs::read_to_string(log.path()).unwrap()
        };
        let plain = json!({"prompt": "a", "response": " b"});
        let chat = json!({"messages": [said("user", "a"), said("assistant", "b")]});
        let warning = said_of(&encoder(Some(CHAT)), &plain);
        assert!(warning.contains("WARN") && warning.contains("prompts are plain text"), "{warning}");
        assert!(warning.contains("examples.jsonl"), "{warning}");
        assert_eq!(said_of(&encoder(Some(CHAT)), &chat), "");
        assert_eq!(said_of(&encoder(None), &plain), "", "nothing else could be meant");
    }

    #[test]
    fn a_response_ends_once() {
        let encoder = encoder(None);
        let training = TrainingConfig::default();
        let reader = ExampleReader::new(Some(&encoder), &training);
        let (prompt, eos) = (reader.prompt("a").unwrap(), encoder.eos.unwrap());
        let plain = reader.response(&prompt, " b").unwrap();
        assert_eq!((plain.last(), plain[..plain.len() - 1].contains(&eos)), (Some(&eos), false));
        assert_eq!(reader.response(&prompt, " b<|im_end|>").unwrap(), plain);
        assert_eq!(reader.response(&prompt, "").unwrap(), [eos]);
    }

    #[test]
    fn every_turn_of_the_assistant_is_learnt_up_to_its_end_and_nothing_else() {
        let encoder = encoder(Some(CHAT));
        let messages = json!({"messages": [
            said("system", "s"), said("user", "a"), said("assistant", "b c"), said("user", "d"),
            said("assistant", "a b"),
        ]});
        let found: Conversation = parse(&encoder, AssistantTurns::All, messages.clone()).unwrap();
        let text = |tokens: &[u32]| encoder.tokenizer.decode(tokens, false).unwrap();
        let learnt: Vec<String> = found.learnt.iter().map(|turn| text(&found.tokens[turn.clone()])).collect();
        assert_eq!(learnt, ["b c<|im_end|>", "a b<|im_end|>"]);
        let whole = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb \
                     c<|im_end|>\n<|im_start|>user\nd<|im_end|>\n<|im_start|>assistant\na b<|im_end|>";
        assert_eq!(text(&found.tokens), whole, "the line break behind the last end is never drawn");
        assert_eq!(found.sizes().learnt, found.learnt.iter().map(Range::len).sum::<usize>());
        // The last turn alone is the same tokens with one stretch less.
        let last: Conversation = parse(&encoder, AssistantTurns::Last, messages).unwrap();
        assert_eq!((&last.tokens, last.learnt.as_slice()), (&found.tokens, &found.learnt[1..]));
        // A conversation may end with somebody else.
        let asked = json!({"messages": [said("user", "a"), said("assistant", "b"), said("user", "c")]});
        let found: Conversation = parse(&encoder, AssistantTurns::All, asked.clone()).unwrap();
        assert!(text(&found.tokens).ends_with("assistant\nb<|im_end|>"));
        assert!(parse::<Conversation>(&encoder, AssistantTurns::Last, asked).is_err());
        let nothing = json!({"messages": [said("user", "a")]});
        let error = parse::<Conversation>(&encoder, AssistantTurns::All, nothing).unwrap_err();
        assert!(matches!(error, ExampleError::NoAssistant), "{error}");
    }

    #[test]
    fn a_template_without_an_end_of_turn_ends_once() {
        let encoder = encoder(Some(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}\
             assistant: {% endif %}",
        ));
        let messages = json!({"messages": [said("user", "a"), said("assistant", "b")]});
        let found: Conversation = parse(&encoder, AssistantTurns::All, messages).unwrap();
        let eos = encoder.eos.unwrap();
        assert_eq!(found.tokens.iter().filter(|token| **token == eos).count(), 1);
        assert_eq!(found.learnt[0].end, found.tokens.len());
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_is_told_and_its_last_turn_can_be_learnt() {
        let encoder = encoder(Some(
            "{% for m in messages %}{{ m.role }}:{% if loop.last %}thought{% endif %}{{ m.content }}<|im_end|>\
             {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        ));
        let messages = json!({"messages": [
            said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d"),
        ]});
        let error = parse::<Conversation>(&encoder, AssistantTurns::All, messages).unwrap_err();
        assert!(error.to_string().contains("assistant_turns"), "{error}");
    }

    #[test]
    fn the_public_shapes_of_pairs_are_one() {
        let encoder = encoder(Some(CHAT));
        let pair = |line: Value| parse::<PreferencePair>(&encoder, AssistantTurns::All, line);
        let (ask, good, bad) = (said("user", "a"), said("assistant", "b"), said("assistant", "c"));
        let expected = pair(json!({"prompt": [ask], "chosen": [good], "rejected": [bad]})).unwrap();
        let text = |tokens: &[u32]| encoder.tokenizer.decode(tokens, false).unwrap();
        assert_eq!(text(&expected.chosen.prompt), "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
        assert_eq!(text(&expected.rejected.response), "c<|im_end|>");
        for line in [
            // As ultrafeedback_binarized has it.
            json!({"prompt": "a", "prompt_id": "x", "messages": [ask, good], "score_chosen": 8.0,
                   "chosen": [ask, good], "rejected": [ask, bad]}),
            json!({"chosen": [ask, good], "rejected": [ask, bad]}),
            json!({"prompt": "a", "chosen": [good], "rejected": [bad]}),
            json!({"prompt": [ask], "chosen": "b", "rejected": "c"}),
            json!({"messages": [ask], "chosen": "b", "rejected": "c"}),
        ] {
            assert_eq!(pair(line.clone()).unwrap(), expected, "{line}");
        }
        let longer =
            json!({"chosen": [ask, good, ask, good], "rejected": [ask, good, ask, bad], "margin": 0.5});
        let longer = pair(longer).unwrap();
        assert_eq!((longer.margin, text(&longer.chosen.response)), (0.5, "b<|im_end|>".to_owned()));

        let refused = |line: Value| pair(line).unwrap_err().to_string();
        let other = said("user", "z");
        assert!(refused(json!({"chosen": [ask, good], "rejected": [other, bad]})).contains("differ"));
        assert!(refused(json!({"chosen": [good], "rejected": [bad]})).contains("\"chosen\": [messages]"));
        assert!(refused(json!({"prompt": "a", "chosen": "b"})).contains("\"prompt_tokens\""));
        let numbers = serde_json::from_value::<ExampleLine>(json!({"chosen": 5})).unwrap_err().to_string();
        assert!(numbers.contains("text or a list of messages"), "{numbers}");
    }
}
