//! `sluice-compute stage`: one stage of a recipe that computes. `sluice run` calls it.

use std::path::PathBuf;

use anyhow::Context as _;
use service::BadInput;

use crate::closed_pipe;
use crate::recipe::{Environment, RecipeFile};
use crate::stage_work;

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

/// Nothing of an unfinished stage is worth waiting for.
fn end_with_stdin() {
    let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    std::process::exit(ABANDONED_CODE);
}
