//! Episodes: turns go from the engine to a reward server's environment and back, and become one rollout.

use std::collections::BTreeMap;
use std::time::Duration;

use actor::Config;
use tokio::sync::mpsc;
use types::link::actor::ActorReport;
use types::link::environment::{
    EnvironmentMessage, EnvironmentReply, EnvironmentRequest, OnRewrite, Speaker,
};
use types::link::reward::{ScoreReply, ScoreRequest};
use types::{EpisodeEnd, FailReason, FinishReason, Rollout, RolloutId, SamplingParams};

use crate::grpc::{self, EpisodeStream, ScoreStream};
use crate::world::{Link, World, soon, tokenizer};

/// Turns of an episode here.
const TURNS: usize = 3;

fn sampling() -> SamplingParams {
    SamplingParams { max_new_tokens: 6, ignore_eos: true, ..SamplingParams::default() }
}

/// An environment for episodes of three turns that says to each how many tokens it had.
#[derive(Default)]
struct Script {
    turns: BTreeMap<RolloutId, usize>,
    /// What the policy wrote, by episode.
    texts: BTreeMap<RolloutId, Vec<String>>,
}

impl Script {
    fn answer(&mut self, request: EnvironmentRequest) -> Option<EnvironmentReply> {
        match request {
            EnvironmentRequest::Hello { .. } | EnvironmentRequest::Close(_) => None,
            EnvironmentRequest::Reset { id, .. } => {
                assert_eq!(self.turns.insert(id, 0), None, "reset twice");
                Some(EnvironmentReply::Ready {
                    id,
                    messages: Vec::new(),
                    tools: None,
                    max_tokens: 15,
                    on_rewrite: OnRewrite::default(),
                })
            }
            EnvironmentRequest::Step { id, text, tokens, truncated } => {
                let turn = self.turns.get_mut(&id).expect("a step of an episode that was reset");
                *turn += 1;
                // The third turn has what is left of the tokens.
                assert_eq!((tokens, truncated), (if *turn == TURNS { 3 } else { 6 }, true));
                self.texts.entry(id).or_default().push(text);
                let text = format!("{tokens} tokens");
                let messages = vec![EnvironmentMessage { speaker: Speaker::Tool, text }];
                let done = EnvironmentReply::Done { id, end: EpisodeEnd::Turns, reward: Some(0.25) };
                Some(if *turn == TURNS {
                    done
                } else {
                    EnvironmentReply::Observed { id, messages, reward: None }
                })
            }
        }
    }

    /// Answers until so many episodes are over.
    async fn play(&mut self, stream: &mut EpisodeStream, episodes: usize) {
        let over = |script: &Self| script.turns.values().filter(|turns| **turns == TURNS).count();
        while over(self) < episodes {
            let request = soon("a request", stream.up.recv()).await.expect("the stream of episodes ended");
            if let Some(reply) = self.answer(request) {
                stream.down.send(reply).await.unwrap();
            }
        }
    }
}

/// An actor that plays episodes, with a reward server.
struct Playing {
    world: World,
    link: Link,
    scores: ScoreStream,
    episodes: EpisodeStream,
    /// The streams of episodes that come after it.
    streams: mpsc::Receiver<EpisodeStream>,
}

impl Playing {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut world = World::start(|config| {
            config.acknowledge_timeout = Duration::from_secs(30);
            change(config);
        })
        .await;
        world.episodes = true;
        let (address, mut scores, mut streams) = grpc::environment(&mut world.tasks).await;
        let link = world.ready(sampling()).await;
        link.reward_servers(&[address]).await;
        let scores = soon("a stream", scores.recv()).await.unwrap();
        let episodes = soon("a stream of episodes", streams.recv()).await.unwrap();
        Self { world, link, scores, episodes, streams }
    }

    /// Plays a lease to its end: its rollouts by id, and what the environment was told.
    async fn play(&mut self, ordinal: u64, siblings: u16) -> (BTreeMap<RolloutId, Rollout>, Script) {
        let wanted = self.link.lease(ordinal, siblings).await;
        let mut script = Script::default();
        script.play(&mut self.episodes, wanted.len()).await;
        let mut rollouts = BTreeMap::new();
        for _ in &wanted {
            let rollout = self.scores.rollout().await;
            rollouts.insert(rollout.id(), rollout);
        }
        assert_eq!(rollouts.keys().copied().collect::<Vec<_>>(), wanted);
        (rollouts, script)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_and_observations_become_one_rollout_the_same_each_time() {
    let mut first = Playing::start().await;
    let (rollouts, script) = first.play(0, 4).await;
    let tokenizer = tokenizer();
    for (id, rollout) in &rollouts {
        assert_eq!(rollout.response_tokens().len(), 15, "nothing of what was said is the policy's");
        assert_eq!(rollout.rollout_logprobs().len(), 15);
        assert_eq!((rollout.finish_reason(), rollout.reward()), (FinishReason::Length, Some(0.25)));
        assert_eq!(rollout.spans().len(), 1);
        let turns = rollout.turns();
        assert_eq!(turns.iter().map(|turn| turn.len()).collect::<Vec<_>>(), [6, 6, 3]);
        let sequence = rollout.sequence();
        for (turn, text) in turns.iter().zip(&script.texts[id]) {
            let said = tokenizer.response_text(&sequence[..turn.start], &sequence[turn.clone()], false);
            assert_eq!(said.unwrap(), *text, "the environment read what was drawn");
        }
        for observation in rollout.observations() {
            let text = tokenizer.decode(&observation.tokens, false).unwrap();
            assert_eq!(text.trim_start(), "```output\n6 tokens\n```\n");
        }
    }
    let texts: std::collections::BTreeSet<_> = script.texts.values().collect();
    assert_eq!(texts.len(), 4, "siblings draw their own");
    first.world.finish(first.link).await;

    let mut second = Playing::start().await;
    let (again, _) = second.play(0, 4).await;
    assert!(again == rollouts, "the same episodes, to the bit");
    second.world.finish(second.link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_episode_ends_with_its_environment_and_what_had_not_begun_goes_on() {
    let mut playing = Playing::start().await;
    let wanted = playing.link.lease(0, 2).await;
    // One has begun when the server goes away, one has not.
    let mut script = Script::default();
    let begun = loop {
        let request = soon("a request", playing.episodes.up.recv()).await.unwrap();
        if let EnvironmentRequest::Reset { id, .. } = request {
            break id;
        }
    };
    let ready = EnvironmentReply::Ready {
        id: begun,
        messages: Vec::new(),
        tools: None,
        max_tokens: 15,
        on_rewrite: OnRewrite::default(),
    };
    playing.episodes.down.send(ready).await.unwrap();
    // The stream is dropped only when the answer has been read.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let Playing { world, mut link, mut scores, episodes, mut streams } = playing;
    drop(episodes);
    let failed = link.until("the failure", |report| match report {
        ActorReport::Failed(failure) => Some(failure),
        _ => None,
    });
    let failure = failed.await;
    assert_eq!((failure.id, failure.reason), (begun, FailReason::Environment));
    assert!(failure.detail.contains("reward-0"), "{}", failure.detail);

    let mut again = soon("another stream", streams.recv()).await.unwrap();
    script.play(&mut again, 1).await;
    let rest = wanted.into_iter().find(|id| *id != begun).unwrap();
    loop {
        if let ScoreRequest::Rollout { rollout, .. } = soon("a rollout", scores.up.recv()).await.unwrap() {
            assert_eq!(rollout.id(), rest);
            scores.down.send(ScoreReply::Recorded(rest)).await.unwrap();
            break;
        }
    }
    world.finish(link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_episode_whose_tool_is_at_work_holds_no_place_in_the_engine() {
    let mut playing = Playing::with(|config| config.engine.max_sequences = Some(1)).await;
    let wanted = playing.link.lease(0, 3).await;
    let mut script = Script::default();
    let mut steps = Vec::new();
    // All three write their first turn in the only place, while the tools of the others are at work.
    while steps.len() < wanted.len() {
        match soon("a request", playing.episodes.up.recv()).await.unwrap() {
            step @ EnvironmentRequest::Step { .. } => steps.push(step),
            other => {
                if let Some(reply) = script.answer(other) {
                    playing.episodes.down.send(reply).await.unwrap();
                }
            }
        }
    }
    let room = playing.link.until("room for more", |report| match report {
        ActorReport::Load(load) if load.running == 3 && load.free_slots > 0 => Some(()),
        _ => None,
    });
    room.await;
    for step in steps {
        let reply = script.answer(step).unwrap();
        playing.episodes.down.send(reply).await.unwrap();
    }
    script.play(&mut playing.episodes, wanted.len()).await;
    for _ in &wanted {
        playing.scores.rollout().await;
    }
    playing.world.finish(playing.link).await;
}
