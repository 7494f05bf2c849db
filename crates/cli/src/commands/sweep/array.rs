//! A sweep as a Slurm array: one task for each run.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use service::BadInput;

/// The name of the script in the sweep's folder.
const SCRIPT: &str = "sweep.sbatch";

/// What the script of an array says.
pub(super) struct Array<'a> {
    /// The jobs' name.
    pub(super) name: &'a str,
    /// Runs, and so tasks.
    pub(super) runs: usize,
    /// The folder that paths of the command line begin in.
    pub(super) folder: &'a Path,
    /// Where the tasks' logs go.
    pub(super) logs: &'a Path,
    /// More options of sbatch.
    pub(super) options: &'a [String],
    /// The sweep's own command line without what chooses a run.
    pub(super) command: &'a [String],
}

impl Array<'_> {
    /// The script.
    ///
    /// # Errors
    /// Names the option or the path that cannot stand in it.
    pub(super) fn script(&self) -> Result<String, BadInput> {
        let Self { name, runs, folder, logs, options, command } = self;
        let logs = logs.display().to_string();
        if logs.contains(|c: char| c.is_whitespace() || c == '%') {
            let problem =
                format!("--output is {logs:?}: sbatch takes no space and no % in the name of a log");
            return Err(BadInput(problem));
        }
        let mut lines = String::new();
        for option in *options {
            if !option.starts_with('-') || option.contains(char::is_control) {
                let problem =
                    format!("--sbatch is {option:?}, must be an option of sbatch, such as --partition=gpu");
                return Err(BadInput(problem));
            }
            lines += &format!("#SBATCH {option}\n");
        }
        let command: Vec<String> = command.iter().map(|argument| quoted(argument)).collect();
        Ok(include_str!("sweep.sbatch")
            .replace("SWEEP_NAME", name)
            .replace("LAST_RUN", &runs.saturating_sub(1).to_string())
            .replace("LOGS_FOLDER", &logs)
            .replace("#SBATCH OPTIONS\n", &lines)
            .replace("WORKING_FOLDER", &quoted(&folder.display().to_string()))
            .replace("SWEEP_COMMAND", &command.join(" ")))
    }

    /// Writes the script and gives it to sbatch; what sbatch says goes to where this command's words go.
    ///
    /// # Errors
    /// When the script cannot be written, or sbatch is not there or refuses it.
    pub(super) fn submit(&self) -> anyhow::Result<()> {
        let path = self.logs.join(SCRIPT);
        std::fs::write(&path, self.script()?).with_context(|| format!("write {}", path.display()))?;
        let submitted = Command::new("sbatch").arg(&path).current_dir(self.folder).status();
        let advice =
            || format!("start sbatch: is this a machine of the cluster? The script is {}", path.display());
        let submitted = submitted.with_context(advice)?;
        anyhow::ensure!(submitted.success(), "sbatch refused {} ({submitted})", path.display());
        Ok(())
    }
}

/// An argument as a shell reads it back.
fn quoted(argument: &str) -> String {
    if !argument.is_empty() && argument.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=:,+".contains(c)) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(options: &[&str], logs: &str) -> Result<String, BadInput> {
        let command = ["/opt/sluice", "sweep", "my recipe.toml", "--set", "a='x',y"].map(str::to_owned);
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let array = Array {
            name: "abl-sweep",
            runs: 6,
            folder: Path::new("/home/me/my runs"),
            logs: Path::new(logs),
            options: &options,
            command: &command,
        };
        array.script()
    }

    #[test]
    fn a_task_is_a_run() {
        let script = script(&["--partition=gpu", "--time=1-00:00:00"], "/runs/abl-sweep").unwrap();
        for line in [
            "#SBATCH --array=0-5",
            "#SBATCH --job-name=abl-sweep",
            "#SBATCH --output=/runs/abl-sweep/slurm-%a.log",
            "#SBATCH --partition=gpu",
            "#SBATCH --time=1-00:00:00",
            "cd '/home/me/my runs' || exit 1",
            r#"/opt/sluice sweep 'my recipe.toml' --set 'a='\''x'\'',y' --cell "$SLURM_ARRAY_TASK_ID" &"#,
        ] {
            assert!(script.lines().any(|found| found == line), "{line} in\n{script}");
        }
        let checked = std::process::Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }

    #[test]
    fn what_sbatch_would_misread_is_refused() {
        assert!(script(&["gpu"], "/runs").unwrap_err().to_string().contains("--sbatch is \"gpu\""));
        assert!(script(&[], "/my runs").unwrap_err().to_string().contains("no space"));
    }
}
