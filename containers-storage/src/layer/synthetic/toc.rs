//! Members from the table of contents of a partial pull, in its order, with its metadata.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::header::{
    BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, FIFO, HARD_LINK, Member, REGULAR, SYMLINK,
};
use crate::error::Error;
use crate::ids::LayerId;
use crate::layer::OpenLayer;
use crate::layer::toc::{TocEntry, read_toc};

/// Calls `take` with every member.
pub(super) fn members(
    open: &OpenLayer,
    take: &mut dyn FnMut(Member) -> Result<(), Error>,
) -> Result<(), Error> {
    let layer = open.layer();
    let missing = || Error::NoTableOfContents {
        layer: LayerId::clone(layer.id()),
    };
    let path = layer.toc_path()?.ok_or_else(missing)?;
    let mut failure = None;
    let read = read_toc(&path, |entry| {
        let Some(member) = member(entry)? else {
            return Ok(());
        };
        take(member).map_err(|error| {
            failure = Some(error);
            "it was not read to its end"
        })
    });
    match failure {
        Some(error) => Err(error),
        None => read,
    }
}

/// The member that an entry stands for; pieces of files stand for none.
fn member(entry: TocEntry) -> Result<Option<Member>, &'static str> {
    let kind = match &*entry.kind {
        "reg" => REGULAR,
        "hardlink" => HARD_LINK,
        "symlink" => SYMLINK,
        "char" => CHAR_DEVICE,
        "block" => BLOCK_DEVICE,
        "dir" => DIRECTORY,
        "fifo" => FIFO,
        "chunk" => return Ok(None),
        _ => return Err("an entry is of an unknown type"),
    };
    let mut name = entry.name.into_bytes();
    if kind == DIRECTORY && !name.ends_with(b"/") {
        name.push(b'/');
    }
    let xattrs = entry.xattrs.unwrap_or_default().into_iter();
    let xattrs = xattrs.map(|(name, value)| {
        let value = STANDARD
            .decode(value)
            .map_err(|_| "the value of an xattr is not base64")?;
        Ok((name.into_bytes(), value))
    });
    Ok(Some(Member {
        name,
        kind,
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        size: if kind == REGULAR { entry.size } else { 0 },
        mtime: match &entry.modtime {
            Some(text) => time(text).ok_or("an entry has an invalid time")?,
            None => (0, 0),
        },
        link: entry.link_name.into_bytes(),
        device: (entry.dev_major, entry.dev_minor),
        xattrs: xattrs.collect::<Result<BTreeMap<_, _>, &'static str>>()?,
    }))
}

/// Seconds and nanoseconds of an RFC 3339 time.
fn time(text: &str) -> Option<(i64, u32)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<i64>().ok()).flatten()
    };
    let (date, rest) = text.split_once('T')?;
    let (year, rest_of_date) = date.split_once('-')?;
    let (month, day) = rest_of_date.split_once('-')?;
    let (year, month, day) = (number(year)?, number(month)?, number(day)?);
    if !(0..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let at = rest.find(['Z', '+', '-'])?;
    let (clock, zone) = rest.split_at(at);
    let offset = match zone.split_at(1) {
        ("Z", "") => 0,
        (sign, zone) => {
            let (hours, minutes) = zone.split_once(':')?;
            let offset = number(hours)? * 3600 + number(minutes)? * 60;
            if sign == "-" { -offset } else { offset }
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next()?);
    let clock = number(hour)? * 3600 + number(minute)? * 60 + number(second)?;
    number(fraction)?;
    let nanoseconds = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    // Days since 1970-01-01 in the Gregorian calendar, of years that begin in March.
    let (y, m) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let (era, of_era) = (y.div_euclid(400), y.rem_euclid(400));
    let of_year = (153 * m + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some((days * 86_400 + clock - offset, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_tables_of_contents_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some((0, 0))),
            (
                "2024-02-29T12:34:56.25Z",
                Some((1_709_210_096, 250_000_000)),
            ),
            ("2000-01-01T01:00:00+01:00", Some((946_684_800, 0))),
            ("1969-12-31T23:59:59.5Z", Some((-1, 500_000_000))),
            ("0001-01-01T00:00:00Z", Some((-62_135_596_800, 0))),
            ("2024-13-01T00:00:00Z", None),
            ("2024-01-01", None),
            ("2024-01-01T00:00:00", None),
            ("", None),
        ] {
            assert_eq!(time(text), expected, "{text}");
        }
    }
}
