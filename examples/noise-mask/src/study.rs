//! Every method with every seed, and what the seeds say together.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use algo::Interval;
use anyhow::Context as _;
use serde::Serialize;

use crate::images::{self, DataSet, Images};
use crate::mask_policy::Grid;
use crate::method::Method;
use crate::probe::{Probe, Probed, probe};
use crate::training::{Outcome, Recipe, Task, stream, train};

/// The stream of a seed's random numbers that splits images.
const SPLIT_STREAM: u64 = 0;

/// Where images come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The digits that are shipped.
    Digits {
        /// How many of each class to learn from.
        train_per_class: usize,
    },
    /// A folder with `train/CLASS/`, `validation/CLASS/` and `test/CLASS/`.
    Folder {
        /// Its path.
        path: PathBuf,
        /// Pixels a side.
        side: i64,
        /// Most images of a class in each of the three.
        limit: usize,
    },
}

/// What is run.
#[derive(Debug, Clone)]
pub struct Study {
    /// Where images come from.
    pub source: Source,
    /// Cells a side of the masks.
    pub grid: i64,
    /// How to train.
    pub recipe: Recipe,
    /// The classifier's learning rates that each method is tried with.
    pub learning_rates: Vec<f64>,
    /// The seeds, in order.
    pub seeds: std::ops::Range<u64>,
    /// Steps of the probes.
    pub probe_steps: usize,
}

/// One classifier of the study.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    /// Of all that is random.
    pub(crate) seed: u64,
    /// How it was pre-trained.
    pub(crate) method: Method,
    /// And how fast.
    pub(crate) learning_rate: f64,
    /// What became of it.
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// One policy that was told a known cost.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ProbeRun {
    /// Of all that is random.
    pub(crate) seed: u64,
    /// The loss.
    pub(crate) probe: Probe,
    /// What became of the policy.
    #[serde(flatten)]
    pub(crate) outcome: Probed,
}

/// What a study found.
#[derive(Debug, Default)]
pub struct Results {
    /// By seed, then by method, then by learning rate.
    pub(crate) runs: Vec<Run>,
    /// By seed, then by loss.
    pub(crate) probes: Vec<ProbeRun>,
    /// Images to learn from, to choose by and to judge by.
    pub(crate) images: [usize; 3],
    /// The learning rates that were tried.
    pub(crate) learning_rates: Vec<f64>,
}

impl Study {
    /// Runs it. Each classifier is a line of `results.jsonl` in `output` as soon as it is judged, each probe
    /// one of `probes.jsonl`; `progress` is told about each.
    ///
    /// # Errors
    /// When images cannot be read, there are fewer than a batch has, or a file cannot be written.
    pub fn run(&self, output: &Path, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Results> {
        // One thread, so that sums are taken in the same order on every machine.
        tch::set_num_threads(1);
        fs::create_dir_all(output).with_context(|| format!("make the folder {}", output.display()))?;
        let mut lines = Lines::create(output.join("results.jsonl"))?;
        let mut probe_lines = Lines::create(output.join("probes.jsonl"))?;
        let mut results = Results { learning_rates: self.learning_rates.clone(), ..Results::default() };
        for seed in self.seeds.clone() {
            let data = self.source.read(seed)?;
            let grid = Grid::new(self.grid, data.side)?;
            results.images = [&data.train, &data.validation, &data.test].map(Images::len);
            for method in Method::ALL {
                for &learning_rate in &self.learning_rates {
                    let task = Task { data: &data, grid: &grid, recipe: self.recipe, learning_rate, seed };
                    let run = Run { seed, method, learning_rate, outcome: train(&task, method)? };
                    let accuracy = run.outcome.fine_tuned.accuracy;
                    progress(&format!("seed {seed}: {method}, learning rate {learning_rate}: {accuracy:.4}"));
                    lines.write(&run)?;
                    results.runs.push(run);
                }
            }
            for loss in Probe::ALL {
                let outcome = probe(&data, &grid, loss, self.probe_steps, seed)?;
                let run = ProbeRun { seed, probe: loss, outcome };
                probe_lines.write(&run)?;
                results.probes.push(run);
            }
        }
        Ok(results)
    }
}

impl Source {
    fn read(&self, seed: u64) -> anyhow::Result<DataSet> {
        match self {
            Self::Digits { train_per_class } => {
                images::digits(*train_per_class, &mut stream(seed, SPLIT_STREAM))
            }
            Self::Folder { path, side, limit } => images::folder(path, *side, *limit),
        }
    }
}

impl Results {
    /// The mean of a figure over the seeds.
    pub(crate) fn mean(&self, method: Method, figure: impl Fn(&Run) -> Option<f64>) -> Option<Interval> {
        Interval::of(&self.of(method).filter_map(figure).collect::<Vec<_>>())
    }

    /// The mean over the seeds of what a figure is above that of the other method with the same seed.
    pub(crate) fn gain(
        &self,
        method: Method,
        over: Method,
        figure: impl Fn(&Run) -> f64,
    ) -> Option<Interval> {
        let pairs = self.of(method).zip(self.of(over));
        Interval::of(&pairs.map(|(run, other)| figure(run) - figure(other)).collect::<Vec<_>>())
    }

    /// The learning rate of a method: the one with which it finds most classes of the images to choose by, in
    /// the mean over seeds; the first of equals.
    pub(crate) fn learning_rate(&self, method: Method) -> Option<f64> {
        let mut best: Option<(f64, f64)> = None;
        for &rate in &self.learning_rates {
            let found: f64 = self.with(method, rate).map(|run| run.outcome.validation.accuracy).sum();
            if best.is_none_or(|(most, _)| found > most) {
                best = Some((found, rate));
            }
        }
        best.map(|(_, rate)| rate)
    }

    /// The runs of a method with its learning rate, by seed.
    pub(crate) fn of(&self, method: Method) -> impl Iterator<Item = &Run> {
        self.learning_rate(method).into_iter().flat_map(move |rate| self.with(method, rate))
    }

    /// The runs of a method with a learning rate, by seed.
    pub(crate) fn with(&self, method: Method, learning_rate: f64) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.method == method && run.learning_rate == learning_rate)
    }

    /// The mean of a figure of a probe over the seeds.
    pub(crate) fn probed(&self, probe: Probe, figure: impl Fn(&Probed) -> f64) -> Option<Interval> {
        let outcomes = self.probes.iter().filter(|run| run.probe == probe).map(|run| figure(&run.outcome));
        Interval::of(&outcomes.collect::<Vec<_>>())
    }
}

/// A file of JSON Lines.
struct Lines {
    path: PathBuf,
    file: fs::File,
}

impl Lines {
    fn create(path: PathBuf) -> anyhow::Result<Self> {
        let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path, file })
    }

    fn write(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        self.file.write_all(text.as_bytes()).with_context(|| format!("write {}", self.path.display()))
    }
}
