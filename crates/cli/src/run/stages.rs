//! The stages of a recipe in their order, and those that are done by this process.
//!
//! A stage that has finished leaves a record beside the outputs; a run that finds it skips the stage. A stage
//! without a record starts over: what it left unfinished is removed first. The ring alone goes on where it
//! was, from its journal and checkpoints.

mod command;
mod compute;
mod output_folder;
mod records;
mod ring;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use service::{BadInput, StopSignals};
use tokio::time::Instant;

use crate::recipe::{Recipe, RecipeFile, Stage, Work};
use crate::say::{say, span};
use output_folder::{Consent, OutputFolder};
use records::{Records, Told};

/// Which stages are done again, and how the ring begins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Go on with a ring that was interrupted.
    pub(crate) resume: bool,
    /// Do this stage and all later ones again.
    pub(crate) redo_from: Option<String>,
    /// Do no stage behind this one.
    pub(crate) until: Option<String>,
}

/// How a stage ended that could be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// It did all its work.
    Complete,
    /// It did all that it was to do, and some stages are left.
    Reached,
    /// The user stopped it, and it left what the next run goes on from.
    Stopped,
    /// The user stopped it before it was done.
    Abandoned,
    /// The program that did it ended with this code, and has said why.
    Failed(u8),
}

/// Does the stages of a recipe that are not done yet.
///
/// # Errors
/// Names the stage that failed.
pub(crate) async fn run(file: &RecipeFile, selection: &Selection) -> anyhow::Result<Done> {
    let mut output = OutputFolder::take(&file.recipe.output)?;
    let done = work_through(file, selection, &mut output).await;
    if let Err(error) = &done
        && error.chain().any(|cause| cause.is::<BadInput>() || cause.is::<service::config::Error>())
    {
        output.forget_start();
    }
    done
}

async fn work_through(
    file: &RecipeFile,
    selection: &Selection,
    output: &mut OutputFolder,
) -> anyhow::Result<Done> {
    let stages = file.recipe.stages_or_ring();
    let records = Records::of(output.path())?;
    let behind = match &selection.until {
        Some(last) => position(&stages, last)? + 1,
        None => stages.len(),
    };
    if let Some(first) = &selection.redo_from {
        redo(file, first, output, &records)?;
    }
    let mut stop = StopSignals::listen()?;
    let mut is_renewed = false;
    for (number, stage) in stages[..behind].iter().enumerate() {
        let work = stage.work().map_err(|error| BadInput(error.to_string()))?;
        let told = told(file, stage)?;
        let title = format!("[{}/{}] {}", number + 1, stages.len(), stage.name);
        let finished = records.finished(&stage.name, &told, work.output())?;
        if is_renewed && finished.is_some() {
            // It was made of what has been made anew since.
            output.move_aside(&[work.output()], Consent::Given)?;
        } else if let Some(seconds) = finished {
            say(&format!("{title}: done before, in {}", span(Duration::from_secs_f64(seconds))));
            continue;
        }
        is_renewed = true;
        say(&title.to_string());
        let started = Instant::now();
        let done = perform(file, stage, selection.resume, &mut stop).await;
        let done = done.with_context(|| format!("stage {}", stage.name))?;
        if done != Done::Complete {
            return Ok(done);
        }
        records.finish(&stage.name, told, started.elapsed())?;
        output.keep();
        say(&format!("  {} in {}", work.output().display(), span(started.elapsed())));
    }
    Ok(if behind == stages.len() { Done::Complete } else { Done::Reached })
}

/// Does one stage. Ctrl-C or SIGTERM ends it: the ring drains, training keeps its steps, and a program is
/// left at once.
async fn perform(
    file: &RecipeFile,
    stage: &Stage,
    resume: bool,
    stop: &mut StopSignals,
) -> anyhow::Result<Done> {
    let work = stage.work().map_err(|error| BadInput(error.to_string()))?;
    if let Work::Ring(ring) = work {
        return ring::run(&file.of_ring(stage)?, ring, resume, stop).await;
    }
    discard(work.output(), &file.recipe.output)?;
    let done = match work {
        Work::Command(command) => tokio::select! {
            // A program that hears Ctrl-C as we do may have ended because of it.
            biased;
            () = stop.next() => Ok(Done::Abandoned),
            done = command::run(command) => done.map(|()| Done::Complete),
        },
        _ => compute::run(file, stage, stop).await,
    };
    if matches!(done, Ok(Done::Abandoned)) {
        say(&format!("stopped in stage {}; the stages before it are kept", stage.name));
    }
    done
}

/// What a stage's result follows from: its own table, and for the ring the roles' too.
fn told(file: &RecipeFile, stage: &Stage) -> anyhow::Result<Told> {
    let mut decided = stage.clone();
    decided.fill_in_decided();
    let mut text = toml::to_string(&decided).context("write down the stage")?;
    if stage.ring.is_none() {
        return Ok(Told { text, batches: None });
    }
    let mut roles = Recipe { stages: Vec::new(), ..file.of_ring(stage)?.recipe };
    // How far it goes is no other ring.
    let batches = std::mem::take(&mut roles.coordinator.batches);
    text += &toml::to_string(&roles).context("write down the recipe")?;
    Ok(Told { text, batches: Some(batches) })
}

/// Where the stage of this name is.
fn position(stages: &[Stage], name: &str) -> Result<usize, BadInput> {
    stages.iter().position(|stage| stage.name == name).ok_or_else(|| {
        let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
        BadInput(format!("there is no stage {name:?}; the recipe has {}", names.join(", ")))
    })
}

/// Forgets stages, and moves what they made aside.
fn redo(file: &RecipeFile, first: &str, output: &OutputFolder, records: &Records) -> anyhow::Result<()> {
    let stages = file.recipe.stages_or_ring();
    let from = position(&stages, first)?;
    let mut made = Vec::new();
    for stage in &stages[from..] {
        made.push(stage.work().map_err(|error| BadInput(error.to_string()))?.output().clone());
        if stage.ring.is_some() {
            made.push(file.of_ring(stage)?.ring_folder().root().to_owned());
        }
    }
    let made: Vec<&Path> = made.iter().map(PathBuf::as_path).collect();
    output.move_aside(&made, Consent::Asked)?;
    stages[from..].iter().try_for_each(|stage| records.forget(&stage.name))
}

/// Removes what an unfinished stage left, if that lies in the run's own folder.
fn discard(leftover: &Path, output: &Path) -> anyhow::Result<()> {
    if !leftover.exists() {
        return Ok(());
    }
    if !leftover.starts_with(output) {
        let problem = format!("{} is there already; remove it or name another output", leftover.display());
        return Err(BadInput(problem).into());
    }
    let removed =
        if leftover.is_dir() { std::fs::remove_dir_all(leftover) } else { std::fs::remove_file(leftover) };
    removed.with_context(|| format!("remove the unfinished {}", leftover.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Environment;

    const RECIPE: &str = "name = 'x'\noutput = 'runs/x'\n[learner.ppo]\npolicy_lr = 1e-4\n\
        [reward_server.reference]\nmodel = 'm'\n\
        [[reward_server.scorers]]\nkind = 'regex'\npattern = 'a'\n\
        [[stages]]\nname = 'sft'\nsft = {model = 'm', data = 'd.jsonl', output = 'runs/x/sft'}\n\
        [[stages]]\nname = 'ring'\nring.output = '{output}/policy'\n\
        [stages.ring.set]\nlearner.ppo.ppo_epochs = 2\n";

    fn read(text: &str) -> RecipeFile {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        RecipeFile::read(file.path(), Environment::LeftOut, &[]).unwrap()
    }

    #[test]
    fn what_an_older_release_has_finished_is_known_though_keys_have_come_since() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path()).unwrap();
        let (file, other) = (read(RECIPE), read(&RECIPE.replace("1e-4", "2e-4")));
        for (stage, new_keys) in file
            .recipe
            .stages
            .iter()
            .zip([["mixture = []", "shuffle = true"], ["covariance = \"off\"", "prefix_cache = true"]])
        {
            let mut old = told(&file, stage).unwrap();
            for key in new_keys {
                let line = format!("{key}\n");
                assert!(old.text.contains(&line), "{key}: {}", old.text);
                old.text = old.text.replace(&line, "");
            }
            records.finish(&stage.name, old, Duration::from_secs(2)).unwrap();
            let now = told(&file, stage).unwrap();
            assert_eq!(records.finished(&stage.name, &now, folder.path()).unwrap(), Some(2.0));
        }
        // What is really another value is said, and nothing else.
        let ring = &other.recipe.stages[1];
        let error = records.finished("ring", &told(&other, ring).unwrap(), folder.path()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("`policy_lr = 0.0001`, now it is `policy_lr = 0.0002`"), "{error}");
    }
}
