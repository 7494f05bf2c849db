//! Files and folders that a configuration names, looked for before anything starts.

use std::path::Path;

use service::config::Key;

/// What a key names that is not there and that none of the stages before makes, where there are stages.
/// `file` is where it is written, and `beside` what is written there for its own folder.
pub(crate) fn missing(key: &Key, made: Option<&[&Path]>, file: &Path, beside: &str) -> Vec<String> {
    let values: Vec<&str> = match &key.value {
        Some(serde_json::Value::String(path)) => vec![path],
        Some(serde_json::Value::Array(paths)) => paths.iter().filter_map(serde_json::Value::as_str).collect(),
        _ => Vec::new(),
    };
    let paths = values.into_iter().filter(|path| !path.is_empty()).map(Path::new);
    let unmade = paths.filter(|path| !made.into_iter().flatten().any(|made| path.starts_with(made)));
    let unmaking = if made.is_some() { ", and no stage before makes it" } else { "" };
    let mut said = Vec::new();
    for path in unmade {
        let problem = match absence(path, &key.kind) {
            None => continue,
            Some(Absence::NoFile) => format!("there is no such file{unmaking}"),
            Some(Absence::NoFolder) => format!("there is no such folder{unmaking}"),
            Some(Absence::NotAFile) => "it is a folder, must be a file".to_owned(),
            Some(Absence::Without(file)) => format!("it holds no {file}"),
        };
        said.push(format!("{} is {path:?}: {problem}{}", key.path, found_at(path, file, beside)));
    }
    said
}

/// From where a relative path is looked for, and whether it is beside the file that names it.
fn found_at(path: &Path, file: &Path, beside: &str) -> String {
    if path.is_absolute() || path.exists() {
        return String::new();
    }
    let here = std::env::current_dir().unwrap_or_default();
    let is_there = file.parent().is_some_and(|folder| folder.join(path).exists());
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let path = path.display();
    let hint =
        if is_there { format!("; there is one beside {name}: write {beside}/{path}") } else { String::new() };
    format!(" (seen from {}{hint})", here.display())
}

/// What is wrong with an input.
enum Absence {
    NoFile,
    NotAFile,
    NoFolder,
    /// A folder without this file.
    Without(&'static str),
}

/// What is wrong with an input on this machine.
fn absence(path: &Path, kind: &str) -> Option<Absence> {
    let inside = match kind {
        "model folder" => Some("config.json"),
        "tokenizer folder" => Some("tokenizer.json"),
        "file" | "files" => None,
        _ => return None,
    };
    match inside {
        None if path.is_file() => None,
        None if path.is_dir() => Some(Absence::NotAFile),
        None => Some(Absence::NoFile),
        Some(_) if !path.exists() => Some(Absence::NoFolder),
        Some(file) if !path.join(file).is_file() => Some(Absence::Without(file)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::recipe::{Environment, RecipeFile};

    /// Somebody who starts from another folder is told what to write.
    #[test]
    fn a_file_beside_the_recipe_is_pointed_at() {
        let folder = tempfile::tempdir().unwrap();
        let recipe = folder.path().join("mine.toml");
        std::fs::write(&recipe, "output = 'runs/x'\n[coordinator.data]\npath = 'beside-me.jsonl'\n").unwrap();
        let said = || {
            let file = RecipeFile::read(&recipe, Environment::LeftOut, &[]).unwrap();
            file.preflight().unwrap_err().to_string()
        };
        let hint = "there is one beside mine.toml: write {recipe}/beside-me.jsonl";
        assert!(said().contains("mine.toml:3: coordinator.data.path is \"beside-me.jsonl\""), "{}", said());
        assert!(!said().contains(hint), "{}", said());
        std::fs::write(folder.path().join("beside-me.jsonl"), "{\"prompt\": \"x\"}\n").unwrap();
        assert!(said().contains(hint), "{}", said());
    }
}
