//! Untrusted code: isolation, limits and two-process grading.
//!
//! Grade one response against a problem:
//!
//! ```
//! use sandbox::{CallCase, FunctionCalls, Grader, GraderConfig, Limits, Problem, Verdict};
//! # // Programs find the helper beside themselves; this one lies elsewhere.
//! # let helper = std::path::Path::new(env!("OUT_DIR")).ancestors().nth(3).map(|f| f.join("sluice-sandbox-init"));
//!
//! let problem = Problem::FunctionCalls(FunctionCalls {
//!     task_id: "double".into(),
//!     entry_point: "double".into(),
//!     cases: vec![CallCase { args: vec![21.into()], kwargs: Default::default(), expected: 42.into() }],
//!     ..Default::default()
//! });
//! let config = GraderConfig { workers: 1, ..GraderConfig::default() };
//! # let config = GraderConfig { init: helper, ..config };
//! let grader = Grader::start(config)?;
//! let grade = grader.grade(&problem, "def double(n):\n    return 2 * n\n", &Limits::default())?;
//! assert_eq!((grade.verdict, grade.passed, grade.total), (Verdict::Accepted, 1, 1));
//! # Ok::<(), sandbox::Error>(())
//! ```
//!
//! How it works:
//!
//! ```text
//! caller --grade--> Grader --> pool of zygotes                        (this process)
//!                                | control socket
//!                    sluice-sandbox-init --> python zygote            (one per slot, never runs guest code)
//!                                              | fork per run
//!            tester  <------ two pipes ------> candidate              (confined; the server holds no pipe between them)
//!               '--- verdict with a nonce --> Grader
//! ```
//!
//! A response is executed in the *candidate*; tests and expected values exist only in the *tester*, another
//! confined process. What crosses between them are exact builtin values, bounded in size and depth. The
//! verdict is the tester's message, bound to a nonce that the candidate never had; exit codes and printed
//! text decide nothing (in stdin/stdout problems the output is compared here, outside every guest).
//!
//! Invariants:
//! 1. No guest code runs unless every step of the set-up succeeded; a step that fails is an `internal_error`.
//! 2. `internal_error`, `unsupported` and `overloaded` say nothing about the response and must never become a
//!    score.
//! 3. Below the configured minimum tier there is no [`Grader`].
//! 4. A dropped [`Grader`] leaves no process, descriptor, mount or file.
//!
//! Two tiers, chosen by [`probe`]:
//! * **A**: user, PID, mount, network, IPC, UTS and cgroup namespaces, `pivot_root` onto read-only binds, a
//!   scratch tmpfs per run, then Landlock, seccomp and resource limits;
//! * **B**: where user namespaces are forbidden (a default Kubernetes pod): Landlock, seccomp and resource
//!   limits alone; one process, no children, nothing to write.
//!
//! In both, guests of one zygote share the layout of its address space and its hash seed; `cold` starts an
//! interpreter from nothing for every candidate.

mod clock;
mod competition;
mod compiled_tests;
mod config;
mod error;
mod grader;
mod host_memory;
mod interpreter;
mod judge;
mod limits;
mod memfd;
mod pass_at_k;
mod pool;
mod problem;
mod read;
mod session;
mod spawner;
mod stall;
mod stats;
mod syscalls;
mod tier;
mod tier_probe;
mod trial;
mod verdict;
mod watch;
mod zygote;
mod zygotes;

// What the library and its helper, `sluice-sandbox-init`, say to each other; for nobody else.
#[doc(hidden)]
pub mod wire;
#[doc(hidden)]
pub mod zygote_spec;

pub use competition::competition_problem;
pub use config::GraderConfig;
pub use error::Error;
pub use grader::Grader;
pub use limits::Limits;
pub use pass_at_k::pass_at_k;
pub use problem::{CallCase, Compare, FunctionCalls, HumanEval, Mbpp, Problem, Stdio, StdioCase};
pub use read::{NoProblem, ReadError, Record, read_problem, read_problems};
pub use session::{Interpreters, Interruption, Session, SessionLimits, SessionUsage, Step, StepEnd};
pub use stats::Stats;
pub use tier::{StepFailure, Tier, TierReport};
pub use tier_probe::probe;
pub use verdict::{Grade, Verdict};
