//! A policy from preferences without a reward model: DPO, cDPO, IPO on pairs, KTO on labelled responses.

use model::LogprobOptions;

use super::config::{PreferenceConfig, PreferenceLoss};
use super::examples::{Labelled, Pair, Reader};
use super::objective::Objective;
use super::report::{Progress, Report};
use super::source::{Source, TextEncoder};
use super::training::{Course, Items, Sections, Set, on_ranks_with_progress};
use crate::error::{Error, Result};
use crate::microbatch::Sequence;
use crate::ranks::Ranks;
use crate::trainee::Request;

/// Trains a policy on preferences, and writes its folder. The same seed gives the same weights.
///
/// # Errors
/// The configuration's problems; a folder, a file or a line that cannot be used; training that diverged. Then nothing is at
/// `output`.
pub fn dpo(config: &PreferenceConfig, progress: &mut dyn FnMut(Progress)) -> Result<Report> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config { problems });
    }
    let encoder = TextEncoder::load(&config.model, config.training.append_eos)?;
    let reader = Reader { encoder: encoder.as_ref(), training: &config.training };
    let data = Data::read(config, &reader, &config.data)?;
    let held = config.eval_data.as_deref().map(|path| Data::read(config, &reader, path)).transpose()?;
    let sections =
        Sections { training: &config.training, optimizer: &config.optimizer, execution: &config.execution };
    let request = Request::Logprobs(LogprobOptions::default());
    let taught = on_ranks_with_progress(&config.execution, progress, |ranks, say| {
        let source = Source::policy(&config.model)?;
        let (mut ranks, mut objectives) = (ranks, Vec::new());
        {
            // The reference is gone before the policy's optimizer state is made.
            let other = config.reference.as_deref().map(Source::policy).transpose()?;
            let reference = other.as_ref().unwrap_or(&source);
            let course = Course::new("reference", (ranks, reference), request, sections);
            for data in [Some(&data), held.as_ref()].into_iter().flatten() {
                objectives.push(data.objective(config, &course.summed_logprobs(&data.items)?));
            }
            ranks = course.into_ranks();
        }
        teach(config, (ranks, &source), (&data, held.as_ref()), &objectives, say)
    })?;
    Ok(Report::of(taught, (data.items.sequences.len() / 2, data.too_long), None))
}

fn teach(
    config: &PreferenceConfig,
    (ranks, source): (Ranks, &Source),
    (data, held): (&Data, Option<&Data>),
    objectives: &[Objective],
    say: super::training::Say<'_>,
) -> Result<super::training::Taught> {
    let sections =
        Sections { training: &config.training, optimizer: &config.optimizer, execution: &config.execution };
    let request = Request::Logprobs(LogprobOptions::default());
    let mut course = Course::new("policy", (ranks, source), request, sections);
    let evaluation =
        held.zip(objectives.get(1)).map(|(held, objective)| (Set { items: &held.items, objective }, true));
    let taught = course.teach(Set { items: &data.items, objective: &objectives[0] }, evaluation, say)?;
    course.save(source, &config.output, |_| {})?;
    Ok(taught)
}

/// Preferences of a file: two sequences an item.
#[derive(Debug)]
struct Data {
    items: Items,
    /// For KTO, whether each item's response is wanted.
    desirable: Vec<bool>,
    too_long: usize,
}

impl Data {
    fn read(config: &PreferenceConfig, reader: &Reader<'_>, path: &std::path::Path) -> Result<Self> {
        match config.objective {
            PreferenceLoss::Dpo | PreferenceLoss::Cdpo | PreferenceLoss::Ipo => {
                let found = reader.pairs(path)?;
                Ok(Self { items: of_pairs(&found.examples), desirable: Vec::new(), too_long: found.too_long })
            }
            PreferenceLoss::Kto => {
                let found = reader.labelled(path)?;
                let desirable = found.examples.iter().map(|labelled| labelled.desirable).collect();
                let items = of_labelled(&found.examples, config.training.max_length);
                Ok(Self { items, desirable, too_long: found.too_long })
            }
        }
    }

    /// The objective, given the reference's summed log-probs of every sequence.
    fn objective(&self, config: &PreferenceConfig, reference: &[f32]) -> Objective {
        let reference = reference.chunks(2).map(|pair| [pair[0], pair[1]]).collect();
        match config.of_pairs() {
            Some(objective) => Objective::Pairs { objective, reference },
            None => Objective::Labelled { kto: config.kto(), desirable: self.desirable.clone(), reference },
        }
    }
}

fn of_pairs(pairs: &[Pair]) -> Items {
    let sequence = |answer: &super::examples::Answer| Sequence::response(&answer.prompt, &answer.response);
    let sequences =
        pairs.iter().flat_map(|pair| [sequence(&pair.chosen), sequence(&pair.rejected)]).collect();
    Items { sequences, per_item: 2 }
}

/// Each response, and for KTO's reference point the response to the next other prompt in the file behind the same prompt, cut
/// to the longest sequence allowed.
fn of_labelled(examples: &[Labelled], max_length: usize) -> Items {
    let count = examples.len();
    let sequences = examples.iter().enumerate().flat_map(|(at, labelled)| {
        let answer = &labelled.answer;
        let others = (1..count).map(|ahead| &examples[(at + ahead) % count].answer);
        let other = others.into_iter().find(|other| other.prompt != answer.prompt).unwrap_or(answer);
        let room = (max_length - answer.prompt.len()).min(other.response.len());
        let own = Sequence::response(&answer.prompt, &answer.response);
        [own, Sequence::response(&answer.prompt, &other.response[..room])]
    });
    Items { sequences: sequences.collect(), per_item: 2 }
}
