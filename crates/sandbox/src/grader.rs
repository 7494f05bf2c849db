//! The service: grades responses, from as many threads as care to call.

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha20Rng;

use crate::compiled_tests::CompiledTestsCache;
use crate::config::GraderConfig;
use crate::error::Error;
use crate::judge::{self, GradedRun, RunContext};
use crate::limits::Limits;
use crate::pool::{Lease, ZygoteKind};
use crate::problem::{Problem, Stdio};
use crate::stats::{Counters, Stats};
use crate::tier::Tier;
use crate::verdict::{Grade, Verdict};
use crate::zygotes::Zygotes;

/// Grades responses in sandboxes. All methods may be called from any number of threads; dropping it ends and
/// reaps every process it has started.
///
/// A whole file is graded by [`read_problems`](crate::read_problems), one [`Grader`], and as many threads as
/// it has workers; [`pass_at_k`](crate::pass_at_k) sums up. Samples whose verdict [judges
/// nothing](Verdict::judges_response) are counted apart:
///
/// ```no_run
/// use sandbox::{Grader, GraderConfig, Limits, read_problems};
///
/// let limits = Limits::with_timeout(std::time::Duration::from_secs(3));
/// let grader = Grader::start(GraderConfig::default())?;
/// for record in read_problems("HumanEval.jsonl.gz".as_ref())? {
///     let record = record?;
///     let grade = grader.grade(&record.problem, "    return 1\n", &limits)?;
///     println!("{}: {} {}", record.problem.task_id(), grade.verdict, grade.detail);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Grader {
    config: GraderConfig,
    zygotes: Zygotes,
    counters: Counters,
    nonces: Mutex<ChaCha20Rng>,
    compiled_tests: CompiledTestsCache,
}

impl Grader {
    /// Finds the helper and the interpreter, proves that the tier works by running a program in it, and
    /// starts the pool.
    ///
    /// # Errors
    /// Where any of that is impossible; in particular [`Error::BelowMinimumTier`].
    pub fn start(config: GraderConfig) -> Result<Self, Error> {
        let nonces = Mutex::new(seeded_from_the_system()?);
        let zygotes = Zygotes::start(&config, &ZygoteKind::BOTH)?;
        Ok(Self {
            config,
            zygotes,
            counters: Counters::default(),
            nonces,
            compiled_tests: CompiledTestsCache::default(),
        })
    }

    /// The tier in use.
    pub fn tier(&self) -> Tier {
        self.zygotes.tier()
    }

    /// Grades a response: for HumanEval what follows the prompt, otherwise a whole program. Waits for a
    /// worker no longer than [`GraderConfig::queue_timeout`].
    ///
    /// # Errors
    /// Only where no grading took place: [`Error::Overloaded`], [`Error::Unavailable`], [`Error::Closed`].
    /// Everything that happens in a sandbox is a verdict.
    pub fn grade(&self, problem: &Problem, response: &str, limits: &Limits) -> Result<Grade, Error> {
        if let Some(refusal) = problem.refusal() {
            let detail = format!("problem {} {refusal}", problem.task_id());
            return Ok(self.counted(GradedRun::nothing(Verdict::Unsupported, detail)));
        }
        let judged = match problem {
            Problem::Stdio(stdio) => self.grade_program(stdio, response, limits)?,
            Problem::HumanEval(_) | Problem::Mbpp(_) | Problem::FunctionCalls(_) => {
                let nonce = self.nonce();
                let key = CompiledTestsCache::key(problem);
                let compiled_tests = self.compiled_tests.get(&key);
                let seed = self.seed(problem, response);
                let context = RunContext { compiled_tests, ..self.context(limits, seed) };
                let mut judged = self.attempt(&ZygoteKind::BOTH, |lease| {
                    let mut zygotes = lease.zygotes();
                    match (zygotes.next(), zygotes.next()) {
                        (Some(candidate), Some(tester)) => {
                            judge::function(&context, problem, response, &nonce, [candidate, tester])
                        }
                        _ => Err(std::io::Error::other("a lease without its zygotes")),
                    }
                })?;
                if let Some(compiled_tests) = judged.compiled_tests.take() {
                    self.compiled_tests.insert(key, compiled_tests);
                }
                judged
            }
        };
        Ok(self.counted(judged))
    }

    /// A finished grading, counted.
    fn counted(&self, judged: GradedRun) -> Grade {
        self.counters.update(|counts| *counts.verdicts.entry(judged.verdict).or_default() += 1);
        let GradedRun { verdict, passed, total, detail, wall, stalled, cpu, .. } = judged;
        Grade { verdict, passed, total, detail, wall, stalled, cpu }
    }

    /// A snapshot for metrics.
    pub fn stats(&self) -> Stats {
        let counts = self.counters.snapshot();
        let pool = self.zygotes.pool().counts();
        Stats {
            tier: self.tier(),
            verdicts: counts.verdicts,
            runs: counts.runs,
            retries: counts.retries,
            overload_retries: counts.overload_retries,
            overloaded: counts.overloaded,
            denied_syscalls: counts.denied,
            zygotes_started: pool.started,
            zygote_start_failures: pool.start_failures,
            zygotes_recycled: pool.recycled,
            zygotes_discarded: pool.discarded,
            idle_candidates: pool.idle[ZygoteKind::Candidate as usize],
            idle_testers: pool.idle[ZygoteKind::Tester as usize],
            busy: pool.busy,
            waiting: pool.waiting,
        }
    }

    fn context<'a>(&'a self, limits: &'a Limits, seed: u64) -> RunContext<'a> {
        let prelude = &self.config.prelude;
        RunContext { limits, nested: self.tier() == Tier::A, seed, prelude, compiled_tests: None }
    }

    /// Every case of a program in its order; the first that fails decides. A time limit ends it: the other
    /// cases would most likely take as long.
    fn grade_program(&self, stdio: &Stdio, source: &str, limits: &Limits) -> Result<GradedRun, Error> {
        let mut all = GradedRun::nothing(Verdict::Accepted, String::new());
        all.total = u32::try_from(stdio.cases.len()).unwrap_or(u32::MAX).max(1);
        for index in 0..stdio.cases.len() {
            let judged = self.attempt(&[ZygoteKind::Candidate], |lease| match lease.zygotes().next() {
                Some(zygote) => judge::program(&self.context(limits, 0), source, stdio, index, zygote),
                None => Err(std::io::Error::other("a lease without its zygote")),
            })?;
            all.wall += judged.wall;
            all.stalled += judged.stalled;
            all.cpu += judged.cpu;
            if judged.verdict == Verdict::Accepted {
                all.passed += 1;
                continue;
            }
            let is_first = all.verdict == Verdict::Accepted;
            if is_first || !judged.verdict.judges_response() {
                all.verdict = judged.verdict;
                all.detail = format!("case {index}: {}", judged.detail);
            }
            if !judged.verdict.judges_response() {
                // How many of its cases pass is not known then, whatever is known of the others.
                all.passed = 0;
                break;
            }
            if matches!(judged.verdict, Verdict::TimeLimit | Verdict::WallLimit) {
                break;
            }
        }
        Ok(all)
    }

    /// Leases zygotes and runs a trial on them, again where the sandbox itself failed or the machine was too
    /// busy.
    fn attempt(
        &self,
        kinds: &[ZygoteKind],
        run: impl Fn(&mut Lease) -> std::io::Result<GradedRun>,
    ) -> Result<GradedRun, Error> {
        let (mut retries_left, mut overload_retries_left) =
            (self.config.retries, self.config.overload_retries);
        loop {
            let lease = self.zygotes.pool().lease(kinds, self.config.queue_timeout);
            let mut lease = lease.inspect_err(|_| self.counters.update(|counts| counts.overloaded += 1))?;
            let judged = run(&mut lease).unwrap_or_else(|error| GradedRun::without_resources(&error));
            if judged.healthy {
                lease.healthy();
            } else {
                drop(lease);
            }
            self.counters.update(|counts| counts.runs += kinds.len() as u64);
            if let Some(event) = &judged.event {
                self.counters.denied(event);
            }
            let left = match judged.verdict {
                Verdict::InternalError => &mut retries_left,
                Verdict::Overloaded => &mut overload_retries_left,
                _ => return Ok(judged),
            };
            if *left == 0 {
                return Ok(judged);
            }
            *left -= 1;
            let is_overload = judged.verdict == Verdict::Overloaded;
            self.counters.update(|counts| {
                let counter = if is_overload { &mut counts.overload_retries } else { &mut counts.retries };
                *counter += 1;
            });
        }
    }

    /// What the tests draw is the same for the same response to the same problem.
    fn seed(&self, problem: &Problem, response: &str) -> u64 {
        let mut hash = blake3::Hasher::new();
        hash.update(&self.config.seed.to_le_bytes());
        hash.update(problem.task_id().as_bytes());
        hash.update(&[0]);
        hash.update(response.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }

    fn nonce(&self) -> String {
        let mut bytes = [0_u8; 16];
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn seeded_from_the_system() -> Result<ChaCha20Rng, Error> {
    let mut seed = [0_u8; 32];
    let read =
        File::open("/dev/urandom").and_then(|mut file| std::io::Read::read_exact(&mut file, &mut seed));
    read.map_err(Error::io("read /dev/urandom"))?;
    Ok(ChaCha20Rng::from_seed(seed))
}
