//! PAX extended header records: `<length> <key>=<value>\n`, where the length counts itself.
//!
//! Follows composefs-rs where the standard is silent: text that does not begin with a length ends
//! the list, a record that is cut short or has no `=` is an error, keys are UTF-8, values are
//! bytes. A record without a value leaves what the header says, as Go's `archive/tar` and podman with it
//! have it.

use composefs_image::Timestamp;

use super::error::TarErrorKind;

/// The records of one extended header, in order.
pub(super) struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    fn parse_next(&mut self) -> Option<Result<(&'a str, &'a [u8]), TarErrorKind>> {
        let space = self.0.iter().position(|&byte| byte == b' ')?;
        let len: usize = std::str::from_utf8(&self.0[..space]).ok()?.parse().ok()?;
        let Some((record, rest)) = self.0.split_at_checked(len) else {
            return Some(Err(TarErrorKind::PaxRecord));
        };
        self.0 = rest;
        let parsed = record
            .get(space + 1..)
            .and_then(|text| text.strip_suffix(b"\n"))
            .and_then(|text| {
                let equals = text.iter().position(|&byte| byte == b'=')?;
                let key = std::str::from_utf8(&text[..equals]).ok()?;
                Some((key, &text[equals + 1..]))
            });
        Some(parsed.ok_or(TarErrorKind::PaxRecord))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a str, &'a [u8]), TarErrorKind>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.parse_next();
        if !matches!(item, Some(Ok(_))) {
            self.0 = &[];
        }
        item
    }
}

/// A decimal number without sign.
pub(super) fn number(key: &'static str, value: &[u8]) -> Result<u64, TarErrorKind> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(TarErrorKind::PaxValue { key })
}

/// The time `<seconds>[.<fraction>]`, before 1970 with a minus sign in front. Digits beyond the ninth are
/// dropped; a fraction that is not a number counts as none.
///
/// composefs-rs takes no negative times but all of an unsigned 64-bit number, Go takes negative ones. As
/// image formats have 64 bits for them, both are taken here.
pub(super) fn time(key: &'static str, value: &[u8]) -> Result<Timestamp, TarErrorKind> {
    let text = std::str::from_utf8(value).map_err(|_| TarErrorKind::PaxValue { key })?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec = seconds
        .parse::<i64>()
        .or_else(|_| seconds.parse::<u64>().map(|seconds| seconds as i64))
        .map_err(|_| TarErrorKind::PaxValue { key })?;
    let digits = fraction.get(..9).unwrap_or(fraction);
    let nsec = match digits.parse::<u32>() {
        Ok(value) if digits.len() <= 9 => value * 10u32.pow(9 - digits.len() as u32),
        _ => 0,
    };
    if nsec == 0 || !seconds.starts_with('-') {
        return Ok(Timestamp { sec, nsec });
    }
    // The sign is that of the fraction too, and nanoseconds count forward.
    let sec = sec.checked_sub(1).ok_or(TarErrorKind::PaxValue { key })?;
    Ok(Timestamp {
        sec,
        nsec: 1_000_000_000 - nsec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(data: &[u8]) -> Vec<Result<(String, Vec<u8>), ()>> {
        Records::new(data)
            .map(|record| {
                record
                    .map(|(key, value)| (key.to_owned(), value.to_vec()))
                    .map_err(drop)
            })
            .collect()
    }

    #[test]
    fn values_may_hold_equals_signs_and_newlines() {
        assert_eq!(
            all(b"13 path=a=b\n\n10 uid=12\n"),
            [
                Ok(("path".into(), b"a=b\n".to_vec())),
                Ok(("uid".into(), b"12".to_vec())),
            ]
        );
    }

    #[test]
    fn records_that_lie_about_their_length_are_refused() {
        for data in [
            &b"99 path=a\n"[..],
            b"8 path=a\n",
            b"1 path=a\n",
            b"0 path=a\n",
            b"9 patha\n",
            b"18446744073709551615 path=a\n",
        ] {
            assert_eq!(all(data), [Err(())], "{}", data.escape_ascii());
        }
    }

    #[test]
    fn text_without_a_length_ends_the_records() {
        assert_eq!(all(b"\0\0\0\0"), []);
        assert_eq!(all(b"x path=a\n"), []);
        assert_eq!(all(b"10 path=a\n\0\0").len(), 1);
    }

    #[test]
    fn fractions_of_seconds_are_cut_or_padded_to_nanoseconds() {
        for (text, expected) in [
            ("12", Some((12, 0))),
            ("12.", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.000000001", Some((12, 1))),
            ("12.1234567899", Some((12, 123_456_789))),
            ("12.x", Some((12, 0))),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn times_before_1970_are_those_that_go_reads() {
        for (text, expected) in [
            ("-12", Some((-12, 0))),
            ("-12.5", Some((-13, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("-0.000000001", Some((-1, 999_999_999))),
            ("-9223372036854775808", Some((i64::MIN, 0))),
            ("-9223372036854775808.5", None),
            ("-9223372036854775809", None),
            // What composefs-rs reads: the same bits.
            ("18446744073709551615", Some((-1, 0))),
            ("18446744073709551615.5", Some((-1, 500_000_000))),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    fn parsed(text: &str) -> Option<(i64, u32)> {
        let time = time("mtime", text.as_bytes()).ok()?;
        Some((time.sec, time.nsec))
    }
}
