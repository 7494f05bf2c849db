//! Models of a few thousand weights for commands that work on files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::{TinyRing, binary};

/// A policy that was taught one-digit sums a little, and a reward model of its size.
#[derive(Debug)]
pub struct TaughtModels {
    /// The policy's folder.
    pub policy: PathBuf,
    /// The reward model's folder.
    pub reward_model: PathBuf,
    /// The prompts that it was taught: lines with `prompt` and `response`, where the sum is.
    pub prompts: PathBuf,
}

/// The stage that the tiny ring's recipe has not.
const REWARD_MODEL: &str = "[[stages]]\nname = \"reward-model\"\n[stages.reward_model]\nmodel = \"{output}/sft\"\n\
    data = \"{recipe}/pairs.jsonl\"\noutput = \"{output}/reward-model\"\n[stages.reward_model.training]\n\
    epochs = 1\nbatch_size = 16\n";

impl TaughtModels {
    /// Makes them below a folder, by the stages of a tiny ring's recipe.
    ///
    /// # Errors
    /// When a stage fails; shows what it said.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        TinyRing::new(folder)?;
        let pairs: String = (0..32)
            .map(|number| {
                let (a, b) = (number % 8, number / 8);
                format!(
                    "{{\"prompt\": \"{a} plus {b} is\", \"chosen\": \" {}.\", \"rejected\": \" no.\"}}\n",
                    a + b
                )
            })
            .collect();
        fs::write(folder.join("pairs.jsonl"), pairs)?;
        let recipe = folder.join("recipe.toml");
        let text = fs::read_to_string(&recipe)?;
        let (before, _) = text.split_once("[[stages]]\nname = \"ring\"").context("the recipe has a ring")?;
        fs::write(&recipe, format!("{before}{REWARD_MODEL}"))?;
        let mut command = Command::new(binary("sluice")?);
        command.arg("run").arg(&recipe).args(["--set", &format!("output={}/run", folder.display())]);
        command.env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive").stdin(Stdio::null());
        let output = command.output().context("start sluice run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "sluice run ended with {}:\n{said}", output.status);
        let made = |name: &str| folder.join("run").join(name);
        Ok(Self {
            policy: made("sft"),
            reward_model: made("reward-model"),
            prompts: folder.join("data.jsonl"),
        })
    }
}
