//! How digests and errors look in JSON.

use std::fmt::Display;

use serde::Serializer;

/// As the text it displays as.
pub(crate) fn text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// A path; bytes that aren't UTF-8 are replaced.
pub(crate) fn path<S: Serializer>(
    value: &std::path::Path,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value.display())
}
