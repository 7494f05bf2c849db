//! The way of a rollout: offered, scored, reported, recorded, acknowledged; and everything that can come
//! between.

use std::process::ExitCode;
use std::time::Duration;

use model::SpecialTokens;
use reward_server::Config;
use reward_server::config::ScorerKind;
use tonic::Status;
use types::FailReason;
use types::link::reward::{RewardCommand, RewardReport, ScoreReply};

use crate::grpc::{Actor, FakeCoordinator};
use crate::stub::Stub;
use crate::tiny;
use crate::world::{RUN, Server, World, connect, failed, networks, scored, scorer, soon, until, why};

/// A server whose only scorer is a remote service.
fn remote(stub: &Stub) -> Config {
    Config {
        tokenizer: Some(tiny::folder("policy")),
        scorers: scorer(ScorerKind::Http(stub.scorer())),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_gets_its_numbers_and_is_acknowledged_once_recorded() {
    let mut world = World::start(networks()).await;
    assert!(world.server.readiness.get());
    let rollout = tiny::with_tokens(0, &tiny::tokens(5, 12), r#"{"prompt": "x"}"#);
    world.actor.offer(&rollout).await;
    let scored = scored(world.session.result().await);
    let tokens = [rollout.prompt_tokens(), rollout.response_tokens()].concat();
    assert!((scored.score() - tiny::expected_score(&tokens)).abs() < 1e-5, "{}", scored.score());
    let expected = tiny::expected_logprobs(&rollout, 0.8);
    assert_eq!(scored.ref_logprobs().len(), expected.len());
    for (found, expected) in scored.ref_logprobs().iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
    }
    assert_eq!(scored.outcome(), None, "there are no tests");
    assert_eq!(scored.rollout().rollout_logprobs(), rollout.rollout_logprobs());
    assert!(world.actor.ready_reply().is_none(), "a report is not a record");
    world.session.record(rollout.id()).await;
    assert_eq!(world.actor.reply().await.unwrap(), ScoreReply::Recorded(rollout.id()));
}

/// A server that nobody has told takes the KL at the temperature of the draws, as the coordinator says it.
#[tokio::test(flavor = "multi_thread")]
async fn the_temperature_of_the_draws_comes_with_the_welcome() {
    let mut config = networks();
    config.reference.as_mut().unwrap().temperature = None;
    let mut coordinator = FakeCoordinator::start().await;
    config.coordinator = Some(coordinator.address.clone());
    let server = Server::start(config).await.unwrap();
    let mut session = coordinator.welcomed_at(Some(0.7)).await;
    let actor = connect(&server, "actor-0").await;
    let rollout = tiny::with_tokens(0, &tiny::tokens(5, 12), "");
    actor.offer(&rollout).await;
    let found = scored(session.result().await);
    let expected = tiny::expected_logprobs(&rollout, 0.7);
    let at_one = tiny::expected_logprobs(&rollout, 1.0);
    let apart = |other: &[f32]| -> f32 {
        found.ref_logprobs().iter().zip(other).map(|(found, other)| (found - other).abs()).fold(0.0, f32::max)
    };
    assert!(apart(&expected) < 1e-5, "{} apart", apart(&expected));
    assert!(apart(&at_one) > 1e-2, "the temperature makes a difference here");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_temperature_than_that_of_the_draws_is_refused() {
    for (configured, drawn_at, fits) in [(1.0, 0.7, false), (0.7, 0.7, true), (1.0, 0.0, true)] {
        let mut config = networks();
        config.reference.as_mut().unwrap().temperature = Some(configured);
        let mut coordinator = FakeCoordinator::start().await;
        config.coordinator = Some(coordinator.address.clone());
        let server = Server::start(config).await.unwrap();
        let mut session = coordinator.welcomed_at(Some(drawn_at)).await;
        if fits {
            assert!(matches!(session.any_report().await, Some(RewardReport::Load { .. })));
            continue;
        }
        let error = server.ended().await.unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains("draws at temperature 0.7"), "{said}");
        assert!(said.contains("reference.temperature is 1 here: leave it out"), "{said}");
        assert!(error.downcast_ref::<service::BadInput>().is_some(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_of_several_actors_are_batched_and_each_gets_its_own_numbers() {
    let mut world = World::start(networks()).await;
    let second = connect(&world.server, "actor-1").await;
    let rollouts: Vec<_> =
        (0..40).map(|n| tiny::with_tokens(n, &tiny::tokens(n, 1 + n as usize * 3), "")).collect();
    for (number, rollout) in rollouts.iter().enumerate() {
        let actor = if number % 2 == 0 { &world.actor } else { &second };
        actor.offer(rollout).await;
    }
    for _ in &rollouts {
        let scored = scored(world.session.result().await);
        let tokens = [scored.rollout().prompt_tokens(), scored.rollout().response_tokens()].concat();
        assert!((scored.score() - tiny::expected_score(&tokens)).abs() < 1e-4);
        assert!((scored.ref_logprobs()[0] - tiny::expected_logprobs(scored.rollout(), 0.8)[0]).abs() < 1e-4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_a_network_does_not_know_fails_only_its_rollout() {
    let mut world = World::start(networks()).await;
    let (good, bad) = (tiny::with_tokens(0, &[1, 2], ""), tiny::with_tokens(1, &[1, 70_000], ""));
    world.actor.offer(&bad).await;
    world.actor.offer(&good).await;
    let reports = [world.session.result().await, world.session.result().await];
    let (failures, scores): (Vec<_>, Vec<_>) =
        reports.into_iter().partition(|report| matches!(report, RewardReport::Failed(_)));
    assert_eq!(scored(scores.into_iter().next().unwrap()).rollout().id(), good.id());
    let (reason, detail) = why(failures.into_iter().next().unwrap());
    assert_eq!(reason, FailReason::RewardError);
    assert!(detail.contains("token 70000 is outside"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_rollout_has_failed_and_its_stream_goes_on() {
    let mut world = World::start(networks()).await;
    let rollout = tiny::with_tokens(0, &[1, 2], "");
    world.actor.offer_broken(&rollout, |message| message.rollout_logprobs[1] = f32::NAN).await;
    let failure = failed(world.session.result().await);
    assert_eq!((failure.id, failure.reason, failure.response_tokens), (rollout.id(), FailReason::Invalid, 2));
    assert!(failure.detail.contains("rollout_logprobs[1]"), "{}", failure.detail);
    world.session.record(rollout.id()).await;
    assert_eq!(world.actor.reply().await.unwrap(), ScoreReply::Recorded(rollout.id()));
    let next = tiny::with_tokens(1, &[1, 2], "");
    world.actor.offer(&next).await;
    assert_eq!(scored(world.session.result().await).rollout().id(), next.id());
    world.actor.offer_broken(&next, |message| message.id = None).await;
    assert_eq!(world.actor.reply().await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_in_work_is_scored_once_whoever_offers_it() {
    let stub = Stub::closed().await;
    let mut world = World::start(remote(&stub)).await;
    let mut second = connect(&world.server, "actor-1").await;
    let rollout = tiny::rollout(0, "the answer", "");
    world.actor.offer(&rollout).await;
    world.actor.offer(&rollout).await;
    second.offer(&rollout).await;
    // Another rollout behind them on each stream: when its request has come, the first one's offers have been
    // taken.
    for (number, actor) in [(1, &world.actor), (2, &second)] {
        actor.offer(&tiny::rollout(number, "x", "")).await;
    }
    until("the requests have come", || stub.bodies().len() == 3).await;
    stub.let_through(3);
    for _ in 0..3 {
        let id = scored(world.session.result().await).rollout().id();
        world.session.record(id).await;
    }
    let queries: Vec<_> = stub.bodies().iter().map(|body| body["query"][0].as_str().unwrap().len()).collect();
    assert_eq!(queries.len(), 3, "one request a rollout");
    for actor in [&mut world.actor, &mut second] {
        let replies = [actor.reply().await.unwrap(), actor.reply().await.unwrap()];
        assert!(replies.contains(&ScoreReply::Recorded(rollout.id())), "{replies:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_journal_may_not_have_is_sent_again_after_a_reconnect() {
    let mut world = World::start(networks()).await;
    assert_eq!(world.session.hello.run, None);
    let rollouts: Vec<_> = (0..3).map(|n| tiny::with_tokens(n, &tiny::tokens(n, 4), "")).collect();
    for rollout in &rollouts {
        world.actor.offer(rollout).await;
    }
    let mut first: Vec<_> = Vec::new();
    for _ in &rollouts {
        first.push(scored(world.session.result().await));
    }
    world.session.record(rollouts[1].id()).await;
    assert_eq!(world.actor.reply().await.unwrap(), ScoreReply::Recorded(rollouts[1].id()));
    drop(world.session);
    let mut session = world.coordinator.welcomed().await;
    assert_eq!(session.hello.run.as_ref().map(|run| run.as_str()), Some(RUN));
    let read = types::Vocabulary::of(tiny::tokenizer().tokens());
    assert_eq!(session.hello.vocabulary, Some(read), "it says which tokens it reads");
    for expected in [rollouts[0].id(), rollouts[2].id()] {
        let again = scored(session.result().await);
        assert_eq!(again.rollout().id(), expected, "in the order of arrival");
        assert!(first.contains(&again), "the same result, not a new one");
        session.record(expected).await;
        assert_eq!(world.actor.reply().await.unwrap(), ScoreReply::Recorded(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_comes_while_the_coordinator_is_away_is_kept() {
    let stub = Stub::closed().await;
    let mut world = World::start(remote(&stub)).await;
    let rollout = tiny::rollout(0, "the answer", "");
    world.actor.offer(&rollout).await;
    drop(world.session);
    stub.let_through(1);
    let mut session = world.coordinator.welcomed().await;
    assert_eq!(scored(session.result().await).rollout().id(), rollout.id());
    session.record(rollout.id()).await;
    assert_eq!(world.actor.reply().await.unwrap(), ScoreReply::Recorded(rollout.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_late_has_failed_with_its_length() {
    let stub = Stub::closed().await;
    let config = Config { scoring_timeout: Duration::from_millis(50), ..remote(&stub) };
    let mut world = World::start(config).await;
    let rollout = tiny::with_tokens(0, &[5; 37], "");
    world.actor.offer(&rollout).await;
    let failure = failed(world.session.result().await);
    assert_eq!((failure.reason, failure.response_tokens), (FailReason::RewardTimeout, 37));
    assert!(failure.detail.starts_with("http: "), "the scorer is named: {}", failure.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_its_bounds_the_server_says_when_to_come_back() {
    let stub = Stub::closed().await;
    let mut config = remote(&stub);
    config.queue.max_rollouts = 4;
    let mut world = World::start(config).await;
    for number in 0..5 {
        world.actor.offer(&tiny::rollout(number, "x", "")).await;
    }
    let ScoreReply::Overloaded { id, retry_after } = world.actor.reply().await.unwrap() else {
        panic!("not refused")
    };
    assert_eq!(id.prompt.ordinal, 4);
    assert!(retry_after > Duration::ZERO);
    stub.let_through(4);
    let done = scored(world.session.result().await).rollout().id();
    world.session.record(done).await;
    assert_eq!(world.actor.reply().await.unwrap(), ScoreReply::Recorded(done));
    world.actor.offer(&tiny::rollout(4, "x", "")).await;
    stub.let_through(1);
    let mut later = Vec::new();
    for _ in 0..4 {
        later.push(scored(world.session.result().await).rollout().id().prompt.ordinal);
    }
    assert!(later.contains(&4), "there is room again: {later:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_whose_lease_runs_out_is_a_timeout_of_its_length() {
    let stub = Stub::closed().await;
    let mut world = World::start(remote(&stub)).await;
    let rollout = tiny::rollout(0, "the answer", "");
    world.actor.offer_for(Duration::from_millis(200), &rollout).await;
    let failure = failed(world.session.result().await);
    let tokens = u32::try_from(rollout.response_tokens().len()).unwrap();
    assert_eq!(
        (failure.id, failure.reason, failure.response_tokens),
        (rollout.id(), FailReason::RewardTimeout, tokens)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_told_to_stop_finishes_what_it_has_and_takes_nothing_new() {
    let stub = Stub::closed().await;
    let mut world = World::start(remote(&stub)).await;
    let rollout = tiny::rollout(0, "the answer", "");
    world.actor.offer(&rollout).await;
    until("the request has come", || !stub.bodies().is_empty()).await;
    world.server.token.cancel();
    let late = tiny::rollout(1, "too late", "");
    world.actor.offer(&late).await;
    let ScoreReply::Overloaded { id, .. } = world.actor.reply().await.unwrap() else { panic!("not refused") };
    assert_eq!(id, late.id());
    stub.let_through(1);
    assert_eq!(scored(world.session.result().await).rollout().id(), rollout.id());
    world.session.record(rollout.id()).await;
    assert_eq!(world.actor.reply().await.unwrap(), ScoreReply::Recorded(rollout.id()));
    world.server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_leaves_when_the_run_is_over() {
    let world = World::start(networks()).await;
    world.session.command(RewardCommand::Finish).await;
    world.server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_refused_ends_with_the_reason() {
    let mut coordinator = FakeCoordinator::start().await;
    let config = Config { coordinator: Some(coordinator.address.clone()), ..networks() };
    let server = Server::start(config).await.unwrap();
    let session = coordinator.session().await;
    session.refuse(Status::failed_precondition("belongs to run other")).await;
    let error = server.ended().await.unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("belongs to run other") && said.contains(&coordinator.address), "{said}");
    // The code of what nobody starts again.
    assert_eq!(service::exit_code("reward-server", Err(error)), ExitCode::from(2));
}

/// Its scores would be of other texts than those that were written.
#[tokio::test(flavor = "multi_thread")]
async fn a_reward_model_of_another_vocabulary_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("foreign");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(tiny::folder("reward-model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let texts = ["other words make other tokens", "zebra zebra zebra quagga"];
    let special = SpecialTokens { eos: Some("<eos>".into()), ..SpecialTokens::default() };
    let tokenizer = model::tokenizer::train_bpe(texts.into_iter(), 384, &special).unwrap();
    tokenizer.save(&model, None).unwrap();
    // Nobody is there: it is refused before it asks for one.
    let mut config = Config { coordinator: Some("127.0.0.1:1".to_owned()), ..networks() };
    for scorer in &mut config.scorers {
        if let ScorerKind::RewardModel(network) = &mut scorer.kind {
            network.model.clone_from(&model);
        }
    }
    let error = Server::start(config).await.err().unwrap();
    let said = format!("{error:#}");
    for part in ["foreign has another vocabulary than ", "policy: token ", "its numbers would be meaningless"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(service::exit_code("reward-server", Err(error)), ExitCode::from(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_actor_of_another_run_or_without_a_hello_is_refused() {
    let world = World::start(networks()).await;
    let status = Actor::connect(world.address(), "other-run", "actor-9").await.err().unwrap();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("not for run other-run"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_is_reported_as_a_sign_of_life() {
    let stub = Stub::closed().await;
    let mut world = World::start(remote(&stub)).await;
    world.actor.offer(&tiny::rollout(0, "x", "")).await;
    let loaded = async {
        loop {
            if let Some(RewardReport::Load { queued: 1 }) = world.session.any_report().await {
                return;
            }
        }
    };
    soon(loaded).await;
}
