//! Which form of a call's arguments a template takes.
//!
//! OpenAI's interface has them as JSON text, transformers hands objects to templates. Most templates write
//! the object with `tojson` and would quote a text once more; a few put a text between other texts and fail
//! on an object, or write it as Python does. A call is rendered both ways to see.

use serde_json::{Value, json};

use super::{ChatRequest, ChatTemplate};

/// Name of the argument that is looked for.
const NAME: &str = "needle";

/// Whether a template writes arguments right as text only.
pub(super) fn are_taken_as_text(template: &ChatTemplate) -> bool {
    let object = json!({ NAME: "x" });
    let text = object.to_string();
    let spaced = text.replace(':', ": ");
    let as_object = rendered(template, object).unwrap_or_default();
    let is_right = as_object.contains(NAME) && !as_object.contains(&format!("'{NAME}'"));
    let as_text = |text: String| {
        rendered(template, Value::String(text.clone())).is_some_and(|found| found.contains(&text))
    };
    !is_right && as_text(spaced)
}

/// A conversation with a call that has these arguments; `None` where the template refuses it.
fn rendered(template: &ChatTemplate, arguments: Value) -> Option<String> {
    let parameters = json!({"type": "object", "properties": {}, "required": []});
    let tools = [json!({"type": "function", "function": {
        "name": "probe", "description": "A probe.", "parameters": parameters,
    }})];
    let messages = [
        json!({"role": "user", "content": "q"}),
        json!({"role": "assistant", "content": "", "tool_calls": [
            // Nine letters and digits, as Mistral's templates ask for.
            {"id": "abcdefghi", "type": "function", "function": {"name": "probe", "arguments": arguments}},
        ]}),
    ];
    let request = ChatRequest { messages: &messages, tools: Some(&tools), ..ChatRequest::default() };
    template.render(&request).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn templates_show_which_form_they_take() {
        let call = |inside: &str| {
            format!(
                "{{% for m in messages %}}{{{{ m.content }}}}{{% for t in m.tool_calls or [] %}}{inside}{{% endfor %}}{{% endfor %}}"
            )
        };
        let cases = [
            ("{{ t.function.arguments|tojson }}", false),
            ("{% for k, v in t.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}", false),
            ("{{ '<call>' + t.function.arguments + '</call>' }}", true),
            ("{{ t.function.name }}({{ t.function.arguments }})", true),
            (
                "{% if t.function.arguments is string %}{{ t.function.arguments }}{% else %}{{ t.function.arguments|tojson }}{% endif %}",
                false,
            ),
            ("{{ t.function.name }}", false),
        ];
        for (inside, as_text) in cases {
            let template = ChatTemplate::new(&call(inside), BTreeMap::new()).unwrap();
            assert_eq!(template.takes_text_arguments(), as_text, "{inside}");
        }
    }
}
