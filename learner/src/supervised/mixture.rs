//! Where examples come from: one file, or several, of which each says how often its examples are taken.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Problems;

/// One of several files of examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixedData {
    /// The file, JSON lines.
    #[schemars(extend("x-kind" = "file"))]
    pub path: PathBuf,
    /// How often each of its examples is taken in a pass: 2 is twice, and 0.1 a tenth of them, drawn anew for
    /// each pass.
    #[serde(default = "once")]
    pub times: f64,
}

fn once() -> f64 {
    1.0
}

/// The files of a configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExampleSource<'a> {
    pub(crate) data: &'a Path,
    pub(crate) mixture: &'a [MixedData],
}

impl<'a> ExampleSource<'a> {
    /// One file.
    pub(crate) fn file(data: &'a Path) -> Self {
        Self { data, mixture: &[] }
    }

    /// Gathers what cannot be right.
    pub(crate) fn check(&self, problems: &mut Problems) {
        let is_file = !self.data.as_os_str().is_empty();
        problems.check(is_file || !self.mixture.is_empty(), || {
            "data is missing: name a file of JSON lines, or several as mixture".to_owned()
        });
        problems.check(!is_file || self.mixture.is_empty(), || {
            "data and mixture are both there: give one of them".to_owned()
        });
        for (at, MixedData { path, times }) in self.mixture.iter().enumerate() {
            problems.check(!path.as_os_str().is_empty(), || format!("mixture[{at}].path is missing"));
            problems.above_zero(&format!("mixture[{at}].times"), *times);
        }
    }

    /// Each file and how often its examples are taken.
    pub(crate) fn files(&self) -> Vec<(&'a Path, f64)> {
        if self.mixture.is_empty() {
            return vec![(self.data, 1.0)];
        }
        self.mixture.iter().map(|MixedData { path, times }| (path.as_path(), *times)).collect()
    }
}

/// The examples of a file among those of all files, and how often they are taken in a pass.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Portion {
    pub(crate) examples: Range<usize>,
    pub(crate) times: f64,
}

impl Portion {
    /// How many are taken once more than the others.
    fn remainder(&self) -> usize {
        (self.times.fract() * self.examples.len() as f64).round() as usize
    }

    /// How many are taken, those that are taken several times counted as often.
    fn taken(&self) -> usize {
        self.times.trunc() as usize * self.examples.len() + self.remainder()
    }
}

/// How many examples a pass takes.
pub(crate) fn pass_length(portions: &[Portion]) -> usize {
    portions.iter().map(Portion::taken).sum()
}

/// The examples of a pass in the order in which they are taken: a function of the seed and the pass.
pub(crate) fn order(portions: &[Portion], shuffle: bool, seed: u64, pass: usize) -> Vec<usize> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(pass as u64).to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order = Vec::with_capacity(pass_length(portions));
    for portion in portions {
        for _ in 0..portion.times.trunc() as usize {
            order.extend(portion.examples.clone());
        }
        let remainder = portion.remainder();
        if remainder > 0 {
            let mut examples: Vec<usize> = portion.examples.clone().collect();
            let (drawn, _) = examples.partial_shuffle(&mut random, remainder);
            drawn.sort_unstable();
            order.extend_from_slice(drawn);
        }
    }
    if shuffle {
        order.shuffle(&mut random);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(order: &[usize], examples: Range<usize>) -> usize {
        order.iter().filter(|example| examples.contains(example)).count()
    }

    #[test]
    fn each_file_is_taken_as_often_as_it_says() {
        let portions = [
            Portion { examples: 0..10, times: 1.0 },
            Portion { examples: 10..14, times: 2.5 },
            Portion { examples: 14..34, times: 0.1 },
        ];
        assert_eq!(pass_length(&portions), 10 + 10 + 2);
        let mut rare = Vec::new();
        for pass in 1..=40 {
            let order = order(&portions, true, 7, pass);
            assert_eq!((count(&order, 0..10), count(&order, 10..14), count(&order, 14..34)), (10, 10, 2));
            for example in 10..14 {
                assert!((2..=3).contains(&count(&order, example..example + 1)));
            }
            rare.extend(order.into_iter().filter(|example| *example >= 14));
        }
        rare.sort_unstable();
        rare.dedup();
        assert!(rare.len() > 15, "other ones in each pass: {rare:?}");
        assert_eq!(order(&portions, true, 7, 3), order(&portions, true, 7, 3));
        assert_ne!(order(&portions, true, 7, 3), order(&portions, true, 8, 3));
    }

    #[test]
    fn without_a_shuffle_files_follow_each_other() {
        let portions = [Portion { examples: 0..2, times: 2.0 }, Portion { examples: 2..6, times: 0.5 }];
        let order = order(&portions, false, 0, 1);
        assert_eq!(order[..4], [0, 1, 0, 1]);
        assert!(order[4..].is_sorted() && order.len() == 6, "{order:?}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let mixture = [
            MixedData { path: PathBuf::new(), times: 1.0 },
            MixedData { path: PathBuf::from("a.jsonl"), times: 0.0 },
        ];
        let mut problems = Problems::default();
        ExampleSource { data: Path::new("b.jsonl"), mixture: &mixture }.check(&mut problems);
        let list = problems.into_list();
        assert_eq!(list.len(), 3, "{list:?}");
        for named in ["data and mixture", "mixture[0].path", "mixture[1].times is 0"] {
            assert!(list.iter().any(|problem| problem.starts_with(named)), "{named}: {list:?}");
        }
    }
}
