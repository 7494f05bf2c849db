//! One number in a text, as people and models write it: `1,234.5`, `−3`, `3/4`, `\frac{1}{2}`,
//! `3 \times 10^5`.
//!
//! Values are exact. What is not one number is never read as another: a root, a pair, a range or a time of
//! day is [`Item::Other`], and the last number in front of it is not the text's.

mod scan;
mod value;

use extraction::answer_text;

use scan::{Item, items, normalised};
pub(crate) use value::Value;

/// The number that a text as a whole is, with a unit or words around it; none where it holds several, or
/// something that is not one number.
pub(crate) fn whole(text: &str) -> Option<Value> {
    let text = normalised(text);
    let text = match text.split_once('=') {
        // `x = 3`, but not `x = 3 or x = 7`.
        Some((_, right)) if !right.contains('=') => right,
        _ => &text,
    };
    let trimmed = text.trim();
    // A sign may stand apart from the number that is all there is.
    let (negative, rest) = match trimmed.strip_prefix('-') {
        Some(rest) if rest.starts_with(' ') => (true, rest),
        _ => (false, trimmed),
    };
    match items(rest).as_slice() {
        [Item::Number(value)] if negative => Some(value.negated()),
        [Item::Number(value)] => Some(value.clone()),
        _ => None,
    }
}

/// Whether an answer, once it has thought, gives the number that a label is: whole numbers exactly, others to
/// 1e-6. None where the label is not one number.
pub fn same_number(answer: &str, label: &str) -> Option<bool> {
    let expected = of_label(label)?;
    let found = of_answer(answer_text(answer));
    Some(found.is_some_and(|found| found.matches(&expected, None)))
}

/// The last number of a text; none where something else than a number comes last.
pub(crate) fn last(text: &str) -> Option<Value> {
    match items(&normalised(text)).pop()? {
        Item::Number(value) => Some(value),
        Item::Other => None,
    }
}

/// The first number of a text.
fn first(text: &str) -> Option<Value> {
    match items(&normalised(text)).into_iter().next()? {
        Item::Number(value) => Some(value),
        Item::Other => None,
    }
}

/// The number that a label is; behind `####` where it has that mark, as GSM8K's rationales do.
pub(crate) fn of_label(label: &str) -> Option<Value> {
    whole(label.rsplit(MARK).next().unwrap_or(label))
}

/// The number that a field of the data set holds.
pub(crate) fn of_field(field: &serde_json::Value) -> Option<Value> {
    match field {
        serde_json::Value::Number(number) => of_label(&number.to_string()),
        serde_json::Value::String(text) => of_label(text),
        _ => None,
    }
}

/// The number that an answer gives: in its last `\boxed{}`, else behind its last `####`, else the last one.
pub(crate) fn of_answer(answer: &str) -> Option<Value> {
    if let Some(boxed) = last_boxed(answer) {
        return whole(boxed);
    }
    match answer.rsplit_once(MARK) {
        Some((_, rest)) => {
            let line = rest.trim_start().lines().next().unwrap_or_default();
            whole(line).or_else(|| first(line))
        }
        None => last(answer),
    }
}

/// What GSM8K puts in front of an answer.
const MARK: &str = "####";

/// The content of the last `\boxed{}`, to the brace that closes it.
pub(crate) fn last_boxed(text: &str) -> Option<&str> {
    let starts = ["\\boxed{", "\\fbox{"].iter().filter_map(|mark| Some((text.rfind(mark)?, mark.len())));
    let (at, length) = starts.max()?;
    let content = &text[at + length..];
    Some(&content[..closing_brace(content)?])
}

/// Where the brace lies that closes one which was opened in front of `text`.
pub(crate) fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an answer has the label's number; none where the label is none.
    fn same(answer: &str, label: &str) -> Option<bool> {
        let label = of_label(label)?;
        Some(of_answer(answer).is_some_and(|answer| answer.equals(&label)))
    }

    #[test]
    fn one_number_has_many_spellings() {
        for (answer, label) in [
            ("The answer is 42.", "42"),
            ("so #### 1234", "... #### 1,234"),
            ("The answer is 0.75", "3/4"),
            ("The answer is 3/4", "3/4"),
            ("The answer is \u{2212}3", "-3"),
            ("The answer is \u{2013}3", "-3"),
            ("The answer is $-3$", "-3"),
            ("The answer is - 3", "-3"),
            ("The answer is 1{,}234", "1234"),
            ("The answer is 12\\,345", "12345"),
            ("The answer is 12,\\!345", "12345"),
            ("The answer is 3 \\times 10^{5}", "300000"),
            ("The answer is 42 m^2", "42"),
            ("The answer is 90^\\circ", "90"),
            ("$18.00", "18"),
            ("1,00,000", "100000"),
            ("1 000", "1000"),
            ("so \\boxed{42}. That took 3 steps", "42"),
            ("so \\boxed{\\frac{3}{4}}", "3/4"),
            ("so \\boxed{\\dfrac{3}{4}}", "\\frac{6}{8}"),
            ("\\boxed{41} no, \\boxed{42}", "42"),
            ("\\boxed{x = 42}", "42"),
            ("\\boxed{42 \\text{ dollars}}", "42"),
            ("#### 18. I checked 3 times.", "18"),
            ("#### 0.5", "1/2"),
            ("\\boxed{18} since 3 eggs", "18"),
            ("x=\u{2212}3", "-3"),
            ("$70,000", "70000"),
            ("1\\frac{1}{2}", "1.5"),
            ("2^{10}", "1024"),
            ("100000000000000000000000000000000000000000", "1e41"),
            ("5 - 3 = 2", "2"),
            ("- apples: 3", "3"),
        ] {
            assert_eq!(same(answer, label), Some(true), "{answer:?} is {label:?}");
        }
    }

    #[test]
    fn another_number_is_another() {
        for (answer, label) in [
            ("I guess 4", "3/4"),
            ("I guess 2", "\\frac{1}{2}"),
            ("The answer is 1/4", "3/4"),
            ("#### 7/2", "1/2"),
            ("\\frac{7}{2}", "\\frac{1}{2}"),
            ("The answer is \u{2212}3", "3"),
            ("The answer is - 3", "3"),
            ("The answer is 1000000006", "1000000007"),
            ("12345679", "12345678"),
            ("100000010000000000000", "100000000000000000000"),
            ("at 3:30", "30"),
            ("nan", "42"),
            ("1e999", "42"),
            ("so \\boxed{\\frac{1}{2}}", "1"),
            ("\\boxed{42} or \\boxed{41}", "42"),
            ("\\boxed{\\text{forty-two}}", "42"),
            ("\\boxed{(42, 43)}", "42"),
            ("\\boxed{2\\sqrt{3}}", "3"),
            ("2\\sqrt{3}", "3"),
            ("$x^2$", "2"),
            ("\\frac{\\sqrt{3}}{2}", "3"),
            ("the date is 5/10/2024", "2024"),
            ("3\u{2013}5", "-5"),
            ("It is 6", "10^{6}"),
            ("", "0"),
        ] {
            assert_eq!(same(answer, label), Some(false), "{answer:?} is not {label:?}");
        }
    }

    #[test]
    fn what_is_more_than_one_number_is_no_label() {
        for label in [
            "2\\sqrt{3}",
            "(3, 5)",
            "[2, 7)",
            "x = 3 or x = 7",
            "x",
            "",
            "3 or 4",
            "\\pi",
            "3:30",
            "\\pm 3",
            "1/0",
        ] {
            assert_eq!(of_label(label), None, "{label:?}");
        }
    }

    /// Whatever a policy writes.
    #[test]
    fn strange_texts_are_read_in_time() {
        let long = 1 << 16;
        for part in
            ["\\frac{", "{", "1,", "1 ", "- ", "\\sqrt[", "^", "1/", "\\boxed{", "9", "e+", "\u{2212}", "x ="]
        {
            let text = part.repeat(long);
            let _ = (of_answer(&text), of_label(&text));
        }
        for text in [
            "\\frac",
            "\\frac{",
            "\\frac{1",
            "\\frac{1}",
            "\\frac{1}{",
            "1^",
            "1e",
            "1,",
            "\\boxed{",
            "1/",
            "-",
            "\\sqrt[",
        ] {
            let _ = (of_answer(text), of_label(text));
        }
    }
}
