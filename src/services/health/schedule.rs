//! When a target is asked.
//!
//! Rounds begin one interval apart at most, so a backend that falls silent is out after `interval x fall + timeout`. Jitter only makes
//! them shorter: targets that began together drift apart.

use std::time::Duration;

/// Checks that new targets may begin in a second.
const FRESH_PER_S: u32 = 2_000;

/// How far apart checks of many targets begin.
const TOGETHER: Duration = Duration::from_millis(10);

/// The shortest round, in 1/16 of the interval; the longest is the interval.
const SHORTEST: u32 = 15;

/// When the target `index` of `count` that are new together is asked for the first time: soon, but not all at once. Many fill the mean
/// round and no more: the head of the next round then follows the tail of this one, and does not meet it.
pub fn first(index: usize, count: usize, interval: Duration) -> Duration {
    let mean_round = interval / 32 * (16 + SHORTEST);
    let spread =
        (Duration::from_secs(1) / FRESH_PER_S).saturating_mul(u32::try_from(count).unwrap_or(u32::MAX)).min(mean_round);
    spread.mul_f64(index as f64 / count.max(1) as f64)
}

/// How long after the beginning of the last check the next one begins. `random` is any number.
pub fn next(interval: Duration, random: u32) -> Duration {
    let shortest = interval / 16 * SHORTEST;
    shortest + (interval - shortest).mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// `since` some origin, brought forward to when others begin too: their packets then wake the worker and the stack once, not each.
pub fn together(since: Duration, interval: Duration) -> Duration {
    let step = TOGETHER.min(interval / 64).as_micros().max(1);
    let late = since.as_micros() % step;
    since.saturating_sub(
        Duration::from_micros(late as u64) + Duration::from_nanos(u64::from(since.subsec_nanos() % 1_000)),
    )
}

/// How long after the beginning of the last check a suspicion has the next one begin.
pub fn soonest(interval: Duration) -> Duration {
    interval / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_new_targets_are_spread_and_few_are_asked_at_once() {
        let interval = Duration::from_secs(5);
        assert_eq!(first(0, 1, interval), Duration::ZERO);
        assert!(first(9, 10, interval) < Duration::from_millis(5));
        let mut per_100ms = [0; 50];
        for index in 0..10_000 {
            per_100ms[first(index, 10_000, interval).as_millis() as usize / 100] += 1;
        }
        assert!(per_100ms.iter().all(|count| *count <= 207), "10,000 in 4.84 s: {per_100ms:?}");
        let late = first(99_999, 100_000, interval);
        assert!(late < interval && late > interval * 9 / 10, "{late:?}");
    }

    #[test]
    fn checks_begin_together_and_never_later() {
        for interval in [Duration::from_millis(100), Duration::from_secs(5)] {
            let mut begins = std::collections::BTreeSet::new();
            for since in (0..1_000_000).step_by(777).map(Duration::from_micros) {
                let begin = together(since, interval);
                assert!(begin <= since && since - begin <= TOGETHER + Duration::from_micros(2), "{since:?} {begin:?}");
                begins.insert(begin);
            }
            let expected = if interval < Duration::from_secs(1) { 640 } else { 100 };
            assert!((expected..=expected + 2).contains(&begins.len()), "{}", begins.len());
        }
    }

    #[test]
    fn rounds_are_never_longer_than_the_interval_and_hardly_shorter() {
        for interval in [Duration::from_millis(100), Duration::from_secs(5), Duration::from_secs(3600)] {
            let (shortest, longest) = (next(interval, 0), next(interval, u32::MAX));
            assert!(longest <= interval && longest >= interval - Duration::from_micros(1), "{longest:?}");
            assert_eq!(shortest, interval * 15 / 16);
            assert!(next(interval, 1 << 31) > shortest);
        }
    }
}
