//! Conversations: from the fields of a chat request to what a template renders.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use engine::PromptEncoder;
use model::chat::ToolCall;
use model::{ChatRequest, ChatTemplate};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// Variables of a template that a request sets by fields of their own.
const OWN_FIELDS: [&str; 5] =
    ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];

/// What only the chat interface has.
#[derive(Debug, Deserialize)]
pub(crate) struct ChatFields {
    messages: Vec<Value>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    pub(crate) parallel_tool_calls: Option<bool>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

impl ChatFields {
    /// The alternatives that are wanted beside each token's log-prob, if log-probs are.
    pub(crate) fn wanted_logprobs(&self) -> Option<usize> {
        self.logprobs.unwrap_or(false).then(|| self.top_logprobs.unwrap_or(0))
    }
}

/// What a client was told of a response.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
}

/// A conversation as its template takes it.
#[derive(Debug)]
pub(crate) struct Chat {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    variables: Map<String, Value>,
    add_generation_prompt: bool,
    continue_final_message: bool,
}

impl Chat {
    /// Reads a request for a model with this template.
    pub(crate) fn read(fields: ChatFields, template: Option<&ChatTemplate>) -> Result<Self, ApiError> {
        let ChatFields { mut messages, tools, tool_choice, chat_template_kwargs, .. } = fields;
        if messages.is_empty() {
            return Err(ApiError::bad_request("there is no message", Some("messages")));
        }
        let as_text = template.is_some_and(ChatTemplate::takes_text_arguments);
        for message in messages.iter_mut().filter_map(Value::as_object_mut) {
            plain_content(message)?;
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten();
            for function in calls.filter_map(|call| call.get_mut("function")) {
                shape_arguments(function, as_text)?;
            }
        }
        let variables = chat_template_kwargs.unwrap_or_default();
        if let Some(name) = variables.keys().find(|name| OWN_FIELDS.contains(&name.as_str())) {
            let problem = format!("chat_template_kwargs has {name}, which is a field of the request");
            return Err(ApiError::bad_request(problem, Some("chat_template_kwargs")));
        }
        let continue_final_message = fields.continue_final_message.unwrap_or(false);
        let add_generation_prompt = fields.add_generation_prompt.unwrap_or(!continue_final_message);
        if add_generation_prompt && continue_final_message {
            let problem = "continue_final_message and add_generation_prompt are both true: a response either goes on \
                           with the last message or begins one";
            return Err(ApiError::bad_request(problem, Some("continue_final_message")));
        }
        let tools = chosen_tools(tools, tool_choice.as_ref())?;
        Ok(Self { messages, tools, variables, add_generation_prompt, continue_final_message })
    }

    /// Whether the model is told of tools.
    pub(crate) fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// Its messages.
    pub(crate) fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// What stands behind another conversation and the reply to it, where this one is what a client sends
    /// next.
    pub(crate) fn behind(&self, before: &Self, reply: &Reply) -> Option<&[Value]> {
        let asks_alike = self.tools == before.tools
            && self.variables == before.variables
            && self.add_generation_prompt == before.add_generation_prompt
            && !before.continue_final_message;
        let (answer, behind) = self.messages.strip_prefix(before.messages.as_slice())?.split_first()?;
        (asks_alike && is_reply(answer, reply)).then_some(behind)
    }

    /// Its text with these messages in the place of its own, at the time that templates are told.
    pub(crate) fn render(
        &self,
        encoder: &PromptEncoder,
        messages: &[Value],
        now: SystemTime,
    ) -> anyhow::Result<String> {
        let template = encoder.template().context("the policy has no chat template")?;
        let request = ChatRequest { messages, now: Some(now), ..self.request() };
        Ok(template.render(&request)?)
    }

    fn request(&self) -> ChatRequest<'_> {
        ChatRequest {
            messages: &self.messages,
            tools: self.tools.as_deref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            variables: Some(&self.variables),
            ..ChatRequest::default()
        }
    }

    /// Its tokens.
    pub(crate) fn encode(&self, encoder: &PromptEncoder) -> anyhow::Result<Arc<[u32]>> {
        encoder.encode_chat(&self.request())
    }
}

/// Whether a message is what a client was told, in any of the forms in which clients send it back.
fn is_reply(message: &Value, reply: &Reply) -> bool {
    let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
    message["role"] == "assistant"
        && message["content"] == reply.text.as_str()
        && calls.len() == reply.calls.len()
        && calls.iter().zip(&reply.calls).all(|(call, told)| is_call(&call["function"], told))
}

fn is_call(function: &Value, told: &ToolCall) -> bool {
    let arguments = match &function["arguments"] {
        Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        other => other.clone(),
    };
    function["name"] == told.name.as_str() && arguments.as_object() == Some(&told.arguments)
}

/// The tools that the model is told of: none where the client chooses none.
fn chosen_tools(tools: Option<Vec<Value>>, choice: Option<&Value>) -> Result<Option<Vec<Value>>, ApiError> {
    let tools = tools.filter(|tools| !tools.is_empty());
    if let Some(bad) = tools.iter().flatten().find(|tool| !tool["function"]["name"].is_string()) {
        let problem = format!("a tool has no function with a name: {bad}");
        return Err(ApiError::bad_request(problem, Some("tools")));
    }
    match choice.map(Value::as_str) {
        None | Some(Some("auto")) => Ok(tools),
        Some(Some("none")) => Ok(None),
        Some(_) => {
            let problem =
                "tool_choice is neither \"auto\" nor \"none\": a call cannot be forced; leave it out";
            Err(ApiError::bad_request(problem, Some("tool_choice")))
        }
    }
}

/// The text of a part of a message, if it is one of text.
fn text_of_part(part: &Value) -> Option<&str> {
    if part["type"] == "text" { part["text"].as_str() } else { None }
}

/// A content in parts becomes one text. A message of calls alone has none, and templates expect a text.
fn plain_content(message: &mut Map<String, Value>) -> Result<(), ApiError> {
    let content = message.entry("content").or_insert(Value::Null);
    match content {
        Value::Null => *content = json!(""),
        Value::Array(parts) => {
            let texts: Option<String> = parts.iter().map(text_of_part).collect();
            let texts = texts.ok_or_else(|| {
                ApiError::bad_request("only text is supported in the parts of a message", Some("messages"))
            })?;
            *content = Value::String(texts);
        }
        _ => {}
    }
    Ok(())
}

/// The interface sends a call's arguments as JSON text, and some clients as an object; most templates take
/// the object, some the text.
fn shape_arguments(function: &mut Value, as_text: bool) -> Result<(), ApiError> {
    let object = match function.get("arguments") {
        None => return Ok(()),
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => serde_json::from_str(text).map_err(|error| {
            let message = format!("the arguments of a tool call are no JSON object: {error}");
            ApiError::bad_request(message, Some("messages"))
        })?,
        Some(Value::Object(object)) => object.clone(),
        Some(other) => {
            let message = format!("the arguments of a tool call are no JSON object: {other}");
            return Err(ApiError::bad_request(message, Some("messages")));
        }
    };
    match (&mut function["arguments"], as_text) {
        // The text as it came: it is what the model wrote.
        (Value::String(text), true) if !text.trim().is_empty() => {}
        (arguments, true) => *arguments = Value::String(Value::Object(object).to_string()),
        (arguments, false) => *arguments = Value::Object(object),
    }
    Ok(())
}
