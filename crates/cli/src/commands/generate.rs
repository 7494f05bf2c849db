//! `sluice generate`: responses to a file of prompts.

mod file;

use std::path::PathBuf;

use engine::generate::DrawOptions;
use service::BadInput;

use super::engine_arguments::EngineArguments;
use super::lines::LineArguments;
use super::sampling::SamplingArguments;
use crate::bar::Bar;
use crate::closed_pipe;
use crate::episodes::{Drawing, EpisodeSetup};
use crate::responses::pace;
use file::{FileOptions, generate};

/// Responses of a model to the prompts of a file, through the rollout engine. Memory does not grow with the
/// file.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The model's folder.
    #[arg(long)]
    model: PathBuf,
    /// Lines {"prompt" | "tokens" | "messages"} and whatever else they hold, plain or gzipped; - is standard
    /// input. What is named neither by id nor by task_id is named by its line.
    #[arg(long)]
    input: PathBuf,
    /// The input's lines, in its order, once for each response, with {"id", "index", "prompt_tokens",
    /// "response_tokens", "text", "logprobs", "finish_reason"}; "tokens" are the response's too. score,
    /// logprobs, grade, replay and eval read them. - is standard output.
    #[arg(long)]
    output: PathBuf,
    /// Draws responses as episodes of several turns in the environment of this recipe, or of this reward
    /// server's configuration. A line has response_mask (0 for tokens that the policy was given), turns and
    /// end beside the others then.
    #[arg(long, value_name = "FILE")]
    environment: Option<PathBuf>,
    #[command(flatten)]
    lines: LineArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    /// Responses per prompt.
    #[arg(long, default_value_t = 1)]
    n: usize,
    /// Seeds the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    engine: EngineArguments,
}

/// Whether so many responses of a prompt can be drawn: all wait together, and each has a seed of its own.
fn check_n(n: usize, most: usize) -> Result<(), BadInput> {
    let seeds = usize::from(u16::MAX) + 1;
    let most = most.min(seeds);
    if (1..=most).contains(&n) {
        return Ok(());
    }
    Err(BadInput(format!("--n is {n}, must be 1 to {most}: give a prompt several lines for more")))
}

/// Runs the command.
///
/// # Errors
/// Names the model's file, or the file and line of the input, that cannot be used.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    check_n(arguments.n, arguments.engine.config().max_waiting)?;
    closed_pipe::init_logging()?;
    let episodes = arguments.environment.as_deref().map(EpisodeSetup::of_named).transpose()?;
    let mut sampling = arguments.sampling.sampling(1.0, &[])?;
    if let Some(episodes) = &episodes {
        sampling = episodes.sampling(&sampling)?;
    }
    let options = FileOptions {
        input: arguments.input.clone(),
        output: arguments.output.clone(),
        draw: DrawOptions { n: arguments.n, seed: arguments.seed, sampling },
    };
    let generator = arguments.engine.generator(&arguments.model)?;
    let mut drawing = Drawing::new(episodes.as_ref(), &arguments.model, generator)?;
    let (bar, wrong) = (Bar::new("responses", 0), arguments.lines.wrong_lines());
    let done = generate(&mut drawing, &options, &wrong, &mut |progress| {
        bar.at(progress.requests, 0, &pace(progress));
    });
    bar.finish();
    let (done, totals) = done?;
    eprintln!(
        "{} requests, {} new tokens, {:.3} s, {:.1} tokens/s",
        done.requests,
        done.new_tokens,
        done.elapsed.as_secs_f64(),
        done.tokens_per_second()
    );
    if let Some(totals) = totals {
        eprintln!("{totals}");
    }
    Ok(wrong.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_responses_than_can_wait_or_have_seeds_are_refused_with_their_bound() {
        for (n, most) in [(1, 16_384), (16_384, 16_384), (65_536, 1 << 20)] {
            check_n(n, most).unwrap();
        }
        let error = check_n(70_000, engine::EngineConfig::default().max_waiting).unwrap_err().to_string();
        assert!(error.contains("--n is 70000, must be 1 to 16384"), "{error}");
        assert!(check_n(65_537, 1 << 20).unwrap_err().to_string().contains("1 to 65536"));
        assert!(check_n(0, 5).is_err());
    }
}
