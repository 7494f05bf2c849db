//! The Landlock ruleset that every guest enters: it may read the specification's paths and nothing else; in
//! tier A it may also do as it likes in the scratch folder of its run.

use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, Scope,
};

use crate::failure::Failure;
use crate::wire::Step;
use crate::zygote_spec::ZygoteSpec;

/// Linux 6.2: the first with control over truncation, without which a file could be emptied through a name.
const REQUIRED: ABI = ABI::V3;

/// Builds the ruleset; the result is entered by each guest, never by the zygote, which has to go on mounting.
pub(crate) fn ruleset(spec: &ZygoteSpec) -> Result<OwnedFd, Failure> {
    let handled = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(REQUIRED))
        .map_err(|error| failed("Landlock ABI 3 (Linux 6.2) is needed", error))?
        // Networks, device ioctls, signals and abstract sockets: where the kernel knows them. The seccomp
        // filter refuses all of them by itself.
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::IoctlDev)
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI::V4)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
        .map_err(|error| failed("handle", error))?;
    let mut rules = handled.create().map_err(|error| failed("create", error))?;

    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let run = if spec.namespaces { read | AccessFs::Execute } else { read };
    for path in spec.reads.iter().chain([&spec.interpreter]) {
        rules = allow(rules, path, run)?;
    }
    rules = allow(rules, Path::new("/dev/null"), read | AccessFs::WriteFile)?;
    for device in ["/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"] {
        if Path::new(device).exists() {
            rules = allow(rules, Path::new(device), read)?;
        }
    }
    if spec.namespaces {
        rules = allow(rules, Path::new("/view"), read)?;
        let special = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::MakeSock | AccessFs::Execute;
        rules = allow(rules, Path::new("/box"), AccessFs::from_all(REQUIRED) & !special)?;
    }
    let fd: Option<OwnedFd> = rules.into();
    fd.ok_or_else(|| Failure::other(Step::LandlockRules, "the kernel has no Landlock"))
}

fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, Failure> {
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(REQUIRED) };
    let beneath = PathFd::new(path).map_err(|error| failed(path.display(), error))?;
    rules.add_rule(PathBeneath::new(beneath, access)).map_err(|error| failed(path.display(), error))
}

fn failed(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Failure {
    Failure::other(Step::LandlockRules, format!("{what}: {error}"))
}
