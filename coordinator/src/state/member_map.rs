//! Members by name: looked up by a hash, so that it costs the same among ten and among thousands, and gone
//! through in the order of their names, so that nothing depends on the hash.

use std::collections::{BTreeSet, HashMap};

use types::MemberId;

/// What is known of each member.
#[derive(Debug, Clone)]
pub struct MemberMap<V> {
    by_name: HashMap<MemberId, V>,
    names: BTreeSet<MemberId>,
}

impl<V> Default for MemberMap<V> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), names: BTreeSet::new() }
    }
}

impl<V> MemberMap<V> {
    /// What is known of a member.
    pub fn get(&self, member: &MemberId) -> Option<&V> {
        self.by_name.get(member)
    }

    pub(super) fn get_mut(&mut self, member: &MemberId) -> Option<&mut V> {
        self.by_name.get_mut(member)
    }

    /// Yields what was known before.
    pub(super) fn insert(&mut self, member: MemberId, value: V) -> Option<V> {
        if !self.by_name.contains_key(&member) {
            self.names.insert(member.clone());
        }
        self.by_name.insert(member, value)
    }

    pub(super) fn remove(&mut self, member: &MemberId) -> Option<V> {
        self.names.remove(member);
        self.by_name.remove(member)
    }

    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = (&MemberId, &V)> {
        self.names.iter().filter_map(|name| Some((name, self.by_name.get(name)?)))
    }

    /// What is known of all of them, by name.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_and_gone_through_by_name() {
        let name = |name: &str| name.parse::<MemberId>().unwrap();
        let mut map = MemberMap::default();
        assert!(map.is_empty());
        for (number, member) in ["c", "a", "b", "d"].into_iter().enumerate() {
            assert_eq!(map.insert(name(member), number), None);
        }
        assert_eq!(map.insert(name("b"), 9), Some(2));
        *map.get_mut(&name("c")).unwrap() += 7;
        assert_eq!(map.remove(&name("d")), Some(3));
        assert_eq!(map.remove(&name("d")), None);
        assert_eq!((map.get(&name("c")), map.get(&name("d")), map.len()), (Some(&7), None, 3));
        assert!(map.iter().eq([(&name("a"), &1), (&name("b"), &9), (&name("c"), &7)]));
        assert!(map.values().eq([&1, &9, &7]) && !map.is_empty());
    }
}
