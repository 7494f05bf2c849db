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

/// Runs the command.
///
/// # Errors
/// Names the model's file, or the file and line of the input, that cannot be used.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.n == 0 {
        return Err(BadInput("--n is 0, must be at least 1".to_owned()).into());
    }
    closed_pipe::init_logging()?;
    let options = FileOptions {
        input: arguments.input.clone(),
        output: arguments.output.clone(),
        draw: DrawOptions {
            n: arguments.n,
            seed: arguments.seed,
            sampling: arguments.sampling.sampling(1.0, &[])?,
        },
    };
    let mut generator = arguments.engine.generator(&arguments.model)?;
    let (bar, wrong) = (Bar::new("responses", 0), arguments.lines.wrong_lines());
    let done = generate(&mut generator, &options, &wrong, &mut |progress| {
        bar.at(progress.requests, 0, &pace(progress));
    });
    bar.finish();
    let done = done?;
    eprintln!(
        "{} requests, {} new tokens, {:.3} s, {:.1} tokens/s",
        done.requests,
        done.new_tokens,
        done.elapsed.as_secs_f64(),
        done.tokens_per_second()
    );
    Ok(wrong.finish()?)
}
