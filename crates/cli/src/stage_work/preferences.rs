//! Preference pairs from a policy's own responses: for a problem that it solves now and then, a response that
//! passes the hidden tests and one that does not.
//!
//! Of all such pairs of a problem the one of maximum edit distance comes first (PF-PPO, arXiv 2409.06957,
//! section 5.2, after Pal et al. 2024). That pair alone tells working code from garbage, which a small reward
//! model then takes for the whole difference: `max_pairs` lets closer pairs in, each failing response once.

use std::cmp::Reverse;
use std::path::Path;

use anyhow::Context as _;
use engine::generate::{DrawOptions, Response};
use serde_json::{Value, json};
use service::jsonl::{self, WrongLines};
use types::PromptContent;

use crate::grading::{self, GradingSetup};
use crate::recipe::{PreferencesStage, Recipe};
use crate::responses;
use crate::say::say;

/// A pair of responses.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pair<'a> {
    prompt: &'a PromptContent,
    chosen: &'a str,
    rejected: &'a str,
}

impl Pair<'_> {
    /// As the reward model's training reads it.
    fn line(&self) -> Value {
        let prompt = match self.prompt {
            PromptContent::Text(text) => json!(text),
            PromptContent::Messages(messages) => serde_json::from_str(messages).unwrap_or_default(),
            PromptContent::Tokens(tokens) => json!(tokens),
        };
        json!({"prompt": prompt, "chosen": self.chosen, "rejected": self.rejected})
    }
}

/// Samples, grades, pairs.
///
/// # Errors
/// When the model or problems cannot be used, or no problem gave a pair.
pub(crate) fn run(recipe: &Recipe, stage: &PreferencesStage) -> anyhow::Result<()> {
    let mut tasks = grading::read_tasks(&stage.problems, &WrongLines::default())?;
    tasks.truncate(stage.max_problems.unwrap_or(usize::MAX));
    let prompts: Vec<PromptContent> = tasks.iter().map(|task| task.prompt.clone()).collect();
    let responses = responses::draw(
        &stage.model,
        &prompts,
        &DrawOptions { n: stage.n, seed: stage.seed, sampling: stage.sampling.clone() },
    )?;

    let setup = GradingSetup::of_recipe(recipe);
    let graded = grading::grade_groups(&setup, &tasks, &responses)?;
    let passed: Vec<Option<bool>> = graded.grades.iter().flatten().map(grading::passed).collect();
    let mut problems = Vec::new();
    for ((task, group), passed) in tasks.iter().zip(&responses).zip(passed.chunks(stage.n)) {
        let mut pairs = widest_pairs(&task.prompt, group, passed);
        pairs.truncate(stage.max_pairs);
        if !pairs.is_empty() {
            problems.push(pairs);
        }
    }
    let solved = passed.iter().filter(|passed| **passed == Some(true)).count();
    anyhow::ensure!(
        !problems.is_empty(),
        "no problem has both a response that passes and one that fails ({solved} of {} pass): sample more",
        passed.len()
    );
    // By problem, so that no prompt is on both sides.
    let kept_apart = ((problems.len() as f64 * stage.eval_share) as usize).min(problems.len() - 1);
    let (eval, train) = problems.split_at(kept_apart);
    std::fs::create_dir_all(&stage.output).with_context(|| format!("create {}", stage.output.display()))?;
    write(&stage.output, "train.jsonl", train)?;
    write(&stage.output, "eval.jsonl", eval)?;
    let share = 100.0 * solved as f64 / passed.len() as f64;
    say(&format!(
        "  {} pairs of {} problems from {} responses, {share:.1} % of which pass",
        problems.iter().map(Vec::len).sum::<usize>(),
        problems.len(),
        passed.len()
    ));
    Ok(())
}

fn write(folder: &Path, name: &str, problems: &[Vec<Pair<'_>>]) -> anyhow::Result<()> {
    let lines: Vec<Value> = problems.iter().flatten().map(Pair::line).collect();
    jsonl::write(&folder.join(name), lines.iter())
}

/// Each failing response with the passing one that differs most from it; of pairs, those that differ more
/// first. Equal responses count once; of equal distances the earlier response is taken.
fn widest_pairs<'a>(
    prompt: &'a PromptContent,
    group: &'a [Response],
    passed: &[Option<bool>],
) -> Vec<Pair<'a>> {
    let passing = distinct_texts(group, passed, true);
    let mut pairs: Vec<(usize, Pair<'a>)> = Vec::new();
    for rejected in distinct_texts(group, passed, false) {
        let distances = passing.iter().map(|chosen| (strsim::levenshtein(chosen, rejected), *chosen));
        // The first of the greatest: `max_by_key` would give the last.
        if let Some((distance, chosen)) = distances.min_by_key(|(distance, _)| Reverse(*distance)) {
            pairs.push((distance, Pair { prompt, chosen, rejected }));
        }
    }
    pairs.sort_by_key(|(distance, _)| Reverse(*distance));
    pairs.into_iter().map(|(_, pair)| pair).collect()
}

/// The texts of the responses that passed, or failed, each once.
fn distinct_texts<'a>(group: &'a [Response], passed: &[Option<bool>], wanted: bool) -> Vec<&'a str> {
    let mut texts: Vec<&str> = Vec::new();
    for (response, passed) in group.iter().zip(passed) {
        let text = response.text.as_str();
        if *passed == Some(wanted) && !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn responses(texts: &[&str]) -> Vec<Response> {
        texts.iter().map(|text| response(text)).collect()
    }

    fn response(text: &str) -> Response {
        Response {
            prompt_tokens: [1].into(),
            tokens: vec![2],
            text: text.to_owned(),
            prompt_end: String::new(),
            logprobs: vec![-1.0],
            finish_reason: types::FinishReason::Stop,
            played: None,
        }
    }

    #[test]
    fn the_pair_of_maximum_edit_distance_comes_first_and_each_failing_response_once() {
        let group = responses(&["return 1", "return 12", "pass", "return 2 + 3", "pass"]);
        let passed = [Some(true), Some(false), Some(false), Some(true), Some(false)];
        let prompt = PromptContent::Text(String::new());
        let pairs = widest_pairs(&prompt, &group, &passed);
        let texts: Vec<_> = pairs.iter().map(|pair| (pair.chosen, pair.rejected)).collect();
        assert_eq!(texts, [("return 2 + 3", "pass"), ("return 2 + 3", "return 12")]);
    }

    #[test]
    fn a_problem_without_both_kinds_gives_no_pair() {
        let group = responses(&["a", "b", "c"]);
        let prompt = PromptContent::Text(String::new());
        for passed in [[Some(true); 3], [Some(false); 3], [Some(true), None, None]] {
            assert_eq!(widest_pairs(&prompt, &group, &passed), []);
        }
    }
}
