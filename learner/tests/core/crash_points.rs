//! Checkpoints after a crash: what the writer does to files is written down (`file_operations.c`), and done
//! again up to each point, as a killed process and as a power failure leave it. Whatever is left, the newest
//! checkpoint that was finished is found, or one that came after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use learner::{Checkpoints, PpoConfig, Writer};
use model::Architecture;
use types::{BatchId, Incarnation, LearnerTerm, RunId, Timestamp};

use crate::support::{Models, config};

/// Set where the test is the process that writes.
const ROOT: &str = "FILE_OPERATIONS_ROOT";
/// Checkpoints that are written; two are kept.
const WRITTEN: u64 = 4;
/// The batch whose checkpoint is said to be the best.
const BEST: u64 = 2;

fn run() -> RunId {
    "run-1".parse().unwrap()
}

fn ppo() -> PpoConfig {
    PpoConfig { minibatch_size: 4, ppo_epochs: 1, ..PpoConfig::default() }
}

fn writer(term: u64) -> Writer {
    Writer { term: LearnerTerm(term), incarnation: Incarnation(term), run_began: Timestamp(50) }
}

/// Writes checkpoints and says after each that it is finished.
fn write_checkpoints(root: &Path) {
    let models = Models::new(config(Architecture::Llama, false));
    let mut checkpoints = Checkpoints::new(&root.join("checkpoints"), 2);
    checkpoints.claim(writer(1), true).unwrap();
    let mut trainer = models.trainer(&ppo(), None);
    for batch in 1..=WRITTEN {
        trainer.step(&models.batch(batch, 5)).unwrap();
        checkpoints.save(&trainer, &run(), BatchId(batch)).unwrap();
        if batch == BEST {
            assert!(checkpoints.keep_best(BatchId(batch)).unwrap());
        }
        fs::write(root.join(format!("finished-{batch}")), "").unwrap();
    }
}

/// What was done to a file or a folder.
#[derive(Debug)]
enum Operation {
    Create(PathBuf),
    Write(PathBuf),
    Flush(PathBuf),
    Rename(PathBuf, PathBuf),
    MakeFolder(PathBuf),
    /// With the number under which a file is kept.
    Remove(PathBuf, Option<String>),
}

impl Operation {
    fn parse(line: &str) -> Self {
        let mut fields = line.split('\t');
        let (what, path) = (fields.next().unwrap(), fields.next().unwrap());
        let path = PathBuf::from(if path == "." { "" } else { path });
        match (what, fields.next()) {
            ("create", None) => Self::Create(path),
            ("write", None) => Self::Write(path),
            ("flush", None) => Self::Flush(path),
            ("rename", Some(to)) => Self::Rename(path, to.into()),
            ("mkdir", None) => Self::MakeFolder(path),
            ("remove", number) => Self::Remove(path, number.map(str::to_owned)),
            _ => panic!("{line:?}"),
        }
    }
}

/// A file or a folder, by its number in the disk.
type Node = usize;

#[derive(Debug, Clone)]
enum Content {
    File {
        /// Operations that have written to it, and how many of them are flushed.
        writes: usize,
        flushed: usize,
    },
    Folder {
        names: BTreeMap<String, Node>,
        /// The names that a power failure leaves.
        flushed: BTreeMap<String, Node>,
    },
}

/// A disk after some operations.
#[derive(Debug, Clone)]
struct Disk(Vec<Content>);

/// What is left of what was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// All of it: the process was killed.
    None,
    /// Names, and with them half of a file that was not flushed.
    Content,
    /// Names and no byte of such a file.
    AllContent,
    /// Neither.
    Names,
}

impl Disk {
    fn new() -> Self {
        Self(vec![Content::Folder { names: BTreeMap::new(), flushed: BTreeMap::new() }])
    }

    fn find(&self, path: &Path) -> Option<Node> {
        path.iter().try_fold(0, |node, name| match &self.0[node] {
            Content::Folder { names, .. } => names.get(name.to_str()?).copied(),
            Content::File { .. } => None,
        })
    }

    fn names(&mut self, folder: &Path) -> &mut BTreeMap<String, Node> {
        let node = self.find(folder).unwrap_or_else(|| panic!("{} is there", folder.display()));
        match &mut self.0[node] {
            Content::Folder { names, .. } => names,
            Content::File { .. } => panic!("{} is a folder", folder.display()),
        }
    }

    fn entry(path: &Path) -> (&Path, String) {
        (path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn add(&mut self, path: &Path, content: Content) {
        self.0.push(content);
        let (node, (folder, name)) = (self.0.len() - 1, Self::entry(path));
        self.names(folder).insert(name, node);
    }

    /// How a file got its name that is flushed and was not there: safetensors writes under a temporary name,
    /// and renames without the C library.
    fn renamed_unseen(&mut self, path: &Path) -> Option<Operation> {
        if self.find(path).is_some() {
            return None;
        }
        let (folder, _) = Self::entry(path);
        let temporary = self.names(folder).keys().filter(|name| name.starts_with(".tmp"));
        let [temporary] = temporary.collect::<Vec<_>>()[..] else { panic!("{}", path.display()) };
        Some(Operation::Rename(folder.join(temporary), path.to_owned()))
    }

    fn perform(&mut self, operation: &Operation) {
        match operation {
            Operation::Create(path) => self.add(path, Content::File { writes: 0, flushed: 0 }),
            Operation::MakeFolder(path) => {
                self.add(path, Content::Folder { names: BTreeMap::new(), flushed: BTreeMap::new() });
            }
            Operation::Write(path) => {
                let node = self.find(path).unwrap();
                let Content::File { writes, .. } = &mut self.0[node] else { panic!("{operation:?}") };
                *writes += 1;
            }
            Operation::Flush(path) => {
                let node = self.find(path).unwrap();
                match &mut self.0[node] {
                    Content::File { writes, flushed } => *flushed = *writes,
                    Content::Folder { names, flushed } => flushed.clone_from(names),
                }
            }
            Operation::Rename(from, to) => {
                let (folder, name) = Self::entry(from);
                let node = self.names(folder).remove(&name).unwrap();
                let (folder, name) = Self::entry(to);
                self.names(folder).insert(name, node);
            }
            Operation::Remove(path, _) => {
                let (folder, name) = Self::entry(path);
                self.names(folder).remove(&name).unwrap();
            }
        }
    }

    /// The folders and files that a crash leaves: their names, and which part of a file.
    fn left(&self, loss: Loss) -> (BTreeSet<PathBuf>, BTreeMap<PathBuf, (Node, Part)>) {
        let (mut folders, mut files) = (BTreeSet::new(), BTreeMap::new());
        let mut open = vec![(PathBuf::new(), 0)];
        while let Some((path, node)) = open.pop() {
            match &self.0[node] {
                Content::Folder { names, flushed } => {
                    let left = if loss == Loss::Names { flushed } else { names };
                    open.extend(left.iter().map(|(name, node)| (path.join(name), *node)));
                    folders.insert(path);
                }
                Content::File { writes, flushed } => {
                    let part = match loss {
                        Loss::None => Part::Writes(*writes),
                        _ if writes == flushed => Part::Writes(*writes),
                        Loss::Content => Part::Half,
                        Loss::AllContent | Loss::Names => Part::Writes(0),
                    };
                    files.insert(path, (node, part));
                }
            }
        }
        (folders, files)
    }
}

/// How much of a file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// What so many operations wrote.
    Writes(usize),
    Half,
}

/// What every file held in the end.
struct Written {
    operations: Vec<Operation>,
    /// By node: its bytes, and how many operations wrote them.
    contents: BTreeMap<Node, (Vec<u8>, usize)>,
}

impl Written {
    /// Lets another process write checkpoints under its eyes.
    fn observe(scratch: &Path) -> Self {
        let library = scratch.join("file_operations.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/core/file_operations.c");
        let mut compiler = Command::new("cc");
        let compiled = compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library);
        assert!(compiled.arg(source).arg("-ldl").status().unwrap().success());
        let [root, kept, log] = ["root", "kept", "log"].map(|name| scratch.join(name));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&kept).unwrap();
        let mut writer = Command::new(std::env::current_exe().unwrap());
        writer.args(["--exact", "crash_points::what_a_crash_leaves_holds_the_newest_finished_checkpoint"]);
        writer.env(ROOT, &root).env("FILE_OPERATIONS_LOG", &log).env("FILE_OPERATIONS_KEPT", &kept);
        assert!(writer.env("LD_PRELOAD", &library).status().unwrap().success());

        let (mut disk, mut contents, mut operations) = (Disk::new(), BTreeMap::new(), Vec::new());
        for operation in fs::read_to_string(&log).unwrap().lines().map(Operation::parse) {
            if let Operation::Flush(path) = &operation
                && let Some(renamed) = disk.renamed_unseen(path)
            {
                disk.perform(&renamed);
                operations.push(renamed);
            }
            if let Operation::Remove(path, Some(number)) = &operation {
                contents.insert(disk.find(path).unwrap(), fs::read(kept.join(number)).unwrap());
            }
            disk.perform(&operation);
            operations.push(operation);
        }
        for (path, (node, _)) in disk.left(Loss::None).1 {
            contents.insert(node, fs::read(root.join(path)).unwrap());
        }
        let with_writes = contents.into_iter().map(|(node, bytes)| match disk.0[node] {
            Content::File { writes, .. } => (node, (bytes, writes)),
            Content::Folder { .. } => panic!("{node} is a file"),
        });
        Self { operations, contents: with_writes.collect() }
    }

    /// A part of a file; one that was replaced before its end has no bytes that anybody knows.
    fn part(&self, node: Node, part: Part) -> &[u8] {
        let Some((bytes, all)) = self.contents.get(&node) else { return &[] };
        let end = match part {
            Part::Writes(writes) => bytes.len() * writes / all.max(&1),
            Part::Half => bytes.len() / 2,
        };
        &bytes[..end]
    }
}

/// What a learner that starts finds.
fn check(root: &Path, finished: u64, has_best: bool, crash: &str) {
    let mut checkpoints = Checkpoints::new(&root.join("checkpoints"), 2);
    let newest = checkpoints.newest().unwrap_or_else(|error| panic!("{crash}: {error}"));
    let batch = newest.map_or(0, |(_, batch)| batch.0);
    assert!((finished..=finished + 1).contains(&batch), "{crash}: {batch} of {finished}");
    checkpoints.claim(writer(2), true).unwrap_or_else(|error| panic!("{crash}: {error}"));
    if has_best {
        let best = fs::read_to_string(root.join("checkpoints/best.json")).unwrap();
        assert!(best.contains(&BEST.to_string()), "{crash}: {best}");
        assert!(root.join(format!("checkpoints/step-0000000{BEST}/manifest.json")).exists(), "{crash}");
    }
}

#[test]
fn what_a_crash_leaves_holds_the_newest_finished_checkpoint() {
    if let Some(root) = std::env::var_os(ROOT) {
        return write_checkpoints(Path::new(&root));
    }
    let scratch = tempfile::tempdir().unwrap();
    let written = Written::observe(scratch.path());
    let flushes = written.operations.iter().filter(|operation| matches!(operation, Operation::Flush(_)));
    assert!(flushes.count() as u64 > 10 * WRITTEN, "{:?}", written.operations);
    let (mut disk, mut states) = (Disk::new(), 0);
    let (mut finished, mut has_best) = (0, false);
    for (place, operation) in written.operations.iter().enumerate() {
        disk.perform(operation);
        if let Operation::Create(path) = operation
            && path.to_str().unwrap().starts_with("finished-")
        {
            finished += 1;
            has_best = finished >= BEST;
        }
        for loss in [Loss::None, Loss::Content, Loss::AllContent, Loss::Names] {
            let (folders, files) = disk.left(loss);
            let state = scratch.path().join("state");
            let _ = fs::remove_dir_all(&state);
            folders.iter().for_each(|folder| fs::create_dir_all(state.join(folder)).unwrap());
            for (path, (node, part)) in &files {
                fs::write(state.join(path), written.part(*node, *part)).unwrap();
            }
            check(&state, finished, has_best, &format!("{loss:?} after {place}, {operation:?}"));
            states += 1;
        }
    }
    assert_eq!(finished, WRITTEN);
    println!("{states} crash points of {} file operations", written.operations.len());
}
