//! `sluice track`: hands the curves of runs to trackers, also of runs that are over or ran on a cluster.

use std::path::PathBuf;

use dashboard::ring_folders;
use service::BadInput;

use crate::results::check_run;
use crate::say::say;
use crate::tracking::{Tracked, Tracker, TrackingConfig, track};

/// Hands the curves of runs to TensorBoard, W&B, MLflow or trackio: what they do not have yet. While a run
/// goes on its recipe's [tracking] does the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Output folders of runs, such as runs/tiny-coder.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The trackers.
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    to: Vec<Tracker>,
    /// The project (W&B, trackio) or experiment (MLflow).
    #[arg(long, default_value_t = TrackingConfig::default().project)]
    project: String,
    /// Where event files and what trackers keep on disk go; `tracking` in each run's folder where not given.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Nothing goes over the network.
    #[arg(long)]
    offline: bool,
    /// The Python with the trackers' packages.
    #[arg(long, default_value = "python3")]
    interpreter: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// A folder that is no run's; when a tracker lacks its package or does not take the steps.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { runs, to, project, folder, offline, interpreter } = arguments;
    let config = TrackingConfig { to, project, folder, offline, interpreter, ..TrackingConfig::default() };
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(BadInput(problems.join("; ")).into());
    }
    for run in &runs {
        check_run(run)?;
        for ring in ring_folders(run) {
            let own = ring.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // `.` has a name as well.
            let run = std::path::absolute(run).unwrap_or_else(|_| run.clone());
            let of_run = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = own.strip_prefix("ring-").map_or(of_run.clone(), |ring| format!("{of_run}-{ring}"));
            track(&config, &Tracked { ring, run: name.clone() })?;
            say(&format!("{name} is tracked"));
        }
    }
    Ok(())
}
