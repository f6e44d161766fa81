//! The smallest unified kernel images there can be: headers and `.cmdline` sections.

const HEADERS: usize = 1024;
const ALIGNMENT: usize = 512;

/// A unified kernel image with a profile for each command line. It can't boot.
pub fn uki(command_lines: &[&str]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[60..].copy_from_slice(&64_u32.to_le_bytes());
    bytes.extend(b"PE\0\0");
    // COFF header: x86-64, the number of sections, the size of the optional header.
    bytes.extend(0x8664_u16.to_le_bytes());
    bytes.extend((command_lines.len() as u16).to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend(240_u16.to_le_bytes());
    bytes.extend([0; 2]);
    // Optional header: PE32+, with 16 data directories, none of them used.
    let mut optional = [0; 240];
    optional[..2].copy_from_slice(&0x20b_u16.to_le_bytes());
    optional[108..112].copy_from_slice(&16_u32.to_le_bytes());
    bytes.extend(optional);
    let mut offset = HEADERS;
    let mut contents = Vec::new();
    for line in command_lines {
        let size = line.len().next_multiple_of(ALIGNMENT);
        bytes.extend(b".cmdline");
        for field in [line.len(), offset, size, offset] {
            bytes.extend((field as u32).to_le_bytes());
        }
        bytes.extend([0; 16]);
        contents.extend_from_slice(line.as_bytes());
        contents.resize(offset + size - HEADERS, 0);
        offset += size;
    }
    assert!(bytes.len() <= HEADERS, "too many profiles");
    bytes.resize(HEADERS, 0);
    bytes.extend(contents);
    bytes
}
