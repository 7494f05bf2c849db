//! `sluice token`: the secret of a run, and the tokens that follow from it.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use service::BadInput;
use service::security::{ROLES, Secret, role_file};

use super::private_file::write_new;
use crate::say::say;

/// Processes of a ring that have files of their own beside [`ROLES`].
const COORDINATOR: &str = "coordinator";

/// The secret of a run, and the tokens that follow from it.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Writes a file with a new secret. Every process that is given this file may be any role.
    New {
        /// The file; one that is there is left alone.
        file: PathBuf,
    },
    /// Writes a file for each role with what that role needs and no more, for processes that shall not be any
    /// other.
    Roles {
        /// The file with the secret.
        file: PathBuf,
        /// The folder for the files, each named for its role; made where it is missing.
        folder: PathBuf,
    },
    /// Prints the token of a role, for programs that are given one: `Authorization: Bearer TOKEN`.
    Show {
        /// The file with the secret.
        file: PathBuf,
        /// The role.
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(ROLES))]
        role: String,
    },
}

/// Runs the command.
///
/// # Errors
/// When a file is there already, cannot be written, or holds no secret.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.action {
        Action::New { file } => {
            let secret = Secret::random().context("get random numbers")?;
            write_new(file, &secret.file())?;
            say(&format!("wrote {}: name it as token_file in [security] of the recipe", file.display()));
        }
        Action::Roles { file, folder } => {
            let secret = read(file)?;
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| format!("create {}", folder.display()))?;
            for role in ROLES.into_iter().chain([COORDINATOR]) {
                write_over(&folder.join(role), &role_file(&secret, role))?;
            }
        }
        Action::Show { file, role } => println!("{}", read(file)?.token_of(role)),
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<Secret> {
    Ok(Secret::read(file).map_err(|problem| BadInput(problem.to_string()))?)
}

/// Writes it over what was there, in one step: a process may read it at any time.
fn write_over(path: &Path, text: &str) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    let _ = fs::remove_file(&partial);
    write_new(&partial, text)?;
    fs::rename(&partial, path).with_context(|| format!("write {}", path.display()))
}
