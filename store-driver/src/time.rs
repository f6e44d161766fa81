//! RFC 3339 times, as the records of a store want them.
//!
//! podman refuses a whole store for one time that it cannot parse, so text from an image's config is
//! checked before it is copied into a record.

use std::time::{SystemTime, UNIX_EPOCH};

/// A time in UTC with nanoseconds, e.g. `2026-01-31T23:59:59.000000001Z`.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar. Counts from 1 March
/// of year 0, so that leap days come last in their year, in eras of 400 years.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Whether text is a time as Go's `time.RFC3339` parser takes it.
pub(crate) fn is_rfc3339(text: &str) -> bool {
    let Some((date_time, zone)) = text.split_at_checked(19) else {
        return false;
    };
    let number = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| text.parse::<u32>().ok())
            .flatten()
    };
    let within = |range: std::ops::Range<usize>, least: u32, most: u32| {
        date_time
            .get(range)
            .and_then(number)
            .is_some_and(|value| (least..=most).contains(&value))
    };
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let has_form = separators
        .iter()
        .all(|(at, byte)| date_time.as_bytes().get(*at) == Some(byte));
    let year = date_time.get(0..4).and_then(number);
    let month = date_time.get(5..7).and_then(number);
    let last_day = match (year, month) {
        (Some(year), Some(2)) if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        (_, Some(2)) => 28,
        (_, Some(4 | 6 | 9 | 11)) => 30,
        _ => 31,
    };
    let zone = match zone.strip_prefix('.') {
        None => zone,
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            if zone.len() == fraction.len() {
                return false;
            }
            zone
        }
    };
    let is_zone = match zone.as_bytes() {
        b"Z" => true,
        [b'+' | b'-', _, _, b':', _, _] => {
            let part = |range: std::ops::Range<usize>| zone.get(range).and_then(number);
            part(1..3).is_some_and(|hours| hours <= 23)
                && part(4..6).is_some_and(|minutes| minutes <= 59)
        }
        _ => false,
    };
    has_form
        && year.is_some()
        && within(5..7, 1, 12)
        && within(8..10, 1, last_day)
        && within(11..13, 0, 23)
        && within(14..16, 0, 59)
        && within(17..19, 0, 59)
        && is_zone
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_in_the_gregorian_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_799, "2000-02-29T23:59:59.000000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000000Z"),
            (1_704_067_199, "2023-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(time), text);
            assert!(is_rfc3339(text));
        }
    }

    #[test]
    fn times_that_go_would_refuse_are_recognised() {
        for good in [
            "2024-02-29T00:00:00Z",
            "2023-01-02T03:04:05.6+01:00",
            "2023-01-02T03:04:05.123456789-23:59",
        ] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "2023-02-29T00:00:00Z",
            "2023-13-01T00:00:00Z",
            "2023-00-01T00:00:00Z",
            "2023-01-01T24:00:00Z",
            "2023-01-01T00:00:60Z",
            "2023-01-01 00:00:00Z",
            "2023-01-01T00:00:00",
            "2023-01-01T00:00:00.Z",
            "2023-01-01T00:00:00+0100",
            "2023-01-01T00:00:00+24:00",
            "+023-01-01T00:00:00Z",
            "2023-01-01T00:00:0é",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
