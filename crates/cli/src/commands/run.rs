//! `sluice run`: a recipe from the first stage that is not done to the last.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::closed_pipe;
use crate::heartbeat::Heartbeat;
use crate::recipe::{Environment, RecipeFile};
use crate::run::stages::{self, Done, Selection};
use crate::say::{say, span};

/// Exit code of a run whose stage was left unfinished at once.
const ABANDONED_CODE: u8 = 130;

/// Runs a recipe on this machine.
///
/// Finished stages are skipped. Ctrl-C drains the ring and writes a checkpoint; a second Ctrl-C leaves at
/// once.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The recipe (TOML).
    recipe: PathBuf,
    /// Goes on with a ring that was interrupted.
    #[arg(long)]
    resume: bool,
    /// Does this stage and all later ones again; what they made is kept under another name.
    #[arg(long, value_name = "STAGE", conflicts_with = "resume")]
    redo_from: Option<String>,
    /// Does this stage and those before it, and leaves the others to another run.
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    /// Sets one value over file and environment; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// A recipe that cannot be used, a stage that failed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    closed_pipe::init_logging()?;
    let file = RecipeFile::read(&arguments.recipe, Environment::Applied, &arguments.settings)?;
    {
        // What a reward function imports may take a while.
        let _heartbeat = Heartbeat::of_work();
        file.preflight()?;
    }
    let started = tokio::time::Instant::now();
    let selection =
        Selection { resume: arguments.resume, redo_from: arguments.redo_from, until: arguments.until };
    match stages::run(&file, &selection).await? {
        Done::Complete => {
            let (name, output) = (&file.recipe.name, file.recipe.output.display());
            say(&format!("{name} is complete after {}: {output}", span(started.elapsed())));
            Ok(ExitCode::SUCCESS)
        }
        Done::Reached | Done::Stopped => Ok(ExitCode::SUCCESS),
        Done::Abandoned => Ok(ExitCode::from(ABANDONED_CODE)),
        Done::Failed(code) => Ok(ExitCode::from(code)),
    }
}
