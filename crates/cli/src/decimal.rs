//! Numbers for people: what rounds to zero is zero, and has no sign.

/// A number with so many decimals.
pub(crate) fn decimal(number: f64, places: usize) -> String {
    without_sign_of_zero(format!("{number:.places$}"))
}

/// The same, with a sign in front of what is above zero too.
pub(crate) fn signed(number: f64, places: usize) -> String {
    without_sign_of_zero(format!("{number:+.places$}"))
}

fn without_sign_of_zero(text: String) -> String {
    let digits = text.trim_start_matches(['+', '-']);
    if digits.chars().all(|c| matches!(c, '0' | '.')) { digits.to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounds_to_zero_has_no_sign() {
        assert_eq!(
            [-0.0004, -0.0006, 0.0, f64::NAN].map(|x| decimal(x, 3)),
            ["0.000", "-0.001", "0.000", "NaN"]
        );
        assert_eq!([-0.04, 0.04, 0.06, -7.0].map(|x| signed(x, 1)), ["0.0", "0.0", "+0.1", "-7.0"]);
    }
}
