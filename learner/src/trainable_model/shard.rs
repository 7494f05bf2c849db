//! How a group's flat buffer is divided among the ranks: in equal shards, one a rank.
//!
//! A buffer is padded so that the shards are equally long. The padding is 0 and stays 0: its gradient is 0,
//! and a weight of 0 neither moves nor decays then.

use tch::Tensor;

/// One rank's shard of a group's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    /// Elements of the group.
    pub(crate) numel: i64,
    /// Elements of the padded buffer: `length` times the number of shards.
    pub(crate) padded: i64,
    /// Elements of one shard.
    pub(crate) length: i64,
    /// Where this rank's shard begins in the padded buffer.
    pub(crate) start: i64,
}

impl Shard {
    /// Shard `index` of `count` equally long ones of a group of `numel` elements.
    pub(crate) fn new(numel: i64, index: usize, count: usize) -> Self {
        let count = count as i64;
        let length = (numel + count - 1) / count;
        Self { numel, padded: length * count, length, start: length * index as i64 }
    }

    /// Whether this shard is the whole buffer.
    pub(crate) fn is_whole(&self) -> bool {
        self.length == self.padded
    }

    /// This rank's shard of a whole padded buffer: a view, `[shard]`.
    pub(crate) fn slice(&self, padded: &Tensor) -> Tensor {
        padded.narrow(0, self.start, self.length)
    }

    /// The group's elements of a whole padded buffer: a view, `[numel]`.
    pub(crate) fn unpadded(&self, padded: &Tensor) -> Tensor {
        padded.narrow(0, 0, self.numel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_a_buffer_and_are_equally_long() {
        for numel in [0, 1, 7, 8, 9] {
            for count in 1..5 {
                let shards: Vec<Shard> = (0..count).map(|index| Shard::new(numel, index, count)).collect();
                let mut end = 0;
                for shard in &shards {
                    assert_eq!(
                        (shard.start, shard.length, shard.padded),
                        (end, shards[0].length, shards[0].padded)
                    );
                    end += shard.length;
                }
                assert!(end == shards[0].padded && end >= numel && end - numel < count as i64);
            }
        }
    }
}
