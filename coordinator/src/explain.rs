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
    let members = state.members();
    if members.connected_learner().is_none() {
        return "the learner to connect".to_owned();
    }
    let connected_actors = members.connected_actor_count();
    if connected_actors == 0 {
        return "an actor to connect".to_owned();
    }
    if members.connected_reward_server_count() == 0 {
        return "a reward server to connect".to_owned();
    }
    let (trained, formed, version) = (state.batches().trained(), state.batches().formed(), state.version());
    if formed > trained {
        return format!("the learner to train batch {}", trained.next());
    }
    let mut versions = members.actors().values().filter_map(|actor| actor.weights);
    let current = versions.any(|(held, _)| held == version);
    if !current {
        return format!("an actor to receive {version} ({connected_actors} connected)");
    }
    let plan = state.plan();
    format!(
        "responses to {} prompts: batch {} has {} of its {} groups",
        state.open_prompts(),
        formed.next(),
        state.batches().ready_prompts(),
        plan.batch_prompts
    )
}
