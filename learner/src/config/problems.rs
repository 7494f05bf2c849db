//! What cannot be right in a configuration, gathered one after the other.

/// The problems of a configuration, gathered one after the other.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<String>,
}

impl Problems {
    /// Notes the problem unless the value is sound.
    pub(crate) fn check(&mut self, sound: bool, problem: impl FnOnce() -> String) {
        if !sound {
            self.add(problem());
        }
    }

    /// Notes a problem.
    pub(crate) fn add(&mut self, problem: String) {
        self.list.push(problem);
    }

    /// A number that must be finite and above 0.
    pub(crate) fn above_zero(&mut self, key: &str, value: f64) {
        self.check(value.is_finite() && value > 0.0, || {
            format!("{key} is {value}, must be a positive number")
        });
    }

    /// A number that must be finite and at least 0.
    pub(crate) fn not_negative(&mut self, key: &str, value: f64) {
        self.check(value.is_finite() && value >= 0.0, || {
            format!("{key} is {value}, must be a finite number of at least 0")
        });
    }

    /// A number in 0..=1.
    pub(crate) fn share(&mut self, key: &str, value: f64) {
        self.check((0.0..=1.0).contains(&value), || format!("{key} is {value}, must be from 0 to 1"));
    }

    /// A count of at least 1.
    pub(crate) fn positive(&mut self, key: &str, value: usize) {
        self.check(value > 0, || format!("{key} is 0, must be at least 1"));
    }

    /// Takes over the problems of a section.
    pub(crate) fn section(&mut self, name: &str, problems: Vec<String>) {
        self.list.extend(problems.into_iter().map(|problem| format!("{name}.{problem}")));
    }

    /// All of them.
    pub(crate) fn into_list(self) -> Vec<String> {
        self.list
    }
}
