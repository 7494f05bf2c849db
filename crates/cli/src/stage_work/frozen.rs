//! What frozen networks say about sampled responses: scores of a reward model, and the KL to a reference.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine::generate::Response;
use reward_server::FileOptions;
use serde::Deserialize;
use service::jsonl;

use crate::episodes::{BehindPrompt, DrawnSequence};

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

    /// Each sequence of each response in its order.
    fn sequences(&self) -> impl Iterator<Item = DrawnSequence> {
        self.responses.iter().flatten().flat_map(BehindPrompt::sequences)
    }

    fn write_tokens(&self) -> anyhow::Result<PathBuf> {
        let path = self.file("tokens");
        let mut writer = jsonl::Writer::create(&path)?;
        for (id, DrawnSequence { tokens, .. }) in self.sequences().enumerate() {
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
        let mut groups = Vec::with_capacity(self.responses.len());
        for group in self.responses {
            let mut of_group = Vec::with_capacity(group.len());
            for response in group {
                // Of several sequences the last one is judged, as in the ring.
                let further = response.observations().iter().filter(|given| given.begins_sequence).count();
                of_group.push(scores.nth(further).context("scores are missing")??);
            }
            groups.push(of_group);
        }
        Ok(groups)
    }

    /// Mean over responses of `Σ log π − log π_ref`, in nats: an unbiased estimate of the sequence's KL to
    /// the reference.
    pub(super) fn kl(&self, reference: &Path, temperature: f32) -> anyhow::Result<f64> {
        let output = self.file("reference");
        let mut options = FileOptions::new(reference.to_owned(), self.write_tokens()?, output.clone());
        options.temperature = f64::from(temperature);
        reward_server::logprobs_file(&options, &mut |_| ())?;
        let mut total = 0.0;
        for (line, DrawnSequence { drawn, .. }) in jsonl::read(&output)?.zip(self.sequences()) {
            let Logprobs { logprobs } = line?.parse()?;
            for (place, policy) in drawn {
                let of_token = place.checked_sub(1).and_then(|before| logprobs.get(before));
                let reference =
                    of_token.context("the reference's log-probs are shorter than the sequence")?;
                total += f64::from(policy) - reference;
            }
        }
        let count = self.responses.iter().map(Vec::len).sum::<usize>();
        Ok(total / count.max(1) as f64)
    }
}
