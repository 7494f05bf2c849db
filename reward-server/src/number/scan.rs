//! Finds the numbers in a text, and what is more than a number.

use super::value::{Decimal, Value};

/// Largest exponent of a power that is computed.
const MAX_POWER: u32 = 128;

/// Something with digits in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Number(Value),
    /// A root, a power of a name, a time of day, a number times a name: no number by itself.
    Other,
}

/// A text with one spelling for each sign.
pub(super) fn normalised(text: &str) -> String {
    const SPELLINGS: [(&str, &str); 24] = [
        ("\u{2212}", "-"),
        ("\u{2013}", "-"),
        ("\u{ff0d}", "-"),
        ("{,}", ","),
        ("\\!", ""),
        (",\\,", ","),
        ("\\,", " "),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("\u{a0}", " "),
        ("\u{202f}", " "),
        ("\u{2009}", " "),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("\\cfrac", "\\frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\%", "%"),
        ("\\$", ""),
        ("$", ""),
        ("\\times", "*"),
        ("\\cdot", "*"),
        ("\u{d7}", "*"),
    ];
    let mut text = text.to_owned();
    for (spelling, sign) in SPELLINGS {
        if text.contains(spelling) {
            text = text.replace(spelling, sign);
        }
    }
    text
}

/// What has digits in a normalised text, in order.
pub(super) fn items(text: &str) -> Vec<Item> {
    let characters: Vec<char> = text.chars().collect();
    let mut scanner = Scanner { text: &characters, at: 0 };
    let mut items = Vec::new();
    while scanner.at < characters.len() {
        items.extend(scanner.next());
    }
    items
}

struct Scanner<'a> {
    text: &'a [char],
    at: usize,
}

impl Scanner<'_> {
    fn peek(&self, offset: usize) -> Option<char> {
        self.text.get(self.at + offset).copied()
    }

    fn starts_with(&self, word: &str) -> bool {
        word.chars().enumerate().all(|(offset, wanted)| self.peek(offset) == Some(wanted))
    }

    /// Goes on by one step at least.
    fn next(&mut self) -> Option<Item> {
        let start = self.at;
        if self.starts_with("\\sqrt") || self.starts_with("\\pi") || self.starts_with("\\pm") {
            self.skip_command();
            return Some(Item::Other);
        }
        if matches!(self.peek(0), Some('√' | 'π' | '±' | '∞')) {
            self.at += 1;
            self.skip_digits();
            return Some(Item::Other);
        }
        // The exponent of a unit or a name is no number of its own.
        if self.peek(0) == Some('^') {
            self.at += 1;
            self.skip_group_or_digits();
            return None;
        }
        let is_fraction = self.starts_with("\\frac");
        let Some(unsigned) = self.unsigned() else {
            self.at = self.at.max(start + 1);
            return is_fraction.then_some(Item::Other);
        };
        let value = if self.has_minus(start) { unsigned.negated() } else { unsigned };
        Some(self.with_what_follows(value))
    }

    /// A number without its sign: a fraction or a decimal, with a power.
    fn unsigned(&mut self) -> Option<Value> {
        if self.starts_with("\\frac") {
            return self.fraction();
        }
        let decimal = Value::decimal(self.decimal()?);
        if self.starts_with("\\frac")
            && let Some(fraction) = self.fraction()
        {
            return decimal.mixed(&fraction).or(Some(fraction));
        }
        Some(self.in_scientific_form(decimal))
    }

    /// `3 * 10^5` behind the 3.
    fn in_scientific_form(&mut self, value: Value) -> Value {
        let start = self.at;
        self.skip_spaces();
        if matches!(self.peek(0), Some('*' | 'x')) {
            self.at += 1;
            self.skip_spaces();
            if self.starts_with("10^") {
                self.at += 3;
                if let Some(exponent) = self.exponent() {
                    return value.times_ten_to(exponent);
                }
            }
        }
        self.at = start;
        value
    }

    /// A number in braces or without them.
    fn exponent(&mut self) -> Option<i64> {
        let braced = self.peek(0) == Some('{');
        self.at += usize::from(braced);
        let negative = self.peek(0) == Some('-');
        self.at += usize::from(negative);
        let digits = self.digits();
        if braced && self.peek(0) != Some('}') {
            return None;
        }
        self.at += usize::from(braced);
        let exponent: i64 = digits.parse().ok()?;
        Some(if negative { -exponent } else { exponent })
    }

    /// `\frac{a}{b}` or `\frac12` of numbers.
    fn fraction(&mut self) -> Option<Value> {
        self.at += "\\frac".len();
        let (top, bottom) = (self.part_of_fraction(), self.part_of_fraction());
        Value::fraction(&top?, &bottom?)
    }

    /// A part of a fraction, where it is a decimal with or without a sign.
    fn part_of_fraction(&mut self) -> Option<Value> {
        self.skip_spaces();
        let start = self.at;
        self.at += 1;
        let part = match *self.text.get(start)? {
            '{' => {
                self.skip_to_closing_brace();
                self.text.get(start + 1..self.at - 1)?
            }
            _ => &self.text[start..self.at],
        };
        let mut scanner = Scanner { text: part, at: 0 };
        scanner.skip_spaces();
        let negative = scanner.peek(0) == Some('-');
        scanner.at += usize::from(negative);
        scanner.skip_spaces();
        let value = Value::decimal(scanner.decimal()?);
        scanner.skip_spaces();
        let is_all = scanner.at == part.len();
        is_all.then(|| if negative { value.negated() } else { value })
    }

    /// Digits, perhaps in groups, a fraction, an exponent.
    fn decimal(&mut self) -> Option<Decimal> {
        let starts_with_point = self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit());
        if !self.peek(0)?.is_ascii_digit() && !starts_with_point {
            return None;
        }
        let whole = self.grouped_digits();
        let mut fraction = String::new();
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
            fraction = self.digits();
        }
        let mut exponent = 0;
        if matches!(self.peek(0), Some('e' | 'E')) {
            let start = self.at;
            self.at += 1;
            self.at += usize::from(self.peek(0) == Some('+'));
            match self.exponent() {
                Some(found) if !self.peek(0).is_some_and(char::is_alphanumeric) => exponent = found,
                _ => self.at = start,
            }
        }
        Some(Decimal::new(&whole, &fraction, exponent))
    }

    fn digits(&mut self) -> String {
        let start = self.at;
        self.skip_digits();
        self.text[start..self.at].iter().collect()
    }

    /// Digits in groups of three, or of two and at last three, behind commas or spaces; or without groups.
    fn grouped_digits(&mut self) -> String {
        let start = self.at;
        let mut whole = self.digits();
        for separator in [',', ' '] {
            let mut groups = Vec::new();
            let mut at = self.at;
            while self.text.get(at) == Some(&separator) {
                let digits: String =
                    self.text[at + 1..].iter().take_while(|digit| digit.is_ascii_digit()).collect();
                if !(2..=3).contains(&digits.len()) || (separator == ' ' && digits.len() != 3) {
                    break;
                }
                at += 1 + digits.len();
                groups.push(digits);
            }
            let last_is_three = groups.last().is_some_and(|group| group.len() == 3);
            let pairs = groups.iter().rev().skip(1).filter(|group| group.len() == 2).count();
            let uniform = pairs == 0 || pairs + 1 == groups.len();
            if last_is_three && uniform && (1..=3).contains(&(self.at - start)) {
                self.at = at;
                whole.extend(groups);
                break;
            }
        }
        whole
    }

    /// A minus in front of the number at `start` is its sign where no operand precedes it.
    fn has_minus(&self, start: usize) -> bool {
        let before = &self.text[..start];
        let spaces = before.iter().rev().take_while(|c| **c == ' ').count();
        let Some((sign, before)) = before[..before.len() - spaces].split_last() else { return false };
        if *sign != '-' {
            return false;
        }
        let operand = before.iter().rev().find(|c| **c != ' ');
        let adjacent = spaces == 0 && before.last().is_none_or(|c| c.is_whitespace());
        match operand {
            // The bullet of a list, unless it touches the number.
            None | Some('\n') => spaces == 0,
            Some('-') => false,
            Some(c) if c.is_ascii_digit() || matches!(c, ')' | ']' | '}' | '%') => adjacent,
            Some(c) if c.is_alphabetic() => adjacent || self.ends_word(before),
            Some(_) => true,
        }
    }

    /// Whether the text ends with a word of several letters and a space: not with a name that is subtracted
    /// from.
    fn ends_word(&self, before: &[char]) -> bool {
        let spaced = before.last() == Some(&' ');
        let letters = before.iter().rev().skip_while(|c| **c == ' ').take_while(|c| c.is_alphabetic());
        spaced && letters.count() > 1
    }

    /// What stands behind a number may make something else of it.
    fn with_what_follows(&mut self, value: Value) -> Item {
        if self.starts_with("^\\circ") || self.starts_with("^{\\circ}") {
            return Item::Number(value);
        }
        if self.peek(0) == Some('^') {
            self.at += 1;
            let power = self.exponent().and_then(|exponent| u32::try_from(exponent).ok());
            let power = power.filter(|exponent| *exponent <= MAX_POWER);
            return power.and_then(|exponent| value.power(exponent)).map_or(Item::Other, Item::Number);
        }
        if self.peek(0) == Some(':') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
            self.skip_digits();
            return Item::Other;
        }
        if let Some(item) = self.quotient(&value) {
            return item;
        }
        let spaced = self.text[self.at..].iter().take_while(|c| **c == ' ').count();
        let rest = Scanner { text: self.text, at: self.at + spaced };
        if rest.starts_with("\\sqrt") || rest.starts_with("\\pi") || matches!(rest.peek(0), Some('√' | 'π'))
        {
            self.at = rest.at;
            self.next();
            return Item::Other;
        }
        let is_factor = matches!(self.peek(0), Some('x' | 'y' | 'z' | 'i'))
            && !self.peek(1).is_some_and(|c| c.is_alphanumeric());
        if is_factor { Item::Other } else { Item::Number(value) }
    }

    /// `3/4` behind the 3; several slashes are a date.
    fn quotient(&mut self, top: &Value) -> Option<Item> {
        let start = self.at;
        self.skip_spaces();
        if self.peek(0) != Some('/') {
            self.at = start;
            return None;
        }
        self.at += 1;
        self.skip_spaces();
        let Some(bottom) = self.decimal() else {
            self.at = start;
            return None;
        };
        if self.peek(0) == Some('/') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
            self.skip_digits();
            return Some(Item::Other);
        }
        let quotient = Value::fraction(top, &Value::decimal(bottom));
        Some(quotient.map_or(Item::Other, Item::Number))
    }

    fn skip_spaces(&mut self) {
        while self.peek(0) == Some(' ') {
            self.at += 1;
        }
    }

    fn skip_digits(&mut self) {
        while self.peek(0).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn skip_group_or_digits(&mut self) {
        if self.peek(0) == Some('{') {
            self.at += 1;
            self.skip_to_closing_brace();
        } else {
            self.at += usize::from(self.peek(0) == Some('-'));
            self.skip_digits();
        }
    }

    /// A command with what it is applied to.
    fn skip_command(&mut self) {
        self.at += 1;
        while self.peek(0).is_some_and(char::is_alphabetic) {
            self.at += 1;
        }
        if self.peek(0) == Some('[') {
            while self.peek(0).is_some_and(|c| c != ']') {
                self.at += 1;
            }
            self.at += 1;
        }
        self.skip_spaces();
        self.skip_group_or_digits();
    }

    /// Behind the brace that closes one which was opened before.
    fn skip_to_closing_brace(&mut self) {
        let mut depth = 1;
        while depth > 0 && self.at < self.text.len() {
            match self.text[self.at] {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            self.at += 1;
        }
    }
}
