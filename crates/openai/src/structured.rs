//! What a response has to look like: OpenAI's `response_format`, and `structured_outputs` as vLLM has it.

use std::sync::Arc;

use engine::{Grammar, GrammarError, GrammarSource, PromptEncoder};
use serde::Deserialize;
use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::error::ApiError;

const FORMAT: &str = "response_format";
const STRUCTURED: &str = "structured_outputs";

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: NamedSchema },
}

/// A schema is followed to the letter, whatever `strict` says.
#[derive(Debug, Deserialize)]
struct NamedSchema {
    schema: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuredOutputs {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
}

/// What is asked for, if anything.
///
/// # Errors
/// Values of another shape, and more than one wish.
pub(crate) fn wanted(
    response_format: Option<Value>,
    structured_outputs: Option<Value>,
) -> Result<Option<GrammarSource>, ApiError> {
    let mut wishes = Vec::new();
    if let Some(format) = response_format.filter(|value| !value.is_null()) {
        let format = serde_json::from_value(format);
        match format.map_err(|error| ApiError::bad_field(FORMAT, &error.to_string()))? {
            ResponseFormat::Text => {}
            ResponseFormat::JsonObject => wishes.push(GrammarSource::json_object()),
            ResponseFormat::JsonSchema { json_schema } => {
                wishes.push(GrammarSource::JsonSchema(json_schema.schema));
            }
        }
    }
    if let Some(structured) = structured_outputs.filter(|value| !value.is_null()) {
        let structured = serde_json::from_value(structured);
        let StructuredOutputs { json, json_object, regex, choice, grammar } =
            structured.map_err(|error| ApiError::bad_field(STRUCTURED, &error.to_string()))?;
        wishes.extend(json.map(schema).transpose()?);
        wishes.extend(json_object.filter(|wish| *wish).map(|_| GrammarSource::json_object()));
        wishes.extend(regex.map(GrammarSource::Regex));
        if let Some(texts) = choice {
            if texts.is_empty() {
                return Err(ApiError::bad_field(STRUCTURED, "choice has no text"));
            }
            wishes.push(GrammarSource::Choice(texts));
        }
        wishes.extend(grammar.map(GrammarSource::Lark));
    }
    if wishes.len() > 1 {
        let problem = format!("{} wishes of what the response is to look like: leave one", wishes.len());
        return Err(ApiError::bad_field(STRUCTURED, &problem));
    }
    Ok(wishes.pop())
}

/// A schema may come as the text of one.
fn schema(json: Value) -> Result<GrammarSource, ApiError> {
    let schema = match json {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::bad_field(STRUCTURED, &format!("json is no schema: {error}")))?,
        schema => schema,
    };
    Ok(GrammarSource::JsonSchema(schema))
}

/// The grammar for the policy's tokens. That may take a while: it is done beside what else is served.
///
/// # Errors
/// What is wrong with the source.
pub(crate) async fn compile(
    encoder: &Arc<PromptEncoder>,
    source: &GrammarSource,
) -> Result<Grammar, ApiError> {
    let (encoder, source) = (Arc::clone(encoder), source.clone());
    let compiled = spawn_blocking(move || encoder.compile(&source)).await;
    let problem = match compiled {
        Ok(Ok(grammar)) => return Ok(grammar),
        Ok(Err(GrammarError(problem))) => problem,
        Err(_) => "it cannot be compiled".to_owned(),
    };
    Err(ApiError::bad_field(STRUCTURED, &format!("the grammar is not usable: {problem}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_interfaces_say_what_is_wanted() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let wanted = |format: Value, structured: Value| wanted(Some(format), Some(structured));
        let found = [
            (json!({"type": "text"}), json!({}), None),
            (json!({"type": "json_object"}), Value::Null, Some(GrammarSource::json_object())),
            (
                json!({"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema}}),
                Value::Null,
                Some(GrammarSource::JsonSchema(schema.clone())),
            ),
            (Value::Null, json!({"json": schema}), Some(GrammarSource::JsonSchema(schema.clone()))),
            (
                Value::Null,
                json!({"json": schema.to_string()}),
                Some(GrammarSource::JsonSchema(schema.clone())),
            ),
            (Value::Null, json!({"regex": "[0-9]+"}), Some(GrammarSource::Regex("[0-9]+".to_owned()))),
            (Value::Null, json!({"choice": ["a"]}), Some(GrammarSource::Choice(vec!["a".to_owned()]))),
        ];
        for (format, structured, expected) in found {
            assert_eq!(wanted(format, structured).unwrap(), expected);
        }
        for (format, structured) in [
            (json!({"type": "xml"}), Value::Null),
            (json!({"type": "json_schema"}), Value::Null),
            (Value::Null, json!({"structural_tag": "x"})),
            (Value::Null, json!({"choice": []})),
            (Value::Null, json!({"json": "{"})),
            (json!({"type": "json_object"}), json!({"regex": "a"})),
        ] {
            assert!(wanted(format.clone(), structured.clone()).is_err(), "{format} {structured}");
        }
    }
}
