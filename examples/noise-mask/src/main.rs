//! `noise-mask`: is a noise mask that a policy learns worth more than a random one, or than none?

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use noise_mask::report;
use noise_mask::study::{Source, Study};
use noise_mask::training::Recipe;

/// Pre-trains small classifiers with and without noise masks (arXiv 2406.14568), fine-tunes them, and says
/// how much the masks are worth, with 95 % intervals over seeds. The same arguments give the same tables.
#[derive(Debug, Parser)]
#[command(name = "noise-mask")]
struct Arguments {
    /// A folder of images of your own: train/CLASS/, validation/CLASS/ and test/CLASS/ with PNG, JPEG or BMP
    /// files. Without it, the handwritten digits that are shipped.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Pixels a side that images of a folder are made to.
    #[arg(long, default_value_t = 64, requires = "images")]
    side: i64,
    /// Most images of a class that are read of each of the folder's three parts.
    #[arg(long, default_value_t = 1000, requires = "images")]
    limit: usize,
    /// Digits of each class to learn from; thirty choose the learning rates, and the others judge.
    #[arg(long, default_value_t = 30, conflicts_with = "images")]
    train_per_class: usize,
    /// How many seeds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    first_seed: u64,
    /// Cells a side of the masks.
    #[arg(long, default_value_t = 8)]
    grid: i64,
    /// Passes over the images with masks.
    #[arg(long, default_value_t = 90)]
    epochs: u32,
    /// Passes over the images without, after that.
    #[arg(long, default_value_t = 10)]
    fine_tuning_epochs: u32,
    /// Images of a step.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// The classifier's learning rates that each method is tried with; validation images choose one for each.
    /// The paper's is 0.1.
    #[arg(long, value_delimiter = ',', default_values_t = [0.1, 0.03, 0.01], value_parser = rate)]
    learning_rates: Vec<f64>,
    /// The policy's learning rate.
    #[arg(long, default_value_t = 0.01, value_parser = rate)]
    policy_learning_rate: f64,
    /// The classifier's learning rate when it is fine-tuned.
    #[arg(long, default_value_t = 0.001, value_parser = rate)]
    fine_tuning_learning_rate: f64,
    /// Two seeds, one learning rate and a few epochs: whether it runs, in seconds. Says nothing about the
    /// method.
    #[arg(long, conflicts_with_all = ["seeds", "epochs", "fine_tuning_epochs", "learning_rates"])]
    quick: bool,
    /// Where results.jsonl, probes.jsonl, tables.md and gains.svg are written.
    #[arg(long, default_value = "runs/noise-mask")]
    output: PathBuf,
}

impl Arguments {
    fn study(&self) -> Study {
        let source = match &self.images {
            Some(path) => Source::Folder { path: path.clone(), side: self.side, limit: self.limit },
            None => Source::Digits { train_per_class: self.train_per_class },
        };
        let (seeds, epochs, fine_tuning_epochs, probe_steps) =
            if self.quick { (2, 3, 1, 20) } else { (self.seeds, self.epochs, self.fine_tuning_epochs, 1000) };
        let learning_rates = if self.quick { vec![0.03] } else { self.learning_rates.clone() };
        let recipe = Recipe {
            epochs,
            fine_tuning_epochs,
            batch: self.batch,
            policy_learning_rate: self.policy_learning_rate,
            fine_tuning_learning_rate: self.fine_tuning_learning_rate,
        };
        let seeds = self.first_seed..self.first_seed + seeds;
        Study { source, grid: self.grid, recipe, learning_rates, seeds, probe_steps }
    }
}

/// A learning rate.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if f64::is_finite(rate) && rate > 0.0 => Ok(rate),
        _ => Err("a learning rate is a number above 0".to_owned()),
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let results = arguments.study().run(&arguments.output, &mut |line| eprintln!("{line}"))?;
    let tables = report::tables(&results);
    for (name, text) in [("tables.md", &tables), ("gains.svg", &report::picture(&results)?)] {
        let path = arguments.output.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    print!("{tables}");
    Ok(())
}
