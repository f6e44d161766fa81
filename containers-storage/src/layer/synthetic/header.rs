//! A member of the canonical tar: its ustar header, with a PAX header before it where that is too small.

use std::collections::BTreeMap;

pub(super) const REGULAR: u8 = b'0';
pub(super) const HARD_LINK: u8 = b'1';
pub(super) const SYMLINK: u8 = b'2';
pub(super) const CHAR_DEVICE: u8 = b'3';
pub(super) const BLOCK_DEVICE: u8 = b'4';
pub(super) const DIRECTORY: u8 = b'5';
pub(super) const FIFO: u8 = b'6';

/// Largest values of octal fields of 8 and 12 bytes.
const MAX_7: u64 = 0o777_7777;
const MAX_11: u64 = 0o777_7777_7777;

/// A member of the tar.
#[derive(Debug, Clone, Default)]
pub(super) struct Member {
    /// Relative, directories with a `/` at the end.
    pub(super) name: Vec<u8>,
    pub(super) kind: u8,
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Of the content, 0 for all but regular files.
    pub(super) size: u64,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) link: Vec<u8>,
    pub(super) device: (u32, u32),
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Member {
    /// Everything before the content.
    pub(super) fn headers(&self) -> Vec<u8> {
        let records = self.pax_records();
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let pax = Self {
                name: b"././@PaxHeader".to_vec(),
                kind: b'x',
                mode: 0o644,
                size: records.len() as u64,
                ..Self::default()
            };
            bytes.extend(pax.ustar());
            bytes.extend(&records);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend(self.ustar());
        bytes
    }

    fn ustar(&self) -> [u8; 512] {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        let octal = |value: u64, digits: usize, max: u64| {
            format!("{:0digits$o}\0", if value > max { 0 } else { value })
        };
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, octal(self.mode.into(), 7, MAX_7).as_bytes());
        put(108, octal(self.uid.into(), 7, MAX_7).as_bytes());
        put(116, octal(self.gid.into(), 7, MAX_7).as_bytes());
        put(124, octal(self.size, 11, MAX_11).as_bytes());
        let seconds = u64::try_from(self.mtime.0).unwrap_or(0);
        put(136, octal(seconds, 11, MAX_11).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, octal(self.device.0.into(), 7, MAX_7).as_bytes());
        put(337, octal(self.device.1.into(), 7, MAX_7).as_bytes());
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    fn pax_records(&self) -> Vec<u8> {
        let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut set = |key: &str, value: &[u8]| records.insert(key.into(), value.to_vec());
        if self.name.len() > 100 {
            set("path", &self.name);
        }
        if self.link.len() > 100 {
            set("linkpath", &self.link);
        }
        for (key, value, max) in [
            ("uid", self.uid.into(), MAX_7),
            ("gid", self.gid.into(), MAX_7),
            ("size", self.size, MAX_11),
        ] {
            if value > max {
                set(key, value.to_string().as_bytes());
            }
        }
        let (seconds, nanoseconds) = self.mtime;
        if nanoseconds != 0 || !(0..=MAX_11 as i64).contains(&seconds) {
            set("mtime", decimal(seconds, nanoseconds).as_bytes());
        }
        for (name, value) in &self.xattrs {
            let key = [b"SCHILY.xattr.", name.as_slice()].concat();
            records.insert(key, value.clone());
        }
        let mut bytes = Vec::new();
        for (key, value) in records {
            // The length counts its own digits.
            let rest = 3 + key.len() + value.len();
            let mut length = rest + rest.to_string().len();
            length = rest + length.to_string().len();
            bytes.extend(length.to_string().as_bytes());
            bytes.push(b' ');
            bytes.extend(key);
            bytes.push(b'=');
            bytes.extend(value);
            bytes.push(b'\n');
        }
        bytes
    }
}

/// A time as PAX writes it, without zeros at its end.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    let (sign, whole, fraction) = if seconds < 0 {
        (
            "-",
            (seconds + 1).unsigned_abs(),
            1_000_000_000 - nanoseconds,
        )
    } else {
        ("", seconds.unsigned_abs(), nanoseconds)
    };
    let fraction = format!("{fraction:09}");
    format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimal_numbers_without_zeros_at_the_end() {
        for (time, text) in [
            ((5, 0), "5"),
            ((5, 500_000_000), "5.5"),
            ((-5, 0), "-5"),
            ((-1, 750_000_000), "-0.25"),
            ((-5, 7), "-4.999999993"),
        ] {
            assert_eq!(decimal(time.0, time.1), text);
        }
    }

    #[test]
    fn the_length_of_a_pax_record_counts_itself() {
        for length in [101, 200, 980, 990, 9990] {
            let member = Member {
                name: vec![b'n'; length],
                kind: REGULAR,
                ..Member::default()
            };
            let records = member.pax_records();
            let text = String::from_utf8(records.clone()).unwrap();
            let (count, rest) = text.split_once(' ').unwrap();
            assert_eq!(count.parse::<usize>().unwrap(), records.len(), "{length}");
            assert!(rest.starts_with("path=nnn") && rest.ends_with("n\n"));
        }
    }
}
