//! Leases of one-turn responses, as requests to the engine.

use std::sync::Arc;

use engine::{Request, SampleRequest};
use types::FailReason;
use types::link::actor::ActorWelcome;

use super::RolloutLoop;
use crate::work::{HeldLease, Work, group_work};

impl RolloutLoop {
    /// Gives the engine a lease.
    pub(super) async fn submit(&mut self, lease: HeldLease, welcome: &ActorWelcome) -> anyhow::Result<()> {
        let Some(policy) = &mut self.policy else { return Ok(()) };
        let sampling = Arc::new(lease.sampling.unwrap_or_else(|| welcome.sampling.clone()));
        let (mut requests, mut works, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        let mut first = self.work.next_number();
        for leased in lease.prompts {
            let prompt_tokens = match policy.encoder.encode(leased.prompt.content()) {
                Ok(tokens) => tokens,
                Err(error) => {
                    failures.push((leased.wanted, format!("{error:#}")));
                    continue;
                }
            };
            let group = group_work(&leased, lease.deadline, &prompt_tokens, welcome.deterministic);
            requests.push(Request {
                prompt_tokens,
                samples: sample_requests(&group, first, welcome.seed),
                sampling: Arc::clone(&sampling),
                eos_token_ids: policy.encoder.eos_ids(),
                min_tokens: 0,
                grammar: None,
                top_logprobs: 0,
                stream: false,
            });
            first += group.len() as u64;
            works.push(group);
        }
        let refusals = policy.engine.submit(requests).await?;
        for (group, refusal) in works.into_iter().zip(refusals) {
            match refusal {
                Ok(()) => self.work.start(group),
                Err(refusal) => {
                    self.work.skip(group.len());
                    let wanted = group.iter().filter(|work| !work.unwanted).map(|work| work.id).collect();
                    failures.push((wanted, refusal.to_string()));
                }
            }
        }
        for (ids, detail) in failures {
            for id in ids {
                self.fail(id, FailReason::Generation, detail.clone(), 0).await;
            }
        }
        Ok(())
    }
}

/// The engine's requests for a group's responses, numbered from `first`, each with a seed of its own.
fn sample_requests(group: &[Work], first: u64, run_seed: u64) -> Vec<SampleRequest> {
    let numbered = (first..).zip(group);
    numbered.map(|(id, work)| SampleRequest { id, seed: work.id.seed(run_seed) }).collect()
}
