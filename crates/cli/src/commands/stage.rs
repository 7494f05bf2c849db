//! `sluice-compute stage`: one stage of a recipe that computes. `sluice run` calls it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use service::BadInput;

use crate::closed_pipe;
use crate::recipe::{Environment, RecipeFile};
use crate::stage_work;

/// How long a stage may take to keep what it has.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Exit code of a stage whose `sluice run` has died.
const ABANDONED_CODE: i32 = 130;

/// Does one stage of a recipe.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The recipe (TOML).
    recipe: PathBuf,
    /// The stage's name.
    stage: String,
    /// Sets one value over file and environment; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
}

/// Runs the command. It ends when standard input closes, which `sluice run` holds open while it lives.
///
/// # Errors
/// A recipe or stage that cannot be used, work that failed.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    closed_pipe::init_logging()?;
    let file = RecipeFile::read(&arguments.recipe, Environment::Applied, &arguments.settings)?;
    let stage = file.recipe.stages.iter().find(|stage| stage.name == arguments.stage);
    let stage = stage.ok_or_else(|| BadInput(format!("there is no stage {:?}", arguments.stage)))?;
    std::thread::Builder::new().name("stdin".to_owned()).spawn(end_with_stdin).context("start a thread")?;
    stage_work::run(&file.recipe, stage).with_context(|| format!("stage {}", stage.name))
}

/// Ends the stage when `sluice run` has died: as a stop does, which keeps what training has, and at once
/// where that takes too long.
fn end_with_stdin() {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    // Without a handler this ends the process.
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM);
    std::thread::sleep(STOP_TIMEOUT);
    std::process::exit(ABANDONED_CODE);
}
