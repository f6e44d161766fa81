//! How digests and errors look in JSON.

use std::fmt::Display;
use std::path::PathBuf;

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

/// A list of what [`text`] shows one of.
pub(crate) fn texts<T: Display, S: Serializer>(
    values: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

/// A list of paths.
pub(crate) fn paths<S: Serializer>(values: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|path| path.display().to_string()))
}
