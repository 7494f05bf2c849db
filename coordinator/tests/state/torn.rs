//! A journal whose last write was not finished, and one that was damaged later: the first is cut and said,
//! the second is refused and left as it is. `SLUICE_DAMAGE_STEP=1` tries every byte instead of each 61st;
//! `SLUICE_CRASH_POINTS` is how many crashes a journal of a whole run is opened after (60).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use coordinator::journal::{Error, Journal};
use coordinator::state::Durable;

use crate::journal::{copy, facts, record, used};
use crate::small_run::plan;

const MARK: &str = "durable-facts";

/// What is done to a log.
type Damage = Box<dyn Fn(&File)>;

/// A journal of seven writes.
struct Seven {
    folder: tempfile::TempDir,
    log: String,
    /// Where each write ends in the log.
    ends: Vec<usize>,
    /// The marks after the sixth and after the seventh write.
    marks: [Vec<u8>; 2],
    /// The runs then.
    runs: [Durable; 2],
}

/// One of its copies, damaged.
struct Damaged {
    folder: tempfile::TempDir,
    log: PathBuf,
}

impl Seven {
    fn write() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, mut run) = Journal::open(folder.path(), &plan()).unwrap();
        let log = std::fs::read_dir(folder.path()).unwrap().find_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.ends_with(".jnl").then_some(name)
        });
        let log = log.unwrap();
        let (mut ends, mut marks, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        for fact in &facts(7)[..7] {
            record(&mut journal, &mut run, std::slice::from_ref(fact));
            ends.push(used(&folder.path().join(&log)).len());
            marks.push(std::fs::read(folder.path().join(MARK)).unwrap());
            runs.push(run.clone());
        }
        drop(journal);
        let last_two = |marks: Vec<Vec<u8>>| [marks[5].clone(), marks[6].clone()];
        Self { folder, log, ends, marks: last_two(marks), runs: [runs[5].clone(), runs[6].clone()] }
    }

    /// A copy with the mark after so many writes, of which a file's bytes are changed.
    fn damaged(&self, marked: usize, damage: impl Fn(&File)) -> Damaged {
        let folder = tempfile::tempdir().unwrap();
        copy(self.folder.path(), folder.path());
        std::fs::write(folder.path().join(MARK), &self.marks[marked - 6]).unwrap();
        let log = folder.path().join(&self.log);
        damage(&OpenOptions::new().write(true).open(&log).unwrap());
        Damaged { folder, log }
    }

    /// Truncated, zeroed and flipped bytes at many places between the ends of two writes.
    fn damages(&self, from: usize, to: usize) -> Vec<(String, Damage)> {
        let bytes = used(&self.folder.path().join(&self.log));
        let mut damages: Vec<(String, Damage)> = Vec::new();
        let step =
            std::env::var_os("SLUICE_DAMAGE_STEP").map_or(61, |text| text.to_str().unwrap().parse().unwrap());
        for place in (from + 1..to).step_by(step) {
            let truncate = move |file: &File| file.set_len(place as u64).unwrap();
            damages.push((format!("truncated at {place}"), Box::new(truncate)));
            let zeros = vec![0; (to - place).min(100)];
            let zero = move |file: &File| file.write_all_at(&zeros, place as u64).unwrap();
            damages.push((format!("zeros at {place}"), Box::new(zero)));
            let flipped = [bytes[place] ^ (1 << (place % 8))];
            let flip = move |file: &File| file.write_all_at(&flipped, place as u64).unwrap();
            damages.push((format!("a bit flipped at {place}"), Box::new(flip)));
        }
        damages
    }
}

impl Damaged {
    /// Opens it; yields the run, and what was logged.
    fn open(&self) -> (Result<Durable, Error>, String) {
        let said = tempfile::NamedTempFile::new().unwrap();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(said.reopen().unwrap()).finish();
        let opened =
            tracing::subscriber::with_default(subscriber, || Journal::open(self.folder.path(), &plan()));
        (opened.map(|(_, run)| run), std::fs::read_to_string(said.path()).unwrap())
    }

    fn kept(&self) -> Vec<Vec<u8>> {
        let names = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let kept = names.filter(|path| path.to_string_lossy().contains(".jnl.cut-at-"));
        kept.map(|path| std::fs::read(path).unwrap()).collect()
    }
}

fn content(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn a_last_write_that_nobody_was_told_of_is_cut_said_and_kept() {
    let seven = Seven::write();
    let (sixth, seventh) = (seven.ends[5], seven.ends[6]);
    let damages = seven.damages(sixth, seventh);
    assert!(damages.len() >= 15, "{} damages", damages.len());
    for (name, damage) in damages {
        let damaged = seven.damaged(6, damage);
        let end = used(&damaged.log)[sixth..].to_vec();
        let (run, said) = damaged.open();
        assert_eq!(run.unwrap_or_else(|error| panic!("{name}: {error}")), seven.runs[0], "{name}");
        assert!(said.contains(&format!("bytes_cut={} ", end.len())), "{name}: {said}");
        assert_eq!(damaged.kept(), [end], "{name}");
        let (again, said) = damaged.open();
        assert_eq!((again.unwrap(), said.contains("cut")), (seven.runs[0].clone(), false), "{name}");
    }
    // Whole, it is no damage, whoever was told.
    let (run, said) = seven.damaged(6, |_| {}).open();
    assert_eq!((run.unwrap(), said.contains("cut")), (seven.runs[1].clone(), false), "{said}");
}

#[test]
fn what_was_durable_and_is_damaged_is_refused_and_left_as_it_is() {
    let seven = Seven::write();
    let mut damages = Vec::new();
    for (name, damage) in seven.damages(seven.ends[5], seven.ends[6]) {
        damages.push((name, 7, damage));
    }
    // Of a write in the middle, whatever the mark says of the last ones.
    for (name, damage) in seven.damages(seven.ends[2], seven.ends[3]) {
        if !name.starts_with("truncated") {
            damages.push((name, 6, damage));
        }
    }
    let sixth = seven.ends[5] as u64;
    damages.push((
        "without the last write".to_owned(),
        7,
        Box::new(move |file| file.set_len(sixth).unwrap()),
    ));
    for (name, marked, damage) in damages {
        let damaged = seven.damaged(marked, damage);
        let before = content(&damaged.log);
        let (run, said) = damaged.open();
        let error = run.expect_err(&name);
        assert!(matches!(error, Error::Damaged { .. }), "{name}: {error}");
        assert!(content(&damaged.log) == before, "{name}: it was changed; {error}");
        assert!(damaged.kept().is_empty() && !said.contains("cut"), "{name}: {said}");
    }
}

#[test]
fn a_journal_that_ends_anywhere_has_what_was_durable_then() {
    let points: usize =
        std::env::var_os("SLUICE_CRASH_POINTS").map_or(60, |text| text.to_str().unwrap().parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, mut run) = Journal::open(folder.path(), &plan()).unwrap();
    let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let log = names.into_iter().find(|name| name.to_string_lossy().ends_with(".jnl")).unwrap();
    let used_by = |journal: &Path| used(&journal.join(&log)).len();
    // After each write: where it ends, the mark, and the run.
    let mut writes = vec![(used_by(folder.path()), content(&folder.path().join(MARK)), run.clone())];
    for fact in &facts(9_000) {
        record(&mut journal, &mut run, std::slice::from_ref(fact));
        writes.push((used_by(folder.path()), content(&folder.path().join(MARK)), run.clone()));
    }
    drop(journal);
    assert!(run.batches().trained().0 >= 4, "{} writes", writes.len());
    let (bytes, first, last) = (content(&folder.path().join(&log)), writes[0].0, writes[writes.len() - 1].0);
    for point in 0..points {
        // Spread over all that was written by the golden ratio, one of four at the end of a write.
        let place = first + ((point as f64 * 0.618_033_988_75).fract() * (last - first) as f64) as usize;
        let write = writes.partition_point(|(end, ..)| *end <= place) - 1;
        let place = if point % 4 == 0 { writes[write].0 } else { place };
        let crashed = tempfile::tempdir().unwrap();
        copy(folder.path(), crashed.path());
        let zeros = vec![0; last - place];
        let file = OpenOptions::new().write(true).open(crashed.path().join(&log)).unwrap();
        file.write_all_at(&bytes[..place], 0).unwrap();
        file.write_all_at(&zeros, place as u64).unwrap();
        std::fs::write(crashed.path().join(MARK), &writes[write].1).unwrap();
        let opened = Journal::open(crashed.path(), &plan());
        let (_, found) = opened.unwrap_or_else(|error| panic!("after {place} of {last} bytes: {error}"));
        assert_eq!(found, writes[write].2, "after {place} of {last} bytes");
    }
    println!("{points} crashes over {} writes of {last} bytes", writes.len());
}

#[test]
fn only_the_newest_ends_are_kept() {
    let seven = Seven::write();
    let damaged = seven.damaged(6, |file| file.set_len(seven.ends[5] as u64 + 10).unwrap());
    for place in 0..20 {
        std::fs::write(damaged.folder.path().join(format!("1.jnl.cut-at-{place}")), "older").unwrap();
    }
    damaged.open().0.unwrap();
    let kept = damaged.kept();
    assert_eq!(kept.len(), 8);
    assert_eq!(kept.iter().filter(|end| end.as_slice() != b"older").count(), 1);
}
