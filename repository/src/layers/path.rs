//! Paths in layers: bytes from anybody, made into names below the root.

/// Splits a path the way composefs-rs does: `.` and doubled slashes vanish, one leading and all
/// trailing slashes too. `..` is kept for the caller to judge.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

/// A path as Go's `filepath.Clean` leaves it, joined to the root: `..` takes back the name in front
/// of it, without a look at the file tree, and ends at the root.
pub(super) struct Cleaned<'a> {
    /// The names from the root.
    pub(super) names: Vec<&'a [u8]>,
    /// Whether the cleaned path is `.`, which podman treats otherwise than `/` and `..`.
    pub(super) is_dot: bool,
}

pub(super) fn clean(path: &[u8]) -> Cleaned<'_> {
    let absolute = path.starts_with(b"/");
    let mut names = Vec::new();
    let mut above_root = false;
    for name in components(path) {
        if name == b".." {
            above_root |= names.pop().is_none();
        } else {
            names.push(name);
        }
    }
    Cleaned {
        is_dot: names.is_empty() && !absolute && !above_root,
        names,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_resolved_in_the_text_and_stop_at_the_root() {
        for (path, expected, is_dot) in [
            (&b"a/b"[..], "a/b", false),
            (b"./a//b/.", "a/b", false),
            (b"/a/../../b", "b", false),
            (b"../../b/c", "b/c", false),
            (b".", "", true),
            (b"./", "", true),
            (b"a/..", "", true),
            (b"/", "", false),
            (b"..", "", false),
        ] {
            let cleaned = clean(path);
            assert_eq!(
                cleaned.names.join(&b'/'),
                expected.as_bytes(),
                "{}",
                path.escape_ascii()
            );
            assert_eq!(cleaned.is_dot, is_dot, "{}", path.escape_ascii());
        }
    }
}
