//! A policy from preferences without a reward model: DPO, cDPO, IPO on pairs, KTO on labelled responses.

use std::ops::ControlFlow;

use model::LogprobOptions;

use super::config::{PreferenceConfig, PreferenceLoss};
use super::dataset::{Dataset, ExampleSequences};
use super::examples::{Answer, ExampleReader, Examples, LabelledAnswer, PreferencePair};
use super::mixture::ExampleSource;
use super::objective::Objective;
use super::progress::{Progress, ProgressSink, on_ranks_with_progress};
use super::report::{ExampleCounts, TrainingReport, TrainingResult};
use super::text_encoder::TextEncoder;
use super::training::{EvaluationSet, SupervisedTrainer};
use super::work_folder::WorkFolder;
use crate::error::{Error, Result};
use crate::microbatch::Sequence;
use crate::model_folder::StartModel;
use crate::ranks::Ranks;
use crate::trainable_model::HeadRequest;

/// Preferences of a file: two sequences an example.
#[derive(Debug)]
struct Preferences {
    examples: ExampleSequences,
    /// For KTO, whether each example's response is wanted.
    desirable: Vec<bool>,
    counts: ExampleCounts,
}

/// What is trained on, and what is measured.
struct PreferenceData {
    training: Preferences,
    held_out: Option<Preferences>,
}

/// The objectives on [`PreferenceData`].
struct PreferenceObjectives {
    training: Objective,
    held_out: Option<Objective>,
}

/// Trains a policy on preferences, and writes its folder. The same seed gives the same weights.
///
/// # Errors
/// The configuration's problems; a folder, a file or a line that cannot be used; training that diverged. Then
/// nothing is at `output`.
pub fn dpo(
    config: &PreferenceConfig,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<TrainingReport> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config { problems });
    }
    let encoder = TextEncoder::load(&config.model, config.training.append_eos)?;
    let reader = ExampleReader::new(encoder.as_ref(), &config.training);
    let training = Preferences::read(config, &reader, config.source())?;
    let held_out = match &config.eval_data {
        Some(path) => Some(Preferences::read(config, &reader, ExampleSource::file(path))?),
        None => None,
    };
    let counts = training.counts;
    let data = PreferenceData { training, held_out };
    let result =
        on_ranks_with_progress(&config.execution, progress, |ranks, sink| train(config, &data, ranks, sink))?;
    Ok(TrainingReport::new(result, counts, None))
}

/// Trains on one rank.
fn train(
    config: &PreferenceConfig,
    data: &PreferenceData,
    ranks: &Ranks,
    sink: ProgressSink<'_>,
) -> Result<TrainingResult> {
    let start = StartModel::open_policy(&config.model)?;
    // The reference is gone before the policy's optimizer state is made.
    let objectives = match &config.reference {
        Some(folder) => reference_objectives(config, data, ranks, &StartModel::open_policy(folder)?)?,
        None => reference_objectives(config, data, ranks, &start)?,
    };
    let mut trainer = SupervisedTrainer::new("policy", ranks, &start, request(), config.sections())?;
    let training = Dataset { examples: &data.training.examples, objective: &objectives.training };
    let evaluation = match (&data.held_out, &objectives.held_out) {
        (Some(held_out), Some(objective)) => {
            Some(EvaluationSet::HeldOut(Dataset { examples: &held_out.examples, objective }))
        }
        _ => None,
    };
    let folder = WorkFolder::of(&config.output, config);
    let result = trainer.train(training, evaluation, &folder, sink)?;
    trainer.save(&config.output, &start.path, |_| {})?;
    if ranks.rank() == 0 {
        folder.finish(&config.output)?;
    }
    Ok(result)
}

/// The objectives, which know the reference's log-probs of every sequence.
fn reference_objectives(
    config: &PreferenceConfig,
    data: &PreferenceData,
    ranks: &Ranks,
    reference: &StartModel,
) -> Result<PreferenceObjectives> {
    let reference = SupervisedTrainer::new("reference", ranks, reference, request(), config.sections())?;
    let logprobs = reference.summed_logprobs(&data.training.examples)?;
    let training = data.training.objective(config, &logprobs);
    let held_out = match &data.held_out {
        Some(held_out) => {
            let logprobs = reference.summed_logprobs(&held_out.examples)?;
            Some(held_out.objective(config, &logprobs))
        }
        None => None,
    };
    Ok(PreferenceObjectives { training, held_out })
}

fn request() -> HeadRequest {
    HeadRequest::Logprobs(LogprobOptions::default())
}

impl Preferences {
    fn read(
        config: &PreferenceConfig,
        reader: &ExampleReader<'_>,
        source: ExampleSource<'_>,
    ) -> Result<Self> {
        match config.objective {
            PreferenceLoss::Dpo | PreferenceLoss::Cdpo | PreferenceLoss::Ipo => {
                let found = reader.read::<PreferencePair>(source)?;
                let examples = pair_sequences(&found);
                Ok(Self { examples, desirable: Vec::new(), counts: found.counts() })
            }
            PreferenceLoss::Kto => {
                let found = reader.read::<LabelledAnswer>(source)?;
                let desirable = found.examples.iter().map(|labelled| labelled.desirable).collect();
                let examples = labelled_sequences(&found, config.training.max_length);
                Ok(Self { examples, desirable, counts: found.counts() })
            }
        }
    }

    /// The objective, given the reference's summed log-probs of every sequence.
    fn objective(&self, config: &PreferenceConfig, logprobs: &[f32]) -> Objective {
        let reference = logprobs.chunks(2).map(|pair| [pair[0], pair[1]]).collect();
        match config.pair_objective() {
            Some(objective) => Objective::Preferences { objective, reference },
            None => Objective::Labelled { kto: config.kto(), desirable: self.desirable.clone(), reference },
        }
    }
}

fn pair_sequences(pairs: &Examples<PreferencePair>) -> ExampleSequences {
    let sequences = pairs.examples.iter().flat_map(|pair| [response(&pair.chosen), response(&pair.rejected)]);
    ExampleSequences { sequences: sequences.collect(), per_example: 2, portions: pairs.portions.clone() }
}

/// Each response, and for KTO's reference point the response to the next other prompt in the file behind the
/// same prompt, shortened to the longest sequence allowed.
fn labelled_sequences(labelled: &Examples<LabelledAnswer>, max_length: usize) -> ExampleSequences {
    let Examples { examples, portions, .. } = labelled;
    let count = examples.len();
    let mut sequences = Vec::with_capacity(2 * count);
    for (at, labelled) in examples.iter().enumerate() {
        let answer = &labelled.answer;
        let mut others = (1..count).map(|ahead| &examples[(at + ahead) % count].answer);
        let other = others.find(|other| other.prompt != answer.prompt).unwrap_or(answer);
        let room = (max_length - answer.prompt.len()).min(other.response.len());
        sequences.push(response(answer));
        sequences.push(Sequence::response(&answer.prompt, &other.response[..room]));
    }
    ExampleSequences { sequences, per_example: 2, portions: portions.clone() }
}

fn response(answer: &Answer) -> Sequence {
    Sequence::response(&answer.prompt, &answer.response)
}
