//! What a recipe whose actors ask a server of its own cannot have.

use super::Recipe;

/// What does not go together.
pub(super) fn problems(recipe: &Recipe) -> Vec<String> {
    let Recipe { actor, coordinator, processes, .. } = recipe;
    let Some(name) = actor.engine.backend.external() else { return Vec::new() };
    let refused = actor::external_problems(&actor.engine, &coordinator.sampling, coordinator.deterministic);
    let mut problems: Vec<String> =
        refused.into_iter().map(|problem| format!("actor.engine.backend is {name}: {problem}")).collect();
    if processes.actors > 1 {
        problems.push(format!(
            "processes.actors is {}, but a {name} server has the weights of one actor: set it to 1, and start others \
             (sluice-actor) with an actor.engine.url of their own",
            processes.actors
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_external_engine_cannot_do_is_said_before_the_run() {
        let text = "[actor.engine]\nbackend = 'vllm'\n[coordinator.sampling]\ntop_p = 0.9\n[coordinator]\n\
                    deterministic = true\n[processes]\nactors = 2\n";
        let recipe: Recipe = toml::from_str(text).unwrap();
        let said = problems(&recipe);
        for expected in ["top_p", "deterministic", "processes.actors is 2"] {
            assert!(said.iter().any(|problem| problem.contains(expected)), "{expected}: {said:?}");
        }
        assert_eq!(said.len(), 3);
        assert_eq!(
            problems(&toml::from_str(&text.replace("'vllm'", "'auto'")).unwrap()),
            Vec::<String>::new()
        );
    }
}
