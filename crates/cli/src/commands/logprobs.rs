//! `sluice logprobs`: log-probs of token sequences.

use super::score::FileArguments;

/// Log-probs of token sequences under a model.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Lines {"id", "tokens"} become {"id", "logprobs"}: log p(tokens[t+1] | tokens[..=t]), one fewer than
    /// tokens.
    #[command(flatten)]
    files: FileArguments,
    /// Divides the logits first.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
}

/// Runs the command.
///
/// # Errors
/// Names the model's file, or the file and line of the input, that cannot be used.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut options = arguments.files.options()?;
    options.temperature = arguments.temperature;
    arguments.files.with_progress("logprobs", |progress| reward_server::logprobs_file(&options, progress))
}
