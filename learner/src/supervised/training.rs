//! The loop that all supervised objectives share: passes over examples, minibatches, micro-batches, AdamW.
//!
//! Invariants:
//! 1. What is trained depends on the examples, the configuration and its seed, not on micro-batches; on the
//!    number of ranks only by the rounding of sums.
//! 2. Every rank has all examples and splits them alike; numbers that decide anything are added up over the
//!    ranks.

use std::path::PathBuf;

use algo::{Moments, Responses, Totals, kto_reference_point};
use model::ModelConfig;
use serde::Serialize;
use tracing::{info, warn};

use super::config::{TrainingConfig, TrainingSections};
use super::dataset::{Dataset, ExampleSequences, wanted_rows};
use super::mixture::{self, pass_length};
use super::objective::{MinibatchTotals, Objective, ObjectiveInput, ObjectiveSums, summed};
use super::progress::{Progress, ProgressSink};
use super::report::{Evaluation, TrainingResult};
use super::training_state::{EvaluationLine, StepPlan, TrainingState};
use super::work_folder::WorkFolder;
use crate::config::LoraConfig;
use crate::disk::FileError;
use crate::error::{Error, FormulaResult, Result};
use crate::microbatch::{Microbatch, Sequence};
use crate::microbatch_split::MicrobatchSplit;
use crate::model_folder::StartModel;
use crate::phase_timer::PhaseTimer;
use crate::ranks::Ranks;
use crate::trainable_model::{
    HeadGradients, HeadOutputs, HeadRequest, LoraInit, MicrobatchPosition, StepOutcome, TrainableModel,
    TrainableModelOptions,
};

/// A network that learns from examples, on this rank.
#[derive(Debug)]
pub(crate) struct SupervisedTrainer<'a> {
    ranks: &'a Ranks,
    model: TrainableModel,
    request: HeadRequest,
    sections: TrainingSections<'a>,
    /// Where the files are that belong to the network, such as the tokenizer's.
    companions: PathBuf,
    /// What is written into the configuration of a network that is kept, given its scores.
    amend: Amend,
}

/// See [`SupervisedTrainer::amended_by`].
pub(crate) type Amend = fn(&Moments, &mut ModelConfig);

/// What is measured after each pass.
#[derive(Debug, Clone, Copy)]
pub(crate) enum EvaluationSet<'a> {
    /// Examples that are not trained on.
    HeldOut(Dataset<'a>),
    /// The examples that are trained on.
    TrainingSet(Dataset<'a>),
}

/// What a pass over examples is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PassMode {
    /// Gradients are added up for the optimizer.
    Train,
    /// The objective is computed.
    Measure,
}

impl<'a> SupervisedTrainer<'a> {
    /// A trainer of the network `start`; `name` is what errors call it, `request` what the objective reads of
    /// its head.
    ///
    /// # Errors
    /// Adapters to start from that are none of this network's.
    pub(crate) fn new(
        name: &'static str,
        ranks: &'a Ranks,
        start: &StartModel,
        request: HeadRequest,
        sections: TrainingSections<'a>,
    ) -> Result<Self> {
        let TrainingSections { training, execution, .. } = sections;
        let lora = execution.lora.clone().map(|config| LoraInit { config, seed: training.seed });
        let options = TrainableModelOptions {
            kind: execution.dtype().kind(),
            device: execution.device.of_rank(ranks.rank()),
            zero_stage: execution.zero_stage,
            recompute: execution.recompute,
            offload_optimizer: execution.offload_optimizer,
            lora,
        };
        let model = TrainableModel::new(name, start, ranks, &options)?;
        let companions = start.path.clone();
        Ok(Self { ranks, model, request, sections, companions, amend: |_, _| {} })
    }

    /// The same, where `amend` writes into the configuration what its scores say.
    pub(crate) fn amended_by(self, amend: Amend) -> Self {
        Self { amend, ..self }
    }

    /// Keeps the network as the best so far.
    fn save_best(&self, folder: &WorkFolder, sums: &ObjectiveSums) -> Result<()> {
        let best = folder.best();
        if self.ranks.rank() == 0 && best.exists() {
            std::fs::remove_dir_all(&best).map_err(FileError::on("remove", &best))?;
        }
        self.save(&best, &self.companions, |config| (self.amend)(&sums.scores, config))
    }

    /// The network as it is now.
    pub(crate) fn model(&self) -> &TrainableModel {
        &self.model
    }

    /// The ranks that train together.
    pub(crate) fn ranks(&self) -> &Ranks {
        self.ranks
    }

    /// The configuration of the adapters, where they are trained.
    pub(crate) fn lora(&self) -> Option<&LoraConfig> {
        self.sections.execution.lora.as_ref()
    }

    /// Trains on `data`, from where an interrupted training of the same configuration stands in `folder`, and
    /// measures `evaluation` as often as the configuration says.
    ///
    /// # Errors
    /// A token outside the vocabulary, training that diverged or was interrupted, a rank that is lost, a
    /// folder that cannot be written.
    pub(crate) fn train(
        &mut self,
        data: Dataset<'_>,
        evaluation: Option<EvaluationSet<'_>>,
        folder: &WorkFolder,
        sink: ProgressSink<'_>,
    ) -> Result<TrainingResult> {
        let timer = PhaseTimer::start();
        let TrainingConfig { epochs, batch_size, .. } = *self.sections.training;
        let steps_per_pass = pass_length(&data.examples.portions).div_ceil(batch_size) as u64;
        let plan = StepPlan { steps: epochs as u64 * steps_per_pass, steps_per_pass };
        let mut state = folder.resume(self.ranks, &mut self.model)?;
        let (tokens_before, mut order) = (state.tokens, (0, Vec::new()));
        while state.step < plan.steps && !state.is_over {
            let (epoch, place) = plan.place(state.step);
            if order.0 != epoch {
                order = (epoch, self.order(data, epoch));
            }
            if place == 0 {
                (state.loss, state.made) = (0.0, 0);
            }
            let examples = order.1.chunks(batch_size).nth(place).unwrap_or_default();
            let made = self.optimizer_step(data, examples, &mut state, plan)?;
            let is_pass_over = place as u64 + 1 == steps_per_pass;
            let mut goes_on = true;
            if let Some(made) = made {
                let seconds = timer.seconds().max(1e-9);
                let tokens_per_second = (state.tokens - tokens_before) as f64 / seconds;
                let progress = Progress { epoch, tokens_per_second, ..made };
                goes_on = sink(progress).is_continue();
                self.note(folder, &progress)?;
            }
            if let Some(set) = evaluation
                && self.is_evaluation_due(state.step, is_pass_over)
            {
                self.evaluate(set, epoch, folder, &mut state)?;
            }
            self.checkpoint_if_due(folder, &state, goes_on, plan)?;
        }
        Ok(state.into_result(timer.seconds()))
    }

    /// One optimizer step; `None` where it could not be made.
    fn optimizer_step(
        &mut self,
        data: Dataset<'_>,
        examples: &[usize],
        state: &mut TrainingState,
        StepPlan { steps, .. }: StepPlan,
    ) -> Result<Option<Progress>> {
        let optimizer = self.sections.optimizer;
        let sums = self.pass(data, examples, PassMode::Train)?;
        let lr = optimizer.lr * optimizer.schedule.factor(state.step, optimizer.warmup_steps, steps);
        let outcome = self.model.update(self.ranks, optimizer, lr)?;
        state.step += 1;
        let StepOutcome::Made { norm: grad_norm } = outcome else {
            self.warn_of_skipped(examples);
            state.skipped_steps += 1;
            return Ok(None);
        };
        state.made += 1;
        state.loss += (sums.loss - state.loss) / state.made as f64;
        state.tokens += sums.tokens as u64;
        let (step, loss) = (state.step, sums.loss);
        let (accuracy, margin) = (sums.accuracy(), sums.mean_margin());
        let rewards = sums.mean_rewards();
        Ok(Some(Progress {
            step,
            steps,
            epoch: 0,
            loss,
            accuracy,
            margin,
            reward_chosen: rewards.map(|[chosen, _]| chosen),
            reward_rejected: rewards.map(|[_, rejected]| rejected),
            grad_norm,
            lr,
            tokens_per_second: 0.0,
        }))
    }

    fn is_evaluation_due(&self, step: u64, is_pass_over: bool) -> bool {
        let every = self.sections.training.eval_every;
        is_pass_over || (every > 0 && step.is_multiple_of(every))
    }

    /// Measures a set, keeps the network if none was better, and says when there were too many in a row that
    /// were not.
    fn evaluate(
        &mut self,
        set: EvaluationSet<'_>,
        epoch: usize,
        folder: &WorkFolder,
        state: &mut TrainingState,
    ) -> Result<()> {
        let sums = self.measure(set.data())?;
        state.scores = sums.scores.into();
        let found = self.evaluated(set, (state.step, epoch), &sums);
        let best = state.evaluations.iter().map(|before| before.loss).fold(f64::INFINITY, f64::min);
        state.evaluations.push(found);
        self.note(folder, &EvaluationLine { step: state.step, evaluation: found })?;
        let TrainingConfig { eval_every, stop_after_evals, .. } = *self.sections.training;
        if !found.held_out || (eval_every == 0 && stop_after_evals == 0) {
            return Ok(());
        }
        if found.loss < best {
            state.without_gain = 0;
            self.save_best(folder, &sums)?;
        } else {
            state.without_gain += 1;
            state.is_over = stop_after_evals > 0 && state.without_gain >= stop_after_evals;
            if state.is_over && self.ranks.rank() == 0 {
                info!(
                    step = state.step,
                    best, "no lower loss for {stop_after_evals} evaluations: training ends"
                );
            }
        }
        Ok(())
    }

    /// Writes a checkpoint where one is due, or training was told to stop, which is the same on all ranks.
    fn checkpoint_if_due(
        &self,
        folder: &WorkFolder,
        state: &TrainingState,
        goes_on: bool,
        plan: StepPlan,
    ) -> Result<()> {
        let mut stops = [f64::from(u8::from(!goes_on))];
        self.ranks.sum(&mut stops)?;
        let is_told_to_stop = stops[0] > 0.0 && state.step < plan.steps && !state.is_over;
        let every = self.sections.training.save_every;
        if is_told_to_stop || (every > 0 && state.step.is_multiple_of(every) && state.step < plan.steps) {
            folder.checkpoint(self.ranks, &self.model, state)?;
        }
        if is_told_to_stop {
            return Err(Error::Interrupted { step: state.step, folder: folder.path().to_owned() });
        }
        Ok(())
    }

    /// Adds a line to the folder's `steps.jsonl`, on rank 0.
    fn note(&self, folder: &WorkFolder, line: &impl Serialize) -> Result<()> {
        if self.ranks.rank() == 0 { folder.add_line(line) } else { Ok(()) }
    }

    fn warn_of_skipped(&self, examples: &[usize]) {
        if self.ranks.rank() == 0 {
            warn!(?examples, "the gradient is no finite number: optimizer step skipped");
        }
    }

    /// The summed log-probs of every sequence, `[sequences]`.
    ///
    /// # Errors
    /// A token outside the vocabulary, a rank that is lost.
    pub(crate) fn summed_logprobs(&self, examples: &ExampleSequences) -> Result<Vec<f32>> {
        let per_example = examples.per_example;
        let all: Vec<usize> = (0..examples.len()).collect();
        let mut found = vec![0.0; examples.sequences.len()];
        let split = self.split(examples, &all, per_example);
        for chosen in split.of_rank(self.ranks.rank()) {
            let sequences = examples.first_of(chosen, per_example);
            let microbatch = self.microbatch(&sequences)?;
            let Some(outputs) = self.model.infer(self.ranks, microbatch, self.request)? else { continue };
            let sums = summed(&wanted_rows(&sequences), &outputs.values);
            for (example, own) in chosen.iter().zip(sums.chunks(per_example)) {
                found[example * per_example..][..per_example].copy_from_slice(own);
            }
        }
        self.ranks.complete(&mut found)?;
        Ok(found)
    }

    /// The objective over all examples of a set, without training.
    fn measure(&mut self, data: Dataset<'_>) -> Result<ObjectiveSums> {
        let all: Vec<usize> = (0..data.examples.len()).collect();
        self.pass(data, &all, PassMode::Measure)
    }

    fn evaluated(
        &self,
        set: EvaluationSet<'_>,
        (step, epoch): (u64, usize),
        sums: &ObjectiveSums,
    ) -> Evaluation {
        let held_out = matches!(set, EvaluationSet::HeldOut(_));
        let (loss, accuracy, margin) = (sums.loss, sums.accuracy(), sums.mean_margin());
        if self.ranks.rank() == 0 {
            info!(step, epoch, loss, accuracy, margin, held_out, "examples evaluated");
        }
        let rewards = sums.mean_rewards();
        let reward_chosen = rewards.map(|[chosen, _]| chosen);
        let reward_rejected = rewards.map(|[_, rejected]| rejected);
        Evaluation { step, epoch, held_out, loss, accuracy, margin, reward_chosen, reward_rejected }
    }

    fn order(&self, data: Dataset<'_>, epoch: usize) -> Vec<usize> {
        let TrainingConfig { shuffle, seed, .. } = *self.sections.training;
        mixture::order(&data.examples.portions, shuffle, seed, epoch)
    }

    /// All micro-batches of a minibatch, or of a set that is measured.
    fn pass(&mut self, data: Dataset<'_>, examples: &[usize], mode: PassMode) -> Result<ObjectiveSums> {
        let minibatch = self.minibatch_totals(data, examples)?;
        let trained_sequences = data.trained_sequences();
        let split = self.split(data.examples, examples, trained_sequences);
        let mut rounds = split.of_rank(self.ranks.rank()).peekable();
        let mut sums = ObjectiveSums::default();
        while let Some(examples) = rounds.next() {
            let sequences = data.examples.first_of(examples, trained_sequences);
            let microbatch = self.microbatch(&sequences)?;
            sums.tokens += sequences.iter().map(|sequence| sequence.tokens() as f64).sum::<f64>();
            let loss = MicrobatchLoss {
                objective: data.objective,
                minibatch: &minibatch,
                examples,
                lengths: wanted_rows(&sequences),
            };
            match mode {
                PassMode::Train => {
                    let pass = self.model.forward(self.ranks, microbatch, self.request)?;
                    let position = match rounds.peek() {
                        Some(_) => MicrobatchPosition::MoreFollow,
                        None => MicrobatchPosition::Last,
                    };
                    self.model.backward(self.ranks, pass, position, |outputs| {
                        Ok(loss.gradient_or_none(outputs, &mut sums))
                    })?;
                }
                PassMode::Measure => {
                    if let Some(outputs) = self.model.infer(self.ranks, microbatch, self.request)? {
                        loss.gradient(&outputs, &mut sums)?;
                    }
                }
            }
        }
        let mut all = sums.to_array();
        self.ranks.sum(&mut all)?;
        Ok(ObjectiveSums::from_array(all))
    }

    /// Denominators and, for KTO, the reference point.
    fn minibatch_totals(&self, data: Dataset<'_>, examples: &[usize]) -> Result<MinibatchTotals> {
        let lengths = wanted_rows(&data.examples.first_of(examples, data.trained_sequences()));
        let tokens = token_totals(&lengths).map_err(Error::numbers(|| "a minibatch".to_owned()))?;
        let reference_point = match data.objective {
            Objective::Labelled { reference, .. } => {
                self.reference_point(data.examples, examples, reference)?
            }
            Objective::Likelihood { .. } | Objective::BradleyTerry { .. } | Objective::Preferences { .. } => {
                0.0
            }
        };
        Ok(MinibatchTotals { examples: examples.len(), tokens, reference_point })
    }

    /// KTO's reference point: from each example's prompt with another example's response, its second
    /// sequence.
    fn reference_point(
        &self,
        all: &ExampleSequences,
        examples: &[usize],
        reference: &[[f32; 2]],
    ) -> Result<f64> {
        let split = self.split(all, examples, 2);
        let mut ratios = Moments::default();
        for chosen in split.of_rank(self.ranks.rank()) {
            let sequences: Vec<&Sequence> =
                chosen.iter().map(|example| &all.sequences[2 * example + 1]).collect();
            let microbatch = self.microbatch(&sequences)?;
            let outputs = self.model.infer(self.ranks, microbatch, self.request)?;
            let logprobs = summed(&wanted_rows(&sequences), &outputs.unwrap_or_default().values);
            for (example, logprob) in chosen.iter().zip(logprobs) {
                ratios.push(f64::from(logprob) - f64::from(reference[*example][1]));
            }
        }
        let mut sums = [ratios.count, ratios.sum, ratios.sum_of_squares];
        self.ranks.sum(&mut sums)?;
        let [count, sum, sum_of_squares] = sums;
        Ok(kto_reference_point(&Moments { count, sum, sum_of_squares }))
    }

    /// How examples are split into micro-batches by the tokens of their first `count` sequences.
    fn split(&self, all: &ExampleSequences, examples: &[usize], count: usize) -> MicrobatchSplit {
        let max_tokens = self.sections.execution.microbatch_tokens;
        MicrobatchSplit::new(&all.split_items(examples, count), self.ranks.world_size(), max_tokens)
    }

    fn microbatch(&self, sequences: &[&Sequence]) -> Result<Option<Microbatch>> {
        if sequences.is_empty() {
            return Ok(None);
        }
        Microbatch::new(sequences, self.model.config(), self.model.device(), |at| {
            format!("an example of {} tokens", sequences[at].tokens())
        })
        .map(Some)
    }
}

impl<'a> EvaluationSet<'a> {
    fn data(self) -> Dataset<'a> {
        match self {
            Self::HeldOut(data) | Self::TrainingSet(data) => data,
        }
    }
}

/// The objective on one micro-batch.
struct MicrobatchLoss<'a> {
    objective: &'a Objective,
    minibatch: &'a MinibatchTotals,
    /// The numbers of its examples.
    examples: &'a [usize],
    /// Wanted rows of each of their sequences.
    lengths: Vec<usize>,
}

impl MicrobatchLoss<'_> {
    /// The gradient, or one that keeps every rank from making the step.
    fn gradient_or_none(&self, outputs: &HeadOutputs, sums: &mut ObjectiveSums) -> HeadGradients {
        self.gradient(outputs, sums).unwrap_or_else(|problem| {
            warn!(%problem, "a micro-batch has no loss");
            HeadGradients::not_a_number(outputs)
        })
    }

    fn gradient(&self, outputs: &HeadOutputs, sums: &mut ObjectiveSums) -> Result<HeadGradients> {
        let Self { objective, minibatch, examples, lengths } = self;
        let input = ObjectiveInput { minibatch, examples, lengths, outputs };
        let gradient = objective.gradient(input, sums);
        gradient.map_err(Error::numbers(|| format!("examples {examples:?}, counted from 0")))
    }
}

/// Denominators of token losses, with weight 1 for every response.
fn token_totals(lengths: &[usize]) -> FormulaResult<Totals> {
    Totals::of(Responses::new(lengths)?, &vec![1.0; lengths.len()])
}
