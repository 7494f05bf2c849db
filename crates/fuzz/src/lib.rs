//! For tests: damaged files and messages without end, for whatever reads them.
//!
//! A target gives inputs that are good and says what has to hold of any other: [`run`] damages the good ones
//! as disks, networks, editors and liars do, for as long as it may, and makes what fails as small as it can.
//! No coverage guides it: what comes deep into a reader is a good input with a little wrong in it.
//!
//! `SLUICE_FUZZ_SECONDS` is how long each target runs (2 in a plain test), `SLUICE_FUZZ_SEED` another
//! sequence of inputs (1). The same seed gives the same inputs in the same order.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Inputs between two looks at the clock.
const LAP: u32 = 8;

/// What stands at the borders of what readers expect: of numbers as text and as bytes, of syntax, of paths.
const BORDERS: [&[u8]; 32] = [
    b"0",
    b"-1",
    b"1e999",
    b"-0.0",
    b"NaN",
    b"inf",
    b"4294967296",
    b"9223372036854775808",
    b"18446744073709551616",
    b"123456789012345678901234567890",
    b"",
    b"\"",
    b"\"\"",
    b"\\u0000",
    b"{",
    b"}",
    b"{}",
    b"[",
    b"]",
    b"[[[[[[[[[[[[[[[[",
    b"null",
    b"true",
    b",",
    b"=",
    b"\n",
    b"\0",
    b"../",
    b"\xef\xbb\xbf",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\0\0\0\0\0\0\0\x80",
    b"\0\0\0\x80",
];

/// One thing that is done to an input.
#[derive(Debug, Clone)]
enum Damage {
    Flip {
        at: Index,
        bit: u8,
    },
    Put {
        at: Index,
        what: &'static [u8],
    },
    Overwrite {
        at: Index,
        what: &'static [u8],
    },
    /// A number in decimal digits gives way.
    Number {
        which: Index,
        what: &'static [u8],
    },
    Cut {
        from: Index,
        length: Index,
    },
    Truncate {
        at: Index,
    },
    /// A part stands twice.
    Repeat {
        from: Index,
        length: Index,
    },
    /// From here on it is another input from there on.
    Splice {
        at: Index,
        other: Index,
        from: Index,
    },
}

/// An input, which prints as text.
#[derive(Clone)]
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes: {}", self.0.len(), self.0.escape_ascii())
    }
}

/// Gives `check` damaged copies of `good`, and each good one as it is, until the time is over.
///
/// # Panics
/// When `check` does, with the smallest input found that makes it.
pub fn run(target: &str, good: &[Vec<u8>], check: impl Fn(&[u8])) {
    for input in good {
        check(input);
    }
    let (seconds, seed) = (setting("SLUICE_FUZZ_SECONDS", 2), setting("SLUICE_FUZZ_SEED", 1));
    #[expect(clippy::disallowed_types, reason = "wall time on this thread is meant")]
    let (clock, time) = (std::time::Instant::now(), Duration::from_secs(seconds));
    let inputs = (any::<Index>(), vec(damages(), 1..6)).prop_map({
        let good = good.to_vec();
        move |(which, damages)| {
            let first = good[which.index(good.len())].clone();
            Input(damages.iter().fold(first, |input, damage| damage.done_to(input, &good)))
        }
    });
    let mut laps = 0_u64;
    while laps == 0 || clock.elapsed() < time {
        let config = Config { cases: LAP, failure_persistence: None, ..Config::default() };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&laps.to_le_bytes());
        let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let checked = TestRunner::new_with_rng(config, random).run(&inputs, |input| {
            check(&input.0);
            Ok(())
        });
        if let Err(error) = checked {
            panic!("{target}, seed {seed}, lap {laps}: {error}");
        }
        laps += 1;
    }
    println!("{target}: {} inputs in {:.1} s", laps * u64::from(LAP), clock.elapsed().as_secs_f64());
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var_os(name).map_or(default, |text| text.to_str().unwrap().parse().unwrap())
}

fn damages() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let what = || select(&BORDERS[..]);
    prop_oneof![
        (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        (at(), what()).prop_map(|(at, what)| Damage::Put { at, what }),
        (at(), what()).prop_map(|(at, what)| Damage::Overwrite { at, what }),
        (at(), what()).prop_map(|(which, what)| Damage::Number { which, what }),
        (at(), at()).prop_map(|(from, length)| Damage::Cut { from, length }),
        at().prop_map(|at| Damage::Truncate { at }),
        (at(), at()).prop_map(|(from, length)| Damage::Repeat { from, length }),
        (at(), at(), at()).prop_map(|(at, other, from)| Damage::Splice { at, other, from }),
    ]
}

impl Damage {
    fn done_to(&self, mut input: Vec<u8>, good: &[Vec<u8>]) -> Vec<u8> {
        match self {
            Self::Flip { at, bit } => {
                if !input.is_empty() {
                    let at = at.index(input.len());
                    input[at] ^= 1 << bit;
                }
            }
            Self::Put { at, what } => {
                let at = at.index(input.len() + 1);
                input.splice(at..at, what.iter().copied());
            }
            Self::Overwrite { at, what } => {
                let at = at.index(input.len() + 1);
                let end = (at + what.len()).min(input.len());
                input.splice(at..end, what.iter().copied());
            }
            Self::Number { which, what } => {
                let numbers: Vec<_> = numbers(&input);
                if !numbers.is_empty() {
                    let number = numbers[which.index(numbers.len())].clone();
                    input.splice(number, what.iter().copied());
                }
            }
            Self::Cut { from, length } => {
                input.drain(part(*from, *length, input.len()));
            }
            Self::Truncate { at } => input.truncate(at.index(input.len() + 1)),
            Self::Repeat { from, length } => {
                let part = part(*from, *length, input.len());
                let again = input[part.clone()].to_vec();
                input.splice(part.end..part.end, again);
            }
            Self::Splice { at, other, from } => {
                let other = &good[other.index(good.len())];
                input.truncate(at.index(input.len() + 1));
                input.extend_from_slice(&other[from.index(other.len() + 1)..]);
            }
        }
        input
    }
}

/// A part that is more often short than long.
fn part(from: Index, length: Index, of: usize) -> std::ops::Range<usize> {
    let from = from.index(of + 1);
    let most = of - from;
    let length = if length.index(4) > 0 { length.index(most.min(16) + 1) } else { length.index(most + 1) };
    from..from + length
}

/// Where decimal digits stand.
fn numbers(input: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut numbers: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, _) in input.iter().enumerate().filter(|(_, byte)| byte.is_ascii_digit()) {
        match numbers.last_mut() {
            Some(last) if last.end == at => last.end = at + 1,
            _ => numbers.push(at..at + 1),
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_reader_that_trusts_a_length_is_found_and_its_input_is_small() {
        let good = [b"2:ab".to_vec(), b"11:abcdefghijk".to_vec()];
        let trusting = |input: &[u8]| {
            let Some((length, rest)) = std::str::from_utf8(input).ok().and_then(|text| text.split_once(':'))
            else {
                return;
            };
            if let Ok(length) = length.parse::<u32>() {
                assert!(length as usize <= rest.len(), "reads behind the end");
            }
        };
        let said = catch_unwind(AssertUnwindSafe(|| run("lengths", &good, trusting))).unwrap_err();
        let said = said.downcast_ref::<String>().unwrap();
        assert!(said.contains("lengths, seed 1") && said.contains("reads behind the end"), "{said}");
    }

    #[test]
    fn inputs_differ_and_come_again() {
        let good = [b"{\"a\": 12, \"b\": [345]}".to_vec()];
        let seen = || {
            let seen = RefCell::new(Vec::new());
            run("seen", &good, |input| {
                let mut seen = seen.borrow_mut();
                if seen.len() < 200 {
                    seen.push(input.to_vec());
                }
            });
            seen.into_inner()
        };
        let first = seen();
        assert_eq!(first, seen());
        assert!(first.iter().collect::<BTreeSet<_>>().len() > 150);
        let border = b"18446744073709551616";
        assert!(first.iter().any(|input| input.windows(border.len()).any(|part| part == border)));
    }

    #[test]
    fn numbers_are_runs_of_digits() {
        assert_eq!(numbers(b"12 a3"), [0..2, 4..5]);
        assert_eq!(numbers(b""), []);
    }
}
