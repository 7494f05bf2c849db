//! `sluice replay`: the learner's step on recorded samples.

use std::path::PathBuf;

use learner::{PpoConfig, ReplayOptions};
use service::BadInput;
use service::config::Layers;

use super::lines::LineArguments;
use crate::bad_input;
use crate::decimal::decimal;

/// Runs the learner's step on recorded samples: writes policy/, critic/ and metrics.json.
///
/// A line of the batch has prompt_id (or id), prompt_tokens, response_tokens, rollout_logprobs (or logprobs),
/// score, and where there are any ref_logprobs and weight: what sluice generate, score and filter write. Of
/// an episode, response_tokens are all tokens behind the prompt, and response_mask is 1 for those that the
/// policy drew and 0 for those that it was given; sequence_begins has the places of tokens with which further
/// sequences begin.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The policy's folder.
    #[arg(long)]
    policy: PathBuf,
    /// The critic's folder; the policy with a head of zeros where not given.
    #[arg(long)]
    critic: Option<PathBuf>,
    /// The samples (JSON Lines, plain or gzipped); - is standard input.
    #[arg(long)]
    batch: PathBuf,
    #[command(flatten)]
    lines: LineArguments,
    /// Configuration of the step (TOML); the defaults where not given.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where policy/, critic/ and metrics.json go.
    #[arg(long)]
    output: PathBuf,
    /// Ranks, as threads of this process.
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Temperature the samples were drawn at.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// The run's sampling.max_new_tokens, by which dr-grpo divides its loss; the longest response of the
    /// batch where not given.
    #[arg(long)]
    max_new_tokens: Option<u32>,
    /// Sets one value over the configuration; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Prints the metrics as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Names the file, line or key that cannot be used.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config: PpoConfig = Layers::of_process(arguments.config.as_deref(), &arguments.settings)?.parse()?;
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(service::config::Error::Unusable { problems }.into());
    }
    if arguments.ranks == 0 {
        return Err(BadInput("--ranks is 0, must be at least 1".to_owned()).into());
    }
    let options = ReplayOptions {
        policy: arguments.policy.clone(),
        critic: arguments.critic.clone(),
        batch: arguments.batch.clone(),
        config,
        output: arguments.output.clone(),
        ranks: arguments.ranks,
        device: arguments
            .device
            .parse()
            .map_err(|error: model::UnknownDevice| BadInput(error.to_string()))?,
        temperature: arguments.temperature,
        max_new_tokens: arguments.max_new_tokens,
    };
    let wrong = arguments.lines.wrong_lines();
    let metrics = learner::replay(&options, &wrong).map_err(bad_input::of_learner)?;
    if arguments.json {
        println!("{}", serde_json::to_string(&metrics)?);
    } else {
        let figures = [
            metrics.policy_loss.map(|loss| format!("policy_loss {}", decimal(loss, 6))),
            metrics.value_loss.map(|loss| format!("value_loss {}", decimal(loss, 6))),
            metrics.approx_kl.map(|kl| format!("approx_kl {kl:.2e}")),
            metrics.clip_fraction.map(|clipped| format!("clip_fraction {clipped:.3}")),
            (metrics.skipped_steps > 0).then(|| format!("{} optimizer steps skipped", metrics.skipped_steps)),
            Some(format!("{:.2} s", metrics.step_seconds)),
        ];
        println!("{}", figures.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    Ok(wrong.finish()?)
}
