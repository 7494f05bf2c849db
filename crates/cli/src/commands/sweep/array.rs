//! A sweep as a Slurm array: one task for each run.

/// The script; `command` is the sweep's own command line without what chooses a run.
pub(super) fn script(name: &str, runs: usize, logs: &str, command: &[String]) -> String {
    let command: Vec<String> = command.iter().map(|argument| quoted(argument)).collect();
    format!(
        "#!/bin/bash\n\
         # Each task does one run of the sweep and goes on with it when it is started again. What a run needs (CPUs,\n\
         # memory, GPUs, time) is given on sbatch's command line.\n\
         #SBATCH --job-name={name}\n\
         #SBATCH --array=0-{last}\n\
         #SBATCH --output={logs}/slurm-%a.log\n\
         #SBATCH --open-mode=append\n\
         #SBATCH --signal=B:TERM@120\n\
         exec {} --cell \"$SLURM_ARRAY_TASK_ID\"\n",
        command.join(" "),
        last = runs.saturating_sub(1),
    )
}

/// An argument as a shell reads it back.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_a_run() {
        let command = ["/opt/sluice", "sweep", "my recipe.toml", "--set", "a='x',y"].map(str::to_owned);
        let script = script("abl-sweep", 6, "runs/abl-sweep", &command);
        assert!(script.contains("#SBATCH --array=0-5\n"), "{script}");
        let line = script.lines().last().unwrap();
        assert_eq!(
            line,
            r#"exec /opt/sluice sweep 'my recipe.toml' --set 'a='\''x'\'',y' --cell "$SLURM_ARRAY_TASK_ID""#
        );
    }
}
