//! Interpreters for episodes: code that comes step by step and shares one namespace, confined as a response
//! is.
//!
//! A [`Session`] has one zygote for itself, whose guest lives from one step to the next. It stands still
//! between two steps: nothing that a step has begun, no thread and no process, uses the machine while nobody
//! waits for it. A step that exceeds a limit, or ends the interpreter, ends the interpreter and not the
//! session: the next step begins with a new one and without what the earlier ones have defined. What an
//! episode may use in all is bounded, too.
//!
//! ```
//! use sandbox::{GraderConfig, Interpreters, SessionLimits, StepEnd};
//! # let helper = std::path::Path::new(env!("OUT_DIR")).ancestors().nth(3).map(|f| f.join("sluice-sandbox-init"));
//! # let config = GraderConfig { init: helper, workers: 1, ..GraderConfig::default() };
//! let interpreters = Interpreters::start(config)?;
//! let mut session = interpreters.open(SessionLimits::default())?;
//! session.step("x = 20")?;
//! let step = session.step("print('x is', x)\nx + 22")?;
//! assert_eq!((step.output.as_str(), step.end), ("x is 20\n42\n", StepEnd::Finished));
//! # Ok::<(), sandbox::Error>(())
//! ```

mod cut;
mod guest;
mod running;
mod step;

use std::sync::Arc;
use std::time::Duration;

use crate::config::GraderConfig;
use crate::error::Error;
use crate::limits::Limits;
use crate::pool::{Lease, ZygoteKind};
use crate::tier::Tier;
use crate::zygotes::Zygotes;
use guest::{Guest, drain};
use running::{Over, Running};

pub use step::{Interruption, SessionLimits, SessionUsage, Step, StepEnd};

/// What a reply says behind the key.
const FINISHED: u8 = b'F';

/// Sandboxed interpreters for episodes, each with a process of its own. All methods may be called from any
/// number of threads. Dropped with its last [`Session`] it ends and reaps every process it has started.
#[derive(Debug, Clone)]
pub struct Interpreters {
    zygotes: Arc<Zygotes>,
    config: Arc<GraderConfig>,
}

impl Interpreters {
    /// Proves that the tier works and starts interpreters for [`GraderConfig::workers`] sessions at a time.
    ///
    /// # Errors
    /// As [`Grader::start`](crate::Grader::start).
    pub fn start(config: GraderConfig) -> Result<Self, Error> {
        let zygotes = Arc::new(Zygotes::start(&config, &[ZygoteKind::Candidate])?);
        Ok(Self { zygotes, config: Arc::new(config) })
    }

    /// The tier in use.
    pub fn tier(&self) -> Tier {
        self.zygotes.tier()
    }

    /// A session. Waits for a free interpreter no longer than [`GraderConfig::queue_timeout`].
    ///
    /// # Errors
    /// [`Error::Overloaded`] and [`Error::Unavailable`].
    pub fn open(&self, limits: SessionLimits) -> Result<Session, Error> {
        let lease = self.zygotes.pool().lease(&[ZygoteKind::Candidate], self.config.queue_timeout)?;
        Ok(Session {
            lease: Some(lease),
            guest: None,
            nested: self.tier() == Tier::A,
            limits,
            used: SessionUsage::default(),
            restarts: 0,
            _zygotes: Arc::clone(&self.zygotes),
        })
    }
}

/// An interpreter for one episode. Dropping it ends the interpreter and leaves nothing of it; that takes some
/// milliseconds, and up to ten seconds of a guest that resists or a machine that has no time.
#[derive(Debug)]
pub struct Session {
    /// `None` once the zygote is lost.
    lease: Option<Lease>,
    /// `None` before the first step and after one that ended the interpreter.
    guest: Option<Guest>,
    nested: bool,
    limits: SessionLimits,
    used: SessionUsage,
    restarts: u32,
    /// Outlives the lease.
    _zygotes: Arc<Zygotes>,
}

impl Session {
    /// Runs code where the steps before have left off.
    ///
    /// # Errors
    /// [`Error::Starved`] where the machine gave the step too little processor time and
    /// [`Error::SessionLost`] where the sandbox failed: neither says anything about the code, and there is no
    /// further step then. [`Error::SessionOver`] behind the last step of an episode.
    pub fn step(&mut self, code: &str) -> Result<Step, Error> {
        if self.lease.is_none() {
            return Err(Error::SessionLost { reason: "an earlier step was lost".to_owned() });
        }
        if self.is_over() {
            return Err(Error::SessionOver);
        }
        self.used.steps += 1;
        if code.len() as u64 > self.limits.step.value_bytes {
            let most = self.limits.step.value_bytes;
            let output = format!("[the code has {} bytes, at most {most} are run]\n", code.len());
            let (cpu, wall) = (Duration::ZERO, Duration::ZERO);
            return Ok(Step { output, left_out: 0, end: StepEnd::Raised, cpu, wall });
        }
        let limits = self.limits.clone();
        let mut running = Running::new(&limits, &self.used, code, self.restarts);
        let over = self.run(&mut running);
        let (cpu, wall) = (running.cpu, running.wall());
        self.used.cpu += cpu;
        self.used.wall += wall;
        self.used.output_bytes += running.output.came();
        let end = match over {
            Over::Replied(FINISHED) => StepEnd::Finished,
            Over::Replied(_) => StepEnd::Raised,
            Over::Interrupted(_) if self.is_over() => StepEnd::Ended(Interruption::Episode),
            Over::Interrupted(why) => StepEnd::Ended(why),
            Over::Starved => {
                self.lose();
                return Err(Error::Starved { cpu, wall: running.started.elapsed() });
            }
            Over::Lost(reason) => {
                self.lose();
                return Err(Error::SessionLost { reason });
            }
        };
        let (mut output, left_out) = running.output.text();
        if let StepEnd::Ended(why) = end {
            if !output.is_empty() && !output.ends_with('\n') {
                output.push('\n');
            }
            output.push_str(&format!(
                "[{why}: the interpreter was ended, and what was defined in it is gone]\n"
            ));
        }
        Ok(Step { output, left_out, end, cpu, wall })
    }

    /// What it has used so far.
    pub fn usage(&self) -> SessionUsage {
        self.used
    }

    /// Whether the episode has no step left.
    pub fn is_over(&self) -> bool {
        let SessionLimits { steps, cpu, wall, .. } = &self.limits;
        self.used.steps >= *steps || self.used.cpu >= *cpu || self.used.wall >= *wall
    }

    fn run(&mut self, running: &mut Running<'_>) -> Over {
        let Some(zygote) = self.lease.as_mut().and_then(|lease| lease.zygotes().next()) else {
            return Over::Lost("a lease without its zygote".to_owned());
        };
        let mut guest = match self.guest.take() {
            Some(mut guest) => {
                guest.thaw();
                guest
            }
            None => {
                // The kernel's own limit is for all steps of the interpreter together.
                let limits = Limits { cpu: self.limits.cpu, ..self.limits.step.clone() };
                match Guest::start(zygote, &limits, self.nested) {
                    Ok(guest) => guest,
                    Err(error) => return Over::Lost(error.to_string()),
                }
            }
        };
        // What an earlier step has written behind its own reply is none of this one's.
        drain(&mut guest.replies, |_| {});
        let mut over = running.run(&mut guest, zygote);
        drain(&mut guest.output, |bytes| running.output.push(bytes));
        if let Over::Replied(_) = over {
            if guest.freeze() {
                running.charge(&guest);
                self.guest = Some(guest);
                return over;
            }
            over = Over::Interrupted(Interruption::Restless);
        }
        running.charge(&guest);
        self.restarts += 1;
        let is_healthy = guest.end(zygote);
        match over {
            Over::Interrupted(_) if !is_healthy => {
                Over::Lost("the interpreter could not be ended".to_owned())
            }
            over => over,
        }
    }

    /// Gives the zygote up.
    fn lose(&mut self) {
        if let (Some(guest), Some(lease)) = (self.guest.take(), &mut self.lease)
            && let Some(zygote) = lease.zygotes().next()
        {
            guest.end(zygote);
        }
        self.lease = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(mut lease) = self.lease.take() else { return };
        let is_healthy = match (self.guest.take(), lease.zygotes().next()) {
            (Some(guest), Some(zygote)) => guest.end(zygote),
            _ => true,
        };
        if is_healthy {
            lease.healthy();
        }
    }
}
