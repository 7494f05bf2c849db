//! `setup/install.sh` on machines that lack something: it says what, and how to go on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tests::root;

/// What the script uses beside the tools that it asks for.
const ALWAYS: &[&str] = &["sh", "dirname", "mkdir", "flock", "cat", "cmp", "rm", "mv", "cp"];

/// A checkout with nothing but the script, on a machine that has only these programs.
struct Machine(tempfile::TempDir);

impl Machine {
    fn with(programs: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (setup, bin) = (folder.path().join("setup"), folder.path().join("bin"));
        fs::create_dir(&setup).unwrap();
        fs::create_dir(&bin).unwrap();
        for name in ["install.sh", "torch.txt", "math.txt"] {
            fs::copy(root().join("setup").join(name), setup.join(name)).unwrap();
        }
        let path = std::env::var_os("PATH").unwrap();
        for name in ALWAYS.iter().chain(programs) {
            let there =
                std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.exists());
            symlink(there.unwrap_or_else(|| panic!("{name} is nowhere in PATH")), bin.join(name)).unwrap();
        }
        Self(folder)
    }

    /// Marks the libraries as there.
    fn with_torch(self) -> Self {
        let python = self.0.path().join(".deps/python");
        fs::create_dir_all(&python).unwrap();
        fs::copy(root().join("setup/torch.txt"), python.join(".sluice-stamp")).unwrap();
        self
    }

    /// Whether the set-up ends well, and what it says.
    fn set_up(&self, gloo: Option<&Path>) -> (bool, String) {
        let mut command = Command::new(self.0.path().join("setup/install.sh"));
        command.env_clear().env("PATH", self.0.path().join("bin"));
        if let Some(gloo) = gloo {
            command.env("SLUICE_GLOO_INCLUDE", gloo);
        }
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

#[test]
fn what_is_missing_is_said_at_once_and_for_every_distribution() {
    let (done, said) = Machine::with(&["make", "cargo"]).set_up(None);
    assert!(!done && said.contains("missing: python3 g++."), "{said}");
    for way in ["apt-get install", "dnf install", "zypper install", "pacman -S"] {
        assert!(said.contains(way), "{said}");
    }
    let (done, said) = Machine::with(&["make", "python3", "g++"]).set_up(None);
    assert!(!done && said.contains("cargo is missing") && said.contains("rustup"), "{said}");
}

#[test]
fn without_debians_tools_the_headers_of_gloo_are_named() {
    let machine = Machine::with(&["make", "python3", "g++", "cargo"]).with_torch();
    let (done, said) = machine.set_up(None);
    assert!(!done && said.contains("apt-get is missing") && said.contains("SLUICE_GLOO_INCLUDE"), "{said}");
    let (done, said) = machine.set_up(Some(machine.0.path()));
    assert!(!done && said.contains("has no gloo/context.h"), "{said}");
    let gloo = std::env::var_os("SLUICE_GLOO_INCLUDE")
        .map_or_else(|| root().join(".deps/debian/usr/include"), Into::into);
    let (done, said) = machine.set_up(Some(&gloo));
    assert!(done, "{said}");
}
