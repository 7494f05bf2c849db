//! The fenced blocks of a text.

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

/// Stands for `<` while the text is parsed: in answers it opens no HTML, in which fences would be text.
const LESS_THAN: char = '\u{e000}';

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) language: Language,
    /// Without its fences, and without what indents or quotes the whole block.
    pub(crate) code: String,
}

/// What a fence says about its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Python,
    Unnamed,
    Other,
}

impl Language {
    /// That of the first word behind a fence.
    fn of(info: &str) -> Self {
        let word = info.trim().trim_start_matches(['{', '.']).split([' ', ',', '{', '}', ':']).next();
        match word.unwrap_or_default().to_ascii_lowercase().as_str() {
            "" => Self::Unnamed,
            "py" | "py3" | "sage" => Self::Python,
            word if word.starts_with("python") => Self::Python,
            _ => Self::Other,
        }
    }
}

/// The blocks with text in them, as CommonMark reads them: fences of any length, of tildes, indented, quoted;
/// one that is not closed ends with the text.
pub(crate) fn fenced(text: &str) -> Vec<Block> {
    let text = text.replace('<', "\u{e000}");
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for event in Parser::new(&text) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                open = Some(Block { language: Language::of(&info), code: String::new() });
            }
            Event::Text(part) => {
                if let Some(block) = &mut open {
                    block.code.push_str(&part.replace(LESS_THAN, "<"));
                }
            }
            Event::End(TagEnd::CodeBlock) => blocks.extend(open.take()),
            _ => {}
        }
    }
    blocks.retain(|block| !block.code.trim().is_empty());
    blocks
}

/// The blocks where every line that begins with a fence opens or closes one: what a reader takes for blocks
/// where the lines of a list's block are not indented, and CommonMark sees none.
pub(crate) fn between_fence_lines(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in text.split_inclusive('\n') {
        match (fence_info(line), &mut open) {
            (Some(info), None) => {
                open = Some(Block { language: Language::of(info), code: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.code.push_str(line),
            (None, None) => {}
        }
    }
    blocks.extend(open);
    blocks.retain(|block| !block.code.trim().is_empty());
    blocks
}

/// What stands behind a fence; `None` for a line that is none.
pub(crate) fn fence_info(line: &str) -> Option<&str> {
    let line = line.trim();
    let fence = line.chars().next().filter(|first| matches!(first, '`' | '~'))?;
    let info = line.trim_start_matches(fence);
    let is_fence = line.len() - info.len() >= 3 && !info.contains('`');
    is_fence.then_some(info)
}

/// Whether a text has a fenced block that is closed.
pub fn has_code_block(text: &str) -> bool {
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    // CommonMark closes an open block at the end of the text: then one more line is inside of it.
    let probe = "the text goes on";
    let blocks = fenced(&format!("{text}\n{probe}"));
    last.is_some() && blocks.iter().any(|block| !block.code.trim_end().ends_with(probe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_block_is_told_from_an_open_one() {
        assert!(has_code_block("so:\n```python\nx = 1\n```\n"));
        assert!(has_code_block("so:\n```python\nx = 1\n```"));
        assert!(!has_code_block("so:\n```python\nx = 1\n"));
        assert!(!has_code_block("x = 1"));
        assert!(!has_code_block(""));
        assert!(has_code_block("~~~\nx\n~~~\n```\ny"));
    }

    #[test]
    fn languages_have_many_spellings() {
        for info in ["python", "Python3", "py", "python title=x", "{.python}", "python3.11"] {
            assert_eq!(Language::of(info), Language::Python, "{info}");
        }
        assert_eq!((Language::of(" "), Language::of("bash")), (Language::Unnamed, Language::Other));
    }
}
