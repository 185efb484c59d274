//! Percentiles, and ratios with confidence intervals.

/// The value below which `fraction` of the samples lie.
pub(crate) fn percentile(samples: &mut [f64], fraction: f64) -> f64 {
    if samples.is_empty() {
        return f64::NAN;
    }
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() as f64 * fraction).ceil() as usize;
    samples[rank.clamp(1, samples.len()) - 1]
}

pub(crate) fn median(samples: &[f64]) -> f64 {
    percentile(&mut samples.to_vec(), 0.5)
}

/// The median of the blocks' ratios, with a bootstrap 95 % interval of that median.
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.median, self.low, self.high)
    }
}

/// Ratios block by block: `ours[i] / theirs[i]` were measured next to each other.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> Ratio {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut medians: Vec<f64> =
        (0..2000).map(|_| median(&(0..ratios.len()).map(|_| ratios[random.below(ratios.len())]).collect::<Vec<_>>())).collect();
    Ratio { median: median(&ratios), low: percentile(&mut medians, 0.025), high: percentile(&mut medians, 0.975) }
}

/// Repeatable pseudo-random numbers (xorshift64*): choosing services to probe, and bootstrap samples.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.below(index + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let mut samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&mut samples, 0.5), 50.0);
        assert_eq!(percentile(&mut samples, 0.99), 99.0);
        assert_eq!(percentile(&mut samples, 1.0), 100.0);
    }

    #[test]
    fn equal_blocks_have_a_ratio_of_one() {
        let blocks = [3.0, 5.0, 4.0];
        let ratio = ratio(&blocks, &blocks);
        assert_eq!((ratio.median, ratio.low, ratio.high), (1.0, 1.0, 1.0));
    }
}
