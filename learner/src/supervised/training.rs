//! The loop that all supervised objectives share: passes over items, minibatches, micro-batches, AdamW.
//!
//! Invariants:
//! 1. What is trained depends on the items, the configuration and its seed, not on micro-batches; on the number of ranks
//!    only by the rounding of sums.
//! 2. Every rank has all items and makes the same divisions; numbers that decide anything are added up over the ranks.

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;

use algo::{Moments, Responses, Totals, kto_reference_point};
use model::{ModelConfig, SaveOptions, Weights};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tracing::info;

use super::config::TrainingConfig;
use super::objective::{Objective, Part, Sums, Whole, summed};
use super::report::{Evaluation, Progress};
use super::source::Source;
use crate::config::{ExecutionConfig, OptimizerConfig};
use crate::error::{Error, Result};
use crate::microbatch::{Microbatch, Plan, Sequence};
use crate::ranks::Ranks;
use crate::stopwatch::Stopwatch;
use crate::threads::{on_ranks, share_processors};
use crate::trainee::{Numbers, Request, Trainee, TraineeOptions};

/// Progress that may wait for whoever listens.
const PROGRESS: usize = 64;

/// What training reports to; only rank 0 is heard.
pub(crate) type Say<'a> = &'a dyn Fn(Progress);

/// Items, each of equally many sequences.
#[derive(Debug)]
pub(crate) struct Items {
    /// The first item's sequences, then the second's.
    pub(crate) sequences: Vec<Sequence>,
    /// Sequences of an item.
    pub(crate) per_item: usize,
}

/// Items and what is learnt from them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set<'a> {
    pub(crate) items: &'a Items,
    pub(crate) objective: &'a Objective,
}

/// The three sections that say how to train.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sections<'a> {
    pub(crate) training: &'a TrainingConfig,
    pub(crate) optimizer: &'a OptimizerConfig,
    pub(crate) execution: &'a ExecutionConfig,
}

/// A network that learns from items, on this rank.
#[derive(Debug)]
pub(crate) struct Course<'a> {
    ranks: Ranks,
    trainee: Trainee,
    request: Request,
    sections: Sections<'a>,
}

/// What a course measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taught {
    pub(crate) steps: u64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    /// Mean over the minibatches of the last pass.
    pub(crate) loss: f64,
    pub(crate) evaluations: Vec<Evaluation>,
    /// Moments of the scores in the last evaluation.
    pub(crate) scores: Moments,
}

impl Items {
    fn len(&self) -> usize {
        self.sequences.len() / self.per_item
    }

    /// The first `count` sequences of each of these items.
    fn of<'a>(&'a self, items: &'a [usize], count: usize) -> Vec<&'a Sequence> {
        items.iter().flat_map(|item| self.sequences[item * self.per_item..].iter().take(count)).collect()
    }

    /// Items with the tokens of their first `count` sequences, for [`Plan`].
    fn sizes(&self, items: &[usize], count: usize) -> Vec<(usize, usize)> {
        let tokens = |item: usize| self.of(&[item], count).iter().map(|sequence| sequence.tokens()).sum();
        items.iter().map(|item| (*item, tokens(*item))).collect()
    }
}

impl Set<'_> {
    /// Sequences of an item that gradients are taken of. KTO's second is only for the reference point.
    fn learnt(&self) -> usize {
        match self.objective {
            Objective::Labelled { .. } => 1,
            Objective::Likelihood { .. } | Objective::Scores { .. } | Objective::Pairs { .. } => {
                self.items.per_item
            }
        }
    }
}

impl<'a> Course<'a> {
    /// A course for a network from `source`; `name` is what errors call it.
    pub(crate) fn new(
        name: &'static str,
        (ranks, source): (Ranks, &Source),
        request: Request,
        sections: Sections<'a>,
    ) -> Self {
        let Sections { training, execution, .. } = sections;
        let options = TraineeOptions {
            kind: execution.dtype.kind(),
            device: execution.device.of_rank(ranks.rank()),
            zero_stage: execution.zero_stage,
            recompute: execution.recompute,
            offload_optimizer: execution.offload_optimizer,
            lora: execution.lora.clone().map(|lora| (lora, training.seed)),
        };
        let trainee = Trainee::new(name, (source.config.clone(), &source.weights), &ranks, &options);
        Self { ranks, trainee, request, sections }
    }

    /// Its ranks, once it is over.
    pub(crate) fn into_ranks(self) -> Ranks {
        self.ranks
    }

    /// Trains on `set`, and measures `evaluation` after each pass.
    pub(crate) fn teach(
        &mut self,
        set: Set<'_>,
        evaluation: Option<(Set<'_>, bool)>,
        say: Say<'_>,
    ) -> Result<Taught> {
        let stopwatch = Stopwatch::start();
        let TrainingConfig { epochs, batch_size, .. } = *self.sections.training;
        let optimizer = self.sections.optimizer;
        let per_pass = set.items.len().div_ceil(batch_size);
        let steps = (epochs * per_pass) as u64;
        let mut taught = Taught { steps, ..Taught::default() };
        let mut step = 0;
        for epoch in 1..=epochs {
            taught.loss = 0.0;
            for items in self.order(set.items.len(), epoch).chunks(batch_size) {
                let sums = self.pass(set, items, Mode::Learn)?;
                let lr = optimizer.lr * optimizer.schedule.factor(step, optimizer.warmup_steps, steps);
                let grad_norm = self.trainee.update(&self.ranks, optimizer, lr)?;
                step += 1;
                taught.loss += sums.loss / per_pass as f64;
                taught.tokens += sums.tokens as u64;
                let tokens_per_second = taught.tokens as f64 / stopwatch.seconds().max(1e-9);
                let (loss, accuracy) = (sums.loss, sums.accuracy());
                say(Progress { step, steps, epoch, loss, accuracy, grad_norm, lr, tokens_per_second });
            }
            if let Some((held, held_out)) = evaluation {
                let sums = self.measure(held)?;
                let (loss, accuracy, margin) = (sums.loss, sums.accuracy(), sums.mean_margin());
                if self.ranks.rank() == 0 {
                    info!(epoch, loss, accuracy, margin, held_out, "examples evaluated");
                }
                taught.scores = sums.scores;
                taught.evaluations.push(Evaluation { epoch, held_out, loss, accuracy, margin });
            }
        }
        taught.seconds = stopwatch.seconds();
        Ok(taught)
    }

    /// The objective over all items of a set, without training.
    fn measure(&mut self, set: Set<'_>) -> Result<Sums> {
        let all: Vec<usize> = (0..set.items.len()).collect();
        self.pass(set, &all, Mode::Measure)
    }

    /// The summed log-probs of every sequence, `[sequences]`.
    pub(crate) fn summed_logprobs(&self, items: &Items) -> Result<Vec<f32>> {
        let all: Vec<usize> = (0..items.len()).collect();
        let mut found = vec![0.0; items.sequences.len()];
        let plan = self.plan(items, &all, items.per_item);
        for part in plan.of_rank(self.ranks.rank()) {
            let sequences = items.of(part, items.per_item);
            let microbatch = self.microbatch(&sequences)?;
            let Some(numbers) = self.trainee.infer(&self.ranks, microbatch, self.request)? else {
                continue;
            };
            let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.wanted()).collect();
            let sums = summed(&lengths, &numbers.values);
            for (item, own) in part.iter().zip(sums.chunks(items.per_item)) {
                found[item * items.per_item..][..items.per_item].copy_from_slice(own);
            }
        }
        self.ranks.complete(&mut [&mut found])?;
        Ok(found)
    }

    /// Writes the network and its companions as a folder, whole or not at all; with LoRA the merged network, and the adapter
    /// in `adapter/`. All ranks call it together. `amend` may change the configuration that is written.
    pub(crate) fn save(
        &self,
        source: &Source,
        output: &Path,
        amend: impl FnOnce(&mut ModelConfig),
    ) -> Result<()> {
        let flats = self.trainee.flats(&self.ranks)?;
        let adapters = self.trainee.adapters(&self.ranks)?;
        if self.ranks.rank() > 0 {
            return Ok(());
        }
        let mut config = self.trainee.config().clone();
        amend(&mut config);
        let copies = flats.iter().map(|flat| flat.to_device(tch::Device::Cpu).copy()).collect();
        let weights = Weights::from_flats(&config, copies)?;
        let options = SaveOptions { companions: Some(source.companions.clone()), ..SaveOptions::default() };
        let (Some(adapters), Some(lora)) = (adapters, &self.sections.execution.lora) else {
            return Ok(model::folder::save(output, &config, &weights, &options)?);
        };
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let partial = output.with_file_name(format!(".{name}.with-adapter-{}", std::process::id()));
        model::folder::save(&partial, &config, &weights, &options)?;
        crate::adapter::write(&partial.join("adapter"), lora, &adapters, &source.companions)?;
        std::fs::rename(&partial, output).map_err(Error::io("rename to", output))
    }

    /// The order of a pass: a function of the seed and the pass.
    fn order(&self, items: usize, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..items).collect();
        if self.sections.training.shuffle {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&self.sections.training.seed.to_le_bytes());
            key[8..16].copy_from_slice(&(epoch as u64).to_le_bytes());
            order.shuffle(&mut ChaCha8Rng::from_seed(key));
        }
        order
    }

    /// All micro-batches of a minibatch, or of a set that is measured.
    fn pass(&mut self, set: Set<'_>, items: &[usize], mode: Mode) -> Result<Sums> {
        let whole = self.whole(set, items)?;
        let plan = self.plan(set.items, items, set.learnt());
        let rounds = plan.of_rank(self.ranks.rank());
        let count = rounds.len();
        let mut sums = Sums::default();
        for (round, part) in rounds.enumerate() {
            let sequences = set.items.of(part, set.learnt());
            let microbatch = self.microbatch(&sequences)?;
            sums.tokens += sequences.iter().map(|sequence| sequence.tokens() as f64).sum::<f64>();
            let of_part = Part::new(part, &sequences);
            let mut loss = |numbers: &Numbers| {
                let gradient = set.objective.gradient(&whole, &of_part, numbers, &mut sums);
                gradient.map_err(Error::numbers(|| format!("examples {part:?}, counted from 0")))
            };
            match mode {
                Mode::Learn => {
                    let passed = self.trainee.forward(&self.ranks, microbatch, self.request)?;
                    self.trainee.backward(&self.ranks, (passed, round + 1 == count), loss)?;
                }
                Mode::Measure => {
                    let numbers = self.trainee.infer(&self.ranks, microbatch, self.request)?;
                    numbers.as_ref().map(&mut loss).transpose()?;
                }
            }
        }
        let mut numbers = sums.numbers();
        self.ranks.sum(&mut numbers)?;
        Ok(Sums::from_numbers(numbers))
    }

    /// Denominators and, for KTO, the reference point.
    fn whole(&self, set: Set<'_>, items: &[usize]) -> Result<Whole> {
        let sequences = set.items.of(items, set.learnt());
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.wanted()).collect();
        let weights = vec![1.0; lengths.len()];
        let totals = Responses::new(&lengths).and_then(|responses| Totals::of(responses, &weights));
        let totals = totals.map_err(Error::numbers(|| "a minibatch".to_owned()))?;
        let mut whole = Whole { items: items.len(), totals, reference_point: 0.0 };
        if let Objective::Labelled { reference, .. } = set.objective {
            whole.reference_point = self.reference_point(set.items, items, reference)?;
        }
        Ok(whole)
    }

    /// KTO's reference point: from each item's prompt with another item's response, its second sequence.
    fn reference_point(&self, all: &Items, items: &[usize], reference: &[[f32; 2]]) -> Result<f64> {
        let sizes = all.sizes(items, 2);
        let plan = Plan::new(&sizes, self.ranks.world_size(), self.sections.execution.microbatch_tokens);
        let mut ratios = Moments::default();
        for part in plan.of_rank(self.ranks.rank()) {
            let sequences: Vec<&Sequence> = part.iter().map(|item| &all.sequences[2 * item + 1]).collect();
            let microbatch = self.microbatch(&sequences)?;
            let numbers = self.trainee.infer(&self.ranks, microbatch, self.request)?;
            let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.wanted()).collect();
            let logprobs = summed(&lengths, &numbers.unwrap_or_default().values);
            for (item, logprob) in part.iter().zip(logprobs) {
                ratios.push(f64::from(logprob) - f64::from(reference[*item][1]));
            }
        }
        let mut numbers = [ratios.count, ratios.sum, ratios.sum_of_squares];
        self.ranks.sum(&mut numbers)?;
        let [count, sum, sum_of_squares] = numbers;
        Ok(kto_reference_point(&Moments { count, sum, sum_of_squares }))
    }

    fn plan(&self, all: &Items, items: &[usize], count: usize) -> Plan {
        let most_tokens = self.sections.execution.microbatch_tokens;
        Plan::new(&all.sizes(items, count), self.ranks.world_size(), most_tokens)
    }

    fn microbatch(&self, sequences: &[&Sequence]) -> Result<Option<Microbatch>> {
        if sequences.is_empty() {
            return Ok(None);
        }
        let name = |at: usize| format!("an example of {} tokens", sequences[at].tokens());
        Microbatch::new(sequences, self.trainee.config(), self.trainee.device(), name).map(Some)
    }
}

/// What a pass over items is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Learn,
    Measure,
}

/// Runs `work` on the ranks that the section asks for and returns what rank 0 came to, passing its progress on to this thread.
pub(crate) fn on_ranks_with_progress<T: Send>(
    execution: &ExecutionConfig,
    progress: &mut dyn FnMut(Progress),
    work: impl Fn(Ranks, Say<'_>) -> Result<T> + Sync,
) -> Result<T> {
    share_processors(execution.ranks, execution.threads);
    let (sender, receiver) = sync_channel(PROGRESS);
    let work = &work;
    let results = thread::scope(|scope| {
        let training = scope.spawn(move || {
            on_ranks(execution.ranks, execution.device, |group| {
                let ranks = group.map_or_else(Ranks::alone, Ranks::of);
                let is_first = ranks.rank() == 0;
                work(ranks, &|progress| {
                    if is_first {
                        // Nobody listening is no reason not to train.
                        let _ = sender.send(progress);
                    }
                })
            })
        });
        receiver.into_iter().for_each(progress);
        let panicked = |_| Error::Panicked { rank: 0, reason: "its message is on stderr".to_owned() };
        training.join().unwrap_or_else(|panic| Err(panicked(panic)))
    })?;
    Ok(results.into_iter().next().expect("one result for each of at least one rank"))
}
