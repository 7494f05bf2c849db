//! Round trips through bytes, and junk that must never panic.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "wire/fuzzed.rs"]
mod fuzzed;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use proto::{LearnerCommands, ProtocolError, learner_messages, pb};
use types::link::actor::{
    ActorCommand, ActorHello, ActorReport, BroadcastGroup, GroupBackend, Lease, LeasedPrompt,
};
use types::link::environment::{
    EnvironmentMessage, EnvironmentReply, EnvironmentRequest, MAX_ENVIRONMENT_BYTES, OnRewrite, Speaker,
};
use types::link::learner::{LearnerCommand, LearnerHello, LearnerReport, MeasuredStep, StepMetrics};
use types::link::reward::{RewardCommand, RewardHello, RewardReport, ScoreReply, ScoreRequest};
use types::{
    Batch, BatchId, BroadcastGroupId, DType, EpisodeEnd, FailReason, FinishReason, GroupScore, Incarnation,
    LeaseId, Manifest, MemberId, Observation, PolicyVersion, Prompt, PromptContent, PromptId, Remarks,
    Rollout, RolloutFailure, RolloutId, RolloutParts, RunId, Sample, SamplingParams, ScoredRollout, Scores,
    Span, TensorEntry, TensorLayout, Texts, Vocabulary, WeightHash,
};

/// Encodes, decodes and converts back.
fn through_bytes<D, P>(value: D) -> D
where
    P: Message + Default + From<D>,
    D: TryFrom<P, Error = ProtocolError>,
{
    let bytes = P::from(value).encode_to_vec();
    D::try_from(P::decode(bytes.as_slice()).unwrap()).unwrap()
}

prop_compose! {
    fn rollout_ids()(epoch in 0..9u32, ordinal: u64, sibling: u16, attempt: u16) -> RolloutId {
        RolloutId { prompt: PromptId { epoch, ordinal }, sibling, attempt }
    }
}

prop_compose! {
    fn rollouts()(
        id in rollout_ids(),
        prompt in vec(any::<u32>(), 1..20),
        tokens in vec((any::<u32>(), -30f32..0.0, 0.01f32..1.0), 1..40),
        truncated: bool,
        stop: bool,
        version in 0..1_000_000u64,
        cut in 0..40usize,
        given in vec((1..4u32, vec(any::<u32>(), 1..9), -2f32..2.0), 0..4),
    ) -> Rollout {
        let first = cut.clamp(1, tokens.len());
        let mut spans = Vec::new();
        for (version, tokens) in [(version, first), (version + 1, tokens.len() - first)] {
            let tokens = NonZeroU32::new(u32::try_from(tokens).unwrap());
            spans.extend(tokens.map(|tokens| Span { version: PolicyVersion(version), tokens }));
        }
        let mut observations: Vec<Observation> = Vec::new();
        for (further, given, reward) in given {
            let after = observations.last().map_or(0, |last| last.after) + further;
            if (after as usize) < tokens.len() {
                let begins_sequence = after.is_multiple_of(2);
                observations.push(Observation { after, tokens: given, begins_sequence, reward });
            }
        }
        Rollout::new(RolloutParts {
            id,
            prompt_tokens: prompt.into(),
            response_tokens: tokens.iter().map(|t| t.0).collect(),
            observations,
            reward: None,
            rollout_logprobs: tokens.iter().map(|t| t.1).collect(),
            surviving_mass: truncated.then(|| tokens.iter().map(|t| t.2).collect()),
            spans,
            finish_reason: if stop { FinishReason::Stop } else { FinishReason::Length },
            fields: "".into(),
        })
        .unwrap()
    }
}

prop_compose! {
    fn scored_rollouts()(
        rollout in rollouts(),
        score in -9f32..9.0,
        outcome: Option<bool>,
        reference: bool,
        turn_weight in -1f32..1.0,
    ) -> ScoredRollout {
        let ref_logprobs = if reference { rollout.rollout_logprobs().to_vec() } else { Vec::new() };
        let outcome = outcome.map(|passed| f32::from(u8::from(passed)));
        let scored = ScoredRollout::new(rollout, Scores { score, ref_logprobs, outcome, turn_weight }).unwrap();
        let numbers = outcome.map(|outcome| ("unit-tests".to_owned(), f64::from(outcome)));
        let texts = reference.then(|| Texts::new("2 + 2 =", " 4"));
        let numbers: BTreeMap<String, f64> = numbers.into_iter().collect();
        let contributions = numbers.iter().map(|(name, number)| (name.clone(), number / 2.0)).collect();
        scored.with_remarks(Remarks { numbers, contributions, texts }).unwrap()
    }
}

/// What is stored and sent of one turn is what it was before there were several.
/// That of a small tokenizer.
fn vocabulary() -> Vocabulary {
    Vocabulary::of([(0, "a"), (1, "b"), (7, "<end>")])
}

/// The messages that open streams, and some of those that follow, as bytes.
fn opening_messages() -> Vec<Vec<u8>> {
    let (member, incarnation): (MemberId, _) = ("somebody".parse().unwrap(), Incarnation(7));
    let run: Option<RunId> = Some("run".parse().unwrap());
    let actor = ActorHello {
        member: member.clone(),
        incarnation,
        run: run.clone(),
        holding: vec![RolloutId { prompt: PromptId { epoch: 1, ordinal: 300 }, sibling: 2, attempt: 1 }],
        weights: None,
        source: Some("127.0.0.1:1".to_owned()),
        vocabulary: Some(vocabulary()),
        gpu: None,
    };
    let server = RewardHello {
        member: member.clone(),
        incarnation,
        run,
        address: "127.0.0.1:1".to_owned(),
        vocabulary: Some(vocabulary()),
    };
    let score = ScoreRequest::Hello { run: "run".parse().unwrap(), member: member.clone() };
    let episodes = EnvironmentRequest::Hello { run: "run".parse().unwrap(), member };
    vec![
        pb::ActorReport::from(actor).encode_to_vec(),
        pb::RewardReport::from(server).encode_to_vec(),
        pb::ScoreRequest::from(score).encode_to_vec(),
        pb::EnvironmentRequest::from(episodes).encode_to_vec(),
        pb::RewardReport::from(RewardReport::Load { queued: 3 }).encode_to_vec(),
    ]
}

/// Reads bytes as everything that may come in on a stream.
fn read_as_everything(bytes: &[u8]) {
    fn attempt<P: Message + Default, D: TryFrom<P>>(bytes: &[u8]) {
        if let Ok(message) = P::decode(bytes) {
            let _ = D::try_from(message);
        }
    }
    attempt::<pb::ActorReport, ActorHello>(bytes);
    attempt::<pb::ActorReport, ActorReport>(bytes);
    attempt::<pb::ActorCommand, ActorCommand>(bytes);
    attempt::<pb::RewardReport, RewardHello>(bytes);
    attempt::<pb::RewardReport, RewardReport>(bytes);
    attempt::<pb::RewardCommand, RewardCommand>(bytes);
    attempt::<pb::ScoreRequest, ScoreRequest>(bytes);
    attempt::<pb::ScoreReply, ScoreReply>(bytes);
    attempt::<pb::EnvironmentRequest, EnvironmentRequest>(bytes);
    attempt::<pb::EnvironmentReply, EnvironmentReply>(bytes);
    attempt::<pb::LearnerReport, LearnerHello>(bytes);
    attempt::<pb::LearnerReport, LearnerReport>(bytes);
    if let Ok(message) = pb::LearnerCommand::decode(bytes) {
        let _ = LearnerCommands::default().push(message);
    }
}

#[test]
fn a_rollout_of_one_turn_has_the_bytes_it_always_had() {
    let parts = RolloutParts {
        id: RolloutId { prompt: PromptId { epoch: 0, ordinal: 1 }, sibling: 2, attempt: 0 },
        prompt_tokens: vec![1, 2].into(),
        response_tokens: vec![3, 3],
        observations: Vec::new(),
        reward: None,
        rollout_logprobs: vec![-0.5; 2],
        surviving_mass: None,
        spans: vec![Span { version: PolicyVersion(4), tokens: NonZeroU32::new(2).unwrap() }],
        finish_reason: FinishReason::Stop,
        fields: "{}".into(),
    };
    let bytes = |parts: RolloutParts| pb::Rollout::from(Rollout::new(parts).unwrap()).encode_to_vec();
    let known = b"\x0a\x04\x10\x01\x18\x02\x12\x02\x01\x02\x1a\x02\x03\x03\x22\x08\0\0\0\xbf\0\0\0\xbf\
        \x32\x04\x08\x04\x10\x02\x38\x01";
    assert_eq!(bytes(parts.clone()), known);
    // One that was stored when fields still travelled.
    let with_fields = pb::Rollout::decode(&[&known[..], b"\x42\x02{}"].concat()[..]).unwrap();
    let read = Rollout::try_from(with_fields).unwrap();
    assert_eq!(read, Rollout::new(parts.clone()).unwrap().without_fields());
    let given = Observation::new(1, vec![7, 8]);
    let several = bytes(RolloutParts { observations: vec![given], ..parts });
    assert_eq!(several, [&known[..], b"\x4a\x06\x08\x01\x12\x02\x07\x08"].concat());
}

fn manifest() -> Manifest {
    let layout = TensorLayout { name: "model.norm.weight".into(), shape: vec![3, 5], dtype: DType::Bf16 };
    let entry = TensorEntry::new(layout, WeightHash([7; 32])).unwrap();
    Manifest::new(PolicyVersion(3), vec![entry]).unwrap()
}

proptest! {
    #[test]
    fn scored_rollouts_survive_the_wire(scored in scored_rollouts()) {
        let time_left = Duration::from_millis(scored.rollout().id().prompt.ordinal);
        let request = ScoreRequest::Rollout { rollout: scored.rollout().clone(), time_left };
        prop_assert_eq!(through_bytes::<_, pb::ScoreRequest>(request.clone()), request);
        let report = RewardReport::Scored(scored);
        prop_assert_eq!(through_bytes::<_, pb::RewardReport>(report.clone()), report);
    }

    #[test]
    fn batches_survive_being_cut_into_parts(samples in vec(scored_rollouts(), 1..12), copies in 1..40u16) {
        // Copies under new ids make some batches larger than one part.
        let mut all = Vec::new();
        for (ordinal, scored) in (0u64..).zip(samples) {
            let mut group = Vec::new();
            for sibling in 0..copies {
                let (rollout, scores) = scored.clone().into_parts();
                let rollout = Rollout::new(RolloutParts {
                    id: RolloutId { prompt: PromptId { epoch: 0, ordinal }, sibling, attempt: 0 },
                    prompt_tokens: vec![u32::MAX; 8_000].into(),
                    ..rollout.into_parts()
                });
                group.push(ScoredRollout::new(rollout.unwrap(), scores).unwrap());
            }
            let scores: Arc<[GroupScore]> = group.iter().map(GroupScore::of).collect();
            for (weight, scored) in (0u16..).zip(group) {
                all.push(Sample::new(scored, f32::from(weight), scores.clone()).unwrap());
            }
        }
        let batch = Batch::new(BatchId(4), all).unwrap();
        prop_assert_eq!(&proto::batch_from_bytes(&proto::batch_to_bytes(batch.clone())).unwrap(), &batch);
        let mut commands = LearnerCommands::default();
        let messages = learner_messages(LearnerCommand::Batch(batch.clone()));
        let last = messages.len() - 1;
        for (at, message) in messages.into_iter().enumerate() {
            prop_assert!(message.encoded_len() < 5 << 20);
            let command = commands.push(message).unwrap();
            prop_assert_eq!(command, (at == last).then(|| LearnerCommand::Batch(batch.clone())));
        }
    }

    #[test]
    fn junk_is_an_error_or_a_valid_value(bytes in vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn a_flipped_byte_never_yields_an_invalid_rollout(
        scored in scored_rollouts(),
        at: proptest::sample::Index,
        bit in 0..8u8,
    ) {
        let mut bytes = pb::ScoredRollout::from(scored).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(message) = pb::ScoredRollout::decode(bytes.as_slice())
            && let Ok(scored) = ScoredRollout::try_from(message)
        {
            let (rollout, scores) = scored.into_parts();
            let rollout = Rollout::new(rollout.into_parts());
            prop_assert!(ScoredRollout::new(rollout.unwrap(), scores).is_ok());
        }
    }
}

#[test]
fn control_messages_survive_the_wire() {
    let prompt = |content| Prompt::new(PromptId { epoch: 1, ordinal: 5 }, content, "".into()).unwrap();
    let wanted = vec![RolloutId { prompt: PromptId { epoch: 1, ordinal: 5 }, sibling: 2, attempt: 1 }];
    for content in [
        PromptContent::Text("def f(x):\n".into()),
        PromptContent::Tokens(vec![1, 2, 3]),
        PromptContent::Messages("[]".into()),
    ] {
        let leased = LeasedPrompt { prompt: prompt(content), group_size: 5, wanted: wanted.clone() };
        let timeout = Duration::from_secs(60);
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() }.try_into().unwrap();
        for sampling in [None, Some(greedy)] {
            let prompts = vec![leased.clone()];
            let command = ActorCommand::Lease(Lease { id: LeaseId(3), prompts, timeout, sampling });
            assert_eq!(through_bytes::<_, pb::ActorCommand>(command.clone()), command);
        }
    }
    let trained = LearnerReport::Trained {
        batch: BatchId(3),
        manifest: manifest(),
        metrics: Box::new(StepMetrics { policy_loss: Some(0.25), tokens: 17, ..StepMetrics::default() }),
    };
    assert_eq!(through_bytes::<_, pb::LearnerReport>(trained.clone()), trained);
    let metrics = StepMetrics { entropy: Some(1.5), samples: 4, ..StepMetrics::default() };
    let hello = LearnerHello {
        member: "learner".parse().unwrap(),
        incarnation: Incarnation(9),
        run: Some("run-1".parse().unwrap()),
        world_size: 2,
        trained: BatchId(3),
        checkpointed: BatchId(2),
        manifest: manifest(),
        steps: [MeasuredStep { batch: BatchId(3), metrics }].into_iter().collect(),
        store: "host:1".into(),
        weights: "host:2".into(),
        vocabulary: Some(vocabulary()),
        gpu: Some("GPU-1a".to_owned()),
    };
    assert_eq!(through_bytes::<_, pb::LearnerReport>(hello.clone()), hello);
    for backend in [GroupBackend::Gloo, GroupBackend::Nccl] {
        let members = vec!["learner".parse().unwrap(), "actor".parse().unwrap()];
        let group = BroadcastGroup { id: BroadcastGroupId(4), store: "host:1".into(), members, backend };
        let command = ActorCommand::JoinBroadcastGroup(group);
        assert_eq!(through_bytes::<_, pb::ActorCommand>(command.clone()), command);
    }
    let pb::LearnerReport { report: Some(pb::learner_report::Report::Trained(mut trained)) } = trained.into()
    else {
        panic!("another report");
    };
    trained.metrics.as_mut().unwrap().entropy = Some(f64::NAN);
    let report = pb::LearnerReport { report: Some(pb::learner_report::Report::Trained(trained)) };
    let error = LearnerReport::try_from(report).unwrap_err().to_string();
    assert!(error.contains("entropy is no finite number"), "{error}");
    let published =
        |seconds| LearnerReport::Published { group: BroadcastGroupId(1), version: PolicyVersion(2), seconds };
    assert_eq!(through_bytes::<_, pb::LearnerReport>(published(0.5)), published(0.5));
    let error = LearnerReport::try_from(pb::LearnerReport::from(published(f64::NAN))).unwrap_err();
    assert!(error.to_string().contains("published.seconds: is no finite number"), "{error}");
    for reason in FailReason::ALL {
        let failure =
            RolloutFailure { id: wanted[0], reason: *reason, detail: "why".into(), response_tokens: 3 };
        let report = ActorReport::Failed(failure);
        assert_eq!(through_bytes::<_, pb::ActorReport>(report.clone()), report);
    }
}

#[test]
fn the_turns_of_an_episode_survive_the_wire() {
    let id = RolloutId { prompt: PromptId { epoch: 1, ordinal: 5 }, sibling: 2, attempt: 1 };
    let (run, member) = ("run-1".parse().unwrap(), "actor-0".parse().unwrap());
    let requests = [
        EnvironmentRequest::Hello { run, member },
        EnvironmentRequest::Reset { id, time_left: Duration::from_secs(3) },
        EnvironmentRequest::Step { id, text: "2+3".into(), tokens: 3, truncated: true },
        EnvironmentRequest::Close(id),
    ];
    for request in requests {
        assert_eq!(through_bytes::<_, pb::EnvironmentRequest>(request.clone()), request);
    }
    let says = |speaker, text: &str| EnvironmentMessage { speaker, text: text.to_owned() };
    let messages = vec![says(Speaker::Tool, "5"), says(Speaker::User, "go on")];
    let mut replies = vec![
        EnvironmentReply::Ready {
            id,
            messages: Vec::new(),
            tools: Some("[]".into()),
            max_tokens: 9,
            on_rewrite: OnRewrite::End,
        },
        EnvironmentReply::Observed { id, messages: messages.clone(), reward: Some(0.5) },
        EnvironmentReply::Overloaded { id, retry_after: Duration::from_secs(1) },
    ];
    replies.extend(EpisodeEnd::ALL.iter().map(|end| EnvironmentReply::Done { id, end: *end, reward: None }));
    replies.extend(FailReason::ALL.iter().map(|reason| EnvironmentReply::Failed {
        id,
        reason: *reason,
        detail: "why".into(),
    }));
    for reply in replies {
        assert_eq!(through_bytes::<_, pb::EnvironmentReply>(reply.clone()), reply);
    }

    let refused = |reply: EnvironmentReply| {
        EnvironmentReply::try_from(pb::EnvironmentReply::from(reply)).unwrap_err().to_string()
    };
    let silent = refused(EnvironmentReply::Observed { id, messages: Vec::new(), reward: None });
    assert!(silent.contains("messages is missing"), "{silent}");
    let long = says(Speaker::Tool, &"x".repeat(MAX_ENVIRONMENT_BYTES));
    let endless =
        refused(EnvironmentReply::Observed { id, messages: vec![long, messages[0].clone()], reward: None });
    assert!(endless.contains("1048577 bytes"), "{endless}");
}

#[test]
fn a_hello_comes_first_and_only_there() {
    let hello = ActorHello {
        member: "actor-0".parse().unwrap(),
        incarnation: Incarnation(9),
        run: None,
        holding: Vec::new(),
        weights: Some((PolicyVersion(3), WeightHash([9; 32]))),
        source: Some("10.0.0.7:7714".into()),
        vocabulary: None,
        gpu: Some("GPU-2b".to_owned()),
    };
    assert_eq!(through_bytes::<_, pb::ActorReport>(hello.clone()), hello);
    let mut older = pb::ActorReport::from(hello.clone());
    if let Some(pb::actor_report::Report::Hello(hello)) = &mut older.report {
        hello.protocol = 0;
    }
    let error = ActorHello::try_from(older).unwrap_err();
    assert_eq!(error.to_string(), "speaks protocol 0, this is 4: run the same release everywhere");
    assert_eq!(tonic::Status::from(error).code(), tonic::Code::FailedPrecondition, "it is not to come back");
    let error = ActorReport::try_from(pb::ActorReport::from(hello)).unwrap_err();
    assert_eq!(error, ProtocolError::HelloOutOfPlace);
    let error = ActorHello::try_from(pb::ActorReport::from(ActorReport::Draining)).unwrap_err();
    assert_eq!(error, ProtocolError::HelloOutOfPlace);
}

#[test]
fn a_hello_says_which_tokens_it_reads_or_is_of_a_release_that_did_not() {
    let hello = |vocabulary| RewardHello {
        member: "reward-0".parse().unwrap(),
        incarnation: Incarnation(9),
        run: None,
        address: "10.0.0.7:7714".into(),
        vocabulary,
    };
    for known in [None, Some(Vocabulary::none()), Some(vocabulary())] {
        assert_eq!(through_bytes::<_, pb::RewardReport>(hello(known.clone())), hello(known));
    }
    let forged = |change: fn(&mut pb::Vocabulary)| {
        let mut report = pb::RewardReport::from(hello(Some(vocabulary())));
        if let Some(pb::reward_report::Report::Hello(hello)) = &mut report.report {
            hello.vocabulary.iter_mut().for_each(change);
        }
        RewardHello::try_from(report).unwrap_err().to_string()
    };
    let short = forged(|vocabulary| vocabulary.hash.truncate(31));
    assert_eq!(short, "vocabulary.hash: must have 32 bytes");
    let long = forged(|vocabulary| vocabulary.shorter = vec![0; 1000]);
    assert_eq!(long, "vocabulary of 3 tokens: has 1000 hashes without its last tokens, at most 2 fit");
}

/// What an actor is sent, byte for byte, holds nothing of what the scorers know.
#[test]
fn fields_do_not_travel() {
    let (id, hidden) = (PromptId { epoch: 0, ordinal: 1 }, "{\"test\": \"assert f(2) == 4\"}");
    let prompt = Prompt::new(id, PromptContent::Text("def f(x):".into()), hidden.into()).unwrap();
    let wanted = vec![RolloutId { prompt: id, sibling: 0, attempt: 0 }];
    let leased = LeasedPrompt { prompt, group_size: 1, wanted };
    let timeout = Duration::from_secs(1);
    let lease = Lease { id: LeaseId(1), prompts: vec![leased], timeout, sampling: None };
    let bytes = pb::ActorCommand::from(ActorCommand::Lease(lease)).encode_to_vec();
    let sent = String::from_utf8_lossy(&bytes);
    assert!(sent.contains("def f(x):") && !sent.contains("assert"), "{sent}");
}

#[test]
fn a_lease_for_another_prompt_is_refused() {
    let id = PromptId { epoch: 0, ordinal: 1 };
    let prompt = Prompt::new(id, PromptContent::Text("x".into()), Arc::from("{}")).unwrap();
    let other = RolloutId { prompt: PromptId { epoch: 0, ordinal: 2 }, sibling: 0, attempt: 0 };
    let leased = LeasedPrompt { prompt, group_size: 2, wanted: vec![other] };
    let timeout = Duration::from_secs(1);
    let lease = Lease { id: LeaseId(1), prompts: vec![leased], timeout, sampling: None };
    let error = ActorCommand::try_from(pb::ActorCommand::from(ActorCommand::Lease(lease))).unwrap_err();
    assert!(error.to_string().contains("names no sibling of e0-p1"), "{error}");
}

#[test]
fn a_manifest_that_states_another_hash_is_refused() {
    let stated = pb::Manifest { hash: vec![9; 32], ..manifest().into() };
    let error = Manifest::try_from(stated).unwrap_err();
    assert!(error.to_string().contains("does not hash to its own hash"), "{error}");
}

#[test]
fn parts_out_of_turn_are_refused() {
    let part = |part, parts| pb::LearnerCommand {
        command: Some(pb::learner_command::Command::BatchPart(pb::BatchPart {
            batch: 1,
            part,
            parts,
            samples: Vec::new(),
        })),
    };
    assert!(LearnerCommands::default().push(part(1, 2)).is_err());
    assert!(LearnerCommands::default().push(part(0, 0)).is_err());
    let mut commands = LearnerCommands::default();
    assert_eq!(commands.push(part(0, 2)).unwrap(), None);
    assert!(commands.push(part(0, 2)).is_err());
    let mut interrupted = LearnerCommands::default();
    interrupted.push(part(0, 2)).unwrap();
    let finish = learner_messages(LearnerCommand::Finish).remove(0);
    assert!(interrupted.push(finish).is_err());
}
