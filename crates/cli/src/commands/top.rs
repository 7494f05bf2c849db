//! `sluice top`: a live view of a run in the terminal, with its curves; lines where there is no terminal.

mod curves;
mod keys;
mod screen;
mod view;

use std::io::{IsTerminal as _, Write as _, stdout};
use std::time::Duration;

use coordinator::Status;
use service::{BadInput, StopSignals};
use tokio::time::Instant;

use self::curves::Curves;
use self::keys::Keys;
use self::screen::Screen;
use crate::commands::identity::Identity;
use crate::heartbeat::Heartbeat;
use crate::observer_client::Observer;
use crate::run::progress::line_of;

/// A live view of a run in the terminal; q or Ctrl-C leaves.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// host:port of the coordinator.
    #[arg(long)]
    coordinator: String,
    #[command(flatten)]
    identity: Identity,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0)]
    every: f64,
    /// Looks once and prints JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the coordinator does not answer at the first look, or nobody takes the output.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut observer = Observer::new(arguments.coordinator.clone(), arguments.identity.security("observer")?);
    let first = observer.look(0).await;
    if let Some(refusal) = observer.refusal() {
        return Err(BadInput(format!("the coordinator at {}: {refusal}", arguments.coordinator)).into());
    }
    let Some((status, steps)) = first else {
        anyhow::bail!("no coordinator answers at {}", arguments.coordinator);
    };
    if arguments.json {
        println!("{}", serde_json::to_string(&status)?);
        return Ok(());
    }
    let mut curves = Curves::default();
    curves.take(&steps);
    let every = Duration::from_secs_f64(arguments.every.clamp(0.1, 3600.0));
    let mut stop = StopSignals::listen()?;
    let mut keys = Keys::listen()?;
    let mut shown = Shown::new()?;
    let (mut status, mut answers) = (status, true);
    loop {
        shown.show(&status, &curves, answers)?;
        let next = async {
            tokio::time::sleep(every).await;
            observer.look(curves.last_batch()).await
        };
        let looked = tokio::select! {
            looked = next => looked,
            () = stop.next() => return Ok(()),
            () = keys.quit() => return Ok(()),
        };
        answers = looked.is_some();
        if let Some((now, steps)) = looked {
            curves.take(&steps);
            // Batches that are done again, or a coordinator that knows no steps.
            let drawn = curves.last_batch();
            curves.take(now.last_step.iter().filter(|last| last.batch.0 != drawn));
            status = now;
        }
    }
}

/// Where it is shown.
#[derive(Debug)]
enum Shown {
    Screen(Box<Screen>),
    /// There is no terminal: a line for each batch, and one every [`Heartbeat::INTERVAL`].
    Lines {
        /// The last batch that was said, and whether the coordinator answered.
        said: Option<(u64, bool)>,
        said_at: Instant,
    },
}

impl Shown {
    fn new() -> anyhow::Result<Self> {
        if stdout().is_terminal() {
            Ok(Self::Screen(Box::new(Screen::open()?)))
        } else {
            Ok(Self::Lines { said: None, said_at: Instant::now() })
        }
    }

    fn show(&mut self, status: &Status, curves: &Curves, answers: bool) -> anyhow::Result<()> {
        match self {
            Self::Screen(screen) => screen.draw(|frame| view::render(frame, status, curves, answers)),
            Self::Lines { said, said_at } => {
                let now = (status.trained, answers);
                if *said != Some(now) || said_at.elapsed() >= Heartbeat::INTERVAL {
                    let away = if answers { String::new() } else { format!(" {}", view::AWAY) };
                    writeln!(stdout(), "{}{away}", line_of(status))?;
                    (*said, *said_at) = (Some(now), Instant::now());
                }
                Ok(())
            }
        }
    }
}
