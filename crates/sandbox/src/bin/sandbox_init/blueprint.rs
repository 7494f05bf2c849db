//! Packs what every run of the zygote needs into one memfd.

use std::os::fd::{OwnedFd, RawFd};

use crate::failure::Failure;
use crate::launch::{holds_capability, memfd};
use crate::seccomp_rules::{self, Filters};
use crate::wire::{Blueprint, MAGIC, MAX_BLUEPRINT, Step};
use crate::zygote_spec::ZygoteSpec;

const CAP_SETPCAP: u32 = 8;

/// The blueprint: head, three filters, rulings.
pub(crate) fn memfd_for(spec: &ZygoteSpec, landlock_fd: RawFd) -> Result<OwnedFd, Failure> {
    let Filters { direct, nested, closing } = seccomp_rules::filters();
    let rulings = seccomp_rules::rulings();
    let (guest_uid, guest_gid) = spec.guest_ids.unwrap_or((u32::MAX, u32::MAX));
    let head = Blueprint {
        magic: MAGIC,
        landlock_fd,
        guest_uid,
        guest_gid,
        direct_len: length(direct.len())?,
        nested_len: length(nested.len())?,
        closing_len: length(closing.len())?,
        rulings_len: length(rulings.len())?,
        drop_bounding: u32::from(holds_capability(CAP_SETPCAP).unwrap_or(true)),
        reserved: 0,
    };
    // SAFETY: `Blueprint` is `repr(C)`, ten 32-bit integers without padding.
    let mut bytes = unsafe {
        std::slice::from_raw_parts((&raw const head).cast::<u8>(), std::mem::size_of::<Blueprint>()).to_vec()
    };
    for instruction in [direct, nested, closing].concat() {
        bytes.extend_from_slice(&instruction.to_ne_bytes());
    }
    for ruling in rulings {
        bytes.extend_from_slice(&ruling.syscall.to_ne_bytes());
        bytes.extend_from_slice(&[ruling.direct, ruling.nested]);
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    if bytes.len() > MAX_BLUEPRINT {
        return Err(Failure::other(Step::SeccompRules, format!("the blueprint has {} bytes", bytes.len())));
    }
    memfd("blueprint", &bytes, Step::SeccompRules)
}

fn length(count: usize) -> Result<u32, Failure> {
    u32::try_from(count).map_err(|error| Failure::other(Step::SeccompRules, error))
}
