//! The runs of a sweep: every combination of values, each with every seed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A key and the values that it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Axis {
    key: String,
    values: Vec<String>,
}

/// An argument that is no axis.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} must look like section.key=value,value")]
pub(crate) struct NoAxis {
    text: String,
}

impl FromStr for Axis {
    type Err = NoAxis;

    fn from_str(text: &str) -> Result<Self, NoAxis> {
        let (key, values) = text.split_once('=').unwrap_or_default();
        let values = split(values);
        if key.is_empty() || values.iter().any(String::is_empty) {
            return Err(NoAxis { text: text.to_owned() });
        }
        Ok(Self { key: key.to_owned(), values })
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.values.join(","))
    }
}

/// Parts between commas that are neither in brackets nor in quotes.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut depth, mut quote) = (0u32, None);
    for c in text.chars() {
        match (c, quote) {
            (',', None) if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            ('[' | '{', None) => depth += 1,
            (']' | '}', None) => depth = depth.saturating_sub(1),
            ('"' | '\'', None) => quote = Some(c),
            (_, Some(open)) if c == open => quote = None,
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

/// A combination of values: one row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Point {
    /// `key=value`, one for each axis.
    pub(super) settings: Vec<String>,
    /// Those that tell it from other points, with the last part of each key.
    differing: Vec<String>,
}

impl Point {
    /// What people read.
    pub(super) fn label(&self) -> String {
        if self.differing.is_empty() { "as written".to_owned() } else { self.differing.join(" ") }
    }
}

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    /// Its place among the runs.
    pub(super) number: usize,
    /// Its place among the points.
    pub(super) point: usize,
    pub(super) seed: u64,
    pub(super) output: PathBuf,
    /// Everything that is laid over the recipe.
    pub(super) settings: Vec<String>,
}

/// Every combination of the axes' values, the last axis running fastest.
pub(super) fn points(axes: &[Axis]) -> Vec<Point> {
    let mut points = vec![Point { settings: Vec::new(), differing: Vec::new() }];
    for axis in axes {
        let name = axis.key.rsplit('.').next().unwrap_or(&axis.key);
        let mut longer = Vec::with_capacity(points.len() * axis.values.len());
        for point in &points {
            for value in &axis.values {
                let mut point = point.clone();
                point.settings.push(format!("{}={value}", axis.key));
                if axis.values.len() > 1 {
                    point.differing.push(format!("{name}={value}"));
                }
                longer.push(point);
            }
        }
        points = longer;
    }
    points
}

/// Every point with every seed: the points first, so that the first seed of each comes early.
pub(super) fn cells(points: &[Point], seeds: &[u64], name: &str, output: &Path) -> Vec<Cell> {
    let mut cells = Vec::with_capacity(points.len() * seeds.len());
    for seed in seeds {
        for (point, Point { settings, .. }) in points.iter().enumerate() {
            let folder =
                output.join(format!("{point:02}-{}", slug(&points[point]))).join(format!("seed-{seed}"));
            let mut settings = settings.clone();
            settings.push(format!("seed={seed}"));
            settings.push(format!("name='{name}-{point:02}-seed-{seed}'"));
            settings.push(format!("output='{}'", folder.display()));
            cells.push(Cell { number: cells.len(), point, seed: *seed, output: folder, settings });
        }
    }
    cells
}

/// A point as part of a folder's name.
fn slug(point: &Point) -> String {
    point
        .label()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._=-".contains(c) { c } else { '-' })
        .take(80)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(text: &str) -> Axis {
        text.parse().unwrap()
    }

    #[test]
    fn values_are_split_at_commas_that_belong_to_none() {
        assert_eq!(axis("a.b=x,y").values, ["x", "y"]);
        assert_eq!(axis("a=[1, 2],[3]").values, ["[1, 2]", "[3]"]);
        assert_eq!(axis("a='x,y',z").values, ["'x,y'", "z"]);
        for wrong in ["a", "=x", "a=", "a=x,,y"] {
            assert!(wrong.parse::<Axis>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_combination_runs_with_every_seed() {
        let points = points(&[
            axis("coordinator.filtration.strategy=none,top:0.5"),
            axis("learner.ppo.policy_lr=1e-4,1e-3"),
        ]);
        assert_eq!(points.len(), 4);
        assert_eq!(points[1].label(), "strategy=none policy_lr=1e-3");
        let cells = cells(&points, &[7, 8], "abl", Path::new("runs/abl-sweep"));
        assert_eq!(cells.len(), 8);
        assert_eq!((cells[3].point, cells[3].seed, cells[4].point, cells[4].seed), (3, 7, 0, 8));
        assert_eq!(cells[2].output, Path::new("runs/abl-sweep/02-strategy=top-0.5-policy_lr=1e-4/seed-7"));
        assert!(cells[2].settings.contains(&"name='abl-02-seed-7'".to_owned()), "{:?}", cells[2].settings);
        let same = super::points(&[axis("a.b=1"), axis("c.d=2,3")]);
        assert_eq!(same.iter().map(Point::label).collect::<Vec<_>>(), ["d=2", "d=3"], "what does not differ");
        assert_eq!(same[0].settings, ["a.b=1", "c.d=2"]);
        assert_eq!(super::points(&[])[0].label(), "as written");
    }
}
