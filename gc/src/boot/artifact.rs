//! Names of boot artifacts: the directories with kernel and initrd, and unified kernel images.
//!
//! bootc names both after a deployment. For a unified kernel image that is the deployment it boots; a
//! kernel directory may be shared, and then has the name of whichever deployment made it. Hosts installed
//! by an old bootc have names without the prefix.

use composefs_image::VerityDigest;

/// What bootc's artifacts begin with.
pub(crate) const PREFIX: &str = "bootc_composefs-";
/// The end of a unified kernel image's name.
const EFI: &str = ".efi";
/// The end of the name of the directory with a unified kernel image's add-ons.
const ADDONS: &str = ".efi.extra.d";

/// What the file name of a unified kernel image says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UkiName {
    /// It boots the image with this digest.
    Image(VerityDigest),
    /// It has bootc's prefix, and no digest after it.
    Malformed,
    /// It is not one of bootc's.
    Foreign,
}

/// Reads the file name of a unified kernel image. systemd-boot's counters of attempts (`+3-1`) don't
/// matter.
pub(crate) fn uki_name(file_name: &str) -> UkiName {
    let stem = strip_suffix_ignoring_case(file_name, EFI).unwrap_or(file_name);
    let stem = without_counters(stem);
    match stem.strip_prefix(PREFIX) {
        Some(digest) => VerityDigest::from_hex(digest).map_or(UkiName::Malformed, UkiName::Image),
        None => VerityDigest::from_hex(stem).map_or(UkiName::Foreign, UkiName::Image),
    }
}

/// Whether a file can be a unified kernel image or add-on.
pub(crate) fn is_efi(file_name: &str) -> bool {
    strip_suffix_ignoring_case(file_name, EFI).is_some()
}

/// The unified kernel image whose add-ons a directory of this name has.
pub(crate) fn addons_of(directory: &str) -> Option<String> {
    let stem = strip_suffix_ignoring_case(directory, ADDONS)?;
    Some(format!("{stem}{EFI}"))
}

/// The last component of a path in a boot loader entry, which may have backslashes.
pub(crate) fn file_name(path: &str) -> &str {
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

/// The directory that a kernel's path names, if it is one of bootc's: `bootc_composefs-…`, or a bare
/// digest on old hosts.
pub(crate) fn kernel_directory(kernel: &str) -> Option<&str> {
    let mut components = kernel.rsplit(['/', '\\']);
    components.next();
    let directory = components.next()?;
    (directory.starts_with(PREFIX) || VerityDigest::from_hex(directory).is_ok())
        .then_some(directory)
}

fn without_counters(stem: &str) -> &str {
    match stem.rsplit_once('+') {
        Some((name, counters))
            if !counters.is_empty()
                && counters
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'-') =>
        {
            name
        }
        _ => stem,
    }
}

fn strip_suffix_ignoring_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let start = text.len().checked_sub(suffix.len())?;
    let (stem, end) = (text.get(..start)?, text.get(start..)?);
    end.eq_ignore_ascii_case(suffix).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unified_kernel_image_is_named_after_what_it_boots() {
        let hex = "ab".repeat(64);
        let image = UkiName::Image(VerityDigest::from_hex(&hex).unwrap());
        for name in [
            format!("bootc_composefs-{hex}.efi"),
            format!("bootc_composefs-{hex}.EFI"),
            format!("bootc_composefs-{hex}+3-1.efi"),
            format!("{hex}.efi"),
            format!("bootc_composefs-{hex}"),
        ] {
            assert_eq!(uki_name(&name), image, "{name}");
        }
        assert_eq!(uki_name("bootc_composefs-abab.efi"), UkiName::Malformed);
        assert_eq!(uki_name("bootc_composefs-"), UkiName::Malformed);
        assert_eq!(uki_name("shimx64.efi"), UkiName::Foreign);
        assert_eq!(uki_name(""), UkiName::Foreign);
    }

    #[test]
    fn paths_name_their_artifacts_with_either_slash() {
        assert_eq!(file_name("/EFI/Linux/a.efi"), "a.efi");
        assert_eq!(file_name("\\EFI\\Linux\\a.efi"), "a.efi");
        let named = |path| kernel_directory(path);
        assert_eq!(
            named("/boot/bootc_composefs-x/vmlinuz"),
            Some("bootc_composefs-x")
        );
        assert_eq!(named("/boot/vmlinuz-6.1"), None);
        assert_eq!(named("vmlinuz"), None);
        assert_eq!(addons_of("a.efi.extra.d"), Some("a.efi".to_owned()));
        assert_eq!(addons_of("a.efi"), None);
    }
}
