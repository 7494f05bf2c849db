//! A small ring.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::{binary, read_until, root};

/// Prompts of the data set.
const PROMPTS: usize = 64;

/// A recipe for a ring that takes seconds: a tokenizer, a network taught a little, and PF-PPO against a rule.
#[derive(Debug, Clone)]
pub struct TinyRing {
    /// Everything is below it.
    pub folder: PathBuf,
    /// `--set` values.
    pub settings: Vec<String>,
}

impl TinyRing {
    /// Writes data and recipe into a folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let mut lines = String::new();
        for number in 0..PROMPTS {
            let (a, b) = (number % 8, number / 8);
            lines += &format!("{{\"prompt\": \"{a} plus {b} is\", \"response\": \" {}.\"}}\n", a + b);
        }
        fs::write(folder.join("data.jsonl"), lines)?;
        fs::write(folder.join("recipe.toml"), include_str!("ring/recipe.toml"))?;
        Ok(Self { folder: folder.to_owned(), settings: Vec::new() })
    }

    /// Writes data and recipe of a ring whose responses are episodes with a Python interpreter.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn of_episodes(folder: &Path) -> anyhow::Result<Self> {
        let (mut taught, mut asked) = (String::new(), String::new());
        for number in 0..PROMPTS {
            let (a, b) = (number % 8, number / 8);
            let (prompt, sum) = (format!("{a} plus {b} is\n"), a + b);
            let response = format!("```python\n{a}+{b}\n```\n```output\n{sum}\n```\n{sum}.");
            taught += &format!("{}\n", json!({ "prompt": prompt, "response": response }));
            asked += &format!("{}\n", json!({ "prompt": prompt, "sum": sum.to_string() }));
        }
        fs::write(folder.join("episodes.jsonl"), taught)?;
        fs::write(folder.join("data.jsonl"), asked)?;
        fs::write(folder.join("recipe.toml"), include_str!("ring/episodes.toml"))?;
        Ok(Self { folder: folder.to_owned(), settings: Vec::new() })
    }

    /// Copies the data and the recipe of `examples/agent`, whose responses are played by agents, to whom a
    /// free port listens.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn of_agents(folder: &Path) -> anyhow::Result<Self> {
        let example = root().join("examples/agent");
        for name in ["recipe.toml", "demonstrations.jsonl", "prompts.jsonl", "template.jinja"] {
            fs::copy(example.join(name), folder.join(name)).with_context(|| format!("copy {name}"))?;
        }
        let tokenizer = root().join("examples/own-model/demonstrations.jsonl");
        let ring = Self { folder: folder.to_owned(), settings: Vec::new() };
        Ok(ring
            .with(&format!("stages[0].tokenizer.data=[{tokenizer:?}]"))
            .with("actor.serve.listen=127.0.0.1:0")
            .with("actor.engine.threads=1")
            .with("reward_server.models.threads=1")
            .with("learner.threads=1"))
    }

    /// The same ring with one more `--set`.
    #[must_use]
    pub fn with(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// The run's output folder.
    pub fn output(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// The command that runs it, or goes on with it.
    ///
    /// # Errors
    /// When our binaries are not built.
    pub fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(binary("sluice")?);
        command.arg("run").arg(self.folder.join("recipe.toml")).arg("--resume");
        command.args(self.settings.iter().flat_map(|setting| ["--set", setting.as_str()]));
        command.args(["--set", &format!("output={}", self.output().display())]);
        // One thread an operation, and none that spins: tests share the machine.
        command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
        Ok(command)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it fails; shows what it said.
    pub fn run(&self) -> anyhow::Result<()> {
        let output = self.command()?.stdin(Stdio::null()).output().context("start sluice run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "sluice run ended with {}:\n{said}", output.status);
        Ok(())
    }

    /// Starts it and returns once the ring's processes run.
    ///
    /// # Errors
    /// When it fails before that.
    pub fn start(&self) -> anyhow::Result<Running> {
        let mut child = self
            .command()?
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start sluice run")?;
        let mut said = BufReader::new(child.stderr.take().context("standard error is piped")?);
        let line = read_until(&mut said, |line| line.starts_with("started "))?;
        let named = line.trim_start_matches("started ").trim().split(", ");
        let process = |text: &str| {
            Some((
                text.split_once(" (")?.0.to_owned(),
                text.split_once(" (")?.1.trim_end_matches(')').parse().ok()?,
            ))
        };
        let processes = named.filter_map(process).collect();
        Ok(Running { child, said, processes })
    }

    /// The records of all training steps, one each; a step that was done again after a crash counts with its
    /// last record.
    ///
    /// # Errors
    /// When there are none.
    pub fn steps(&self) -> anyhow::Result<BTreeMap<u64, Value>> {
        let text = fs::read_to_string(self.output().join("ring/steps.jsonl")).context("read the steps")?;
        let mut steps = BTreeMap::new();
        for line in text.lines() {
            let step: Value = serde_json::from_str(line)?;
            steps.insert(step["batch"].as_u64().context("a step has a batch")?, step);
        }
        Ok(steps)
    }

    /// Checks that every batch was trained, each on rollouts of which actor and learner say the same: the
    /// learner computes the log-probs of a whole sequence at once, the actor has drawn it token by token and
    /// turn by turn.
    ///
    /// # Errors
    /// Names what is missing, or the batch on which they disagree.
    pub fn check_complete(&self, batches: u64) -> anyhow::Result<()> {
        let steps = self.steps()?;
        let trained: Vec<u64> = steps.keys().copied().collect();
        anyhow::ensure!(trained == (1..=batches).collect::<Vec<_>>(), "trained are {trained:?}");
        for (batch, step) in &steps {
            let found =
                step["metrics"]["rollout_approx_kl"].as_f64().context("a step without an approx_kl")?;
            anyhow::ensure!(found < 1e-6, "batch {batch}: learner and actor disagree, approx_kl {found}");
        }
        Ok(())
    }

    /// The bytes of the trained policy.
    ///
    /// # Errors
    /// When there is none.
    pub fn weights(&self) -> anyhow::Result<Vec<u8>> {
        fs::read(self.output().join("policy/model.safetensors")).context("read the trained policy")
    }

    /// What a role logged.
    ///
    /// # Errors
    /// When there is no such log.
    pub fn log(&self, role: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.output().join(format!("ring/logs/{role}.log")))
            .with_context(|| format!("read {role}'s log"))
    }
}

/// A ring that runs. It is told to stop when the test is over, however that ends.
#[derive(Debug)]
pub struct Running {
    child: Child,
    said: BufReader<ChildStderr>,
    /// Process ids by name.
    pub processes: BTreeMap<String, i32>,
}

impl Running {
    /// Reads on until a line for which `wanted` is true.
    ///
    /// # Errors
    /// When the run ends first.
    pub fn wait_for(&mut self, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        read_until(&mut self.said, wanted)
    }

    /// Waits until so many batches are trained. The supervisor looks several times a second, and may see
    /// several at once.
    ///
    /// # Errors
    /// When the run ends first.
    pub fn wait_for_batches(&mut self, batches: u64) -> anyhow::Result<()> {
        let enough = |line: &str| {
            let trained =
                line.strip_prefix("batch ").and_then(|rest| rest.split('/').next()?.parse::<u64>().ok());
            trained.is_some_and(|trained| trained >= batches)
        };
        self.wait_for(enough).map(drop)
    }

    /// Tells it to stop, as a user's Ctrl-C or a scheduler does.
    ///
    /// # Errors
    /// When it is gone.
    pub fn stop(&self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.id()), Signal::SIGTERM).context("SIGTERM to sluice run")
    }

    /// The id of the command's own process.
    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// Waits for the end; what was said till then comes with it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn end(mut self) -> anyhow::Result<(ExitStatus, String)> {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.said, &mut rest)?;
        Ok((self.child.wait()?, rest))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.stop());
        }
    }
}
