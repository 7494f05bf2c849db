//! `sluice sweep`: one recipe with several values and seeds, run after run, and a table of what came of them.

mod array;
mod comparison;
mod grid;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use service::{BadInput, StopSignals};
use tokio::process::Command;

use self::array::Array;
use self::comparison::Comparison;
use self::grid::{Axis, Cell, NamedPoint, Point};
use crate::closed_pipe;
use crate::recipe::{Environment, RecipeFile};
use crate::say::say;

/// Exit code of a run whose input is bad: the others' is too.
const BAD_INPUT_CODE: i32 = 2;
/// Exit code of a sweep that was stopped.
const STOPPED_CODE: u8 = 130;

/// Runs a recipe with every combination of some values and several seeds, one run after the other, and prints
/// a table of means over the seeds with 95 % intervals.
///
/// Runs that are complete are skipped and begun ones go on: start the same sweep again after an interruption.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The recipe (TOML).
    recipe: PathBuf,
    /// A key and its values; every combination with those of other keys is run. One value alone holds for
    /// all.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE[,VALUE...]")]
    axes: Vec<Axis>,
    /// A row of the table that sets several keys together, by a name of its own; may be given several times.
    /// Nothing behind the colon: as the recipe says. Every one is run with every combination of --set.
    #[arg(long = "point", value_name = "NAME:SECTION.KEY=VALUE,SECTION.KEY=VALUE...")]
    named: Vec<NamedPoint>,
    /// Runs of each combination, with the recipe's seed and those that follow it.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The folder of all runs; RECIPE's output with `-sweep` behind it where not given.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Does one run only, by its number; 0 is the first.
    #[arg(long, value_name = "N", conflicts_with_all = ["slurm", "table"])]
    cell: Option<usize>,
    /// Prints a script for sbatch instead, in which each task of an array does one run.
    #[arg(long, conflicts_with = "table")]
    slurm: bool,
    /// Gives that script to sbatch; it is kept in the folder of all runs.
    #[arg(long, requires = "slurm")]
    submit: bool,
    /// An option of sbatch, such as --sbatch=--partition=gpu; may be given several times.
    #[arg(long, value_name = "OPTION", requires = "slurm", allow_hyphen_values = true)]
    sbatch: Vec<String>,
    /// Prints the table of what is there instead.
    #[arg(long)]
    table: bool,
    /// Prints the table as JSON.
    #[arg(long)]
    json: bool,
}

/// A sweep that was read and checked.
struct Sweep {
    recipe: PathBuf,
    name: String,
    output: PathBuf,
    points: Vec<Point>,
    cells: Vec<Cell>,
    /// What is compared.
    comparison: Comparison,
}

/// Runs the command.
///
/// # Errors
/// A recipe that cannot be used with some of the values, a run that failed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    closed_pipe::init_logging()?;
    let sweep = Sweep::read(&arguments)?;
    if arguments.slurm {
        sweep.as_array(&arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.table {
        sweep.comparison.show(&sweep.points, &sweep.cells, arguments.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = match arguments.cell {
        None => sweep.cells.clone(),
        Some(number) => vec![sweep.cell(number)?.clone()],
    };
    if arguments.cell.is_some() {
        return sweep.run_alone(&chosen[0]).await;
    }
    let ended = sweep.run_all(&chosen).await?;
    sweep.comparison.show(&sweep.points, &sweep.cells, arguments.json)?;
    Ok(ended)
}

impl Sweep {
    /// Reads the recipe as each run will.
    fn read(arguments: &Arguments) -> anyhow::Result<Self> {
        if arguments.seeds == 0 {
            return Err(BadInput("--seeds is 0, must be at least 1".to_owned()).into());
        }
        let written = RecipeFile::read(&arguments.recipe, Environment::Applied, &[])?.recipe;
        let output = match &arguments.output {
            Some(output) => output.clone(),
            None => PathBuf::from(format!("{}-sweep", written.output.display())),
        };
        let points = grid::points(&arguments.named, &arguments.axes)?;
        let seeds: Vec<u64> = (written.seed..).take(usize::try_from(arguments.seeds)?).collect();
        let cells = grid::cells(&points, &seeds, &written.name, &output);
        let mut comparison = Comparison::default();
        for cell in &cells {
            let file = RecipeFile::read(&arguments.recipe, Environment::Applied, &cell.settings);
            let file = file.with_context(|| format!("with {}", points[cell.point].label()))?;
            if !arguments.table {
                file.preflight().with_context(|| format!("with {}", points[cell.point].label()))?;
            }
            comparison = Comparison::of(&file)?;
        }
        let (recipe, name) = (arguments.recipe.clone(), written.name);
        Ok(Self { recipe, name, output, points, cells, comparison })
    }

    fn cell(&self, number: usize) -> Result<&Cell, BadInput> {
        let last = self.cells.len() - 1;
        self.cells.get(number).ok_or_else(|| BadInput(format!("--cell is {number}, must be 0 to {last}")))
    }

    /// One run; its exit code is this command's, for a scheduler to read.
    async fn run_alone(&self, cell: &Cell) -> anyhow::Result<ExitCode> {
        let mut stop = StopSignals::listen()?;
        Ok(match self.run_one(cell, &mut stop).await? {
            Ended::Complete => ExitCode::SUCCESS,
            Ended::Stopped => ExitCode::from(STOPPED_CODE),
            Ended::Failed(code) => ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        })
    }

    /// Runs them one after the other. What fails does not keep the others from running.
    async fn run_all(&self, cells: &[Cell]) -> anyhow::Result<ExitCode> {
        let mut stop = StopSignals::listen()?;
        let mut failed = 0;
        for cell in cells {
            let (label, of) = (self.points[cell.point].label(), self.cells.len());
            say(&format!("run {} of {of}: {label}, seed {}", cell.number + 1, cell.seed));
            match self.run_one(cell, &mut stop).await? {
                Ended::Complete => {}
                Ended::Stopped => {
                    say("stopped; the same command goes on");
                    return Ok(ExitCode::from(STOPPED_CODE));
                }
                Ended::Failed(Some(BAD_INPUT_CODE)) => return Ok(ExitCode::from(2)),
                Ended::Failed(_) => failed += 1,
            }
        }
        if failed > 0 {
            say(&format!("{failed} of {} runs failed; the same command tries them again", cells.len()));
        }
        Ok(ExitCode::from(u8::from(failed > 0)))
    }

    async fn run_one(&self, cell: &Cell, stop: &mut StopSignals) -> anyhow::Result<Ended> {
        let us = std::env::current_exe().context("find our own binary")?;
        let mut command = Command::new(us);
        command.arg("run").arg(&self.recipe).arg("--resume");
        command.args(cell.settings.iter().flat_map(|setting| ["--set", setting.as_str()]));
        // Ctrl-C is for us; we tell the run what to do about it, once for each time.
        let mut child = command.stdin(Stdio::null()).process_group(0).spawn().context("start sluice run")?;
        let mut is_stopped = false;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.context("wait for sluice run")?,
                () = stop.next() => {
                    is_stopped = true;
                    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
                        // A run that has just ended needs no signal.
                        let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
                    }
                }
            }
        };
        Ok(match status.code() {
            _ if is_stopped => Ended::Stopped,
            Some(0) => Ended::Complete,
            code => Ended::Failed(code),
        })
    }

    /// Prints or submits this sweep as a Slurm array.
    fn as_array(&self, arguments: &Arguments) -> anyhow::Result<()> {
        let us = std::env::current_exe().context("find our own binary")?;
        let recipe = std::path::absolute(&self.recipe).context("find the recipe")?;
        let output = std::path::absolute(&self.output).context("find the output")?;
        let mut command = vec![us.display().to_string(), "sweep".to_owned(), recipe.display().to_string()];
        for axis in &arguments.axes {
            command.extend(["--set".to_owned(), axis.to_string()]);
        }
        for point in &arguments.named {
            command.extend(["--point".to_owned(), point.to_string()]);
        }
        command.extend(["--seeds".to_owned(), arguments.seeds.to_string()]);
        command.extend(["--output".to_owned(), output.display().to_string()]);
        // The tasks' logs go there from their first word on.
        std::fs::create_dir_all(&output).with_context(|| format!("create {}", output.display()))?;
        let array = Array {
            name: &format!("{}-sweep", self.name),
            runs: self.cells.len(),
            folder: &std::env::current_dir().context("find the working folder")?,
            logs: &output,
            options: &arguments.sbatch,
            command: &command,
        };
        if arguments.submit {
            return array.submit();
        }
        print!("{}", array.script()?);
        Ok(())
    }
}

/// How a run of a sweep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Complete,
    /// We were told to stop.
    Stopped,
    /// With this code, or by a signal.
    Failed(Option<i32>),
}
