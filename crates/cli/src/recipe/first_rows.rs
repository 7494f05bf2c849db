//! The first rows of the prompts against those who read them: before anything starts, where the file is
//! there already.

use std::path::Path;
use std::sync::Arc;

use coordinator::data::first_rows;
use engine::PromptEncoder;
use model::Tokenizer;
use reward_server::config::{ScorerConfig, ScorerKind};
use serde_json::{Map, Value};
use types::PromptContent;

use super::Recipe;

/// Rows that are looked at.
pub(super) const ROWS: usize = 100;

/// What the first rows do not have and somebody reads.
pub(super) fn problems(recipe: &Recipe) -> Vec<String> {
    let sources = recipe.coordinator.data.sources();
    let there = sources.iter().filter(|source| source.path.is_file());
    let (mut problems, mut first) = (Vec::new(), Vec::new());
    for source in there {
        match first_rows(*source, ROWS) {
            Ok(rows) => {
                let read = FirstRows { key: source.key(), path: source.path, rows };
                let FirstRows { path, rows, .. } = &read;
                problems.extend(lacking("reward_server.scorers", &recipe.reward_server.scorers, path, rows));
                problems.extend(refused(&recipe.reward_server.scorers, &read));
                problems.extend(without_template(recipe, &read));
                problems.extend(too_long(recipe, &read));
                first.push(read);
            }
            Err(error) => problems.push(format!("coordinator.data.{}: {error}", source.key())),
        }
    }
    problems.extend(without_outcome(recipe, &first));
    problems.extend(untried(recipe, &first));
    problems
}

/// What a file begins with.
struct FirstRows<'a> {
    /// The key that names it.
    key: String,
    path: &'a Path,
    rows: Vec<Map<String, Value>>,
}

/// Reward functions in Python that could score no response to the first row.
fn untried(recipe: &Recipe, files: &[FirstRows<'_>]) -> Vec<String> {
    let Some(row) = files.iter().find_map(|file| file.rows.first()) else { return Vec::new() };
    let mut problems = Vec::new();
    for (at, scorer) in recipe.reward_server.scorers.iter().enumerate() {
        let ScorerKind::Python(python) = &scorer.kind else { continue };
        if let (true, Err(problem)) = (python.file.is_file(), reward_server::try_reward(python, row)) {
            problems.push(format!(
                "reward_server.scorers[{at}].file is {:?}, which could not score a response to the first prompt: \
                 {problem}",
                python.file.display().to_string()
            ));
        }
    }
    problems
}

/// Prompts without tests for a filtration that goes by them.
fn without_outcome(recipe: &Recipe, files: &[FirstRows<'_>]) -> Option<String> {
    let Recipe { coordinator, reward_server, .. } = recipe;
    let goes_by_tests = reward_server.sandbox.is_some() && !reward_server.has_yardstick();
    let goes_by_outcomes = coordinator.filtration.is_auto() && goes_by_tests;
    let mut rows = files.iter().flat_map(|file| &file.rows);
    let FirstRows { path, rows: shown, .. } = files.first()?;
    (goes_by_outcomes && rows.all(|row| reward_server.lacks_outcome(row))).then(|| {
        format!(
            "coordinator.filtration.strategy is \"auto\", and none of the first {} rows of {} has tests, which have {}: \
             nothing would say which responses are right; name a strategy",
            shown.len(),
            path.display(),
            names(shown)
        )
    })
}

/// Scorers, the values of a key, that none of the rows of a file can be scored by.
pub(super) fn lacking(
    key: &str,
    scorers: &[ScorerConfig],
    path: &Path,
    rows: &[Map<String, Value>],
) -> Vec<String> {
    let mut problems = Vec::new();
    for (at, scorer) in scorers.iter().enumerate() {
        let lacks: Option<Vec<_>> = rows.iter().map(|row| scorer.lacks(row)).collect();
        if let Some(lack) = lacks.as_deref().and_then(<[_]>::first) {
            problems.push(format!(
                "{key}[{at}].{lack} in the first {} rows of {}, which have {}",
                rows.len(),
                path.display(),
                names(rows)
            ));
        }
    }
    problems
}

/// What stands in a row where a scorer needs something else.
fn refused(scorers: &[ScorerConfig], FirstRows { path, rows, .. }: &FirstRows<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    for (at, scorer) in scorers.iter().enumerate() {
        let mut found = rows.iter().zip(1..).filter_map(|(row, number)| Some((number, scorer.refuses(row)?)));
        let Some((number, problem)): Option<(usize, String)> = found.next() else { continue };
        let more = match found.count() {
            0 => String::new(),
            more => format!("; {more} more of the first {} rows are like it", rows.len()),
        };
        problems
            .push(format!("reward_server.scorers[{at}].{problem}: row {number} of {}{more}", path.display()));
    }
    problems
}

/// Chats for a policy without a chat template.
fn without_template(recipe: &Recipe, FirstRows { key, rows, .. }: &FirstRows<'_>) -> Option<String> {
    let chat = rows
        .iter()
        .position(|row| row.contains_key("messages") || row.get("prompt").is_some_and(Value::is_array))?;
    let policy = &recipe.learner.policy;
    let is_known = policy.join("config.json").is_file();
    (is_known && !has_template(policy)).then(|| {
        format!(
            "coordinator.data.{key}: row {} is a chat, and {} has no chat template: take a model that has one, or give \
             prompts as text",
            chat + 1,
            policy.display()
        )
    })
}

/// Prompts none of which leaves room for a response.
fn too_long(recipe: &Recipe, FirstRows { key, path, rows }: &FirstRows<'_>) -> Option<String> {
    let policy = &recipe.learner.policy;
    let encoder = PromptEncoder::load(policy, Arc::new(Tokenizer::load(policy).ok()?)).ok()?;
    let tokens: Option<Vec<usize>> = rows.iter().map(|row| length(row, &encoder)).collect();
    let shortest = tokens?.into_iter().min()?;
    let config = std::fs::read(policy.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    let of_policy =
        config["max_position_embeddings"].as_u64().and_then(|positions| usize::try_from(positions).ok());
    let (told, context) = match (recipe.actor.engine.context_tokens, of_policy) {
        (Some(told), of_policy) if of_policy.is_none_or(|of_policy| told <= of_policy) => {
            ("actor.engine.context_tokens", told)
        }
        (_, Some(of_policy)) => ("the policy's max_position_embeddings", of_policy),
        (_, None) => return None,
    };
    (shortest >= context).then(|| {
        format!(
            "coordinator.data.{key}: each of the first {} rows of {} has at least {shortest} tokens, and {told} = \
             {context} leaves no room for a response",
            rows.len(),
            path.display()
        )
    })
}

/// The tokens of a row's prompt; none where it cannot be encoded, which is said elsewhere.
fn length(row: &Map<String, Value>, encoder: &PromptEncoder) -> Option<usize> {
    if let Some(tokens) = row.get("tokens").and_then(Value::as_array) {
        return Some(tokens.len());
    }
    let tokens = match row.get("messages").or_else(|| row.get("prompt"))? {
        Value::String(text) => encoder.encode(&PromptContent::Text(text.clone())),
        messages => encoder.encode(&PromptContent::Messages(messages.to_string())),
    };
    Some(tokens.ok()?.len())
}

/// Whether a model folder has a chat template, wherever transformers puts it.
fn has_template(folder: &Path) -> bool {
    if ["chat_template.jinja", "chat_template.json"].iter().any(|file| folder.join(file).is_file())
        || folder.join("additional_chat_templates").is_dir()
    {
        return true;
    }
    let config = std::fs::read(folder.join("tokenizer_config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    !config["chat_template"].is_null()
}

/// The names of all rows.
fn names(rows: &[Map<String, Value>]) -> String {
    let mut names: Vec<&str> = rows.iter().flat_map(|row| row.keys().map(String::as_str)).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(folder: &Path, rows: &str, scorers: &str) -> Recipe {
        let (data, policy) = (folder.join("prompts.jsonl"), folder.join("policy"));
        std::fs::create_dir_all(&policy).unwrap();
        std::fs::write(policy.join("config.json"), "{}").unwrap();
        std::fs::write(&data, rows).unwrap();
        let text = format!(
            "[coordinator]\ndata.path = {data:?}\n[learner]\npolicy = {policy:?}\n[reward_server]\nscorers = [{scorers}]\n"
        );
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn fields_that_no_row_has_are_named_with_those_that_they_have() {
        let folder = tempfile::tempdir().unwrap();
        let rows =
            "{\"prompt\": \"2 + 2\", \"answer\": 4}\n{\"prompt\": \"3 + 2\", \"answer\": 5, \"level\": 1}\n";
        let numeric = "{kind = 'numeric-match'}, {kind = 'exact-match', field = 'level'}";
        let found = problems(&recipe(folder.path(), rows, numeric));
        assert_eq!(found.len(), 1, "one row has a level: {found:?}");
        assert!(
            found[0].starts_with(
                "reward_server.scorers[0].field is \"label\": no such field in the first 2 rows"
            )
        );
        assert!(found[0].ends_with("which have answer, level, prompt"), "{found:?}");
    }

    #[test]
    fn a_label_that_is_no_number_is_named_with_its_row() {
        let folder = tempfile::tempdir().unwrap();
        let rows = "{\"prompt\": \"2 + 2\", \"label\": \"so #### 1,234\"}\n{\"prompt\": \"x\", \"label\": \"x = 3 or x = 7\"}\n\
                    {\"prompt\": \"y\", \"label\": [1]}\n{\"prompt\": \"z\", \"label\": -0.5}\n";
        let found =
            problems(&recipe(folder.path(), rows, "{kind = 'exact-match'}, {kind = 'numeric-match'}"));
        assert_eq!(found.len(), 1, "{found:?}");
        for words in [
            "reward_server.scorers[1].field is \"label\": \"x = 3 or x = 7\" is not one number",
            "row 2 of ",
            "1 more of the first 4 rows",
        ] {
            assert!(found[0].contains(words), "{words}: {found:?}");
        }
        let unasked = "{kind = 'exact-match'}, {kind = 'numeric-match', weight = 0}";
        assert_eq!(problems(&recipe(folder.path(), rows, unasked)), Vec::<String>::new(), "nobody asks it");
        let numbers = rows.replace("x = 3 or x = 7", "7").replace("[1]", "1");
        assert_eq!(
            problems(&recipe(folder.path(), &numbers, "{kind = 'numeric-match'}")),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_strategy_is_chosen_only_where_something_says_what_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let rows = "{\"prompt\": \"def f():\", \"label\": 1}\n";
        let mut recipe = recipe(folder.path(), rows, "");
        recipe.coordinator.filtration.strategy = coordinator::state::StrategyChoice::Auto;
        assert_eq!(problems(&recipe), Vec::<String>::new(), "without a sandbox the sections are told");
        recipe.reward_server.sandbox = toml::from_str("").ok();
        let found = problems(&recipe);
        assert!(found[0].contains("has tests, which have label, prompt"), "{found:?}");
        let yardstick = "kind = 'regex'\npattern = 'x'\nyardstick = true\n";
        recipe.reward_server.scorers.push(toml::from_str(yardstick).unwrap());
        assert_eq!(problems(&recipe), Vec::<String>::new(), "a scorer says it");
        recipe.reward_server.scorers.pop();
        let tested = "{\"prompt\": \"def f():\", \"test_list\": [\"assert f() is None\"]}\n";
        std::fs::write(&recipe.coordinator.data.path, tested).unwrap();
        assert_eq!(problems(&recipe), Vec::<String>::new());
    }

    #[test]
    fn a_chat_needs_a_template() {
        let folder = tempfile::tempdir().unwrap();
        let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n";
        let recipe = recipe(folder.path(), rows, "");
        assert!(problems(&recipe)[0].contains("row 1 is a chat"), "{:?}", problems(&recipe));
        let config = recipe.learner.policy.join("tokenizer_config.json");
        std::fs::write(config, "{\"chat_template\": \"{{ messages }}\"}").unwrap();
        assert_eq!(problems(&recipe), Vec::<String>::new());
    }

    #[test]
    fn prompts_that_leave_no_room_are_counted_with_the_chat_template() {
        let folder = tempfile::tempdir().unwrap();
        let chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n";
        let recipe = recipe(folder.path(), chat, "");
        let policy = &recipe.learner.policy;
        let special = model::tokenizer::SpecialTokens::default();
        let tokenizer = model::tokenizer::train_bpe(["hi you"; 8].iter(), 270, &special).unwrap();
        tokenizer.save(policy, None).unwrap();
        // What the template adds is more than there is room for.
        std::fs::write(policy.join("chat_template.jinja"), "{{ 'you ' * 40 }}{{ messages[0].content }}")
            .unwrap();
        std::fs::write(policy.join("config.json"), "{\"max_position_embeddings\": 40}").unwrap();
        let found = problems(&recipe);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("max_position_embeddings = 40 leaves no room for a response"), "{found:?}");
        std::fs::write(policy.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
        assert_eq!(problems(&recipe), Vec::<String>::new());
    }

    #[test]
    fn a_row_that_cannot_be_used_is_said_before_anything_starts() {
        let folder = tempfile::tempdir().unwrap();
        let found = problems(&recipe(folder.path(), "{\"question\": \"x\"}\n", ""));
        assert!(found[0].contains("prompts.jsonl:1: must have exactly one of prompt"), "{found:?}");
    }
}
