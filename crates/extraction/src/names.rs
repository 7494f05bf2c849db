//! Names in Python source, as far as lines and words tell them.

use std::collections::BTreeSet;

use sandbox::Problem;

/// The names that the tests of a problem may call: one of them has to be the response's. Empty for a whole
/// program.
pub(crate) fn wanted(problem: &Problem) -> BTreeSet<&str> {
    match problem {
        Problem::HumanEval(problem) => BTreeSet::from([root(&problem.entry_point)]),
        Problem::FunctionCalls(problem) => BTreeSet::from([root(&problem.entry_point)]),
        Problem::Mbpp(problem) => match &problem.entry_point {
            Some(entry_point) => BTreeSet::from([root(entry_point)]),
            None => problem.test_list.iter().flat_map(|test| called(test)).collect(),
        },
        _ => BTreeSet::new(),
    }
}

/// What a module defines for an entry point such as `Solution().add`.
pub(crate) fn root(entry_point: &str) -> &str {
    let end = entry_point.find(|c: char| !is_word(c)).unwrap_or(entry_point.len());
    &entry_point[..end]
}

/// The names that stand in front of a parenthesis.
fn called(source: &str) -> impl Iterator<Item = &str> {
    source.match_indices('(').filter_map(|(at, _)| {
        let before = &source[..at];
        let begin = before.rfind(|c: char| !is_word(c)).map_or(0, |at| at + 1);
        let name = before.get(begin..)?;
        // A method is somebody else's.
        let is_method = before[..begin].ends_with('.');
        (!name.is_empty() && !is_method && !name.starts_with(|c: char| c.is_ascii_digit())).then_some(name)
    })
}

/// The names that the lines of a module define.
pub(crate) fn defined(source: &str) -> BTreeSet<&str> {
    source.lines().filter_map(defined_by).collect()
}

/// Whether a module defines one of these names.
pub(crate) fn defines(source: &str, names: &BTreeSet<&str>) -> bool {
    source.lines().filter_map(defined_by).any(|name| names.contains(name))
}

/// The name that a line at the margin defines: a function, a class, a variable.
pub(crate) fn defined_by(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line);
    for keyword in ["def ", "class "] {
        if let Some(rest) = line.strip_prefix(keyword) {
            return Some(root(rest.trim_start())).filter(|name| !name.is_empty());
        }
    }
    let name = root(line);
    let rest = line[name.len()..].trim_start();
    let is_assigned = rest.starts_with('=') && !rest.starts_with("==");
    (!name.is_empty() && is_assigned).then_some(name)
}

/// Whether a name stands in a source as a word of its own.
pub(crate) fn mentions(source: &str, name: &str) -> bool {
    source.match_indices(name).any(|(at, _)| {
        let before = source[..at].chars().next_back();
        let after = source[at + name.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

fn is_word(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_those_at_the_margin() {
        let source =
            "import x\nasync def f():\n    def g(): pass\nclass C(B):\n    h = 1\nk = lambda: 1\nl == 2\n";
        assert_eq!(defined(source), BTreeSet::from(["f", "C", "k"]));
        assert!(mentions("return plus(a)", "plus") && !mentions("surplus(a) + plus_one", "plus"));
    }

    #[test]
    fn tests_call_names() {
        let names: BTreeSet<&str> = called("assert set(add(1, (2)).items()) == math.floor(3)").collect();
        assert_eq!(names, BTreeSet::from(["set", "add"]));
        assert_eq!(root("Solution().add"), "Solution");
    }
}
