//! `sluice check-config`: a recipe, validated and explained.

use std::path::PathBuf;

use service::config::{Key, Schema, find_keys};

use crate::recipe::json_schema::json_schema;
use crate::recipe::{Environment, Recipe, RecipeFile};

/// Checks a recipe and prints it as it would be used: every key, where its value came from, what it means.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The recipe (TOML).
    #[arg(required_unless_present_any = ["explain", "schema"])]
    recipe: Option<PathBuf>,
    /// Sets one value over file and environment; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
    /// Says everything about one key instead, such as `coordinator.plan.group_size`.
    #[arg(long, value_name = "KEY")]
    explain: Option<String>,
    /// Prints the JSON schema of recipes instead, for editors that check and complete TOML.
    #[arg(long, conflicts_with = "explain")]
    schema: bool,
}

/// Runs the command.
///
/// # Errors
/// Names the line and what is wrong there, or the keys that are like an unknown one.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.schema {
        println!("{:#}", json_schema());
        return Ok(());
    }
    let file = match &arguments.recipe {
        Some(recipe) => Some(RecipeFile::read(recipe, Environment::Applied, &arguments.settings)?),
        None => None,
    };
    match (&arguments.explain, &file) {
        (None, Some(file)) => {
            print!("{}", file.resolved()?.text());
            for remark in file.remarks()? {
                println!("# {remark}");
            }
            file.preflight()?;
        }
        (Some(key), Some(file)) => print!("{}", file.resolved()?.explain(key)?),
        (Some(key), None) => print!("{}", explanation(key)?),
        (None, None) => {}
    }
    Ok(())
}

/// What there is to say about a key that can be in a recipe.
fn explanation(path: &str) -> anyhow::Result<String> {
    let sections = Schema::of::<Recipe>().sections();
    let described: Vec<String> = find_keys(&sections, path)?.into_iter().map(Key::description).collect();
    Ok(described.join("\n"))
}
