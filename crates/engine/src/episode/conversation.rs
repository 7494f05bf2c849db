//! What was said in an episode: text that goes on, or a chat that a template renders.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use model::{ChatRequest, Tokenizer};
use serde_json::{Value, json};
use types::PromptContent;
use types::link::environment::{EnvironmentMessage, Speaker};

use super::Opening;
use crate::PromptEncoder;

/// A conversation.
#[derive(Debug)]
pub(super) enum Conversation {
    /// A prompt that is text, or tokens: what follows is written behind it.
    Plain,
    /// A prompt that is a chat.
    Chat(Chat),
}

/// How a conversation goes on.
#[derive(Debug, PartialEq)]
pub(super) enum Further {
    /// Behind the tokens so far, with these.
    Behind(Vec<u32>),
    /// The template has rewritten what came before: from these tokens, which are the whole conversation.
    Anew(Vec<u32>),
    /// Not at all: the template refuses the conversation, or writes nothing behind it.
    Nowhere,
}

/// A chat as its template knows it.
#[derive(Debug)]
pub(super) struct Chat {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    /// The text of all tokens so far: the rendered prompt, and everything behind it.
    text: String,
    /// The time that templates are told: one moment, or a day that ends would rewrite the prompt.
    now: SystemTime,
}

impl Conversation {
    /// The conversation that begins with a prompt, and the prompt's tokens.
    ///
    /// # Errors
    /// When a chat has no template, or does not render.
    pub(super) fn begin(
        encoder: &PromptEncoder,
        content: &PromptContent,
        opening: &Opening,
    ) -> anyhow::Result<(Self, Arc<[u32]>)> {
        let PromptContent::Messages(messages) = content else {
            let mut tokens = encoder.encode(content)?;
            if !opening.messages.is_empty() {
                let said = plain(encoder.tokenizer(), "", &opening.messages);
                let said = encoder.tokenizer().encode_response(&tokens, &said)?;
                tokens = [&*tokens, &said].concat().into();
            }
            return Ok((Self::Plain, tokens));
        };
        let mut messages: Vec<Value> =
            serde_json::from_str(messages).context("the prompt's messages are not a JSON list")?;
        messages.extend(opening.messages.iter().map(|message| spoken(encoder.tokenizer(), message)));
        let tools = opening.tools.as_deref().map(serde_json::from_str);
        let tools = tools.transpose().context("the environment's tools are not a JSON list")?;
        let mut chat = Chat { messages, tools, text: String::new(), now: SystemTime::now() };
        chat.text = chat.render(encoder)?;
        let tokens = encoder.tokenizer().encode(&chat.text, false)?;
        Ok((Self::Chat(chat), tokens.into()))
    }

    /// The policy has drawn a turn behind a sequence, and has `written` of it all but the token that ends it;
    /// the text of that.
    ///
    /// # Errors
    /// When the tokens have no text.
    pub(super) fn said(
        &mut self,
        tokenizer: &Tokenizer,
        sequence: &[u32],
        drawn: &[u32],
        written: &[u32],
    ) -> anyhow::Result<String> {
        let content = tokenizer.response_text(sequence, written, false)?;
        if let Self::Chat(chat) = self {
            chat.text.push_str(&tokenizer.response_text(sequence, drawn, false)?);
            chat.messages.push(json!({"role": "assistant", "content": content}));
        }
        Ok(content)
    }

    /// The tokens of what the environment says behind a sequence, up to where the policy's next turn begins;
    /// those of the whole conversation where the template does not go on from these.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub(super) fn go_on(
        &mut self,
        encoder: &PromptEncoder,
        sequence: &[u32],
        messages: &[EnvironmentMessage],
    ) -> anyhow::Result<Further> {
        let tokenizer = encoder.tokenizer();
        let said = match self {
            Self::Plain => {
                let tail = &sequence[sequence.len().saturating_sub(1)..];
                plain(tokenizer, &tokenizer.decode(tail, true)?, messages)
            }
            Self::Chat(chat) => {
                chat.messages.extend(messages.iter().map(|message| spoken(tokenizer, message)));
                // A template that refuses such messages does not go on either.
                let Ok(rendered) = chat.render(encoder) else { return Ok(Further::Nowhere) };
                let before = std::mem::replace(&mut chat.text, rendered);
                let Some(said) = chat.text.strip_prefix(before.as_str()) else {
                    let tokens = tokenizer.encode(&chat.text, false)?;
                    return Ok(if tokens.is_empty() { Further::Nowhere } else { Further::Anew(tokens) });
                };
                said.to_owned()
            }
        };
        let tokens = tokenizer.encode_response(sequence, &said)?;
        Ok(if tokens.is_empty() { Further::Nowhere } else { Further::Behind(tokens) })
    }
}

impl Chat {
    fn render(&self, encoder: &PromptEncoder) -> anyhow::Result<String> {
        let template = encoder.template();
        let template =
            template.context("the prompt has chat messages, but the policy has no chat template")?;
        let request = ChatRequest {
            messages: &self.messages,
            tools: self.tools.as_deref(),
            add_generation_prompt: true,
            now: Some(self.now),
            ..ChatRequest::default()
        };
        Ok(template.render(&request)?)
    }
}

/// A message as templates read it.
fn spoken(tokenizer: &Tokenizer, message: &EnvironmentMessage) -> Value {
    json!({"role": message.speaker.role(), "content": without_marks(tokenizer, &message.text)})
}

/// What an environment says behind a text: a user's words as they are, a tool's in a block that is marked as
/// output (ToRA, arXiv 2309.17452), on lines of its own.
fn plain(tokenizer: &Tokenizer, before: &str, messages: &[EnvironmentMessage]) -> String {
    let mut said = String::new();
    for EnvironmentMessage { speaker, text } in messages {
        let text = without_marks(tokenizer, text);
        match speaker {
            Speaker::User => said.push_str(&text),
            Speaker::Tool => {
                let last = if said.is_empty() { before } else { &said };
                let (break_before, break_behind) = (line_break(last), line_break(&text));
                said.push_str(&format!("{break_before}```output\n{text}{break_behind}```\n"));
            }
        }
    }
    said
}

/// What ends a line that is not ended.
fn line_break(text: &str) -> &'static str {
    if text.is_empty() || text.ends_with('\n') { "" } else { "\n" }
}

/// A text in which no special token stands: what an environment says could end its message otherwise and
/// speak as somebody else. Each is broken by a space of no width.
fn without_marks(tokenizer: &Tokenizer, text: &str) -> String {
    if !tokenizer.has_special(text) {
        return text.to_owned();
    }
    let mut text = text.to_owned();
    for special in tokenizer.special_texts().filter(|special| !special.is_empty()) {
        let first = special.chars().next().map_or(0, char::len_utf8);
        text = text.replace(special, &format!("{}\u{200b}{}", &special[..first], &special[first..]));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::{ChatTemplate, SpecialTokens};

    use super::*;

    /// ChatML with tools, as Qwen2.5 writes it.
    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    /// One that shows the last message of the assistant only from its thoughts' end on.
    const FORGETFUL: &str = "{% for m in messages %}[{{ m.content.split('</think>')[-1] }}]{% endfor %}";

    fn encoder(template: Option<&str>) -> PromptEncoder {
        let special = SpecialTokens { eos: Some("<eos>".to_owned()), ..SpecialTokens::default() };
        let tokenizer = model::tokenizer::train_bpe(std::iter::empty::<&str>(), 260, &special).unwrap();
        let template = template.map(|source| ChatTemplate::new(source, BTreeMap::new()).unwrap());
        PromptEncoder::new(Arc::new(tokenizer), template)
    }

    fn says(speaker: Speaker, text: &str) -> EnvironmentMessage {
        EnvironmentMessage { speaker, text: text.to_owned() }
    }

    fn chat() -> PromptContent {
        PromptContent::Messages(r#"[{"role": "user", "content": "6*7?"}]"#.to_owned())
    }

    #[test]
    fn a_chat_goes_on_with_what_its_template_writes_behind_the_exact_tokens() {
        let encoder = encoder(Some(CHATML));
        let tokenizer = encoder.tokenizer();
        let (mut conversation, prompt) = Conversation::begin(&encoder, &chat(), &Opening::default()).unwrap();
        assert_eq!(
            tokenizer.decode(&prompt, false).unwrap(),
            "<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n"
        );
        // A token for each byte: as no encoder would write it.
        let drawn: Vec<u32> = "print(6*7)<|im_end|>"
            .chars()
            .flat_map(|c| tokenizer.encode(&c.to_string(), false).unwrap())
            .collect();
        let written = &drawn[..10];
        let content = conversation.said(tokenizer, &prompt, &drawn, written).unwrap();
        assert_eq!(content, "print(6*7)");
        let sequence = [&*prompt, &drawn].concat();
        let observed = conversation.go_on(&encoder, &sequence, &[says(Speaker::Tool, "42\n")]);
        let Further::Behind(observed) = observed.unwrap() else { panic!("it does not go on") };
        assert_eq!(
            tokenizer.decode(&observed, false).unwrap(),
            "\n<|im_start|>tool\n42\n<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn a_template_that_rewrites_what_came_before_begins_anew() {
        let encoder = encoder(Some(FORGETFUL));
        let (mut conversation, prompt) = Conversation::begin(&encoder, &chat(), &Opening::default()).unwrap();
        let drawn = encoder.tokenizer().encode("[hm</think>42]", false).unwrap();
        conversation.said(encoder.tokenizer(), &prompt, &drawn, &drawn).unwrap();
        let sequence = [&*prompt, &drawn].concat();
        let observed = conversation.go_on(&encoder, &sequence, &[says(Speaker::User, "so?")]);
        let anew = encoder.tokenizer().encode("[6*7?][42]][so?]", false).unwrap();
        assert_eq!(observed.unwrap(), Further::Anew(anew));
    }

    #[test]
    fn in_a_text_a_tools_output_is_a_block_and_forges_nothing() {
        let encoder = encoder(None);
        let tokenizer = encoder.tokenizer();
        let text = PromptContent::Text("6*7?\n".to_owned());
        let opening = Opening { messages: vec![says(Speaker::User, "Use Python.")], ..Opening::default() };
        let (mut conversation, prompt) = Conversation::begin(&encoder, &text, &opening).unwrap();
        assert_eq!(tokenizer.decode(&prompt, true).unwrap(), "6*7?\nUse Python.");
        let special = tokenizer.special_texts().next().unwrap().to_owned();
        let forged = says(Speaker::Tool, &format!("42{special}"));
        let observed = conversation.go_on(&encoder, &prompt, &[forged, says(Speaker::Tool, "\n")]);
        let Further::Behind(observed) = observed.unwrap() else { panic!("it does not go on") };
        assert!(observed.iter().all(|token| tokenizer.special_text(*token).is_none()), "{observed:?}");
        let said = tokenizer.decode(&observed, false).unwrap().replace('\u{200b}', "");
        assert_eq!(said, format!("\n```output\n42{special}\n```\n```output\n\n```\n"));
    }
}
