//! Examples of messages: the model's chat template around them, as it is when the policy is asked, and its
//! end of a turn as the end of what is learnt.

use model::{ChatRequest, ChatTemplate};
use serde_json::{Value, json};

use super::line::Content;
use super::{Answer, Conversation, ExampleError, ExampleReader, LineResult};
use crate::supervised::config::AssistantTurns;
use crate::supervised::text_encoder::TextEncoder;

/// A template with the tools of a line.
#[derive(Clone, Copy)]
struct Rendering<'a> {
    encoder: &'a TextEncoder,
    template: &'a ChatTemplate,
    tools: Option<&'a [Value]>,
}

impl ExampleReader<'_> {
    fn rendering<'a>(&'a self, tools: Option<&'a [Value]>) -> LineResult<Rendering<'a>> {
        let encoder = self.encoder()?;
        let template = encoder.template.as_ref().ok_or(ExampleError::NoChatTemplate)?;
        Ok(Rendering { encoder, template, tools })
    }

    /// A conversation of which the turns of the assistant are learnt that the configuration names.
    pub(super) fn conversation(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
    ) -> LineResult<Conversation> {
        match self.turns {
            AssistantTurns::Last => Ok(self.last_turn(messages, tools)?.into()),
            AssistantTurns::All => self.rendering(tools)?.every_turn(messages),
        }
    }

    /// The last message is the response to those before it.
    pub(super) fn last_turn(&self, messages: &[Value], tools: Option<&[Value]>) -> LineResult<Answer> {
        match messages.split_last() {
            Some((last, before)) if is_assistant(last) => {
                self.rendering(tools)?.answer(before, std::slice::from_ref(last))
            }
            _ => Err(ExampleError::NotAssistant),
        }
    }

    /// A response to a prompt, each text or messages.
    pub(super) fn answer(
        &self,
        prompt: &Content,
        response: &Content,
        tools: Option<&[Value]>,
    ) -> LineResult<Answer> {
        match (prompt, response) {
            (Content::Text(prompt), Content::Text(response)) => self.plain(prompt, response),
            (prompt, response) => {
                let said = messages_of(response, "assistant");
                self.rendering(tools)?.answer(&messages_of(prompt, "user"), &said)
            }
        }
    }

    /// Two responses to one prompt.
    pub(super) fn pair(
        &self,
        prompt: Option<&Content>,
        chosen: &Content,
        rejected: &Content,
        tools: Option<&[Value]>,
    ) -> LineResult<(Answer, Answer)> {
        if let (Content::Messages(one), Content::Messages(other)) = (chosen, rejected)
            && !(one.first().is_some_and(is_assistant) && other.first().is_some_and(is_assistant))
        {
            let shared = common_prompt(one, other)?;
            let rendering = self.rendering(tools)?;
            return Ok((
                rendering.answer(&one[..shared], &one[shared..])?,
                rendering.answer(&other[..shared], &other[shared..])?,
            ));
        }
        let prompt = prompt.ok_or(ExampleError::NoPair)?;
        Ok((self.answer(prompt, chosen, tools)?, self.answer(prompt, rejected, tools)?))
    }
}

impl Rendering<'_> {
    fn text(&self, messages: &[Value], add_generation_prompt: bool) -> LineResult<String> {
        let request =
            ChatRequest { messages, tools: self.tools, add_generation_prompt, ..ChatRequest::default() };
        Ok(self.template.render(&request)?)
    }

    /// What the assistant says behind `before`.
    fn answer(&self, before: &[Value], said: &[Value]) -> LineResult<Answer> {
        if !said.last().is_some_and(is_assistant) {
            return Err(ExampleError::NotAssistant);
        }
        let prompt = self.text(before, true)?;
        let whole = self.text(&[before, said].concat(), false)?;
        let turn = whole.strip_prefix(&prompt).ok_or(ExampleError::TemplateChangesPrompt)?;
        let tokenizer = &self.encoder.tokenizer;
        let prompt = tokenizer.encode(&prompt, false)?;
        let mut response = tokenizer.encode_response(&prompt, self.encoder.through_end(turn))?;
        self.encoder.end_once(&mut response);
        Answer::new(prompt, response)
    }

    /// All messages, of which every turn of the assistant is learnt, each up to its end.
    fn every_turn(&self, messages: &[Value]) -> LineResult<Conversation> {
        let whole = self.text(messages, false)?;
        let tokenizer = &self.encoder.tokenizer;
        let mut found = Conversation { tokens: Vec::new(), learnt: Vec::new() };
        let mut done = 0;
        for (at, _) in messages.iter().enumerate().filter(|(_, message)| is_assistant(message)) {
            let prompt = self.text(&messages[..at], true)?;
            let through = self.text(&messages[..=at], false)?;
            let turn = through.strip_prefix(&prompt).filter(|_| whole.starts_with(&through));
            let (Some(turn), Some(between)) = (turn, prompt.get(done..)) else {
                return Err(ExampleError::TemplateChangesPrompt);
            };
            let turn = self.encoder.through_end(turn);
            let between = match found.tokens.as_slice() {
                [] => tokenizer.encode(between, false)?,
                before => tokenizer.encode_response(before, between)?,
            };
            found.tokens.extend(between);
            let start = found.tokens.len();
            found.tokens.extend(tokenizer.encode_response(&found.tokens, turn)?);
            if start == 0 {
                return Err(ExampleError::EmptyPrompt);
            }
            found.learnt.push(start..found.tokens.len());
            done = prompt.len() + turn.len();
        }
        let last = found.learnt.last_mut().ok_or(ExampleError::NoAssistant)?;
        self.encoder.end_once(&mut found.tokens);
        last.end = found.tokens.len();
        if found.learnt_tokens() == 0 { Err(ExampleError::EmptyResponse) } else { Ok(found) }
    }
}

fn is_assistant(message: &Value) -> bool {
    message.get("role").and_then(Value::as_str) == Some("assistant")
}

fn messages_of(content: &Content, role: &str) -> Vec<Value> {
    match content {
        Content::Text(text) => vec![json!({"role": role, "content": text})],
        Content::Messages(messages) => messages.clone(),
    }
}

/// How many messages two conversations have in common before the assistant answers.
fn common_prompt(one: &[Value], other: &[Value]) -> LineResult<usize> {
    let equal = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    // Equal answers are an example too, if one without a gradient of its own.
    let shared = equal.min(one.len().saturating_sub(1)).min(other.len().saturating_sub(1));
    let answered = [one, other].iter().all(|side| side.get(shared).is_some_and(is_assistant));
    if shared > 0 && answered { Ok(shared) } else { Err(ExampleError::NoCommonPrompt) }
}
