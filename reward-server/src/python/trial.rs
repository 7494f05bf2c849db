//! A user's reward function, tried before anything starts.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Function, Process};
use crate::config::Python;

/// How long the call may take: its result says nothing, its errors do.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Loads a reward function as a worker does, and calls it once with an empty response to a row of the
/// prompts. Lasts as long as its imports take.
///
/// # Errors
/// Why no response to such a prompt could be scored. What an empty response alone may be to blame for is
/// none.
pub fn try_reward(config: &Python, row: &Map<String, Value>) -> Result<(), String> {
    // The caller may have a runtime, which must not be blocked on.
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(try_once(config, row))
        });
        tried.join().unwrap_or_else(|_| Err("the trial of it panicked".to_owned()))
    })
}

async fn try_once(config: &Python, row: &Map<String, Value>) -> Result<(), String> {
    let function = Function::of_user(config);
    let mut process = Process::start(&function).await.map_err(|error| error.to_string())?;
    let prompt = row.get("prompt").and_then(Value::as_str).unwrap_or_default();
    let request = json!({ "prompts": [prompt], "responses": [""], "fields": [row] });
    let replies = process.ask(&request, 1, config.timeout.min(CALL_TIMEOUT)).await;
    // A call that is slow, or kills its worker, may be neither with a response of the policy.
    let Ok(Some(Err(error))) = replies.map(|mut replies| replies.pop()) else { return Ok(()) };
    let detail = error.to_string();
    if blames_no_response(&detail) { Err(detail) } else { Ok(()) }
}

/// Whether an exception would come with any response.
fn blames_no_response(detail: &str) -> bool {
    const NAMES: [&str; 3] = ["NameError: ", "ImportError: ", "ModuleNotFoundError: "];
    const SIGNATURES: [&str; 3] =
        ["required positional argument", "unexpected keyword argument", "positional arguments but"];
    // One that looks up the response would look for nothing.
    let is_of_a_key = detail.contains("KeyError: ") && !detail.contains("KeyError: \'\'");
    let is_of_a_signature = SIGNATURES.iter().any(|words| detail.contains(words));
    is_of_a_key || is_of_a_signature || NAMES.iter().any(|name| detail.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(source: &str) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("reward.py");
        std::fs::write(&file, source).unwrap();
        let config: Python = serde_json::from_value(json!({ "file": file })).unwrap();
        let row = json!({ "prompt": "1 plus 2 is", "answer": "3" });
        try_reward(&config, row.as_object().unwrap())
    }

    #[test]
    fn what_no_response_could_mend_is_found() {
        for (source, expected) in [
            ("def reward(prompt, response, **fields):\n    return fields['gold']", "KeyError: 'gold'"),
            ("import no_such_module", "No module named 'no_such_module'"),
            ("def reward(prompt, response, gold):\n    return 1.0", "required positional argument: 'gold'"),
            ("def reward(prompt, response, **fields):\n    return scale", "name 'scale' is not defined"),
            ("def reward(:", "SyntaxError"),
            ("x = 1", "defines no reward function"),
        ] {
            let error = tried(source).unwrap_err();
            assert!(error.contains(expected), "{source}: {error}");
        }
    }

    #[test]
    fn what_an_empty_response_may_be_to_blame_for_is_none() {
        for body in [
            "return 1.0",
            "return response.split()[0]",
            "return {'yes': 1.0}[response]",
            "return float(response)",
            "import re; return re.match('x', response)[0]",
            "import os; os._exit(1)",
            "return None",
        ] {
            assert_eq!(
                tried(&format!("def reward(prompt, response, **fields):\n    {body}")),
                Ok(()),
                "{body}"
            );
        }
    }
}
