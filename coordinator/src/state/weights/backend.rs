//! What carries a broadcast group's tensors, decided here once for all its members: each of them would have
//! to come to the same end from its own device alone (docs/decisions.md, D16).

use std::collections::BTreeMap;

use types::MemberId;
use types::link::actor::GroupBackend;

/// The backend of a group of these members with their GPUs, and why it is not NCCL although some have one.
///
/// NCCL joins GPUs, and no GPU twice. Whatever else there is goes from host to host.
pub(super) fn choose<'a>(
    members: impl IntoIterator<Item = (&'a MemberId, Option<&'a str>)>,
) -> (GroupBackend, Option<String>) {
    let mut on_cpu = Vec::new();
    let mut of_gpu: BTreeMap<&str, Vec<&MemberId>> = BTreeMap::new();
    for (member, gpu) in members {
        match gpu {
            Some(gpu) => of_gpu.entry(gpu).or_default().push(member),
            None => on_cpu.push(member),
        }
    }
    if of_gpu.is_empty() {
        return (GroupBackend::Gloo, None);
    }
    if let Some(first) = on_cpu.first() {
        return (GroupBackend::Gloo, Some(format!("{first} has no GPU, and others have")));
    }
    match of_gpu.values().find(|members| members.len() > 1) {
        Some(members) => (GroupBackend::Gloo, Some(format!("{} and {} share a GPU", members[0], members[1]))),
        None => (GroupBackend::Nccl, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_of_their_own_go_through_nccl_and_all_else_through_the_hosts() {
        use GroupBackend::{Gloo, Nccl};
        type Case = (&'static [Option<&'static str>], GroupBackend, Option<&'static str>);
        let cases: [Case; 7] = [
            (&[None, None], Gloo, None),
            (&[Some("a"), Some("b"), Some("c")], Nccl, None),
            (&[Some("a")], Nccl, None),
            (&[Some("a"), None], Gloo, Some("m1 has no GPU, and others have")),
            (&[None, Some("a"), Some("b")], Gloo, Some("m0 has no GPU, and others have")),
            (&[Some("a"), Some("a")], Gloo, Some("m0 and m1 share a GPU")),
            (&[Some("b"), Some("a"), Some("a"), Some("c")], Gloo, Some("m1 and m2 share a GPU")),
        ];
        for (gpus, backend, reason) in cases {
            let names: Vec<MemberId> = (0..gpus.len()).map(|at| format!("m{at}").parse().unwrap()).collect();
            let found = choose(names.iter().zip(gpus.iter().copied()));
            assert_eq!(found, (backend, reason.map(str::to_owned)), "{gpus:?}");
        }
    }
}
