//! The curves of a run: one point for each training step.

use std::collections::VecDeque;

use coordinator::state::StepRecord;

/// Steps that are drawn; a coordinator keeps as many.
const STEPS_LIMIT: usize = 1000;

/// What is drawn of a run, each with the unit in its name.
pub(super) const CURVES: [&str; 6] = [
    "score",
    "outcome (pass@1)",
    "KL to reference (nats)",
    "scored tokens/s",
    "step (s)",
    "response (tokens)",
];

/// What is drawn of one step, in the order of [`CURVES`]; what was not measured is absent.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    batch: u64,
    values: [Option<f64>; CURVES.len()],
}

/// The steps of a run that are drawn, oldest first.
#[derive(Debug, Default)]
pub(super) struct Curves {
    points: VecDeque<Point>,
    /// When the last one was trained, in milliseconds.
    last_time: Option<u64>,
}

impl Curves {
    /// The last batch that is drawn.
    pub(super) fn last_batch(&self) -> u64 {
        self.points.back().map_or(0, |point| point.batch)
    }

    /// Takes in steps, oldest first. Batches that are trained again take the place of what they were.
    pub(super) fn take<'a>(&mut self, steps: impl IntoIterator<Item = &'a StepRecord>) {
        for step in steps {
            if step.batch.0 <= self.last_batch() {
                self.points.retain(|point| point.batch < step.batch.0);
                self.last_time = None;
            }
            let time = step.time.0;
            let seconds = self.last_time.map(|before| time.saturating_sub(before) as f64 / 1000.0);
            let tokens = step.responses as f64 * step.response_tokens_mean;
            let rate = seconds.filter(|seconds| *seconds > 0.0).map(|seconds| tokens / seconds);
            let values = [
                Some(step.score_mean),
                step.outcome_mean,
                step.metrics.kl_to_ref,
                rate,
                Some(step.metrics.step_seconds),
                Some(step.response_tokens_mean),
            ];
            self.points.push_back(Point { batch: step.batch.0, values });
            self.last_time = Some(time);
            if self.points.len() > STEPS_LIMIT {
                self.points.pop_front();
            }
        }
    }

    /// The points of one curve: batches and values.
    pub(super) fn of(&self, curve: usize) -> Vec<(f64, f64)> {
        let values = self.points.iter().filter_map(|point| Some((point.batch as f64, point.values[curve]?)));
        values.filter(|(_, value)| value.is_finite()).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A step that earned a tenth of its number.
    pub(in super::super) fn step(batch: u64) -> StepRecord {
        serde_json::from_value(json!({
            "batch": batch, "time": 1000 * batch, "prompts": 8, "responses": 40, "score_mean": batch as f64 / 10.0,
            "outcome_mean": null, "response_tokens_mean": 25.0, "truncated": 0.0,
            "reliability": {"unfiltered": null, "filtered": null},
            "metrics": {"kl_to_ref": 0.5, "step_seconds": 0.25}
        }))
        .unwrap()
    }

    #[test]
    fn each_step_is_a_point_and_what_was_not_measured_is_none() {
        let mut curves = Curves::default();
        curves.take(&[step(1), step(2), step(3)]);
        assert_eq!(curves.of(0), [(1.0, 0.1), (2.0, 0.2), (3.0, 0.3)]);
        assert_eq!(curves.of(1), [], "no outcome was measured");
        assert_eq!(curves.of(2)[0], (1.0, 0.5));
        assert_eq!(curves.of(3), [(2.0, 1000.0), (3.0, 1000.0)], "40 responses of 25 tokens a second");
        assert_eq!(curves.of(4)[0], (1.0, 0.25));
    }

    #[test]
    fn a_batch_that_is_trained_again_is_drawn_once() {
        let mut curves = Curves::default();
        curves.take(&[step(1), step(2), step(3)]);
        let again = StepRecord { score_mean: 9.0, ..step(2) };
        curves.take([&again]);
        assert_eq!(curves.of(0), [(1.0, 0.1), (2.0, 9.0)]);
        assert_eq!(curves.last_batch(), 2);
    }

    #[test]
    fn the_oldest_steps_make_room() {
        let mut curves = Curves::default();
        let steps: Vec<StepRecord> = (1..=STEPS_LIMIT as u64 + 5).map(step).collect();
        curves.take(&steps);
        assert_eq!((curves.of(0).len(), curves.of(0)[0].0), (STEPS_LIMIT, 6.0));
    }
}
