//! The nextest profile `gpu` runs what needs a GPU, and only that: tests in modules called `gpu`, which are
//! compiled with the feature `cuda` alone.

use std::fs;

use tests::root;

use crate::workspace::sources;

#[test]
fn tests_of_a_gpu_are_in_modules_of_their_own() {
    let profiles = fs::read_to_string(root().join(".config/nextest.toml")).unwrap();
    let profiles: toml::Table = toml::from_str(&profiles).unwrap();
    let filter = profiles["profile"]["gpu"]["default-filter"].as_str().unwrap();
    assert_eq!(filter, "test(/(^|::)gpu::/)", "the rest of this test is about this filter");
    let mut modules = 0;
    for (path, text) in sources() {
        assert_ne!(path.file_stem().unwrap(), "gpu", "{}: its tests would match", path.display());
        let is_cuda_only = text.contains("#![cfg(feature = \"cuda\")]");
        let mut before = "";
        for line in text.lines() {
            if line.trim_start().trim_start_matches("pub(crate) ").starts_with("mod gpu ") {
                modules += 1;
                let guarded = before.trim() == "#[cfg(feature = \"cuda\")]" || is_cuda_only;
                assert!(guarded, "{}: mod gpu is compiled without the feature cuda", path.display());
            }
            before = line;
        }
    }
    assert_eq!(modules, 3, "those of the engine, of the model, and NCCL's");
}
