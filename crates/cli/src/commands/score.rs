//! `sluice score`: scores of token sequences by a reward model.

use std::path::PathBuf;

use anyhow::Context as _;
use reward_server::files::Error;
use reward_server::{FileOptions, Progress};
use service::BadInput;
use types::DType;

use super::engine_arguments::parse_dtype;
use super::lines::LineArguments;
use crate::bad_input;
use crate::bar::Bar;

/// Scores by a reward model: lines {"id", "tokens"}, whole sequences, become {"id", "score"}; lines with
/// {"prompt_tokens", "response_tokens"}, as sluice generate writes them, get a score beside what they hold.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    files: FileArguments,
    /// Leaves out the mean and standard deviation that the model's folder stores.
    #[arg(long)]
    raw: bool,
}

/// What commands that run a frozen model over a file have in common.
#[derive(Debug, clap::Args)]
pub(crate) struct FileArguments {
    /// The model's folder.
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// JSON Lines, plain or gzipped; - is standard input.
    #[arg(long)]
    pub(crate) input: PathBuf,
    /// Where the results go, in the input's order; - is standard output.
    #[arg(long)]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    lines: LineArguments,
    /// Element type in memory: f32, bf16 or f16; that of the files where not given.
    #[arg(long, value_parser = parse_dtype)]
    pub(crate) dtype: Option<DType>,
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Threads of one operation; all cores where not given.
    #[arg(long)]
    threads: Option<i32>,
}

impl FileArguments {
    /// As the reward server's crate takes them.
    ///
    /// # Errors
    /// When the device is none.
    pub(crate) fn options(&self) -> anyhow::Result<FileOptions> {
        let mut options = FileOptions::new(self.model.clone(), self.input.clone(), self.output.clone());
        options.device =
            self.device.parse().map_err(|error: model::UnknownDevice| BadInput(error.to_string()))?;
        options.dtype = self.dtype;
        options.keep_going = self.lines.keep_going;
        Ok(options)
    }

    /// Runs `compute` with a bar and says how fast it was.
    ///
    /// # Errors
    /// Those of `compute`.
    pub(crate) fn with_progress(
        &self,
        what: &str,
        compute: impl FnOnce(&mut dyn FnMut(Progress)) -> Result<Progress, Error>,
    ) -> anyhow::Result<()> {
        model::keep_freed_memory();
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads.max(1));
        }
        let (bar, started) = (Bar::new(what, 0), tokio::time::Instant::now());
        let done = compute(&mut |progress| {
            bar.at(progress.bytes, progress.total_bytes, &format!("bytes, {} sequences", progress.sequences));
        });
        bar.finish();
        let done = done.map_err(bad_input::of_reward_server);
        let done = done.with_context(|| format!("{what} of {}", self.input.display()))?;
        let seconds = started.elapsed().as_secs_f64();
        let rate = done.tokens as f64 / seconds.max(1e-9);
        eprintln!("{} sequences, {} tokens, {seconds:.2} s, {rate:.0} tokens/s", done.sequences, done.tokens);
        Ok(())
    }
}

/// Runs the command.
///
/// # Errors
/// Names the model's file, or the file and line of the input, that cannot be used.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut options = arguments.files.options()?;
    options.normalise = !arguments.raw;
    arguments.files.with_progress("scores", |progress| reward_server::score_file(&options, progress))
}
