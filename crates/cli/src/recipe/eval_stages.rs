//! What stages that compare policies lack, and stages that draw responses of another kind than the ring does,
//! found before anything starts.

use std::path::Path;

use coordinator::data::{DataConfig, first_rows};
use service::Config as _;
use service::jsonl;

use super::first_rows::{ROWS, lacking};
use super::{EvalStage, Judge, Recipe};

/// What is wrong with the comparisons of a recipe.
pub(super) fn problems(recipe: &Recipe) -> Vec<String> {
    let stages = recipe.stages.iter().enumerate();
    let evals = stages.filter_map(|(at, stage)| Some((at, stage.eval.as_ref()?)));
    let mut problems: Vec<String> =
        evals.flat_map(|(at, eval)| of_stage(recipe, eval, &format!("stages[{at}].eval"))).collect();
    problems.extend(of_one_turn(recipe));
    problems
}

/// Stages that would ask for one turn where the recipe's responses have several.
fn of_one_turn(recipe: &Recipe) -> Vec<String> {
    let (environment, agents) = (recipe.reward_server.environment.is_some(), recipe.actor.agents.enabled);
    let section = match (environment, agents) {
        (true, _) => "[reward_server.environment]",
        (false, true) => "actor.agents",
        (false, false) => return Vec::new(),
    };
    let mut problems = Vec::new();
    for (at, stage) in recipe.stages.iter().enumerate() {
        let table = if stage.preferences.is_some() { "preferences" } else { "best_of_n" };
        if stage.preferences.is_some() || stage.best_of_n.is_some() {
            problems.push(format!(
                "stages[{at}].{table} draws responses of one turn, but the recipe's are episodes ({section}): put the                  stage into a recipe of its own without that section"
            ));
        }
        if agents && stage.eval.as_ref().is_some_and(|eval| !eval.one_turn) {
            problems.push(format!(
                "stages[{at}].eval.one_turn is false, but agents play the recipe's episodes (actor.agents), and they                  lease them from the ring alone: set it to true, or evaluate with [coordinator.eval]"
            ));
        }
    }
    problems
}

fn of_stage(recipe: &Recipe, eval: &EvalStage, key: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if eval.policies.is_empty() {
        problems.push(format!("{key}.policies is empty: name what is compared"));
    }
    problems.extend(eval.problems().into_iter().map(|problem| format!("{key}.{problem}")));
    match eval.judge() {
        Judge::Tests => {
            if !eval.scorers.is_empty() {
                problems.push(format!(
                    "{key}.judge is \"tests\", and there are {key}.scorers: leave one of them out"
                ));
            }
            if !eval.columns.is_empty() {
                problems.push(format!("{key}.columns are read where scorers judge, not where tests do"));
            }
            problems.extend(no_tests(&eval.problems).map(|problem| format!("{key}.problems: {problem}")));
        }
        Judge::Scorers => problems.extend(of_scorers(recipe, eval, key)),
    }
    problems
}

/// Why the first line of a file that is there is no problem with tests.
fn no_tests(path: &Path) -> Option<String> {
    let first = jsonl::read(path).ok().filter(|_| path.is_file())?.next()?;
    let read = first.and_then(|line| {
        let problem = sandbox::read_problem(line.text());
        problem.map(|_| ()).map_err(|error| line.wrong(&error.to_string()))
    });
    read.err().map(|error| {
        format!(
            "{error}; where scorers are to say how good a response is, set judge = \"scorers\" or name some"
        )
    })
}

fn of_scorers(recipe: &Recipe, eval: &EvalStage, key: &str) -> Vec<String> {
    let (of_ring, own) = (&recipe.reward_server.scorers, !eval.scorers.is_empty());
    let scorers = eval.judging_scorers(of_ring);
    if scorers.is_empty() {
        return vec![format!(
            "{key}.judge is \"scorers\", but neither {key}.scorers nor reward_server.scorers has any"
        )];
    }
    let mut problems = Vec::new();
    if own {
        // What those of the ring lack is said of the ring.
        let coordinator = Some("127.0.0.1:0".to_owned());
        let tokenizer = eval.policies.first().map(|policy| policy.model.clone());
        let server = reward_server::Config {
            scorers: eval.scorers.clone(),
            coordinator,
            tokenizer,
            sandbox: recipe.reward_server.sandbox.clone().or_else(|| Some(Default::default())),
            ..reward_server::Config::default()
        };
        problems.extend(server.problems().into_iter().map(|problem| format!("{key}.{problem}")));
    }
    let (path, columns) = (eval.problems.clone(), eval.columns.clone());
    let data = DataConfig { path, columns, ..DataConfig::default() };
    for source in data.sources().into_iter().filter(|source| source.path.is_file()) {
        match first_rows(source, ROWS) {
            Ok(rows) => {
                let named = if own { format!("{key}.scorers") } else { "reward_server.scorers".to_owned() };
                problems.extend(lacking(&named, scorers, source.path, &rows));
            }
            Err(error) => problems.push(format!("{key}.problems: {error}")),
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(folder: &Path, line: &str, eval: &str) -> Vec<String> {
        let file = folder.join("problems.jsonl");
        std::fs::write(&file, line).unwrap();
        let text = format!(
            "[[stages]]\nname = 'eval'\n[stages.eval]\nproblems = {file:?}\noutput = 'o'\n\
             policies = [{{name = 'p', model = 'm'}}]\n{eval}"
        );
        problems(&toml::from_str(&text).unwrap())
    }

    #[test]
    fn a_comparison_that_nobody_can_judge_is_found_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let sum = "{\"question\": \"2 + 2\", \"answer\": \"4\"}\n";
        let said = found(folder, sum, "");
        assert!(said.len() == 1 && said[0].contains("set judge = \"scorers\""), "{said:?}");
        let said = found(folder, sum, "judge = 'scorers'\n");
        assert!(said[0].contains("neither stages[0].eval.scorers nor reward_server.scorers"), "{said:?}");
        let numeric = "scorers = [{kind = 'numeric-match', field = 'answer'}]\n";
        let said = found(folder, sum, numeric);
        assert!(said[0].starts_with("stages[0].eval.problems") && said[0].contains("prompt"), "{said:?}");
        let columns = format!("columns = {{prompt = 'question'}}\n{numeric}");
        assert_eq!(found(folder, sum, &columns), Vec::<String>::new());
        let said = found(folder, sum, &columns.replace("'answer'", "'label'"));
        assert!(
            said[0].starts_with("stages[0].eval.scorers[0].field is \"label\": no such field"),
            "{said:?}"
        );
        let said = found(
            folder,
            sum,
            "scorers = [{kind = 'regex', pattern = '('}]\ncolumns = {prompt = 'question'}\n",
        );
        assert!(said.iter().any(|problem| problem.contains("no regular expression")), "{said:?}");
        let tested = "{\"prompt\": \"def f():\", \"test_list\": [\"assert f() is None\"], \"task_id\": 1}\n";
        assert_eq!(found(folder, tested, ""), Vec::<String>::new());
        let agents = "[actor.agents]\nenabled = true\n";
        let said = found(folder, tested, agents);
        assert!(said[0].starts_with("stages[0].eval.one_turn is false, but agents play"), "{said:?}");
        assert_eq!(found(folder, tested, &format!("one_turn = true\n{agents}")), Vec::<String>::new());
        let episodes = "[reward_server.environment]\nkind = 'python'\n";
        assert_eq!(found(folder, tested, episodes), Vec::<String>::new(), "the stage plays them");
        let chosen = format!("[[stages]]\nname = 'best'\n[stages.best_of_n]\noutput = 'b'\n{episodes}");
        let said = found(folder, tested, &chosen);
        assert!(said[0].starts_with("stages[1].best_of_n draws responses of one turn"), "{said:?}");
        let said = found(folder, tested, &format!("judge = 'tests'\n{numeric}"));
        assert!(said[0].contains("leave one of them out"), "{said:?}");
    }
}
