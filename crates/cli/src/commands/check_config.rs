//! `sluice check-config`: a recipe, validated.

use std::path::PathBuf;

use crate::recipe::{Environment, RecipeFile};

/// Checks a recipe and prints it as it would be used, every default filled in.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The recipe (TOML).
    recipe: PathBuf,
    /// Sets one value over file and environment; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// Names the line and what is wrong there.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let file = RecipeFile::read(&arguments.recipe, Environment::Applied, &arguments.settings)?;
    print!("{}", service::config::render(&file.recipe));
    Ok(())
}
