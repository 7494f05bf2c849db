//! What frozen networks say about sampled responses: scores of a reward model, and the KL to a reference.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine::generate::Response;
use reward_server::FileOptions;
use serde::Deserialize;
use service::jsonl;

use crate::episodes::BehindPrompt;

/// Responses of one policy.
#[derive(Debug)]
pub(super) struct Frozen<'a> {
    /// Where intermediate files go; they are kept for whoever wants to look.
    pub(super) folder: &'a Path,
    /// The policy.
    pub(super) name: &'a str,
    /// Its responses, by problem.
    pub(super) responses: &'a [Vec<Response>],
}

#[derive(Debug, Deserialize)]
struct Scored {
    score: f64,
}

#[derive(Debug, Deserialize)]
struct Logprobs {
    logprobs: Vec<f64>,
}

impl Frozen<'_> {
    fn file(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{}-{what}.jsonl", self.name))
    }

    fn write_tokens(&self) -> anyhow::Result<PathBuf> {
        let path = self.file("tokens");
        let mut writer = jsonl::Writer::create(&path)?;
        for (id, response) in self.responses.iter().flatten().enumerate() {
            let behind = BehindPrompt::of(response).tokens;
            let tokens: Vec<u32> = response.prompt_tokens.iter().copied().chain(behind).collect();
            writer.write(&serde_json::json!({"id": id, "tokens": tokens}))?;
        }
        writer.finish()?;
        Ok(path)
    }

    /// The reward model's score of every response, normalised as in training.
    pub(super) fn scores(&self, model: &Path) -> anyhow::Result<Vec<Vec<f64>>> {
        let output = self.file("scores");
        let options = FileOptions::new(model.to_owned(), self.write_tokens()?, output.clone());
        reward_server::score_file(&options, &mut |_| ())?;
        let mut scores = jsonl::read(&output)?.map(|line| anyhow::Ok(line?.parse::<Scored>()?.score));
        let groups = self.responses.iter();
        groups.map(|group| scores.by_ref().take(group.len()).collect::<anyhow::Result<_>>()).collect()
    }

    /// Mean over responses of `Σ log π − log π_ref`, in nats: an unbiased estimate of the sequence's KL to
    /// the reference.
    pub(super) fn kl(&self, reference: &Path, temperature: f32) -> anyhow::Result<f64> {
        let output = self.file("reference");
        let mut options = FileOptions::new(reference.to_owned(), self.write_tokens()?, output.clone());
        options.temperature = f64::from(temperature);
        reward_server::logprobs_file(&options, &mut |_| ())?;
        let (mut total, mut count) = (0.0, 0usize);
        for (line, response) in jsonl::read(&output)?.zip(self.responses.iter().flatten()) {
            let Logprobs { logprobs } = line?.parse()?;
            let of_response = logprobs.get(response.prompt_tokens.len().saturating_sub(1)..);
            let of_response = of_response.context("the reference's log-probs are shorter than the prompt")?;
            let BehindPrompt { logprobs: of_policy, mask, .. } = BehindPrompt::of(response);
            let pairs = of_policy.into_iter().zip(of_response).enumerate();
            // What was given is no draw of either.
            let drawn = pairs.filter(|(at, _)| mask.as_ref().is_none_or(|mask| mask[*at] == 1));
            total += drawn.map(|(_, (policy, reference))| f64::from(policy) - reference).sum::<f64>();
            count += 1;
        }
        Ok(total / count.max(1) as f64)
    }
}
