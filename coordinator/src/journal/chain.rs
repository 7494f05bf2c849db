//! A checksum of all facts so far, and a mark of the last durable one beside the store.
//!
//! The end of a log may be a write that was torn by a crash, or a bit may have flipped later in what was
//! durable and acknowledged. Nobody could tell the two apart by the log alone. The mark can: it is written
//! after each durable write and says how far the facts went. It is not synced: after a power failure it may
//! be an older one, and then it says less, but nothing wrong.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes of a checksum.
pub(super) const CHAIN_BYTES: usize = 16;
/// The mark lies in two slots, written by turns: a torn one leaves the other.
const SLOT_BYTES: usize = 32;
const SLOTS: u64 = 2;

/// A checksum of all facts up to one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chain(pub(super) [u8; CHAIN_BYTES]);

impl Chain {
    /// The checksum with one more fact.
    pub(super) fn with(self, fact: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(fact);
        let mut chain = [0; CHAIN_BYTES];
        chain.copy_from_slice(&hasher.finalize().as_bytes()[..CHAIN_BYTES]);
        Self(chain)
    }

    /// An entry of the journal: the checksum up to it, then the fact.
    pub(super) fn entry(self, fact: &[u8]) -> Vec<u8> {
        [&self.0, fact].concat()
    }

    /// The fact of an entry, if the checksum up to it is right.
    pub(super) fn check(self, entry: &[u8]) -> Option<(Self, &[u8])> {
        let (stated, fact) = entry.split_at_checked(CHAIN_BYTES)?;
        let chain = self.with(fact);
        (chain.0 == stated).then_some((chain, fact))
    }
}

/// How far the durable facts go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Sequence number of the next fact.
    pub(super) next: u64,
    /// The checksum of those before.
    pub(super) chain: Chain,
}

/// The file of the mark.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    slot: u64,
}

impl MarkFile {
    /// Opens or begins the file; yields the newest mark that is whole, if there is one.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Mark>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut newest: Option<(Mark, u64)> = None;
        for slot in 0..SLOTS {
            let mut bytes = [0; SLOT_BYTES];
            let whole = file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64).is_ok();
            if let Some(mark) = decode(&bytes).filter(|_| whole)
                && newest.is_none_or(|(known, _)| known.next < mark.next)
            {
                newest = Some((mark, slot));
            }
        }
        let slot = newest.map_or(0, |(_, slot)| (slot + 1) % SLOTS);
        Ok((Self { file, slot }, newest.map(|(mark, _)| mark)))
    }

    /// Says how far the durable facts go now.
    pub(super) fn write(&mut self, mark: Mark) -> io::Result<()> {
        self.file.write_all_at(&encode(mark), self.slot * SLOT_BYTES as u64)?;
        self.slot = (self.slot + 1) % SLOTS;
        Ok(())
    }
}

fn encode(mark: Mark) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(&mark.next.to_le_bytes());
    bytes[8..8 + CHAIN_BYTES].copy_from_slice(&mark.chain.0);
    let checksum = blake3::hash(&bytes[..8 + CHAIN_BYTES]);
    bytes[8 + CHAIN_BYTES..].copy_from_slice(&checksum.as_bytes()[..SLOT_BYTES - 8 - CHAIN_BYTES]);
    bytes
}

fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<Mark> {
    let next = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    let chain = Chain(bytes[8..8 + CHAIN_BYTES].try_into().ok()?);
    let mark = Mark { next, chain };
    (encode(mark) == *bytes).then_some(mark)
}
