//! Steps replayed from CUDA graphs, recorded when their plan is seen for the second time.
//!
//! A graph works on fixed addresses: of the weights, of the cache, and of an upload of its own. So all are
//! forgotten when weights are swapped. Should a recording be refused, steps are computed operator by operator
//! from then on, as they are where nothing repeats.

use std::collections::HashMap;

use model::graph::{Graph, Recorder};
use tch::{Device, Tensor};

use super::Plan;
use super::failure::caught;
use super::upload::{Arrived, Upload};
use crate::Error;

/// Plans that are remembered at most; with one more all are forgotten.
const MOST_PLANS: usize = 128;

/// The graphs of one GPU.
#[derive(Debug)]
pub(crate) struct Graphs {
    device: Device,
    /// Made when it is needed; none too once a recording was refused.
    recorder: Option<Recorder>,
    refused: bool,
    plans: HashMap<Plan, Stage>,
    replayed: u64,
}

/// How far a plan has come.
#[derive(Debug)]
enum Stage {
    /// Computed once, so that all kernels are loaded.
    Seen,
    Recorded(Recorded),
}

/// A graph with what it reads from and leaves outside of its own memory.
#[derive(Debug)]
struct Recorded {
    graph: Graph,
    arrived: Arrived,
    made: Tensor,
}

impl Graphs {
    pub(crate) fn new(device: Device) -> Self {
        Self { device, recorder: None, refused: false, plans: HashMap::new(), replayed: 0 }
    }

    /// Runs the work of a plan on an upload: replays it, or calls `work`. What it makes is to be used before
    /// the next call. Everything else that the work reads or writes must stay where it is until
    /// [`Self::forget`].
    pub(crate) fn run(
        &mut self,
        plan: &Plan,
        upload: &Upload,
        mut work: impl FnMut(&Plan, &Arrived) -> Tensor,
    ) -> Tensor {
        if let Some(Stage::Recorded(recorded)) = self.plans.get_mut(plan) {
            self.replayed += 1;
            return recorded.replay(upload);
        }
        if self.plans.contains_key(plan) {
            let arrived = upload.send(self.device);
            match self.record(|| work(plan, &arrived)) {
                Ok((graph, made)) => {
                    let mut recorded = Recorded { graph, arrived, made };
                    let made = recorded.replay(upload);
                    self.replayed += 1;
                    self.plans.insert(plan.clone(), Stage::Recorded(recorded));
                    return made;
                }
                Err(error) => self.refuse(&error),
            }
        }
        if !self.refused {
            if self.plans.len() >= MOST_PLANS {
                self.forget();
            }
            self.plans.insert(plan.clone(), Stage::Seen);
        }
        work(plan, &upload.send(self.device))
    }

    /// How often a graph was replayed.
    pub(crate) fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Forgets all graphs. Nothing that they made may be used any more.
    pub(crate) fn forget(&mut self) {
        self.plans.clear();
        // The memory that its graphs shared goes with the recorder.
        self.recorder = None;
    }

    fn record(&mut self, work: impl FnOnce() -> Tensor) -> Result<(Graph, Tensor), Error> {
        let recorder = match self.recorder.take() {
            Some(recorder) => recorder,
            None => Recorder::new(self.device)?,
        };
        // What cannot be recorded is refused by its operator, or else at the end.
        let (graph, made) = self.recorder.insert(recorder).record(|| caught(work))?;
        Ok((graph, made?))
    }

    fn refuse(&mut self, error: &Error) {
        let error = error.to_string();
        let error = error.lines().next().unwrap_or_default();
        tracing::warn!(
            error,
            "CUDA graphs are off: a step could not be recorded; generation goes on without, slower"
        );
        self.refused = true;
        self.forget();
    }
}

impl Recorded {
    fn replay(&mut self, upload: &Upload) -> Tensor {
        self.arrived.refill(upload);
        // SAFETY: `arrived` and `made` live here; weights and cache stay where they are until the graphs are
        // forgotten.
        let replayed = unsafe { self.graph.replay() };
        replayed.expect("a refusal inside a step is caught as a panic, like those of all operators");
        self.made.shallow_clone()
    }
}
