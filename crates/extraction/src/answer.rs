//! The code in an answer.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::blocks::{Block, Language, between_fence_lines, fence_info, fenced};
use crate::names::{defined, defines, mentions};

/// Begins a model's thoughts.
const THOUGHTS_BEGIN: &str = "<think>";
/// Ends them.
const THOUGHTS_END: &str = "</think>";
/// Marks of an answer in the prompts that are usual for MBPP (Austin et al. 2021, arXiv 2108.07732).
const ANSWER_BEGIN: &str = "[BEGIN]";
const ANSWER_END: &str = "[DONE]";

/// What a response says once it has thought: the text behind its last `</think>`. A response that thinks to
/// its end says nothing; one that has no thoughts is all answer.
pub fn answer_text(response: &str) -> &str {
    match response.rfind(THOUGHTS_END) {
        Some(at) => {
            let rest = &response[at + THOUGHTS_END.len()..];
            rest.find(THOUGHTS_BEGIN).map_or(rest, |again| &rest[..again])
        }
        None => response.find(THOUGHTS_BEGIN).map_or(response, |at| &response[..at]),
    }
}

/// The code of the blocks of a response that are marked as Python, in order; nothing in thoughts is one.
pub fn python_blocks(response: &str) -> Vec<String> {
    let blocks = fenced(answer_text(response)).into_iter();
    blocks.filter(|block| block.language == Language::Python).map(|block| block.code).collect()
}

/// Tokens at a prompt's end that may spell the mark of thoughts.
pub const THOUGHTS_TOKENS: usize = 16;

/// A response with the mark that begins its thoughts, wherever that stands: some chat templates end the
/// prompt with it. `prompt_end` is the text of the prompt's last tokens, special ones included.
pub fn marked<'a>(prompt_end: &str, response: &'a str) -> Cow<'a, str> {
    if prompt_end.trim_end().ends_with(THOUGHTS_BEGIN) {
        Cow::Owned(format!("{THOUGHTS_BEGIN}{response}"))
    } else {
        Cow::Borrowed(response)
    }
}

/// Code, and whether it stood in a fence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) text: String,
    pub(crate) is_fenced: bool,
}

impl Code {
    fn fenced(text: String) -> Self {
        Self { text, is_fenced: true }
    }

    fn plain(text: &str) -> Self {
        Self { text: text.to_owned(), is_fenced: false }
    }
}

/// The code in a response whose tests call one of `wanted`; `continues` says that it may go on with a
/// prompt's unfinished function.
pub(crate) fn code(response: &str, wanted: &BTreeSet<&str>, continues: bool) -> Code {
    let answer = answer_text(response).replace("\r\n", "\n");
    let answer = between_marks(&answer);
    let blocks = fenced(answer);
    let by_lines = between_fence_lines(answer);
    let lead = before_bare_fence(answer);
    for reading in [&blocks, &by_lines] {
        if let Some(at) = reading.iter().rposition(|block| defines(&block.code, wanted)) {
            return Code::fenced(with_helpers(reading, at, wanted));
        }
    }
    // The prompt has opened a fence, and the response closes it.
    if let Some(lead) = lead {
        let goes_on = continues && lead.trim_start_matches('\n').starts_with([' ', '\t']);
        if goes_on || defines(lead, wanted) {
            return Code::plain(lead);
        }
    }
    for language in [Language::Python, Language::Unnamed, Language::Other] {
        if let Some(at) = blocks.iter().rposition(|block| block.language == language) {
            return Code::fenced(with_helpers(&blocks, at, wanted));
        }
    }
    match on_one_line(answer) {
        Some(code) => Code::fenced(code.to_owned()),
        None => Code::plain(without_stray_fence(answer)),
    }
}

/// The answer between marks, where it has them.
fn between_marks(answer: &str) -> &str {
    let begun = answer.rfind(ANSWER_BEGIN).map(|at| &answer[at + ANSWER_BEGIN.len()..]);
    let rest = begun.map_or(answer, |rest| rest.strip_prefix('\n').unwrap_or(rest));
    rest.find(ANSWER_END).map_or(rest, |at| &rest[..at])
}

/// The text in front of the first fence, where that names no language and so may be one that closes.
fn before_bare_fence(answer: &str) -> Option<&str> {
    let mut at = 0;
    for line in answer.split_inclusive('\n') {
        if let Some(info) = fence_info(line) {
            return (info.is_empty() && !answer[..at].trim().is_empty()).then(|| &answer[..at]);
        }
        at += line.len();
    }
    None
}

/// A block with the earlier ones that define what it uses and does not define itself. An earlier one that
/// defines what the tests call is a draft.
fn with_helpers(blocks: &[Block], at: usize, wanted: &BTreeSet<&str>) -> String {
    let mut program = blocks[at].code.clone();
    for block in blocks[..at].iter().rev().filter(|block| block.language != Language::Other) {
        let is_draft = defines(&block.code, wanted);
        let own = defined(&program);
        let helps = defined(&block.code).iter().any(|name| !own.contains(name) && mentions(&program, name));
        if helps && !is_draft {
            program = format!("{}\n{program}", block.code);
        }
    }
    program
}

/// Code between fences on one line, perhaps behind the name of its language.
fn on_one_line(answer: &str) -> Option<&str> {
    let inside = answer.trim().strip_prefix("```")?.strip_suffix("```")?;
    let inside = ["python3", "python", "py"]
        .iter()
        .find_map(|language| inside.strip_prefix(language)?.strip_prefix(' '))
        .unwrap_or(inside);
    (!inside.contains('`') && !inside.contains('\n')).then_some(inside)
}

/// An answer without fences at its begin and end that have no other.
fn without_stray_fence(answer: &str) -> &str {
    let mut rest = answer;
    let last = rest.trim_end().rsplit('\n').next().unwrap_or_default();
    if fence_info(last).is_some() {
        rest = &rest[..rest.trim_end().len() - last.len()];
    }
    let first = rest.trim_start_matches('\n').split_inclusive('\n').next().unwrap_or_default();
    if fence_info(first).is_some() {
        rest = &rest.trim_start_matches('\n')[first.len()..];
    }
    rest
}
