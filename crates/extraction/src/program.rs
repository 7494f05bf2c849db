//! A program of its parts: the prompt and the response.

use std::borrow::Cow;
use std::collections::BTreeSet;

use sandbox::Problem;

use crate::answer::{Code, code};
use crate::config::Extract;
use crate::names::{defined_by, defines, root, wanted};

/// What is handed to the grader.
#[derive(Debug, PartialEq)]
pub struct Program<'a> {
    /// The problem; its prompt is changed where the response does not continue it as it stands.
    pub problem: Cow<'a, Problem>,
    /// The response as code.
    pub response: String,
}

impl Extract {
    /// The program in a response to a problem.
    pub fn program<'a>(self, problem: &'a Problem, response: &str) -> Program<'a> {
        let wanted = wanted(problem);
        let code = match self {
            Self::CodeBlock => code(response, &wanted, matches!(problem, Problem::HumanEval(_))),
            Self::Whole => Code { text: response.to_owned(), is_fenced: false },
        };
        match problem {
            Problem::HumanEval(human_eval) => {
                let is_whole = defines(&code.text, &wanted);
                let prompt = match is_whole {
                    true => before_definition(&human_eval.prompt, root(&human_eval.entry_point)),
                    false => &human_eval.prompt,
                };
                let continued = Continued { prompt, code: &code, is_whole };
                let (prompt, response) = continued.parts();
                if prompt == human_eval.prompt {
                    return Program { problem: Cow::Borrowed(problem), response };
                }
                let changed = sandbox::HumanEval { prompt, ..human_eval.clone() };
                Program { problem: Cow::Owned(Problem::HumanEval(changed)), response }
            }
            _ => {
                let FutureImports { imports, rest } = FutureImports::of(&code.text);
                let response = [imports, rest].concat();
                Program { problem: Cow::Borrowed(problem), response }
            }
        }
    }
}

/// A prompt and what continues it.
struct Continued<'a> {
    prompt: &'a str,
    code: &'a Code,
    /// The code brings its own function instead of going on with the prompt's.
    is_whole: bool,
}

impl Continued<'_> {
    /// The prompt and the response as they are put together.
    fn parts(&self) -> (String, String) {
        let own = FutureImports::of(self.prompt);
        let FutureImports { imports, rest } = FutureImports::of(&self.code.text);
        let begins_line = self.prompt.is_empty() || self.prompt.ends_with('\n');
        let new_line = if !begins_line && (self.is_whole || self.code.is_fenced) { "\n" } else { "" };
        if imports.is_empty() {
            return (format!("{}{new_line}", self.prompt), rest);
        }
        (format!("{}{imports}{}{new_line}", own.imports, own.rest), rest)
    }
}

/// Lines of code, ended as lines are.
fn block(lines: &str) -> String {
    let end = if lines.is_empty() || lines.ends_with('\n') { "" } else { "\n" };
    format!("{lines}{end}")
}

/// What has to stand in front of everything else in a module.
struct FutureImports {
    imports: String,
    rest: String,
}

impl FutureImports {
    fn of(code: &str) -> Self {
        let (mut imports, mut rest) = (String::new(), String::new());
        let mut inside = false;
        for line in code.split_inclusive('\n') {
            if line.starts_with("from __future__ import") {
                inside = line.contains('(');
            } else if !inside {
                rest.push_str(line);
                continue;
            }
            inside = inside && !line.contains(')');
            imports.push_str(line);
        }
        if !imports.is_empty() {
            imports = block(&imports);
        }
        Self { imports, rest }
    }
}

/// What a prompt has in front of the function that the response brings itself.
fn before_definition<'a>(prompt: &'a str, name: &str) -> &'a str {
    let names = BTreeSet::from([name]);
    let mut starts = Vec::new();
    let mut at = 0;
    for line in prompt.split_inclusive('\n') {
        starts.push((at, line));
        at += line.len();
    }
    let defines_it = |line: &str| defined_by(line).is_some_and(|name| names.contains(name));
    let Some(mut found) = starts.iter().rposition(|(_, line)| defines_it(line)) else { return prompt };
    while found > 0 && starts[found - 1].1.starts_with('@') {
        found -= 1;
    }
    &prompt[..starts[found].0]
}
