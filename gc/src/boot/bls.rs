//! Boot loader entries of type 1: `loader/entries/*.conf`.
//!
//! Follows the UAPI boot loader specification: lines of a key and a value, `#` begins a comment. Keys are
//! taken wherever they stand; `options` and `initrd` may be repeated.

use composefs_image::VerityDigest;
use composefs_image::karg::{self, ArgumentError};

use super::artifact;

/// An entry, as far as it matters here. Paths are as the boot loader sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BlsEntry {
    /// The kernel.
    pub(crate) linux: Option<String>,
    /// The EFI program or unified kernel image (`efi` or `uki`).
    pub(crate) program: Option<Program>,
    /// The kernel arguments, those of all lines.
    pub(crate) options: Vec<u8>,
    /// What boot loaders sort by first, ascending.
    pub(crate) sort_key: Option<String>,
    /// What they sort by next, descending.
    pub(crate) version: Option<String>,
}

/// What an entry starts instead of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    /// Its path.
    pub(crate) path: String,
    /// Whether the entry says that it is a unified kernel image.
    pub(crate) kind: ProgramKind,
}

/// What an entry says of its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgramKind {
    /// `uki`: it is a unified kernel image.
    Uki,
    /// `efi`, or a chain loader: it may be anything.
    Any,
}

/// Reads an entry. Anything is an entry, if need be an empty one.
pub(crate) fn parse(text: &[u8]) -> BlsEntry {
    let mut entry = BlsEntry::default();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if line.starts_with(b"#") {
            continue;
        }
        let key_length = line
            .iter()
            .position(u8::is_ascii_whitespace)
            .unwrap_or(line.len());
        let (key, value) = line.split_at(key_length);
        let value = value.trim_ascii();
        let text = || String::from_utf8_lossy(value).into_owned();
        match key {
            b"linux" => entry.linux = Some(text()),
            b"efi" | b"uki" => {
                let kind = if key == b"uki" {
                    ProgramKind::Uki
                } else {
                    ProgramKind::Any
                };
                entry.program = Some(Program { path: text(), kind });
            }
            b"options" => {
                if !entry.options.is_empty() {
                    entry.options.push(b' ');
                }
                entry.options.extend_from_slice(value);
            }
            b"sort-key" => entry.sort_key = Some(text()),
            b"version" => entry.version = Some(text()),
            _ => {}
        }
    }
    entry
}

impl BlsEntry {
    /// Whether bootc made it, going by the file's name and the kernel's.
    pub(crate) fn is_bootcs(&self, file_name: &str) -> bool {
        let kernel = self.linux.as_deref();
        file_name.starts_with("bootc_") || kernel.and_then(artifact::kernel_directory).is_some()
    }
}

/// The images that kernel arguments name, in their order: what boots is the first that exists.
///
/// An argument that can't be read is an error, wherever it stands: it could be the one that counts.
pub(crate) fn images(arguments: &[u8]) -> Result<Vec<VerityDigest>, ArgumentError> {
    karg::arguments(arguments)
        // The kernel takes the quotes around a whole argument off.
        .map(|argument| argument.strip_prefix(b"\"").unwrap_or(argument))
        .map(|argument| argument.strip_suffix(b"\"").unwrap_or(argument))
        .flat_map(karg::candidates)
        .map(|candidate| candidate.map(|image| image.digest))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_bootc_is_understood() {
        let hex = "0a".repeat(64);
        let text = format!(
            "title Example OS 42\nversion 42.1\n\
             linux /boot/bootc_composefs-{hex}/vmlinuz\ninitrd /boot/bootc_composefs-{hex}/initrd\n\
             options rw\toptions=1 composefs=?{hex}\n# options composefs=nonsense\n  sort-key bootc-os-0 \r\n\
             options quiet\nunknown key\n\n"
        );
        let entry = parse(text.as_bytes());
        let kernel = format!("/boot/bootc_composefs-{hex}/vmlinuz");
        assert_eq!(entry.linux, Some(kernel));
        assert_eq!(entry.sort_key.as_deref(), Some("bootc-os-0"));
        assert_eq!(entry.version.as_deref(), Some("42.1"));
        assert!(entry.options.ends_with(b" quiet"));
        assert_eq!(
            images(&entry.options),
            Ok(vec![VerityDigest::from_hex(&hex).unwrap()])
        );
        assert!(entry.is_bootcs("x.conf"));
    }

    #[test]
    fn an_entry_may_start_a_program_instead() {
        let entry = parse(b"title x\nefi /EFI/Linux/bootc/a.efi\n");
        let program = entry.program.unwrap();
        assert_eq!(
            (program.path.as_str(), program.kind),
            ("/EFI/Linux/bootc/a.efi", ProgramKind::Any)
        );
        let program = parse(b"uki \\a.efi").program.unwrap();
        assert_eq!(program.kind, ProgramKind::Uki);
    }

    #[test]
    fn what_is_no_entry_names_nothing() {
        for text in [&b""[..], b"\0\0\0\0", b"\xff\xfe\n\n#", b"linux", b"option"] {
            let entry = parse(text);
            assert!(entry.options.is_empty() && entry.program.is_none());
            assert_eq!(images(&entry.options), Ok(vec![]));
        }
    }

    #[test]
    fn all_images_of_a_command_line_count_and_none_is_passed_over() {
        let digest = |byte: &str| VerityDigest::from_hex(&byte.repeat(32)).unwrap();
        let line = format!(
            "\"composefs={}\" ro composefs.digest=v1-sha256-12:{} composefs=?{}",
            digest("01"),
            digest("02"),
            digest("03")
        );
        assert_eq!(
            images(line.as_bytes()),
            Ok(vec![digest("01"), digest("02"), digest("03")])
        );
        let cut = &line.as_bytes()[..line.len() - 1];
        assert!(images(cut).is_err());
        assert!(images(b"rw composefs=").is_err());
    }
}
