//! `sluice report`: a run as one file to keep or to send.

use std::path::{Path, PathBuf};

use dashboard::{ReportTable, Run, report, ring_folders};
use service::BadInput;

use crate::run::summary;

/// Writes a run as one HTML file that needs nothing else: results, curves, what happened, samples,
/// configuration.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The output folder of a run, or the folder of one of its rings.
    run: PathBuf,
    /// The file; report.html in the run's folder where not given, - is standard output.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// A folder that is no run's; a file that cannot be written.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let rings = ring_folders(&arguments.run);
    if let [one, other, ..] = &rings[..] {
        let problem = format!(
            "{} has several rings: name one, {} or {}",
            arguments.run.display(),
            one.display(),
            other.display()
        );
        return Err(BadInput(problem).into());
    }
    let run = Run::of_folder(&arguments.run).map_err(|error| BadInput(error.to_string()))?;
    let steps = run.folder().unwrap_or(&arguments.run).join("steps.jsonl");
    let tables: Vec<ReportTable> = results(&steps).into_iter().collect();
    let html = report(&run, &coordinator::step_fields(), &tables);
    let output = arguments.output.clone().unwrap_or_else(|| arguments.run.join("report.html"));
    if output == Path::new("-") {
        use std::io::Write as _;
        std::io::stdout().write_all(html.as_bytes())?;
        return Ok(());
    }
    let written = std::fs::write(&output, html);
    written.map_err(|error| BadInput(format!("cannot write {}: {error}", output.display())))?;
    println!("{}", output.display());
    Ok(())
}

/// What it came to: the first tenth of its batches beside the last.
fn results(steps: &Path) -> Option<ReportTable> {
    let summary::Rows { header, rows } = summary::rows_of(steps)?;
    Some(ReportTable { title: "Results".to_owned(), header, rows })
}
