//! Unified kernel images: the kernel arguments in their `.cmdline` sections.
//!
//! Follows the UAPI specification of unified kernel images. Only the headers and the `.cmdline` sections
//! are read; an image of several profiles has more than one, and all of them count.

use std::fs::File;
use std::os::unix::fs::FileExt;

use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{ImageNtHeaders, optional_header_magic};

/// How much of a file's beginning is looked at for its headers, in bytes.
const MAX_HEADERS: usize = 64 << 10;
/// The longest `.cmdline` section, in bytes: the kernel takes a few thousand.
const MAX_CMDLINE: u32 = 16 << 10;
/// The most `.cmdline` sections.
const MAX_SECTIONS: usize = 16;

/// Why a file's kernel arguments can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UkiError {
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("it is no EFI program: {0}")]
    Headers(#[from] object::read::Error),
    #[error("it has more than {MAX_SECTIONS} sections of kernel arguments")]
    TooMany,
    #[error("its kernel arguments have {0} bytes; at most {MAX_CMDLINE} are read")]
    TooLong(u32),
    #[error("it ends within its kernel arguments: it was cut off")]
    Truncated,
}

/// The kernel arguments of an open unified kernel image, those of each profile; none if it isn't one, but
/// another EFI program.
pub(crate) fn command_lines(file: &File) -> Result<Vec<Vec<u8>>, UkiError> {
    let mut headers = vec![0; MAX_HEADERS];
    let mut length = 0;
    loop {
        match file.read_at(&mut headers[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    headers.truncate(length);
    let size = file.metadata()?.len();
    let mut lines = Vec::new();
    for (offset, length) in cmdline_sections(&headers)? {
        if u64::from(offset) + u64::from(length) > size {
            return Err(UkiError::Truncated);
        }
        let mut line = vec![0; length as usize];
        file.read_exact_at(&mut line, u64::from(offset))?;
        // The section may be padded.
        let end = line
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        line.truncate(end);
        lines.push(line);
    }
    Ok(lines)
}

/// Offset and length of each `.cmdline` section, from a file's headers.
pub(crate) fn cmdline_sections(headers: &[u8]) -> Result<Vec<(u32, u32)>, UkiError> {
    if optional_header_magic(headers)? == pe::IMAGE_NT_OPTIONAL_HDR32_MAGIC {
        sections::<pe::ImageNtHeaders32>(headers)
    } else {
        sections::<pe::ImageNtHeaders64>(headers)
    }
}

fn sections<H: ImageNtHeaders>(headers: &[u8]) -> Result<Vec<(u32, u32)>, UkiError> {
    let mut offset = pe::ImageDosHeader::parse(headers)?
        .nt_headers_offset()
        .into();
    let (nt_headers, _) = H::parse(headers, &mut offset)?;
    let mut found = Vec::new();
    for section in nt_headers.sections(headers, offset)?.iter() {
        if section.raw_name() != b".cmdline" {
            continue;
        }
        let raw = section.size_of_raw_data.get(LE);
        // The size in memory is the one that counts; the file's is rounded up.
        let length = match section.virtual_size.get(LE) {
            0 => raw,
            size => size.min(raw),
        };
        if length > MAX_CMDLINE {
            return Err(UkiError::TooLong(length));
        }
        if found.len() == MAX_SECTIONS {
            return Err(UkiError::TooMany);
        }
        found.push((section.pointer_to_raw_data.get(LE), length));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::simulate::uki;

    fn lines(bytes: &[u8]) -> Result<Vec<Vec<u8>>, UkiError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        command_lines(&file)
    }

    #[test]
    fn the_arguments_of_every_profile_are_found() {
        let bytes = uki(&["rw composefs=1", "second"]);
        assert_eq!(
            lines(&bytes).unwrap(),
            [b"rw composefs=1".to_vec(), b"second".to_vec()]
        );
        assert_eq!(lines(&uki(&[])).unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn an_image_that_is_cut_off_anywhere_is_an_error_or_still_has_its_arguments() {
        let bytes = uki(&["rw composefs=1"]);
        for end in 0..bytes.len() {
            if let Ok(found) = lines(&bytes[..end]) {
                assert_eq!(found, [b"rw composefs=1".to_vec()], "{end}");
            }
        }
    }

    #[test]
    fn headers_that_lie_are_errors() {
        let bytes = uki(&["rw composefs=1"]);
        for position in 0..bytes.len().min(1024) {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[position] = value;
                // No panic, and no more memory than the limits allow.
                let _ = lines(&bytes);
            }
        }
        assert!(lines(b"").is_err());
        assert!(lines(b"MZ").is_err());
    }
}
