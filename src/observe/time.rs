//! Times as people and protocols write them (RFC 3339), without a calendar library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `2026-11-23T15:30:01.120334Z`.
pub fn rfc3339(time: SystemTime) -> String {
    // A clock before 1970 is a clock that was never set.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Without a fraction of the second, as `metav1.Time` has it: `2026-11-23T15:30:01Z`.
pub fn rfc3339_seconds(time: SystemTime) -> String {
    let mut text = rfc3339(time);
    text.truncate(text.len() - ".000000Z".len());
    text + "Z"
}

/// As [`rfc3339`], with nanoseconds: `2026-11-23T15:30:01.120334567Z`.
pub fn rfc3339_nanos(time: SystemTime) -> String {
    let mut text = rfc3339(time);
    let nanos = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).subsec_nanos();
    text.truncate(text.len() - "000000Z".len());
    text + &format!("{nanos:09}Z")
}

/// Reads a time as RFC 3339 §5.6 has it, any offset and any number of digits of the second; `None` if it is none.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        digits.bytes().all(|octet| octet.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let octet = |at: usize| text.as_bytes().get(at).copied();
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| octet(*at) != Some(*mark)) || !matches!(octet(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 || year < 1970
    {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?),
        None => ("0", rest),
    };
    let nanos: u64 = format!("{:0<9}", fraction.get(..9).unwrap_or(fraction)).parse().ok()?;
    let offset_s = match zone {
        "Z" | "z" => 0,
        _ => {
            let sign = if zone.starts_with('-') { 1 } else { -1 };
            let (hours, minutes) = zone.strip_prefix(['+', '-'])?.split_once(':')?;
            sign * (hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60)
        }
    };
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::new(seconds.checked_add_signed(offset_s)?, 0) + Duration::from_nanos(nanos))
}

/// The reverse of [`civil`].
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Year, month and day of a number of days since 1970-01-01 (proleptic Gregorian calendar). Years begin in March, so
/// that the leap day is the last; 400 years have 146097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// `3d4h`, `12m`, `45s`: at most two units.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let Some(first) = units.iter().position(|(length, _)| seconds >= *length) else { return "0s".to_owned() };
    let (length, unit) = units[first];
    let rest = units.get(first + 1).map(|(length2, unit2)| (seconds % length / length2, unit2));
    match rest {
        Some((count, unit2)) if count > 0 => format!("{}{unit}{count}{unit2}", seconds / length),
        _ => format!("{}{unit}", seconds / length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_795_447_801, "2026-11-23T15:30:01.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
            assert_eq!(parse_rfc3339(text), Some(UNIX_EPOCH + Duration::from_secs(seconds)), "{text}");
        }
        let time = UNIX_EPOCH + Duration::new(951_782_399, 120_334_567);
        assert_eq!(rfc3339_nanos(time), "2000-02-28T23:59:59.120334567Z");
        assert_eq!(parse_rfc3339("2000-02-29T01:59:59.120334567+02:00"), Some(time));
        for bad in ["", "2000-02-28", "2000-13-28T23:59:59Z", "2000-02-28T23:59:59", "2000-02-28T23:59:59.Z1", "now"] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn short_durations() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (61, "1m1s"), (3600, "1h"), (90_000, "1d1h")] {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }
}
