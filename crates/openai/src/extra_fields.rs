//! Fields of requests beside those that are read: of OpenAI's interface, and of other servers that speak it.
//! What the chat interface reads is listed too, as completions do not have it.
//!
//! A field that would change the response and is not obeyed would give an experiment that nobody meant, and
//! so would one that is misspelt: both are refused. What a client may say without a change is ignored.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::kind::Kind;

/// Fields that change no response.
const IGNORED: [&str; 12] = [
    "cache_salt",
    "metadata",
    "parallel_tool_calls",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "spaces_between_special_tokens",
    "store",
    "user",
];

/// Fields that would change the response, with the values under which they do not.
const UNSUPPORTED: [(&str, &[&str]); 38] = [
    ("allowed_token_ids", &["[]"]),
    ("audio", &[]),
    ("bad_words", &["[]"]),
    ("best_of", &["1"]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &["{}"]),
    ("continue_final_message", &["false"]),
    ("detokenize", &["true"]),
    ("documents", &["[]"]),
    ("early_stopping", &["false"]),
    ("echo", &["false"]),
    ("enable_thinking", &[]),
    ("frequency_penalty", &["0", "0.0"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("include_stop_str_in_output", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("logit_bias", &["{}"]),
    ("logits_processors", &["[]"]),
    ("modalities", &["[\"text\"]"]),
    ("mm_processor_kwargs", &["{}"]),
    ("prediction", &[]),
    ("presence_penalty", &["0", "0.0"]),
    ("prompt_logprobs", &["0"]),
    ("reasoning_effort", &[]),
    ("skip_special_tokens", &["true"]),
    ("suffix", &["\"\""]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &["[]"]),
    ("truncate_prompt_tokens", &[]),
    ("typical_p", &["1", "1.0"]),
    ("use_beam_search", &["false"]),
    ("verbosity", &[]),
    ("web_search_options", &[]),
];

/// Fields whose value without effect depends on the interface.
fn neutral_here(kind: Kind, name: &str) -> Option<Value> {
    match (name, kind) {
        // A chat template writes its special tokens itself.
        ("add_special_tokens", kind) => Some(Value::Bool(kind == Kind::Completion)),
        _ => None,
    }
}

/// Refuses a field that would have an effect, or that is not known.
pub(crate) fn check(kind: Kind, fields: &Map<String, Value>) -> Result<(), ApiError> {
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        if IGNORED.contains(&name.as_str())
            || neutral_here(kind, name).is_some_and(|neutral| *value == neutral)
        {
            continue;
        }
        let listed = UNSUPPORTED.iter().find(|(unsupported, _)| unsupported == name);
        let neutral = listed.map(|(_, values)| *values);
        if neutral.is_some_and(|values| values.contains(&value.to_string().as_str())) {
            continue;
        }
        let is_known = listed.is_some() || neutral_here(kind, name).is_some();
        let problem = match is_known {
            true => format!("{name} is not supported; leave it out"),
            false => format!("{name} is no field that is known here; leave it out"),
        };
        return Err(ApiError::bad_request(problem, None).about(name));
    }
    Ok(())
}
