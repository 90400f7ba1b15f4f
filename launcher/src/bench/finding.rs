//! A row of the table: what was found, and whether it reaches its bar.

use std::fmt;

use super::running::Failure;
use super::statistics::Spread;

/// What a figure must reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bar {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing: it is told for information.
    Open,
}

/// What a figure is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A ratio.
    Times,
    Microseconds,
    Milliseconds,
    /// Of one processor.
    Cores,
    Percent,
    Count,
    Mib,
    Kib,
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    /// What was measured.
    pub(super) row: String,
    /// With what it was compared; empty where it stands for itself.
    pub(super) against: String,
    pub(super) unit: Unit,
    pub(super) bar: Bar,
    pub(super) value: Result<Spread, Failure>,
}

/// What a row comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    Missed,
    NotThere,
    Failed,
    /// There is no bar.
    Open,
}

impl Finding {
    pub(super) fn verdict(&self) -> Verdict {
        match (&self.value, self.bar) {
            (Err(Failure::NotThere(_)), _) => Verdict::NotThere,
            (Err(Failure::Failed(_)), _) => Verdict::Failed,
            (Ok(_), Bar::Open) => Verdict::Open,
            (Ok(value), bar) if bar.is_reached_by(value.median) => Verdict::Ok,
            (Ok(_), _) => Verdict::Missed,
        }
    }
}

impl Bar {
    fn is_reached_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
            Self::Open => true,
        }
    }

    /// The bar in words.
    pub(super) fn words(self, unit: Unit) -> String {
        match self {
            Self::AtLeast(bar) => format!(">= {}", unit.words(bar)),
            Self::AtMost(bar) => format!("<= {}", unit.words(bar)),
            Self::Open => String::new(),
        }
    }
}

impl Unit {
    /// A figure with its unit, with as many digits as mean something.
    pub(super) fn words(self, figure: f64) -> String {
        match self {
            Self::Times => format!("{figure:.2}x"),
            Self::Microseconds => format!("{figure:.1} us"),
            Self::Milliseconds => format!("{figure:.1} ms"),
            Self::Cores => format!("{figure:.2} cores"),
            Self::Percent => format!("{figure:.1} %"),
            Self::Count => format!("{figure:.0}"),
            Self::Mib => format!("{figure:.1} MiB"),
            Self::Kib => format!("{figure:.0} KiB"),
        }
    }

    /// The key of the unit in the JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Times => "ratio",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::Cores => "cores",
            Self::Percent => "percent",
            Self::Count => "count",
            Self::Mib => "mib",
            Self::Kib => "kib",
        }
    }
}

/// The mark in the table.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Missed => "MISSED",
            Self::NotThere => "not there yet",
            Self::Failed => "FAILED",
            Self::Open => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(bar: Bar, value: Result<f64, Failure>) -> Verdict {
        let value = value.map(|median| Spread { median, min: 0.0, max: 9.0 });
        Finding { row: "r".into(), against: String::new(), unit: Unit::Times, bar, value }.verdict()
    }

    #[test]
    fn a_bar_is_reached_by_the_median_alone() {
        assert_eq!(verdict(Bar::AtLeast(2.0), Ok(2.0)), Verdict::Ok);
        assert_eq!(verdict(Bar::AtLeast(2.0), Ok(1.99)), Verdict::Missed);
        assert_eq!(verdict(Bar::AtMost(2.0), Ok(2.0)), Verdict::Ok);
        assert_eq!(verdict(Bar::AtMost(2.0), Ok(2.01)), Verdict::Missed);
        assert_eq!(verdict(Bar::Open, Ok(0.0)), Verdict::Open);
        assert_eq!(verdict(Bar::AtMost(2.0), Ok(f64::NAN)), Verdict::Missed);
    }

    #[test]
    fn what_is_not_there_is_neither_reached_nor_missed() {
        assert_eq!(verdict(Bar::Open, Err(Failure::NotThere("x".into()))), Verdict::NotThere);
        assert_eq!(verdict(Bar::AtLeast(1.0), Err(Failure::Failed("x".into()))), Verdict::Failed);
    }

    #[test]
    fn a_bar_has_the_unit_of_its_figure() {
        assert_eq!(Bar::AtLeast(2.6).words(Unit::Times), ">= 2.60x");
        assert_eq!(Bar::AtMost(10.0).words(Unit::Microseconds), "<= 10.0 us");
        assert_eq!(Bar::Open.words(Unit::Kib), "");
    }
}
