//! `sluice init`: a commented recipe to begin with.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use service::BadInput;

/// Writes a commented recipe of a shape, to be filled with models and data.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What is to be trained, and by what.
    shape: Shape,
    /// Where it is written; a file that is there is left alone. `-` is stdout.
    #[arg(long, default_value = "recipe.toml")]
    output: PathBuf,
}

/// What a recipe does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    /// PF-PPO with a learned reward model.
    PfPpo,
    /// GRPO with a reward in Python.
    Grpo,
    /// DAPO on code with hidden tests.
    Code,
    /// Direct preference optimisation from pairs.
    Dpo,
}

impl Shape {
    fn recipe(self) -> &'static str {
        match self {
            Self::PfPpo => include_str!("init/pf-ppo.toml"),
            Self::Grpo => include_str!("init/grpo.toml"),
            Self::Code => include_str!("init/code.toml"),
            Self::Dpo => include_str!("init/dpo.toml"),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the file is there already or cannot be written.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { shape, output } = arguments;
    let named = shape.recipe().replace("THIS_FILE", &output.display().to_string());
    if output.as_os_str() == "-" {
        print!("{}", shape.recipe().replace("THIS_FILE", "recipe.toml"));
        return Ok(());
    }
    let opened = OpenOptions::new().write(true).create_new(true).open(output);
    let mut file = match opened {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let problem = format!("{} is there already: name another with --output", output.display());
            return Err(BadInput(problem).into());
        }
        opened => opened.with_context(|| format!("write {}", output.display()))?,
    };
    file.write_all(named.as_bytes()).with_context(|| format!("write {}", output.display()))?;
    eprintln!("{} is written; sluice check-config {0} says what is missing", output.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;
    use crate::recipe::{Environment, RecipeFile};

    #[test]
    fn every_shape_lacks_models_and_data_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        for shape in Shape::value_variants() {
            let file = folder.path().join(format!("{shape:?}.toml"));
            run(&Arguments { shape: *shape, output: file.clone() }).unwrap();
            assert!(run(&Arguments { shape: *shape, output: file.clone() }).is_err(), "it is left alone");
            let recipe = RecipeFile::read(&file, Environment::LeftOut, &[]).unwrap();
            let said = recipe.preflight().unwrap_err().to_string();
            let problems: Vec<&str> = said.lines().filter(|line| line.starts_with("  - ")).collect();
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(problem.contains("there is no such"), "{shape:?}: {problem}");
            }
        }
    }
}
