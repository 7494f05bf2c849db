//! A policy's own best responses, chosen by a reward model, as demonstrations for it: rejection sampling
//! fine-tuning, RAFT (Dong et al., arXiv 2304.06767).

use anyhow::Context as _;
use coordinator::data::DataConfig;
use engine::EngineConfig;
use engine::generate::{DrawOptions, Generator, Response};
use serde_json::json;
use service::jsonl::{self, WrongLines};
use types::PromptContent;

use crate::judging::read_prompts;
use crate::recipe::BestOfNStage;
use crate::responses;
use crate::say::say;

use super::frozen::Frozen;

/// Samples, scores, chooses.
///
/// # Errors
/// When a model or the prompts cannot be used.
pub(super) fn run(stage: &BestOfNStage) -> anyhow::Result<()> {
    let data = DataConfig { path: stage.data.clone(), ..DataConfig::default() };
    let rows = read_prompts(&data, &WrongLines::default())?.into_iter();
    let prompts: Vec<PromptContent> =
        rows.take(stage.max_prompts.unwrap_or(usize::MAX)).map(|row| row.content).collect();
    let options = DrawOptions { n: stage.n, seed: stage.seed, sampling: stage.sampling.clone() };
    let mut generator = Generator::load(&stage.model, &EngineConfig::default())?;
    let responses = responses::draw_where_possible(&mut generator, &prompts, &options)?;
    drop(generator);
    std::fs::create_dir_all(&stage.output).with_context(|| format!("create {}", stage.output.display()))?;
    let frozen = Frozen { folder: &stage.output, name: "responses", responses: &responses };
    let scores = frozen.scores(&stage.reward_model)?;
    let groups = responses.iter().zip(&scores);
    let chosen = groups.filter_map(|(group, scores)| {
        let best = best(scores)?;
        Some(Best { response: &group[best], score: scores[best] })
    });
    let best: Vec<Best<'_>> = chosen.collect();
    let lines = best.iter().map(|best| {
        json!({
            "prompt_tokens": best.response.prompt_tokens.as_ref(), "response_tokens": best.response.tokens,
            "text": best.response.text, "score": best.score,
        })
    });
    jsonl::write(&stage.output.join("demonstrations.jsonl"), lines.collect::<Vec<_>>().iter())?;
    say(&format!(
        "  the best of {} responses to each of {} prompts: mean score {:.3}, of all responses {:.3}",
        stage.n,
        best.len(),
        mean(&best.iter().map(|best| best.score).collect::<Vec<f64>>()),
        mean(&scores.concat())
    ));
    Ok(())
}

fn mean(scores: &[f64]) -> f64 {
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}

/// The response of a group with the highest score.
#[derive(Debug, Clone, Copy)]
struct Best<'a> {
    response: &'a Response,
    score: f64,
}

/// Where the highest score is; of equal scores the first. None where there is none.
fn best(scores: &[f64]) -> Option<usize> {
    (0..scores.len()).reduce(|best, next| if scores[next] > scores[best] { next } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_first_of_the_highest_scores() {
        assert_eq!(best(&[0.5, 1.0, 1.0]), Some(1));
        assert_eq!(best(&[-2.0]), Some(0));
        assert_eq!(best(&[]), None);
    }
}
