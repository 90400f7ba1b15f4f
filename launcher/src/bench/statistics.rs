//! Medians and spreads of a few rounds, and the latencies of many requests.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is told apart, in nanoseconds; what is longer counts as this.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// The figures of several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// The spread of figures; none of no figures.
    pub(super) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Self { median: f64::midpoint(sorted[lower], sorted[upper]), min, max })
    }

    /// The spread of what two series have in each round. Of a ratio this is steadier than the ratio of two medians:
    /// what slows a round down slows down both.
    pub(super) fn of_pairs(a: &[f64], b: &[f64], join: impl Fn(f64, f64) -> f64) -> Option<Self> {
        Self::of(a.iter().zip(b).map(|(a, b)| join(*a, *b)))
    }

    /// Whether the rounds differ by more than a tenth of the median.
    pub(super) fn is_wide(&self) -> bool {
        self.max - self.min > 0.1 * self.median.abs()
    }
}

/// How long requests took.
#[derive(Debug, Clone)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty one that never allocates again.
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3);
        Self(histogram.expect("the bounds are those of the documentation"))
    }

    /// Counts one request.
    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_MAX_NS));
    }

    /// Adds those of another thread.
    pub(super) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// How many requests were counted.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency, in microseconds, that a share of the requests did not exceed.
    pub(super) fn quantile_us(&self, share: f64) -> f64 {
        Duration::from_nanos(self.0.value_at_quantile(share)).as_secs_f64() * 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 8.0]), Some(Spread { median: 3.0, min: 1.0, max: 8.0 }));
    }

    #[test]
    fn a_slow_round_does_not_move_a_ratio() {
        let ours = [200.0, 100.0, 202.0];
        let theirs = [100.0, 50.0, 101.0];
        let ratio = Spread::of_pairs(&ours, &theirs, |a, b| a / b).unwrap();
        assert_eq!(ratio, Spread { median: 2.0, min: 2.0, max: 2.0 });
        assert!(!ratio.is_wide());
        assert!(Spread::of(ours).unwrap().is_wide());
    }

    #[test]
    fn quantiles_are_exact_to_a_thousandth() {
        let mut latencies = Latencies::new();
        let mut others = Latencies::new();
        for us in 1..=500 {
            latencies.record(Duration::from_micros(us));
            others.record(Duration::from_micros(500 + us));
        }
        latencies.add(&others);
        assert_eq!(latencies.count(), 1000);
        for (share, us) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let found = latencies.quantile_us(share);
            assert!((found - us).abs() <= us / 1000.0, "{share}: {found}");
        }
    }

    #[test]
    fn a_latency_that_is_too_long_is_counted_as_the_longest() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::from_secs(3600));
        assert!((latencies.quantile_us(1.0) - 60e6).abs() < 60e3);
    }
}
