//! What names the beginning of a sequence: a hash of its tokens, block by block.
//!
//! As in vLLM, a block's key hashes the key of the block in front of it with the block's own tokens, so that
//! equal keys mean equal tokens from the start of the sequence on. It is BLAKE3: nobody finds two sequences
//! with one key.

/// The name of some whole blocks of tokens and what follows them, at most another block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PrefixKey([u8; blake3::OUT_LEN]);

impl PrefixKey {
    /// The name of nothing.
    pub(crate) fn root() -> Self {
        Self([0; blake3::OUT_LEN])
    }

    /// The name of what stands in front, and these tokens behind it.
    pub(crate) fn of(&self, tokens: &[u32]) -> Self {
        let mut hasher = self.hasher();
        tokens.iter().for_each(|token| extend(&mut hasher, *token));
        Self(*hasher.finalize().as_bytes())
    }

    /// Visits the names of what stands in front with the first of these tokens behind it, with the first two,
    /// and so on.
    pub(crate) fn each_of(&self, tokens: &[u32], mut visit: impl FnMut(usize, Self)) {
        let mut hasher = self.hasher();
        for (index, token) in tokens.iter().enumerate() {
            extend(&mut hasher, *token);
            visit(index + 1, Self(*hasher.finalize().as_bytes()));
        }
    }

    fn hasher(&self) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher
    }
}

fn extend(hasher: &mut blake3::Hasher, token: u32) {
    hasher.update(&token.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_all_tokens_in_their_order() {
        let root = PrefixKey::root();
        let first = root.of(&[1, 2]);
        assert_eq!(first, root.of(&[1, 2]));
        assert_ne!(first, root.of(&[2, 1]));
        assert_ne!(first.of(&[3, 4]), root.of(&[3, 4]));
        assert_ne!(first.of(&[3, 4]), first.of(&[3]));
        let mut visited = Vec::new();
        first.each_of(&[3, 4], |tokens, key| visited.push((tokens, key)));
        assert_eq!(visited, [(1, first.of(&[3])), (2, first.of(&[3, 4]))]);
    }
}
