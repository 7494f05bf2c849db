//! What the loop makes of agents: leases are offered to them, and what they have played is delivered.

use std::sync::Arc;

use openai::{AgentEvent, Agents, Offer, Played};
use service::BadInput;
use types::link::actor::ActorWelcome;

use super::RolloutLoop;
use crate::metrics;
use crate::work::{HeldLease, group_work};

impl RolloutLoop {
    /// Whether agents can play this run's episodes.
    ///
    /// # Errors
    /// Says what else plays them, or cannot wait for them.
    pub(super) fn agents_fit(&self, welcome: &ActorWelcome) -> Result<(), BadInput> {
        let problem = match &self.agents {
            Some(_) if welcome.episodes => {
                "actor.agents.enabled, but the reward servers have an environment, which plays episodes too: leave out \
                 one of the two"
            }
            Some(_) if welcome.deterministic => {
                "actor.agents.enabled, but coordinator.deterministic is true: nobody repeats what agents do; set one of \
                 the two to false"
            }
            _ => return Ok(()),
        };
        Err(BadInput(problem.to_owned()))
    }

    /// Offers a lease's responses.
    pub(super) fn offer_to_agents(&mut self, lease: HeldLease, welcome: &ActorWelcome) {
        let Some(agents) = &self.agents else { return };
        let sampling = Arc::new(lease.sampling.unwrap_or_else(|| welcome.sampling.clone()));
        for leased in lease.prompts {
            let mut group = group_work(&leased, lease.deadline, &Arc::from([]), false);
            for work in &mut group {
                work.is_agents = true;
                agents.offer(Offer {
                    id: work.id,
                    prompt: leased.prompt.content().clone(),
                    sampling: Arc::clone(&sampling),
                    run_seed: welcome.seed,
                    deadline: work.deadline,
                });
            }
            self.work.start(group);
        }
    }

    /// Something has become of an episode.
    pub(super) async fn agent_event(&mut self, event: AgentEvent) {
        match event {
            // The load is looked at whenever something has happened.
            AgentEvent::Waiting => {}
            AgentEvent::Failed { id, reason, detail, tokens } => {
                if let Some(number) = self.work.number_of(id) {
                    self.end_failed(number, reason, detail, tokens).await;
                }
            }
            AgentEvent::Played(played) => {
                let Played { rollout, end, calls, sequences, given_tokens } = *played;
                // Of one that was given up.
                let Some(work) = self.work.number_of(rollout.id).and_then(|number| self.work.end(number))
                else {
                    return;
                };
                let tokens = rollout.response_tokens.len();
                self.generated_tokens += tokens as u64;
                metrics::finished(tokens);
                metrics::episode_ended(end, calls, given_tokens);
                metrics::agent_episode(calls, sequences.saturating_sub(1));
                self.deliver(rollout, work.deadline).await;
            }
        }
    }
}

/// What becomes of an episode next; nothing where no agents play.
pub(super) async fn next_event(agents: Option<&Agents>) -> AgentEvent {
    match agents {
        Some(agents) => agents.next().await,
        None => std::future::pending().await,
    }
}
