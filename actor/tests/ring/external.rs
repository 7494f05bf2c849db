//! An actor whose engine is a server of its own, as [`engine_stub`](crate::engine_stub) is one.

use std::collections::BTreeMap;
use std::time::Duration;

use engine::{Backend, CacheOnSwap};
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::link::actor::{ActorCommand, ActorLoad, ActorReport};
use types::{FailReason, FinishReason, PolicyVersion, Rollout, RolloutFailure, RolloutId, SamplingParams};

use crate::engine_stub::{Fault, Stub, continuation, logprob};
use crate::grpc::{self, ScoreStream};
use crate::world::{Link, World, published, soon, tokenizer};

const BOTH: [Backend; 2] = [Backend::Vllm, Backend::Sglang];

/// An actor that asks a stub.
struct Asking {
    world: World,
    stub: Stub,
    folder: tempfile::TempDir,
    streams: mpsc::Receiver<ScoreStream>,
    reward_server: std::net::SocketAddr,
}

fn sampling(max_new_tokens: u32) -> SamplingParams {
    SamplingParams { max_new_tokens, ..SamplingParams::default() }
}

async fn asking(backend: Backend, on_swap: CacheOnSwap) -> Asking {
    let (stub, folder) = (Stub::start().await, tempfile::tempdir().unwrap());
    let (url, path) = (stub.url(), folder.path().to_owned());
    let mut world = World::start(|config| {
        config.engine.backend = backend;
        config.engine.url = url;
        config.engine.weights_folder = Some(path);
        config.engine.on_swap = on_swap;
        config.engine.request_timeout = Duration::from_secs(3);
    })
    .await;
    let (reward_server, streams) = grpc::reward_server(&mut world.tasks).await;
    Asking { world, stub, folder, streams, reward_server }
}

impl Asking {
    /// The welcomed actor, once the server has the weights, and the stream of its rollouts.
    async fn ready(&mut self, params: SamplingParams) -> (Link, ScoreStream) {
        let link = self.world.ready(params).await;
        link.reward_servers(&[self.reward_server]).await;
        let stream = soon("a stream", self.streams.recv()).await.unwrap();
        (link, stream)
    }
}

/// The next rollouts, which are recorded.
async fn rollouts(stream: &mut ScoreStream, count: usize) -> BTreeMap<RolloutId, Rollout> {
    let mut found = BTreeMap::new();
    while found.len() < count {
        let rollout = stream.rollout().await;
        found.insert(rollout.id(), rollout);
    }
    found
}

async fn failure(link: &mut Link) -> RolloutFailure {
    link.until("a failure", |report| match report {
        ActorReport::Failed(failure) => Some(failure),
        _ => None,
    })
    .await
}

async fn load(link: &mut Link, what: &str, wanted: impl Fn(&ActorLoad) -> bool) {
    link.until(what, |report| match report {
        ActorReport::Load(load) if wanted(&load) => Some(()),
        _ => None,
    })
    .await;
}

fn versions(rollout: &Rollout) -> Vec<(u64, u32)> {
    rollout.spans().iter().map(|span| (span.version.0, span.tokens.get())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_log_probs_and_versions_are_the_servers() {
    for backend in BOTH {
        let mut asking = asking(backend, CacheOnSwap::Recompute).await;
        let params = SamplingParams { temperature: 0.7, ..sampling(9) };
        let (mut link, mut stream) = asking.ready(params).await;
        let wanted = link.lease(0, 12).await;
        let found = rollouts(&mut stream, 12).await;
        assert!(found.keys().eq(&wanted));
        let prompt = tokenizer().encode("the fox", true).unwrap();
        for rollout in found.values() {
            assert_eq!(rollout.prompt_tokens(), prompt);
            assert_eq!(rollout.response_tokens(), continuation(&prompt, 9));
            let expected = rollout.response_tokens().iter().map(|token| logprob(*token, 0.7) as f32);
            for (found, expected) in rollout.rollout_logprobs().iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "{found} and {expected}");
            }
            assert_eq!(versions(rollout), [(1, 9)]);
            assert_eq!(rollout.finish_reason(), FinishReason::Length);
            assert_eq!(rollout.surviving_mass(), None);
        }
        // Never more at a time than places, each with a seed and a name of its own.
        let path = if backend == Backend::Vllm { "/inference/v1/generate" } else { "/generate" };
        let mut calls = asking.stub.calls(path);
        calls.retain(|call| !call.to_string().contains("-measure-"));
        assert_eq!(calls.len(), 12);
        let (name, seed) =
            if backend == Backend::Vllm { ("request_id", "seed") } else { ("rid", "sampling_seed") };
        let distinct =
            |values: Vec<String>| values.into_iter().collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(distinct(calls.iter().map(|call| call[name].to_string()).collect()), 12);
        assert_eq!(
            distinct(calls.iter().map(|call| call["sampling_params"][seed].to_string()).collect()),
            12
        );
        // What it has read is what the learner has published.
        let (description, bytes) = published(1);
        let model =
            model::folder::load(&asking.stub.folder().unwrap(), &model::LoadOptions::default()).unwrap();
        assert!(model::buffer::pack(model.weights.flats(), tch::Kind::Float) == bytes);
        let own = |name: &str| std::fs::read(asking.stub.folder().unwrap().join(name)).unwrap();
        for file in description.files.iter().filter(|file| file.name().starts_with("tokenizer")) {
            assert!(own(file.name()) == file.content(), "{}", file.name());
        }
        asking.world.finish(link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_goes_on_with_the_next_weights() {
    let cases = [
        (Backend::Vllm, CacheOnSwap::Recompute),
        (Backend::Sglang, CacheOnSwap::Recompute),
        (Backend::Sglang, CacheOnSwap::Keep),
    ];
    for (backend, on_swap) in cases {
        let mut asking = asking(backend, on_swap).await;
        asking.stub.inside().token_time = Duration::from_millis(10);
        let (mut link, mut stream) = asking.ready(sampling(100)).await;
        link.lease(0, 4).await;
        while asking.stub.inside().under_way < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        *asking.world.weights.lock().unwrap() = published(2);
        let ordered = asking.world.order_pull(&link).await;
        let confirmed = link.until("confirmed weights", |report| match report {
            ActorReport::WeightsConfirmed { version, hash } => Some((version, hash)),
            ActorReport::WeightsFailed { detail, .. } => panic!("{detail}"),
            _ => None,
        });
        assert_eq!(confirmed.await, ordered);
        for rollout in rollouts(&mut stream, 4).await.values() {
            // Not a token is lost, drawn twice or taken for another version's.
            let spans = versions(rollout);
            assert!(
                spans.len() == 2 && (spans[0].0, spans[1].0) == (1, 2),
                "{backend:?} {on_swap:?} {spans:?}"
            );
            assert_eq!(spans[0].1 + spans[1].1, 100);
            assert_eq!(rollout.response_tokens(), continuation(rollout.prompt_tokens(), 100));
            let begun_anew = on_swap == CacheOnSwap::Recompute;
            let path = if backend == Backend::Vllm { "/inference/v1/generate" } else { "/generate" };
            assert_eq!(asking.stub.calls(path).len(), if begun_anew { 8 } else { 4 });
        }
        assert!(asking.stub.folder().unwrap().ends_with("actor-under-test/v2"));
        // The third version replaces the first.
        *asking.world.weights.lock().unwrap() = published(3);
        let ordered = asking.world.order_pull(&link).await;
        let confirmed = link.until("confirmed weights", |report| match report {
            ActorReport::WeightsConfirmed { version, hash } => Some((version, hash)),
            _ => None,
        });
        assert_eq!(confirmed.await, ordered);
        let own = asking.folder.path().join("actor-under-test");
        let kept = |version: &str| own.join(version).is_dir();
        assert!(!kept("v1") && kept("v2") && kept("v3"));
        asking.world.finish(link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_is_tried_again_and_three_are_a_failed_attempt() {
    for backend in BOTH {
        let mut asking = asking(backend, CacheOnSwap::Recompute).await;
        let (mut link, mut stream) = asking.ready(sampling(5)).await;
        let faults = [
            (Fault::Status(500), "HTTP 500: {\"error\": \"told to\"}"),
            (Fault::Garbage, "not what the protocol says"),
            (Fault::OtherShape, "not what the protocol says"),
            (Fault::LogprobMissing, "log-probs"),
            (Fault::TooMany, "at most 5 were asked for"),
            (Fault::AboveZero, "must be at most 0"),
            (Fault::NoToken, "no token"),
        ];
        let mut ordinal = 0;
        for (fault, expected) in faults {
            asking.stub.inside().faults.extend([fault, fault]);
            let wanted = link.lease(ordinal, 1).await;
            let found = rollouts(&mut stream, 1).await;
            assert_eq!(found[&wanted[0]].response_tokens().len(), 5, "{fault:?}");
            asking.stub.inside().faults.extend([fault; 3]);
            let wanted = link.lease(ordinal + 1, 1).await;
            let failure = failure(&mut link).await;
            assert_eq!((failure.id, failure.reason), (wanted[0], FailReason::Generation));
            assert!(failure.detail.contains(expected), "{fault:?}: {}", failure.detail);
            assert!(failure.detail.contains("tried 3 times"), "{}", failure.detail);
            ordinal += 2;
        }
        // What the server refuses is not asked again.
        asking.stub.inside().faults.push_back(Fault::Status(422));
        let before = asking.stub.inside().calls.len();
        link.lease(ordinal, 1).await;
        assert!(failure(&mut link).await.detail.contains("HTTP 422"));
        assert_eq!(asking.stub.inside().calls.len(), before + 1);
        // No answer is one within the deadline.
        let began = Instant::now();
        asking.stub.inside().faults.extend([Fault::Silent; 3]);
        link.lease(ordinal + 1, 1).await;
        let failure = failure(&mut link).await;
        assert!(failure.detail.contains("no answer within 3s"), "{}", failure.detail);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        asking.world.finish(link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_reads_its_weights_before_it_draws() {
    for backend in BOTH {
        let mut asking = asking(backend, CacheOnSwap::Recompute).await;
        let (mut link, mut stream) = asking.ready(sampling(5)).await;
        link.lease(0, 2).await;
        rollouts(&mut stream, 2).await;
        // A connection that breaks within an answer may be a server that has died.
        asking.stub.inside().faults.push_back(Fault::Truncated);
        let loads = |stub: &Stub| {
            let path = if backend == Backend::Vllm { "/collective_rpc" } else { "/update_weights_from_disk" };
            stub.calls(path).len()
        };
        assert_eq!(loads(&asking.stub), 1);
        link.lease(1, 1).await;
        rollouts(&mut stream, 1).await;
        assert_eq!(loads(&asking.stub), 2, "it reads them again");
        // It dies. An attempt fails in bounded time, and no more are asked for.
        let address = asking.stub.address;
        drop(asking.stub);
        let began = Instant::now();
        let wanted = link.lease(2, 1).await;
        let failure = failure(&mut link).await;
        assert_eq!((failure.id, failure.reason), (wanted[0], FailReason::Generation));
        assert!(failure.detail.contains("the external engine is lost"), "{}", failure.detail);
        assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
        load(&mut link, "no free slots", |load| load.free_slots == 0).await;
        // Another process at its address has other weights.
        asking.stub = Stub::start_at(address).await;
        load(&mut link, "free slots", |load| load.free_slots > 0).await;
        link.lease(3, 2).await;
        for rollout in rollouts(&mut stream, 2).await.values() {
            assert_eq!(versions(rollout), [(1, 5)]);
        }
        let calls: Vec<String> = asking.stub.inside().calls.iter().map(|(path, _)| path.clone()).collect();
        let at = |wanted: &str| calls.iter().position(|path| path.contains(wanted)).unwrap();
        let loading = if backend == Backend::Vllm { "/collective_rpc" } else { "/update_weights_from_disk" };
        assert!(at(loading) < at("generate"), "{calls:?}");
        asking.world.finish(link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_that_the_server_refuses_are_reported_and_nothing_is_drawn() {
    for backend in BOTH {
        let mut asking = asking(backend, CacheOnSwap::Recompute).await;
        let (mut link, mut stream) = asking.ready(sampling(5)).await;
        asking.stub.inside().refuses_weights = true;
        *asking.world.weights.lock().unwrap() = published(2);
        asking.world.order_pull(&link).await;
        let failed = link.until("failed weights", |report| match report {
            ActorReport::WeightsFailed { version, detail } => Some((version, detail)),
            ActorReport::WeightsConfirmed { .. } => panic!("refused weights were confirmed"),
            _ => None,
        });
        let (version, detail) = failed.await;
        assert_eq!(version, PolicyVersion(2));
        assert!(detail.contains("no room for the weights"), "{detail}");
        // Which weights it has nobody knows: it reads the last ones once it can.
        asking.stub.inside().refuses_weights = false;
        link.lease(0, 1).await;
        for rollout in rollouts(&mut stream, 1).await.values() {
            assert_eq!(versions(rollout), [(1, 5)]);
        }
        asking.world.finish(link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_runs_out_closes_its_calls() {
    for backend in BOTH {
        let mut asking = asking(backend, CacheOnSwap::Recompute).await;
        let (mut link, _stream) = asking.ready(sampling(100)).await;
        asking.stub.inside().token_time = Duration::from_secs(1);
        link.lease_for(Duration::from_millis(300), 0, 3).await;
        for _ in 0..3 {
            assert_eq!(failure(&mut link).await.reason, FailReason::LeaseExpired);
        }
        let began = Instant::now();
        while asking.stub.inside().under_way > 0 {
            assert!(began.elapsed() < Duration::from_secs(2), "the server goes on for nobody");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        asking.world.finish(link).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probs_of_another_temperature_end_the_actor_by_name() {
    for (backend, option) in
        [(Backend::Vllm, "--logprobs-mode processed_logprobs"), (Backend::Sglang, "SGLANG_RETURN")]
    {
        let mut asking = asking(backend, CacheOnSwap::Recompute).await;
        asking.stub.inside().raw_logprobs = true;
        let (link, _) = asking.world.welcome(SamplingParams { temperature: 0.7, ..sampling(5) }).await;
        asking.world.order_pull(&link).await;
        let error = asking.world.ends_with_error().await;
        assert!(error.contains(option) && error.contains("0.7"), "{error}");
    }
    // At temperature 1 both are the same.
    let mut asking = asking(Backend::Vllm, CacheOnSwap::Recompute).await;
    asking.stub.inside().raw_logprobs = true;
    let (mut link, mut stream) = asking.ready(sampling(5)).await;
    link.lease(0, 1).await;
    rollouts(&mut stream, 1).await;
    asking.world.finish(link).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_the_server_cannot_draw_for_is_refused_before_it_is_asked() {
    for backend in BOTH {
        let mut asking = asking(backend, CacheOnSwap::Recompute).await;
        let (_link, _) = asking.world.welcome(SamplingParams { top_p: 0.9, ..sampling(5) }).await;
        let error = asking.world.ends_with_error().await;
        assert!(error.contains("top_p") && error.contains(backend.external().unwrap()), "{error}");
        assert!(asking.stub.inside().calls.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_ends_a_response_is_its_last() {
    for backend in BOTH {
        let mut asking = asking(backend, CacheOnSwap::Recompute).await;
        let prompt = tokenizer().encode("the fox", true).unwrap();
        let drawn = continuation(&prompt, 20);
        let first = drawn.iter().position(|token| *token == drawn[7]).unwrap();
        let params = SamplingParams { stop_token_ids: vec![drawn[7]], ..sampling(20) };
        let (mut link, mut stream) = asking.ready(params).await;
        link.lease(0, 1).await;
        for rollout in rollouts(&mut stream, 1).await.values() {
            assert_eq!(rollout.response_tokens(), &drawn[..=first]);
            assert_eq!(rollout.finish_reason(), FinishReason::Stop);
        }
        link.command(ActorCommand::Drain).await;
        asking.world.ends().await;
    }
}
