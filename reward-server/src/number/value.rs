//! Exact decimals and fractions of them.

/// Tolerance for numbers that are not whole, where none is given.
const TOLERANCE: f64 = 1e-6;

/// A decimal number of any size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decimal {
    negative: bool,
    /// Without zeros at either end; empty for 0.
    digits: String,
    /// The power of ten that the digits are multiplied by.
    exponent: i64,
}

/// A number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    numerator: Decimal,
    /// Positive; none is 1.
    denominator: Option<Decimal>,
}

impl Decimal {
    /// Of digits in front of and behind the point, times a power of ten.
    pub(super) fn new(whole: &str, fraction: &str, exponent: i64) -> Self {
        let all = format!("{whole}{fraction}");
        let exponent = exponent.saturating_sub(i64::try_from(fraction.len()).unwrap_or(i64::MAX));
        let trimmed = all.trim_end_matches('0');
        let zeros = i64::try_from(all.len() - trimmed.len()).unwrap_or(i64::MAX);
        let digits = trimmed.trim_start_matches('0').to_owned();
        let exponent = if digits.is_empty() { 0 } else { exponent.saturating_add(zeros) };
        Self { negative: false, digits, exponent }
    }

    fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    /// The number without its power of ten, where it is small enough.
    fn mantissa(&self) -> Option<i128> {
        let digits = if self.digits.is_empty() { 0 } else { self.digits.parse::<i128>().ok()? };
        Some(if self.negative { -digits } else { digits })
    }

    /// The number times a power of ten, as an integer, where it is one and is small enough.
    fn scaled(&self, power: i64) -> Option<i128> {
        let exponent = u32::try_from(self.exponent.checked_add(power)?).ok()?;
        self.mantissa()?.checked_mul(10i128.checked_pow(exponent)?)
    }

    fn as_f64(&self) -> f64 {
        let sign = if self.negative { "-" } else { "" };
        let digits = if self.digits.is_empty() { "0" } else { &self.digits };
        format!("{sign}{digits}e{}", self.exponent).parse().unwrap_or(f64::NAN)
    }
}

impl Value {
    pub(super) fn decimal(decimal: Decimal) -> Self {
        Self { numerator: decimal, denominator: None }
    }

    /// A fraction; none over zero, and of fractions.
    pub(super) fn fraction(numerator: &Self, denominator: &Self) -> Option<Self> {
        let (Self { numerator: top, denominator: None }, Self { numerator: bottom, denominator: None }) =
            (numerator, denominator)
        else {
            return None;
        };
        let (mut top, mut bottom) = (top.clone(), bottom.clone());
        if bottom.is_zero() {
            return None;
        }
        top.negative = !top.is_zero() && top.negative != bottom.negative;
        bottom.negative = false;
        Some(Self { numerator: top, denominator: Some(bottom) })
    }

    /// A whole number and a fraction behind it.
    pub(super) fn mixed(&self, fraction: &Self) -> Option<Self> {
        let bottom = fraction.denominator.as_ref()?;
        let (whole, bottom) = (self.integer()?, bottom.scaled(0)?);
        let sum = whole.checked_mul(bottom)?.checked_add(fraction.numerator.scaled(0)?)?;
        let top = Decimal::new(&sum.to_string(), "", 0);
        Some(Self { numerator: top, denominator: fraction.denominator.clone() })
    }

    /// The number to a power of a small exponent.
    pub(super) fn power(&self, exponent: u32) -> Option<Self> {
        let power = self.integer()?.checked_pow(exponent)?;
        let decimal = Decimal::new(&power.unsigned_abs().to_string(), "", 0);
        Some(Self::decimal(Decimal { negative: power < 0, ..decimal }))
    }

    /// The number times a power of ten.
    pub(super) fn times_ten_to(&self, exponent: i64) -> Self {
        let mut numerator = self.numerator.clone();
        if !numerator.is_zero() {
            numerator.exponent = numerator.exponent.saturating_add(exponent);
        }
        Self { numerator, denominator: self.denominator.clone() }
    }

    pub(crate) fn negated(&self) -> Self {
        let mut numerator = self.numerator.clone();
        numerator.negative = !numerator.negative && !numerator.is_zero();
        Self { numerator, denominator: self.denominator.clone() }
    }

    /// Whether it is a whole number.
    fn is_integer(&self) -> bool {
        self.denominator.is_none() && self.numerator.exponent >= 0
    }

    fn integer(&self) -> Option<i128> {
        if self.is_integer() { self.numerator.scaled(0) } else { None }
    }

    /// Whether both are the same number, exactly.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        if self.denominator.is_none() && other.denominator.is_none() {
            return self.numerator == other.numerator;
        }
        let one = Decimal::new("1", "", 0);
        let (a, b) = (&self.numerator, self.denominator.as_ref().unwrap_or(&one));
        let (c, d) = (&other.numerator, other.denominator.as_ref().unwrap_or(&one));
        // a / b = c / d, each side times the power of ten that makes it whole.
        let (left, right) = (a.exponent.saturating_add(d.exponent), c.exponent.saturating_add(b.exponent));
        let least = left.min(right);
        let product = |x: &Decimal, y: &Decimal, exponent: i64| -> Option<i128> {
            let power = 10i128.checked_pow(u32::try_from(exponent.checked_sub(least)?).ok()?)?;
            x.mantissa()?.checked_mul(y.mantissa()?)?.checked_mul(power)
        };
        matches!((product(a, d, left), product(c, b, right)), (Some(x), Some(y)) if x == y)
    }

    /// Whether it is the expected number: within a tolerance where one is given, else exactly where a whole
    /// number is expected, else to 1e-6.
    pub(crate) fn matches(&self, expected: &Self, tolerance: Option<f64>) -> bool {
        match tolerance {
            Some(tolerance) => self.is_near(expected, tolerance),
            None if expected.is_integer() => self.equals(expected),
            None => self.is_near(expected, TOLERANCE),
        }
    }

    /// Whether both are as near as a tolerance allows, which is relative above 1 and absolute below.
    fn is_near(&self, expected: &Self, tolerance: f64) -> bool {
        let (found, expected_number) = (self.as_f64(), expected.as_f64());
        let allowed = tolerance * expected_number.abs().max(1.0);
        self.equals(expected) || (found - expected_number).abs() <= allowed
    }

    fn as_f64(&self) -> f64 {
        self.numerator.as_f64() / self.denominator.as_ref().map_or(1.0, Decimal::as_f64)
    }
}
