//! Methods of Python's strings and filters of Jinja2 that templates use, where minijinja has none or another.

use minijinja::{Error, State, Value};

/// Calls a method of a value that minijinja does not know.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [argument]) = (value.as_str(), args)
        && let Some(argument) = argument.as_str()
    {
        match method {
            "removeprefix" => return Ok(text.strip_prefix(argument).unwrap_or(text).into()),
            "removesuffix" => return Ok(text.strip_suffix(argument).unwrap_or(text).into()),
            "partition" => {
                let (before, after) = text.split_once(argument).unwrap_or((text, ""));
                let found = if before.len() < text.len() { argument } else { "" };
                return Ok([before, found, after].into_iter().map(Value::from).collect());
            }
            _ => {}
        }
    }
    if let (Some(text), "title", []) = (value.as_str(), method, args) {
        return Ok(title(text).into());
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Python's `str.title`: a letter behind a letter is small, every other one is capital.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        inside = character.is_alphabetic();
    }
    out
}

/// The filter `indent` of Jinja2; minijinja's own drops a newline at the end.
pub(super) fn indent(text: &str, width: Option<usize>, first: Option<bool>, blank: Option<bool>) -> String {
    let indent = " ".repeat(width.unwrap_or(4).min(64));
    let mut out = String::new();
    for (at, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let indented =
            if at == 0 { first.unwrap_or(false) } else { blank.unwrap_or(false) || !line.is_empty() };
        out.extend([if at > 0 { "\n" } else { "" }, if indented { &indent } else { "" }, line]);
    }
    out
}
