//! Supervised fine-tuning: the negative log-likelihood of responses, prompts given.

use std::ops::ControlFlow;

use model::LogprobOptions;

use super::config::SftConfig;
use super::dataset::{Dataset, ExampleSequences};
use super::examples::{Conversation, ExampleReader, Examples};
use super::mixture::ExampleSource;
use super::new_model::new_model;
use super::objective::Objective;
use super::progress::{Progress, on_ranks_with_progress};
use super::report::TrainingReport;
use super::text_encoder::TextEncoder;
use super::training::{EvaluationSet, SupervisedTrainer};
use super::work_folder::WorkFolder;
use crate::error::{Error, Result};
use crate::microbatch::Sequence;
use crate::model_folder::StartModel;
use crate::trainable_model::HeadRequest;

/// Trains a policy to give the responses of the data, and writes its folder. The same seed gives the same
/// weights.
///
/// # Errors
/// The configuration's problems; a folder, a file or a line that cannot be used; training that diverged. Then
/// nothing is at `output`.
pub fn sft(
    config: &SftConfig,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<TrainingReport> {
    let problems = config.problems();
    let tokenizer = match (&config.model, &config.init) {
        (Some(model), None) if problems.is_empty() => model,
        (None, Some(init)) if problems.is_empty() => &init.tokenizer,
        _ => return Err(Error::Config { problems }),
    };
    let encoder = TextEncoder::load(tokenizer, config.training.append_eos)?;
    let reader = ExampleReader::new(encoder.as_ref(), &config.training).with_turns(config.assistant_turns);
    let conversations = reader.read::<Conversation>(config.source())?;
    let held_out = match &config.eval_data {
        Some(path) => Some(sequences(&reader.read(ExampleSource::file(path))?)),
        None => None,
    };
    let examples = sequences(&conversations);
    let folder = WorkFolder::of(&config.output, config);
    let objective = Objective::Likelihood { aggregation: config.loss_aggregation };
    let result = on_ranks_with_progress(&config.execution, progress, |ranks, sink| {
        let start = match (&config.model, &config.init) {
            (None, Some(init)) => new_model(init, config.training.seed)?.into(),
            (folder, _) => StartModel::open_policy(folder.as_deref().unwrap_or(tokenizer))?,
        };
        let request = HeadRequest::Logprobs(LogprobOptions::default());
        let mut trainer = SupervisedTrainer::new("policy", ranks, &start, request, config.sections())?;
        let data = Dataset { examples: &examples, objective: &objective };
        let evaluation = held_out
            .as_ref()
            .map(|examples| EvaluationSet::HeldOut(Dataset { examples, objective: &objective }));
        let result = trainer.train(data, evaluation, &folder, sink)?;
        trainer.save(&config.output, &start.path, |_| {})?;
        if ranks.rank() == 0 {
            folder.finish(&config.output)?;
        }
        Ok(result)
    })?;
    Ok(TrainingReport::new(result, conversations.counts(), None))
}

fn sequences(conversations: &Examples<Conversation>) -> ExampleSequences {
    let Examples { examples, portions, .. } = conversations;
    let sequences = examples.iter().map(|found| Sequence::stretches(&found.tokens, &found.learnt)).collect();
    ExampleSequences { sequences, per_example: 1, portions: portions.clone() }
}
