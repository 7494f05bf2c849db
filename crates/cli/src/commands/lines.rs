//! What commands that read lines have in common.

use std::path::Path;

use service::jsonl::WrongLines;

/// What is done about lines of the input that are wrong.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct LineArguments {
    /// Says each line that is wrong, passes over it and does the others; exit code 2 at the end if there were
    /// any.
    #[arg(long)]
    pub(crate) keep_going: bool,
}

impl LineArguments {
    /// The count of lines that are passed over.
    pub(crate) fn wrong_lines(self) -> WrongLines {
        WrongLines::new(self.keep_going)
    }
}

/// Says what a command has to say beside its output: on standard error where that is standard output.
pub(crate) fn say_beside(output: &Path, summary: &str) {
    if output == Path::new("-") {
        eprintln!("{summary}");
    } else {
        println!("{summary}");
    }
}
