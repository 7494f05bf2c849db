//! The runs of a sweep: every named point with every combination of values, each with every seed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use service::BadInput;

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

/// Keys that are set together, under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedPoint {
    name: String,
    settings: Vec<String>,
}

/// An argument that is no named point.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} must look like name:section.key=value,section.key=value, the name of letters, digits, spaces, dots, \
     underscores and hyphens"
)]
pub(crate) struct NoPoint {
    text: String,
}

impl FromStr for NamedPoint {
    type Err = NoPoint;

    fn from_str(text: &str) -> Result<Self, NoPoint> {
        let (name, settings) = text.split_once(':').unwrap_or_default();
        // Nothing behind the name: as the recipe says.
        let settings = if settings.trim().is_empty() { Vec::new() } else { split(settings) };
        let settings: Vec<String> = settings.iter().map(|setting| setting.trim().to_owned()).collect();
        if name.trim().is_empty()
            || !name.chars().all(may_be_in_name)
            || !settings.iter().all(|setting| is_setting(setting))
        {
            return Err(NoPoint { text: text.to_owned() });
        }
        Ok(Self { name: name.trim().to_owned(), settings })
    }
}

fn may_be_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || " ._-".contains(c)
}

fn is_setting(text: &str) -> bool {
    text.split_once('=').is_some_and(|(key, value)| !key.is_empty() && !value.is_empty())
}

impl fmt::Display for NamedPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.settings.join(","))
    }
}

impl NamedPoint {
    fn sets(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.split('=').next() == Some(key))
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
    /// `key=value`, one for each axis, and what a name stands for behind them.
    pub(super) settings: Vec<String>,
    /// What tells it from other points: its name, and values with the last part of each key.
    differing: Vec<String>,
    /// Where its runs are, below the sweep's folder.
    folder: String,
    /// What its runs are called, behind the recipe's name.
    run: String,
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

/// Every named point with every combination of the axes' values, the last axis running fastest.
///
/// # Errors
/// When two points would share a folder, or a key is varied and part of a point.
pub(super) fn points(named: &[NamedPoint], axes: &[Axis]) -> Result<Vec<Point>, BadInput> {
    for point in named {
        if let Some(axis) = axes.iter().find(|axis| axis.values.len() > 1 && point.sets(&axis.key)) {
            let problem = format!("--set gives {} several values, and --point {} one", axis.key, point.name);
            return Err(BadInput(problem));
        }
    }
    let mut points = vec![Vec::new()];
    for axis in axes {
        points = points
            .iter()
            .flat_map(|point: &Vec<(&Axis, &str)>| {
                axis.values.iter().map(move |value| [&point[..], &[(axis, value.as_str())]].concat())
            })
            .collect();
    }
    let names: Vec<Option<&NamedPoint>> =
        if named.is_empty() { vec![None] } else { named.iter().map(Some).collect() };
    let every = names.into_iter().flat_map(|name| points.iter().map(move |values| (name, values)));
    let points: Vec<Point> =
        every.enumerate().map(|(number, (name, values))| point(number, name, values)).collect();
    for (at, point) in points.iter().enumerate() {
        if let Some(other) = points[..at].iter().find(|other| other.folder == point.folder) {
            let (one, two, folder) = (other.label(), point.label(), &point.folder);
            return Err(BadInput(format!("--point: {one} and {two} would share the folder {folder}")));
        }
    }
    Ok(points)
}

fn point(number: usize, name: Option<&NamedPoint>, values: &[(&Axis, &str)]) -> Point {
    let mut settings: Vec<String> =
        values.iter().map(|(axis, value)| format!("{}={value}", axis.key)).collect();
    let varied = values.iter().filter(|(axis, _)| axis.values.len() > 1);
    let mut differing: Vec<String> = name.iter().map(|named| named.name.clone()).collect();
    differing.extend(varied.map(|(axis, value)| {
        let key = axis.key.rsplit('.').next().unwrap_or(&axis.key);
        format!("{key}={value}")
    }));
    settings.extend(name.iter().flat_map(|named| named.settings.clone()));
    let mut point = Point { settings, differing, folder: String::new(), run: String::new() };
    let slug = slug(&point.label());
    // A point that has a name is known by it, whichever others are run beside it.
    (point.run, point.folder) = match name {
        Some(_) => (slug.replace('=', "-"), slug),
        None => (format!("{number:02}"), format!("{number:02}-{slug}")),
    };
    point
}

/// Every point with every seed: the points first, so that the first seed of each comes early.
pub(super) fn cells(points: &[Point], seeds: &[u64], name: &str, output: &Path) -> Vec<Cell> {
    let mut cells = Vec::with_capacity(points.len() * seeds.len());
    for seed in seeds {
        for (number, point) in points.iter().enumerate() {
            let folder = output.join(&point.folder).join(format!("seed-{seed}"));
            let mut settings = point.settings.clone();
            settings.push(format!("seed={seed}"));
            settings.push(format!("name='{name}-{}-seed-{seed}'", point.run));
            settings.push(format!("output='{}'", folder.display()));
            cells.push(Cell { number: cells.len(), point: number, seed: *seed, output: folder, settings });
        }
    }
    cells
}

/// A label as part of a folder's name.
fn slug(label: &str) -> String {
    label
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
        let axes =
            [axis("coordinator.filtration.strategy=none,top:0.5"), axis("learner.ppo.policy_lr=1e-4,1e-3")];
        let points = points(&[], &axes).unwrap();
        assert_eq!(points.len(), 4);
        assert_eq!(points[1].label(), "strategy=none policy_lr=1e-3");
        let cells = cells(&points, &[7, 8], "abl", Path::new("runs/abl-sweep"));
        assert_eq!(cells.len(), 8);
        assert_eq!((cells[3].point, cells[3].seed, cells[4].point, cells[4].seed), (3, 7, 0, 8));
        assert_eq!(cells[2].output, Path::new("runs/abl-sweep/02-strategy=top-0.5-policy_lr=1e-4/seed-7"));
        assert!(cells[2].settings.contains(&"name='abl-02-seed-7'".to_owned()), "{:?}", cells[2].settings);
        let same = super::points(&[], &[axis("a.b=1"), axis("c.d=2,3")]).unwrap();
        assert_eq!(same.iter().map(Point::label).collect::<Vec<_>>(), ["d=2", "d=3"], "what does not differ");
        assert_eq!(same[0].settings, ["a.b=1", "c.d=2"]);
        assert_eq!(super::points(&[], &[]).unwrap()[0].label(), "as written");
    }

    #[test]
    fn a_named_point_sets_several_keys_and_is_known_by_its_name_alone() {
        let named = |text: &str| text.parse::<NamedPoint>().unwrap();
        let (plain, single) = (named("PPO-M:"), named("power 1: a.strategy=power:1, a.mode='x,y'"));
        assert_eq!(single.settings, ["a.strategy=power:1", "a.mode='x,y'"]);
        assert_eq!(single.to_string().parse::<NamedPoint>().unwrap(), single, "as an array's tasks read it");
        let both = points(&[plain.clone(), single.clone()], &[axis("b.c=7")]).unwrap();
        assert_eq!(both.iter().map(Point::label).collect::<Vec<_>>(), ["PPO-M", "power 1"]);
        assert_eq!(both[0].settings, ["b.c=7"]);
        // What a point says lies over what holds for all.
        assert_eq!(both[1].settings, ["b.c=7", "a.strategy=power:1", "a.mode='x,y'"]);
        let alone = points(std::slice::from_ref(&single), &[axis("b.c=7")]).unwrap();
        let runs = |points: &[Point], at: usize| cells(points, &[3], "abl", Path::new("out"))[at].clone();
        assert_eq!(runs(&alone, 0).output, Path::new("out/power-1/seed-3"));
        assert_eq!(runs(&alone, 0).settings, runs(&both, 1).settings, "whichever others there are");
        assert!(runs(&alone, 0).settings.contains(&"name='abl-power-1-seed-3'".to_owned()));
        let crossed = points(&[plain.clone(), single.clone()], &[axis("b.c=7,8")]).unwrap();
        assert_eq!(crossed.len(), 4);
        assert_eq!(runs(&crossed, 3).output, Path::new("out/power-1-c=8/seed-3"));

        for wrong in ["power", ":a=1", "x:a", "x:a=", "x:=1", "x:a=1,", "x/y:a=1", "a.b=1"] {
            assert!(wrong.parse::<NamedPoint>().is_err(), "{wrong}");
        }
        let refused = |named: &[NamedPoint], axis_text: &str| points(named, &[axis(axis_text)]).unwrap_err();
        let twice = refused(&[single.clone(), named("power-1:")], "b.c=7");
        assert!(twice.to_string().contains("power 1 and power-1 would share the folder power-1"), "{twice}");
        let overlap = refused(&[plain, single], "a.mode=1,2");
        assert!(overlap.to_string().contains("a.mode several values, and --point power 1 one"), "{overlap}");
    }
}
