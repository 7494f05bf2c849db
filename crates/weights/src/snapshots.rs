//! Published weights: the newest versions as flat buffers, ready to be broadcast or pulled. A snapshot is
//! immutable and shared.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use types::{Manifest, PolicyVersion, WeightHash};

/// One version's weights.
#[derive(Debug)]
pub struct Snapshot {
    /// What they are.
    pub manifest: Manifest,
    /// The flat buffer.
    pub buffer: Bytes,
}

/// The newest versions.
#[derive(Debug, Clone)]
pub struct Snapshots {
    kept: Arc<Mutex<VecDeque<Arc<Snapshot>>>>,
    most: usize,
}

impl Snapshots {
    /// What a learner keeps: the newest, and the one before for pulls that broke off.
    pub fn of_learner() -> Self {
        Self { kept: Arc::default(), most: 2 }
    }

    /// What an actor keeps: the newest. A pull under way keeps the one that it reads.
    pub fn of_actor() -> Self {
        Self { kept: Arc::default(), most: 1 }
    }

    /// Adds the newest version, and forgets the oldest.
    pub fn add(&self, snapshot: Snapshot) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(Arc::new(snapshot));
        while kept.len() > self.most {
            kept.pop_front();
        }
    }

    /// The newest version.
    pub fn newest(&self) -> Option<Arc<Snapshot>> {
        self.find(|_| true)
    }

    /// The weights with this hash, if they are still kept.
    pub(crate) fn with_hash(&self, hash: WeightHash) -> Option<Arc<Snapshot>> {
        self.find(|manifest| manifest.hash() == hash)
    }

    /// The newest weights of this version, if they are still kept.
    pub(crate) fn of_version(&self, version: PolicyVersion) -> Option<Arc<Snapshot>> {
        self.find(|manifest| manifest.version() == version)
    }

    fn find(&self, wanted: impl Fn(&Manifest) -> bool) -> Option<Arc<Snapshot>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().find(|snapshot| wanted(&snapshot.manifest)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use types::{DType, TensorLayout};

    use super::*;

    fn snapshot(version: u64) -> Snapshot {
        let buffer = Bytes::from(version.to_le_bytes().to_vec());
        let layout = TensorLayout { name: "w".to_owned(), shape: vec![2], dtype: DType::F32 };
        let manifest = Manifest::of_buffer(PolicyVersion(version), vec![layout], &buffer).unwrap();
        Snapshot { manifest, buffer }
    }

    #[test]
    fn the_two_newest_are_kept() {
        let snapshots = Snapshots::of_learner();
        assert!(snapshots.newest().is_none());
        for version in 0..3 {
            snapshots.add(snapshot(version));
        }
        assert_eq!(snapshots.newest().unwrap().manifest.version(), PolicyVersion(2));
        assert!(snapshots.of_version(PolicyVersion(0)).is_none());
        let older = snapshots.of_version(PolicyVersion(1)).unwrap();
        assert_eq!(snapshots.with_hash(older.manifest.hash()).unwrap().manifest.version(), PolicyVersion(1));
    }
}
