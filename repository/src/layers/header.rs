//! One 512-byte tar header block: fields and numbers, nothing that spans blocks.
//!
//! Understands v7, ustar and GNU headers the way composefs-rs 0.9 does, because the file tree and
//! with it the image digest depend on it: numbers are octal text, or base-256 where the format
//! allows, of which the low 64 bits count (so a negative modification time survives as two's
//! complement). Nothing here reads PAX records or long names; see [`super::splitter`].

use super::error::TarErrorKind;

/// Size of a header and the unit in which everything in a tar is padded.
pub const BLOCK: usize = 512;

/// What the type flag of a member says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// `0`, NUL or `7`.
    Regular,
    /// `1`: another name of an entry that came before.
    HardLink,
    /// `2`
    Symlink,
    /// `3`
    CharDevice,
    /// `4`
    BlockDevice,
    /// `5`
    Directory,
    /// `6`
    Fifo,
    /// Any other type flag. It can be stored, but no file tree can be made of it.
    Other(u8),
}

impl MemberKind {
    fn from_flag(flag: u8) -> Self {
        match flag {
            b'0' | 0 | b'7' => Self::Regular,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharDevice,
            b'4' => Self::BlockDevice,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            other => Self::Other(other),
        }
    }
}

/// What a header block introduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A member of the archive.
    Member(MemberKind),
    /// `L`: the path of the next member.
    LongName,
    /// `K`: the link target of the next member.
    LongLink,
    /// `x`: PAX records for the next member.
    Pax,
    /// `g`: PAX records for all that follow, which have no effect.
    GlobalPax,
    /// `S`: an old GNU sparse file.
    Sparse,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Gnu,
}

/// A header block whose checksum is right.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    dialect: Dialect,
}

impl<'a> Header<'a> {
    /// Checks the checksum and recognises the dialect.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, TarErrorKind> {
        let stored = octal(&block[148..156]).ok_or(TarErrorKind::Number { field: "checksum" })?;
        let actual = checksum(block);
        if stored != actual {
            return Err(TarErrorKind::Checksum { stored, actual });
        }
        let dialect = match &block[257..265] {
            b"ustar\x0000" => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            _ => Dialect::V7,
        };
        Ok(Self { block, dialect })
    }

    /// Extension headers exist in ustar and GNU archives only; in a v7 archive their flags are
    /// member types nobody knows.
    pub(super) fn role(&self) -> Role {
        let flag = self.type_flag();
        match (flag, self.dialect) {
            (b'g', _) => Role::GlobalPax,
            (b'L', Dialect::Ustar | Dialect::Gnu) => Role::LongName,
            (b'K', Dialect::Ustar | Dialect::Gnu) => Role::LongLink,
            (b'x', Dialect::Ustar | Dialect::Gnu) => Role::Pax,
            (b'S', Dialect::Ustar | Dialect::Gnu) => Role::Sparse,
            _ => Role::Member(MemberKind::from_flag(flag)),
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// The name field, with the ustar prefix in front.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.block[..100]);
        let prefix = match self.dialect {
            Dialect::Ustar => until_nul(&self.block[345..500]),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link_target(&self) -> &[u8] {
        until_nul(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Result<u64, TarErrorKind> {
        self.number(100, 8, "mode")
    }

    pub(super) fn uid(&self) -> Result<u64, TarErrorKind> {
        self.number(108, 8, "uid")
    }

    pub(super) fn gid(&self) -> Result<u64, TarErrorKind> {
        self.number(116, 8, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, TarErrorKind> {
        self.number(124, 12, "size")
    }

    pub(super) fn mtime(&self) -> Result<u64, TarErrorKind> {
        self.number(136, 12, "mtime")
    }

    /// Major and minor number; `None` in a v7 header, which has no such fields.
    pub(super) fn device(&self) -> Result<Option<(u32, u32)>, TarErrorKind> {
        if self.dialect == Dialect::V7 {
            return Ok(None);
        }
        let field = |at: usize, field| {
            let value = octal(&self.block[at..at + 8]).ok_or(TarErrorKind::Number { field })?;
            Ok(value as u32)
        };
        Ok(Some((field(329, "major")?, field(337, "minor")?)))
    }

    fn number(&self, at: usize, len: usize, field: &'static str) -> Result<u64, TarErrorKind> {
        let bytes = &self.block[at..at + len];
        if bytes[0] & 0x80 == 0 {
            octal(bytes).ok_or(TarErrorKind::Number { field })
        } else {
            Ok(base256(bytes))
        }
    }
}

fn checksum(block: &[u8; BLOCK]) -> u64 {
    // The checksum field itself counts as eight spaces.
    let field = 148..156;
    block
        .iter()
        .enumerate()
        .map(|(i, &byte)| u64::from(if field.contains(&i) { b' ' } else { byte }))
        .sum()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Octal text up to the first NUL, with white space around it; empty is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(until_nul(field)).ok()?;
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    if text.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(text, 8).ok()
}

fn base256(field: &[u8]) -> u64 {
    field.iter().enumerate().fold(0, |value: u64, (i, &byte)| {
        let byte = if i == 0 { byte & 0x7f } else { byte };
        (value << 8) | u64::from(byte)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields_may_be_padded_with_spaces_and_nuls() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"    ", Some(0)),
            (b"9", None),
            (b"64\xff", None),
            (b"7777777777777777777777777", None),
        ] {
            assert_eq!(octal(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn base256_keeps_the_low_64_bits_of_a_negative_number() {
        let minus_two = [&[0xff; 11][..], &[0xfe]].concat();
        assert_eq!(base256(&minus_two) as i64, -2);
        assert_eq!(base256(b"\x80\0\0\0\0\0\x01\0"), 256);
    }
}
