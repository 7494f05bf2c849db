//! What the run waits for, in one sentence: the answer to "why is nothing happening?".

use crate::state::{Phase, State};

/// What the run waits for now.
pub(crate) fn waiting_for(state: &State) -> String {
    match state.phase() {
        Phase::Finished => return "nothing: the run is finished".to_owned(),
        Phase::Stopped => return "nothing: the run was stopped and can be resumed".to_owned(),
        Phase::Draining => {
            return "actors to finish their leases and the learner to write a checkpoint".to_owned();
        }
        Phase::Running => {}
    }
    let connected_actors = state.actors().values().filter(|actor| actor.connected).count();
    if !state.learner().is_some_and(|learner| learner.connected) {
        return "the learner to connect".to_owned();
    }
    if connected_actors == 0 {
        return "an actor to connect".to_owned();
    }
    if !state.reward_servers().values().any(|server| server.connected) {
        return "a reward server to connect".to_owned();
    }
    let (trained, formed, version) = (state.trained(), state.formed(), state.version());
    if formed > trained {
        return format!("the learner to train batch {}", trained.next());
    }
    let current =
        state.actors().values().filter(|actor| actor.weights.is_some_and(|(v, _)| v == version)).count();
    if current == 0 {
        return format!("an actor to receive {version} ({connected_actors} connected)");
    }
    let plan = state.plan();
    format!(
        "responses to {} prompts: batch {} has {} of its {} groups",
        state.open_prompts(),
        formed.next(),
        state.ready_prompts(),
        plan.batch_prompts
    )
}
