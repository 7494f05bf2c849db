//! What the loop makes of episodes: their turns go from the engine to an environment and back.

use std::sync::Arc;

use engine::{Episode, Finished, Opening, Refusal, Request, SampleRequest, TurnRequest, TurnText};
use types::link::actor::ActorWelcome;
use types::link::environment::{EnvironmentReply, EnvironmentRequest};
use types::{EpisodeEnd, FailReason};

use super::RolloutLoop;
use crate::metrics;
use crate::work::{HeldLease, Work, group_work};

/// Whether a turn can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The first one of an episode.
    First,
    /// Another one.
    Further,
}

impl RolloutLoop {
    /// Begins the episodes of a lease: each is drawn once its environment is ready.
    pub(super) fn begin_episodes(&mut self, lease: HeldLease, welcome: &ActorWelcome) {
        let Some(environments) = &mut self.environments else { return };
        let sampling = Arc::new(lease.sampling.unwrap_or_else(|| welcome.sampling.clone()));
        for leased in lease.prompts {
            let mut group = group_work(&leased, lease.deadline, &Arc::from([]), welcome.deterministic);
            for work in &mut group {
                let content = leased.prompt.content().clone();
                let episode = Episode::new(content, Arc::clone(&sampling), welcome.seed);
                work.episode = Some(Box::new(episode));
                environments.reset(work.id, work.deadline);
            }
            self.work.start(group);
        }
    }

    /// An environment has answered.
    pub(super) async fn environment_reply(&mut self, reply: EnvironmentReply) -> anyhow::Result<()> {
        let id = reply.id();
        // Of one that was given up.
        let Some(number) = self.work.number_of(id) else { return Ok(()) };
        match reply {
            EnvironmentReply::Ready { messages, tools, max_tokens, on_rewrite, .. } => {
                self.began(number, &Opening { messages, tools, max_tokens, on_rewrite }).await;
            }
            EnvironmentReply::Observed { messages, reward, .. } => {
                let Some((episode, policy)) = self
                    .work
                    .get_mut(number)
                    .and_then(|work| work.episode.as_mut())
                    .zip(self.policy.as_ref())
                else {
                    return Ok(());
                };
                episode.is_worth(reward);
                let context = policy.engine.context_tokens();
                match episode.observe(&policy.encoder, context, &messages) {
                    Ok(None) => {
                        self.next_turns.insert(number);
                    }
                    Ok(Some(end)) => self.end_episode(number, end).await,
                    Err(error) => self.end_broken(number, &error).await,
                }
            }
            EnvironmentReply::Done { end, reward, .. } => {
                if let Some(episode) = self.work.get_mut(number).and_then(|work| work.episode.as_mut()) {
                    episode.is_worth(reward);
                }
                self.end_episode(number, end).await;
            }
            EnvironmentReply::Failed { reason, detail, .. } => {
                if let Some(policy) = &mut self.policy {
                    policy.engine.cancel(number).await?;
                }
                let tokens = self.episode(number).map_or(0, Episode::tokens);
                self.end_failed(number, reason, detail, tokens).await;
            }
            // What it means is known to the environments, which try again.
            EnvironmentReply::Overloaded { .. } => {}
        }
        Ok(())
    }

    fn episode(&self, number: u64) -> Option<&Episode> {
        self.work.get(number)?.episode.as_deref()
    }

    /// The environment of an episode is ready.
    async fn began(&mut self, number: u64, opening: &Opening) {
        let Some((work, policy)) = self.work.get_mut(number).zip(self.policy.as_ref()) else { return };
        let Some(episode) = &mut work.episode else { return };
        match episode.begin(&policy.encoder, opening) {
            Ok(()) => {
                self.next_turns.insert(number);
            }
            Err(error) => self.end_broken(number, &error).await,
        }
    }

    /// Gives the engine the turns that are to be drawn. In deterministic mode all of a lease together, when
    /// no environment is asked any more, so that the batch composition does not depend on how long they take.
    pub(super) async fn draw_next_turns(&mut self) -> anyhow::Result<()> {
        if self.next_turns.is_empty() {
            return Ok(());
        }
        let deterministic = self.welcome.as_ref().is_some_and(|welcome| welcome.deterministic);
        if deterministic && self.next_turns.len() < self.work.running() {
            return Ok(());
        }
        let due: Vec<u64> = self.next_turns.iter().copied().filter(|number| self.is_due(*number)).collect();
        let mut requests: Vec<(Turn, Request)> = Vec::new();
        let mut broken = Vec::new();
        for number in due {
            let Some((work, episode)) =
                self.work.get(number).and_then(|work| Some((work, work.episode.as_ref()?)))
            else {
                self.next_turns.remove(&number);
                continue;
            };
            let turn = if episode.turns() == 0 { Turn::First } else { Turn::Further };
            match episode.request(work.id) {
                Ok(request) => self.add(&mut requests, number, turn, request),
                Err(invalid) => broken.push((number, anyhow::Error::from(invalid))),
            }
        }
        for (number, error) in broken {
            self.end_broken(number, &error).await;
        }
        self.submit_turns(requests).await
    }

    /// Whether an episode's next turn waits for nobody: the first one waits for its siblings', to share their
    /// prompt with them.
    fn is_due(&self, number: u64) -> bool {
        self.episode(number).is_none_or(|episode| episode.turns() > 0)
            || !self.work.has_sibling_to_begin(number)
    }

    /// Adds a turn to the requests; to that of its siblings where they begin alike.
    fn add(&self, requests: &mut Vec<(Turn, Request)>, number: u64, turn: Turn, next: TurnRequest) {
        let TurnRequest { prompt_tokens, sampling, seed } = next;
        let sample = SampleRequest { id: number, seed };
        if let Some((Turn::First, last)) = requests.last_mut()
            && turn == Turn::First
            && last.prompt_tokens == prompt_tokens
            && last.sampling == sampling
        {
            last.samples.push(sample);
            return;
        }
        let Some(policy) = &self.policy else { return };
        let request = Request {
            prompt_tokens,
            samples: vec![sample],
            sampling,
            eos_token_ids: policy.encoder.eos_ids(),
            min_tokens: 0,
            grammar: None,
            top_logprobs: 0,
            stream: false,
        };
        requests.push((turn, request));
    }

    async fn submit_turns(&mut self, requests: Vec<(Turn, Request)>) -> anyhow::Result<()> {
        let Some(policy) = self.policy.as_mut().filter(|_| !requests.is_empty()) else { return Ok(()) };
        let asked: Vec<(Turn, Vec<u64>)> = requests
            .iter()
            .map(|(turn, request)| (*turn, request.samples.iter().map(|sample| sample.id).collect()))
            .collect();
        let refusals =
            policy.engine.submit(requests.into_iter().map(|(_, request)| request).collect()).await?;
        for ((turn, numbers), refusal) in asked.into_iter().zip(refusals) {
            // The engine has room again once something of it has ended, and that is an event.
            if matches!(refusal, Err(Refusal::Busy { .. } | Refusal::Unread { .. })) {
                continue;
            }
            for number in numbers {
                self.next_turns.remove(&number);
                match (&refusal, turn) {
                    (Ok(()), _) => {}
                    (Err(Refusal::Context { .. } | Refusal::Pool { .. }), Turn::Further) => {
                        self.end_episode(number, EpisodeEnd::Context).await;
                    }
                    (Err(refusal), _) => {
                        let tokens = self.episode(number).map_or(0, Episode::tokens);
                        self.end_failed(number, FailReason::Generation, refusal.to_string(), tokens).await;
                    }
                }
            }
        }
        Ok(())
    }

    /// The engine has drawn a turn: the environment is told.
    pub(super) async fn turn_drawn(&mut self, finished: Finished) {
        let number = finished.id;
        let Some((work, policy)) = self.work.get_mut(number).zip(self.policy.as_ref()) else { return };
        let Some(episode) = &mut work.episode else { return };
        self.generated_tokens += finished.response_tokens.len() as u64;
        let id = work.id;
        match episode.drawn(&policy.encoder, finished) {
            Ok(TurnText { text, tokens, truncated }) => {
                if let Some(environments) = &mut self.environments {
                    environments.step(EnvironmentRequest::Step { id, text, tokens, truncated });
                }
            }
            Err(error) => self.end_broken(number, &error).await,
        }
    }

    /// An episode has no further turn: it is a rollout.
    async fn end_episode(&mut self, number: u64, end: EpisodeEnd) {
        let Some(mut work) = self.work.end(number) else { return };
        self.forget_episode(number, &work);
        let Some(episode) = work.episode.take() else { return };
        metrics::finished(episode.tokens());
        metrics::episode_ended(end, episode.turns(), episode.given_tokens());
        metrics::episode_rewritten(episode.further_sequences());
        if !work.unwanted {
            self.deliver(episode.finish(work.id, end), work.deadline).await;
        }
    }

    /// An episode whose tokens or texts cannot be handled.
    async fn end_broken(&mut self, number: u64, error: &anyhow::Error) {
        let tokens = self.episode(number).map_or(0, Episode::tokens);
        self.end_failed(number, FailReason::Generation, format!("{error:#}"), tokens).await;
    }

    /// Nothing waits for an episode that has ended.
    pub(super) fn forget_episode(&mut self, number: u64, work: &Work) {
        self.next_turns.remove(&number);
        if let (Some(environments), Some(_)) = (&mut self.environments, &work.episode) {
            environments.close(work.id);
        }
    }
}
