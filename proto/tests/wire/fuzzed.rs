//! Messages that are damaged.

use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::*;

/// What is spoilt comes further into a message than junk does.
#[test]
fn fuzzed_messages_are_an_error_or_a_valid_value() {
    let mut good = opening_messages();
    let mut runner = TestRunner::deterministic();
    for _ in 0..8 {
        let scored = scored_rollouts().new_tree(&mut runner).unwrap().current();
        let time_left = Duration::from_secs(1);
        let request = ScoreRequest::Rollout { rollout: scored.rollout().clone(), time_left };
        good.push(pb::ScoreRequest::from(request).encode_to_vec());
        good.push(pb::RewardReport::from(RewardReport::Scored(scored)).encode_to_vec());
    }
    let published = LearnerReport::Trained {
        batch: BatchId(3),
        manifest: manifest(),
        metrics: Box::new(StepMetrics { tokens: 17, ..StepMetrics::default() }),
    };
    good.push(pb::LearnerReport::from(published).encode_to_vec());
    fuzz::run("messages", &good, |bytes| {
        read_as_everything(bytes);
        if let Ok(message) = pb::RewardReport::decode(bytes)
            && let Ok(RewardReport::Scored(scored)) = RewardReport::try_from(message)
        {
            let (rollout, scores) = scored.into_parts();
            let rollout = Rollout::new(rollout.into_parts()).expect("what was accepted is whole");
            ScoredRollout::new(rollout, scores).expect("and has its scores");
        }
    });
}
