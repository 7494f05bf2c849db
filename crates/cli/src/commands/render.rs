//! `sluice render`: the ring of a recipe as files for a cluster.

use crate::render::{kubernetes, slurm};

/// Writes the files with which a cluster's scheduler runs a recipe's ring.
///
/// The recipe is checked as by check-config. The stages before the ring are not rendered: run them with
/// `sluice run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    target: Target,
}

/// The schedulers.
#[derive(Debug, clap::Subcommand)]
enum Target {
    /// Manifests for Kubernetes.
    K8s(kubernetes::Options),
    /// Batch scripts for Slurm.
    Slurm(slurm::Options),
}

/// Runs the command.
///
/// # Errors
/// Names the place in the recipe, or the option, and what is wrong there.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.target {
        Target::K8s(options) => kubernetes::run(options),
        Target::Slurm(options) => slurm::run(options),
    }
}
