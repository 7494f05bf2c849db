//! Calls of tools in what a model wrote: the formats that chat templates teach, one parser for each.
//!
//! | format | what the model writes | models |
//! |---|---|---|
//! | [`Hermes`](ToolFormat::Hermes) | `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, once for each call | Hermes, Qwen2.5, Qwen3 |
//! | [`Llama`](ToolFormat::Llama) | `{"name": .., "parameters": {..}}` alone, with or without `<\|python_tag\|>`; several with `;` between | Llama 3.1 to 3.3 |
//! | [`Mistral`](ToolFormat::Mistral) | `[TOOL_CALLS][{"name": .., "arguments": {..}}]`, or `[TOOL_CALLS]name{..}` (`name[ARGS]{..}`), once for each call | Mistral, Mixtral |
//! | [`Json`](ToolFormat::Json) | such an object, or a list of them, alone or in a fenced block | everybody else |
//!
//! What looks like a call and cannot be read stays in the content, and [`Parsed::problems`] says what is
//! wrong with it: a policy that learns to call tools writes many of these. Nothing in thoughts is a call.

use serde_json::{Map, Value};

/// Most calls of one message.
const MAX_CALLS: usize = 64;

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolFormat {
    /// In tags, as NousResearch's Hermes and Qwen.
    Hermes,
    /// JSON alone, as Llama 3.
    Llama,
    /// Behind a token of its own, as Mistral.
    Mistral,
    /// JSON alone or in a fence.
    Json,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// The id that the model gave it, where the format has one.
    pub id: Option<String>,
    /// The tool's name.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// What a model wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parsed {
    /// What is no call.
    pub content: String,
    /// The calls, in order.
    pub calls: Vec<ToolCall>,
    /// What is wrong with what looks like a call and is none.
    pub problems: Vec<String>,
}

impl ToolFormat {
    /// The format that the source of a chat template teaches.
    pub(super) fn of_template(source: &str) -> Self {
        if source.contains("[TOOL_CALLS]") {
            Self::Mistral
        } else if source.contains("<tool_call>") {
            Self::Hermes
        } else if source.contains("<|python_tag|>") || source.contains("\"parameters\": ") {
            Self::Llama
        } else {
            Self::Json
        }
    }

    /// Splits what a model wrote, special tokens included, into content and calls.
    pub fn parse(self, text: &str) -> Parsed {
        let (thoughts, answer) = behind_thoughts(text);
        let mut parsed = match self {
            Self::Hermes => hermes(answer),
            Self::Llama => llama(answer),
            Self::Mistral => mistral(answer),
            Self::Json => json(answer),
        };
        if parsed.calls.len() > MAX_CALLS {
            let problem =
                format!("{} calls in one message, at most {MAX_CALLS} are made", parsed.calls.len());
            parsed.problems.push(problem);
            parsed.calls.truncate(MAX_CALLS);
        }
        parsed.content.insert_str(0, thoughts);
        parsed
    }
}

/// Thoughts with their end, and what stands behind them. Thoughts that do not end leave nothing.
fn behind_thoughts(text: &str) -> (&str, &str) {
    const END: &str = "</think>";
    let last = text.rfind(END).map_or(0, |at| at + END.len());
    if text[last..].contains("<think>") { (text, "") } else { text.split_at(last) }
}

fn hermes(text: &str) -> Parsed {
    const BEGIN: &str = "<tool_call>";
    const END: &str = "</tool_call>";
    let mut parsed = Parsed::default();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once(BEGIN) {
        // A response that was stopped at the end of the call has no tag there.
        let (inside, after) = behind.split_once(END).unwrap_or((behind, ""));
        match serde_json::from_str(inside.trim()).map_err(|error| error.to_string()).and_then(call) {
            Ok(call) => {
                parsed.calls.push(call);
                parsed.content.push_str(before.trim_end());
            }
            Err(problem) => {
                parsed.problems.push(problem);
                let whole = rest.len() - after.len();
                parsed.content.push_str(&rest[..whole]);
            }
        }
        rest = after;
    }
    let tail = if parsed.calls.is_empty() { rest } else { rest.trim_end() };
    if !tail.trim().is_empty() || parsed.calls.is_empty() {
        parsed.content.push_str(tail);
    }
    parsed
}

fn llama(text: &str) -> Parsed {
    const TAG: &str = "<|python_tag|>";
    let ends = |text: &str| text.trim_end_matches("<|eom_id|>").trim_end_matches("<|eot_id|>").len();
    let written = text[..ends(text)].trim();
    let (is_tagged, body) = match written.strip_prefix(TAG) {
        Some(body) => (true, body.trim()),
        None => (false, written),
    };
    if !is_tagged && !body.starts_with('{') {
        return of_content(text);
    }
    if body.is_empty() {
        let problem = "there is no call behind the mark".to_owned();
        return Parsed { problems: vec![problem], ..of_content(text) };
    }
    let mut calls = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let found =
            values.next().unwrap_or(Ok(Value::Null)).map_err(|error| error.to_string()).and_then(call);
        match found {
            Ok(call) => calls.push(call),
            Err(problem) => return Parsed { problems: vec![problem], ..of_content(text) },
        }
        rest = rest[values.byte_offset()..].trim_start().trim_start_matches(';').trim_start();
    }
    Parsed { calls, ..Parsed::default() }
}

fn mistral(text: &str) -> Parsed {
    const TAG: &str = "[TOOL_CALLS]";
    let Some((before, behind)) = text.split_once(TAG) else { return of_content(text) };
    let mut calls = Vec::new();
    let mut problems = Vec::new();
    for part in behind.split(TAG) {
        let part = part.trim();
        let part = part.strip_suffix("</s>").unwrap_or(part).trim();
        match mistral_part(part) {
            Ok(found) => calls.extend(found),
            Err(problem) => problems.push(problem),
        }
    }
    let content = if calls.is_empty() { text } else { before.trim_end() };
    Parsed { content: content.to_owned(), calls, problems }
}

/// The calls behind one `[TOOL_CALLS]`.
fn mistral_part(part: &str) -> Result<Vec<ToolCall>, String> {
    if part.starts_with('[') {
        let listed: Vec<Value> = serde_json::from_str(part).map_err(|error| error.to_string())?;
        return listed.into_iter().map(call).collect();
    }
    let begin = part.find('{').ok_or("a call has no arguments")?;
    let (head, arguments) = part.split_at(begin);
    let head = head.strip_suffix("[ARGS]").unwrap_or(head);
    let (name, id) = match head.split_once("[CALL_ID]") {
        Some((name, id)) => (name, Some(id.trim().to_owned())),
        None => (head, None),
    };
    let name = name.trim();
    if name.is_empty() {
        return Err("a call has no name".to_owned());
    }
    let arguments = serde_json::from_str(arguments).map_err(|error| error.to_string())?;
    Ok(vec![ToolCall { id, name: name.to_owned(), arguments }])
}

fn json(text: &str) -> Parsed {
    let body = unfenced(text.trim());
    if !body.starts_with(['{', '[']) {
        return of_content(text);
    }
    let listed = match serde_json::from_str(body) {
        Ok(Value::Array(values)) => values,
        Ok(value) => vec![value],
        Err(error) => return Parsed { problems: vec![error.to_string()], ..of_content(text) },
    };
    match listed.into_iter().map(call).collect::<Result<Vec<_>, _>>() {
        Ok(calls) if !calls.is_empty() => Parsed { calls, ..Parsed::default() },
        Ok(_) => of_content(text),
        Err(problem) => Parsed { problems: vec![problem], ..of_content(text) },
    }
}

/// What a fenced block holds, if the text is one.
fn unfenced(text: &str) -> &str {
    let Some(inside) = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) else {
        return text;
    };
    inside.split_once('\n').map_or(inside, |(_, body)| body).trim()
}

fn of_content(text: &str) -> Parsed {
    Parsed { content: text.to_owned(), ..Parsed::default() }
}

/// A call as an object: `name`, and `arguments` or `parameters`, an object or the text of one.
fn call(value: Value) -> Result<ToolCall, String> {
    let Value::Object(mut fields) = value else { return Err("a call is no object".to_owned()) };
    let name = fields.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = name.ok_or("a call has no name")?.to_owned();
    let arguments = fields.remove("arguments").or_else(|| fields.remove("parameters"));
    let arguments = match arguments {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(Value::String(text)) => serde_json::from_str(&text)
            .map_err(|error| format!("the arguments of {name} are no JSON object: {error}"))?,
        Some(_) => return Err(format!("the arguments of {name} are no object")),
    };
    let id = fields.get("id").and_then(Value::as_str).map(str::to_owned);
    Ok(ToolCall { id, name, arguments })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const FORMATS: [ToolFormat; 4] =
        [ToolFormat::Hermes, ToolFormat::Llama, ToolFormat::Mistral, ToolFormat::Json];

    fn named(calls: &[ToolCall]) -> Vec<(&str, Value)> {
        calls.iter().map(|call| (call.name.as_str(), Value::Object(call.arguments.clone()))).collect()
    }

    #[test]
    fn each_format_is_read() {
        let python = ("python", json!({"code": "print(\"</b>\")\n"}));
        let code = r#"{"code": "print(\"</b>\")\n"}"#;
        let add = ("add", json!({"a": 1, "b": [2]}));
        let cases = [
            (
                ToolFormat::Hermes,
                format!(
                    "Let me see.\n<tool_call>\n{{\"name\": \"python\", \"arguments\": {code}}}\n</tool_call>\n<tool_call>{{\"name\": \"add\", \"arguments\": {{\"a\": 1, \"b\": [2]}}}}"
                ),
                "Let me see.",
            ),
            (
                ToolFormat::Llama,
                format!(
                    "<|python_tag|>{{\"name\": \"python\", \"parameters\": {code}}}; {{\"name\": \"add\", \"parameters\": {{\"a\": 1, \"b\": [2]}}}}<|eom_id|>"
                ),
                "",
            ),
            (
                ToolFormat::Mistral,
                format!(
                    "Sure. [TOOL_CALLS][{{\"name\": \"python\", \"arguments\": {code}, \"id\": \"abcdefghi\"}}, {{\"name\": \"add\", \"arguments\": \"{{\\\"a\\\": 1, \\\"b\\\": [2]}}\"}}]</s>"
                ),
                "Sure.",
            ),
            (
                ToolFormat::Mistral,
                format!("[TOOL_CALLS]python[CALL_ID]abc[ARGS]{code}[TOOL_CALLS]add{{\"a\": 1, \"b\": [2]}}"),
                "",
            ),
            (
                ToolFormat::Json,
                format!(
                    "```json\n[{{\"name\": \"python\", \"arguments\": {code}}}, {{\"name\": \"add\", \"arguments\": {{\"a\": 1, \"b\": [2]}}}}]\n```"
                ),
                "",
            ),
        ];
        for (format, text, content) in cases {
            let parsed = format.parse(&text);
            assert_eq!(named(&parsed.calls), [python.clone(), add.clone()], "{text}");
            assert_eq!((parsed.content.as_str(), parsed.problems.len()), (content, 0), "{text}");
        }
        let mistral = ToolFormat::Mistral.parse("[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{}");
        assert_eq!(mistral.calls[0].id.as_deref(), Some("a1b2c3d4e"));
    }

    #[test]
    fn what_is_no_call_stays_content_and_says_why() {
        let cases = [
            (ToolFormat::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {</tool_call> then", "EOF"),
            (ToolFormat::Hermes, "a <tool_call>[1]</tool_call>", "no object"),
            (ToolFormat::Hermes, "<tool_call>{\"arguments\": {}}</tool_call>", "no name"),
            (ToolFormat::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": 3}", "no object"),
            (ToolFormat::Llama, "{\"name\": \"f\", \"parameters\": \"x\"}", "no JSON object"),
            (ToolFormat::Llama, "<|python_tag|>print(1)", "expected value"),
            (ToolFormat::Llama, "<|python_tag|> <|eom_id|>", "no call"),
            (ToolFormat::Mistral, "[TOOL_CALLS]f", "no arguments"),
            (ToolFormat::Mistral, "[TOOL_CALLS]{\"a\": 1}", "no name"),
            (ToolFormat::Json, "{\"a\": 1", "EOF"),
        ];
        for (format, text, problem) in cases {
            let parsed = format.parse(text);
            assert!(parsed.calls.is_empty(), "{text}");
            assert_eq!(parsed.content, text);
            assert!(
                parsed.problems.iter().any(|said| said.contains(problem)),
                "{text}: {:?}",
                parsed.problems
            );
        }
        for format in FORMATS {
            for plain in ["", "Plain text.\n", "1 < 2 and [x]"] {
                let parsed = format.parse(plain);
                assert_eq!(
                    (parsed.content.as_str(), parsed.calls.len(), parsed.problems.len()),
                    (plain, 0, 0)
                );
            }
        }
    }

    #[test]
    fn nothing_in_thoughts_is_a_call() {
        let call = "<tool_call>{\"name\": \"f\"}</tool_call>";
        let thought = ToolFormat::Hermes.parse(&format!("<think>I could {call}</think>\n\n{call}"));
        assert_eq!(
            (thought.calls.len(), thought.content.trim_end()),
            (1, &*format!("<think>I could {call}</think>"))
        );
        let open = format!("<think>I could {call}");
        let endless = ToolFormat::Hermes.parse(&open);
        assert_eq!((endless.calls.len(), endless.content), (0, open));
        // The template opened the thoughts.
        let inside = ToolFormat::Llama.parse("hm</think>{\"name\": \"f\", \"parameters\": {}}");
        assert_eq!((inside.calls.len(), inside.content.as_str()), (1, "hm</think>"));
    }

    #[test]
    fn a_message_has_a_bounded_number_of_calls() {
        let many = "<tool_call>{\"name\": \"f\"}</tool_call>".repeat(MAX_CALLS + 5);
        let parsed = ToolFormat::Hermes.parse(&many);
        assert_eq!((parsed.calls.len(), parsed.problems.len()), (MAX_CALLS, 1));
    }

    #[test]
    fn templates_say_their_format() {
        let sources = [
            ("{{ '<tool_call>\\n' }}", ToolFormat::Hermes),
            ("{{ '[TOOL_CALLS]' }}", ToolFormat::Mistral),
            ("{{- '\"parameters\": ' }}", ToolFormat::Llama),
            ("{{ messages }}", ToolFormat::Json),
        ];
        sources.iter().for_each(|(source, format)| assert_eq!(ToolFormat::of_template(source), *format));
    }

    proptest! {
        /// Whatever a policy writes is read without a panic, and content that is no call is not lost.
        #[test]
        fn any_text_is_read(parts in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>", "<think>",
            "</think>", "{\"name\": \"f\", \"arguments\": {}}", "{", "}", "[", "]", "\"", "é", ";", " ", "\n", "```",
        ]), 0..24)) {
            let text = parts.concat();
            for format in FORMATS {
                let parsed = format.parse(&text);
                if parsed.calls.is_empty() {
                    prop_assert_eq!(&parsed.content, &text);
                }
            }
        }
    }
}
