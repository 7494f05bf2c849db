//! What a turn asks for: the code in its calls.

use extraction::python_blocks;
use model::chat::{Parsed, ToolCall, ToolFormat};
use serde_json::{Map, Value};

use crate::config::CallSyntax;

/// The name of the tool that runs code.
pub(super) const PYTHON: &str = "python";
/// The name of its argument.
pub(super) const CODE_ARGUMENT: &str = "code";

/// Something that a turn asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// Code to run.
    Run(String),
    /// A tool to call.
    Tool {
        /// Its name, as the policy wrote it.
        name: String,
        arguments: Map<String, Value>,
    },
    /// What looks like a call and is none: what the policy is told about it.
    Wrong(String),
}

/// The code that a turn asks for, in order; nothing where it is an answer.
pub(super) fn code_calls(syntax: CallSyntax, format: ToolFormat, text: &str) -> Vec<Call> {
    match syntax {
        CallSyntax::Block => {
            let code = python_blocks(text).concat();
            if code.is_empty() { Vec::new() } else { vec![Call::Run(code)] }
        }
        CallSyntax::Tool => tool_calls(format, text).into_iter().map(of_python).collect(),
    }
}

/// The tools that a turn calls, in order; nothing where it is an answer.
pub(super) fn tool_calls(format: ToolFormat, text: &str) -> Vec<Call> {
    let Parsed { calls, problems, .. } = format.parse(text);
    let wrong =
        problems.into_iter().map(|problem| Call::Wrong(format!("Error: the call cannot be read: {problem}")));
    let made = calls.into_iter().map(|ToolCall { name, arguments, .. }| Call::Tool { name, arguments });
    made.chain(wrong).collect()
}

/// A call of the tool that runs code, as the code.
fn of_python(call: Call) -> Call {
    let Call::Tool { name, mut arguments } = call else { return call };
    if name != PYTHON {
        return Call::Wrong(format!("Error: there is no tool {name:?}; there is {PYTHON:?}"));
    }
    match arguments.remove(CODE_ARGUMENT) {
        Some(Value::String(code)) => Call::Run(code),
        Some(_) => Call::Wrong(format!("Error: {CODE_ARGUMENT:?} must be a string")),
        None => Call::Wrong(format!("Error: {PYTHON:?} needs the argument {CODE_ARGUMENT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_text(format: ToolFormat, text: &str) -> Vec<Call> {
        code_calls(CallSyntax::Tool, format, text)
    }

    #[test]
    fn calls_in_the_models_format_are_code_and_what_is_wrong_is_said() {
        let call = r#"Let me see.
<tool_call>
{"name": "python", "arguments": {"code": "6*7"}}
</tool_call>"#;
        assert_eq!(of_text(ToolFormat::Hermes, call), [Call::Run("6*7".into())]);
        assert_eq!(of_text(ToolFormat::Hermes, "It is 42."), []);
        let json = r#"{"name": "python", "parameters": {"code": "6*7"}}"#;
        assert_eq!(of_text(ToolFormat::Llama, json), [Call::Run("6*7".into())]);
        for (wrong, said) in [
            (r#"{"name": "bash", "parameters": {}}"#, "there is no tool \"bash\""),
            (r#"{"name": "python", "parameters": {}}"#, "needs the argument"),
            (r#"{"name": "python", "parameters": {"code": 3}}"#, "must be a string"),
            (r#"{"name": "python", "parameters": {"#, "cannot be read"),
        ] {
            let [Call::Wrong(found)] = &of_text(ToolFormat::Llama, wrong)[..] else { panic!("{wrong}") };
            assert!(found.contains(said), "{found}");
        }
    }

    #[test]
    fn blocks_of_python_are_run_together() {
        let text = "First\n```python\nx = 6\n```\nthen\n```py\nx * 7\n```\n";
        assert_eq!(
            code_calls(CallSyntax::Block, ToolFormat::Json, text),
            [Call::Run("x = 6\nx * 7\n".into())]
        );
        assert_eq!(code_calls(CallSyntax::Block, ToolFormat::Json, "```\nls\n```\n42"), []);
        let thought = "<think>```python\n1\n```</think>42";
        assert_eq!(
            code_calls(CallSyntax::Block, ToolFormat::Json, thought),
            [],
            "nothing in thoughts is a call"
        );
    }
}
