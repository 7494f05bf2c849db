//! `sluice logprobs`: log-probs of token sequences.

use super::score::FileArguments;

/// Log-probs under a model: lines {"id", "tokens"}, whole sequences, become {"id", "logprobs"}, log
/// p(tokens[t+1] | tokens[..=t]), one fewer than tokens. Lines with {"prompt_tokens", "response_tokens"}, as
/// sluice generate writes them, get those of the response's tokens beside what they hold.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    files: FileArguments,
    /// Divides the logits first.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// The key under which those of a response are written: ref_logprobs for sluice replay, say.
    #[arg(long, value_name = "KEY", default_value = "logprobs")]
    key: String,
}

/// Runs the command.
///
/// # Errors
/// Names the model's file, or the file and line of the input, that cannot be used.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut options = arguments.files.options()?;
    options.temperature = arguments.temperature;
    options.logprobs_key.clone_from(&arguments.key);
    arguments.files.with_progress("logprobs", |progress| reward_server::logprobs_file(&options, progress))
}
