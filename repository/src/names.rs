//! Names in a repository: streams, refs, tags and the targets of links.
//!
//! Follows the composefs repository format, sections "link targets" and "streams and refs". Pure: text
//! in, checked names out. A name that exists here can be joined to a directory without leaving it.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use composefs_image::{Algorithm, VerityDigest};
use serde::{Serialize, Serializer};

/// The longest file name, in bytes.
const NAME_MAX: usize = 255;

/// The directory of refs in `streams/` and `images/`.
pub(crate) const REFS: &str = "refs";

/// The directory of tags below `streams/refs/`.
pub const TAG_REFS: &str = "oci";

/// The directory below `streams/refs/` of artifacts that refer to images.
const REFERRER_REFS: &str = "oci-referrers";

/// A name that isn't allowed where it was used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} is not valid: {reason}")]
pub struct NameError {
    what: &'static str,
    name: String,
    reason: &'static str,
}

impl NameError {
    pub(crate) fn new(what: &'static str, name: &str, reason: &'static str) -> Self {
        Self {
            what,
            name: name.to_owned(),
            reason,
        }
    }
}

/// The two kinds of named things: a directory each, with top-level entries and refs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// Splitstreams.
    Streams,
    /// EROFS images.
    Images,
}

impl Category {
    /// The name of its directory.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Images => "images",
        }
    }
}

impl Serialize for Category {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.directory())
    }
}

/// The name of a stream: that of its link in `streams/`, for example `oci-layer-sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamName(String);

impl StreamName {
    /// Checks a name: one path component of at most 255 bytes, and not `refs`.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        match check_component(name.as_bytes()) {
            Err(reason) => Err(reason),
            Ok(()) if name == REFS => Err("this name is reserved"),
            Ok(()) => Ok(()),
        }
        .map_err(|reason| NameError::new("stream name", &name, reason))?;
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for StreamName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The path of a ref below `streams/refs/` or `images/refs/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefPath(PathBuf);

impl RefPath {
    /// Checks a path: relative, without `.` and `..`, components of at most 255 bytes. Bytes that are
    /// not UTF-8 are allowed; only a reader meets them.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, NameError> {
        let path = path.as_ref();
        let invalid = |reason| NameError::new("ref", &path.to_string_lossy(), reason);
        for component in path.as_os_str().as_bytes().split(|byte| *byte == b'/') {
            check_component(component).map_err(invalid)?;
        }
        Ok(Self(path.to_owned()))
    }

    /// The ref of a tag, below `streams/refs/`.
    pub fn of_tag(tag: &Tag) -> Self {
        Self(Path::new(TAG_REFS).join(encode_component(tag.as_str())))
    }

    /// The ref of an artifact that refers to an image, below `streams/refs/`.
    pub(crate) fn of_referrer(
        subject: impl std::fmt::Display,
        artifact: impl std::fmt::Display,
    ) -> Self {
        Self(
            Path::new(REFERRER_REFS)
                .join(encode_component(&subject.to_string()))
                .join(encode_component(&artifact.to_string())),
        )
    }

    /// What the artifact of this ref below `streams/refs/` refers to, as text; `None` if it is another kind of
    /// ref.
    pub(crate) fn referrers_subject(&self) -> Option<String> {
        let mut components = self.components();
        if components.next()? != REFERRER_REFS {
            return None;
        }
        let subject = decode_component(components.next()?.to_str()?);
        components.next()?;
        components.next().is_none().then_some(subject)
    }

    /// The tag that this ref below `streams/refs/` is; `None` if it is another kind of ref.
    pub fn tag(&self) -> Option<Tag> {
        let mut components = self.components();
        if components.next()? != TAG_REFS {
            return None;
        }
        let name = components.next()?.to_str()?;
        match components.next() {
            Some(_) => None,
            None => Tag::new(decode_component(name)).ok(),
        }
    }

    /// The path, relative to the refs directory.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The components of the path; at least one.
    pub fn components(&self) -> impl Iterator<Item = &OsStr> {
        self.0.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
    }
}

impl fmt::Display for RefPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Serialize for RefPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The name that a user gives an image, for example `registry.example/org/app:1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// Checks a tag: not empty, no NUL, no leading `@`, and short enough for a file name.
    pub fn new(tag: impl Into<String>) -> Result<Self, NameError> {
        let tag = tag.into();
        if tag.starts_with('@') {
            Err("it begins with '@', which stands for a digest")
        } else {
            check_component(encode_component(&tag).as_bytes())
        }
        .map_err(|reason| NameError::new("tag", &tag, reason))?;
        Ok(Self(tag))
    }

    /// The tag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Tag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Makes one path component of any text: `%` becomes `%25`, `/` becomes `%2F`.
pub fn encode_component(text: &str) -> String {
    text.replace('%', "%25").replace('/', "%2F")
}

/// Undoes [`encode_component`]; other `%xy` stay as they are.
pub fn decode_component(component: &str) -> String {
    let mut text = String::with_capacity(component.len());
    let mut rest = component;
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        if let Some(after) = after.strip_prefix("25") {
            text.push('%');
            rest = after;
        } else if let Some(after) = after.strip_prefix("2F") {
            text.push('/');
            rest = after;
        } else {
            text.push('%');
            rest = after;
        }
    }
    text.push_str(rest);
    text
}

/// The target of a top-level link: the object, relative to `streams/` or `images/`.
pub(crate) fn object_target(digest: &VerityDigest) -> PathBuf {
    Path::new("../objects").join(digest.object_path())
}

/// Reads the target of a top-level link: only its end counts, `xx/` and the rest of a digest of
/// `algorithm` in hexadecimal.
pub(crate) fn parse_object_target(target: &[u8], algorithm: Algorithm) -> Option<VerityDigest> {
    let length = 2 * algorithm.digest_len() + 1;
    let end = target.get(target.len().checked_sub(length)?..)?;
    VerityDigest::from_object_path(&end.to_ascii_lowercase())
}

/// The target of a ref: the top-level entry `name` of the same category, relative to the ref.
pub(crate) fn ref_target(path: &RefPath, name: &str) -> PathBuf {
    let mut target = PathBuf::new();
    for _ in path.components() {
        target.push("..");
    }
    target.push(name);
    target
}

/// Reads the target of a ref: only its last component counts.
pub(crate) fn parse_ref_target(target: &[u8]) -> Option<String> {
    let name = target.rsplit(|byte| *byte == b'/').next()?;
    check_component(name).ok()?;
    String::from_utf8(name.to_owned()).ok()
}

/// Reads the digest of `algorithm` that a file name is, in lower-case hexadecimal.
pub(crate) fn parse_digest(name: &[u8], algorithm: Algorithm) -> Option<VerityDigest> {
    let digest = VerityDigest::from_hex_bytes(name).ok()?;
    (digest.algorithm() == algorithm).then_some(digest)
}

fn check_component(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("it has an empty part"),
        b"." | b".." => Err("'.' and '..' are not allowed"),
        _ if name.contains(&0) => Err("it contains a NUL"),
        _ if name.contains(&b'/') => Err("it contains a '/'"),
        _ if name.len() > NAME_MAX => Err("it is too long for a file name"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_encoded_as_composefs_rs_encodes_it_and_comes_back() {
        let tag = Tag::new("a%b/c:1").unwrap();
        let path = RefPath::of_tag(&tag);
        assert_eq!(path.as_path(), Path::new("oci/a%25b%2Fc:1"));
        assert_eq!(path.tag(), Some(tag));
        assert_eq!(decode_component("%2f%20%"), "%2f%20%");
        assert_eq!(decode_component("%252F"), "%2F");
    }

    #[test]
    fn names_that_leave_their_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "a\0", "refs", &"x".repeat(256)] {
            assert!(StreamName::new(name).is_err(), "{name:?}");
        }
        for path in ["", "/a", "a/", "a//b", "a/../b", "./a", "a/."] {
            assert!(RefPath::new(path).is_err(), "{path:?}");
        }
        for tag in ["", "@sha256:00", "a\0b", &"/".repeat(86)] {
            assert!(Tag::new(tag).is_err(), "{tag:?}");
        }
        assert!(StreamName::new("oci-layer-sha256:00").is_ok());
        assert!(RefPath::new("my/ref/name").is_ok());
    }

    #[test]
    fn link_targets_have_one_dotdot_for_each_directory() {
        let name = "oci-manifest-sha256:00";
        let target = |path| ref_target(&RefPath::new(path).unwrap(), name);
        assert_eq!(target("oci/foo"), Path::new("../..").join(name));
        assert_eq!(target("a/b/c"), Path::new("../../..").join(name));
        assert_eq!(target("a"), Path::new("..").join(name));
    }

    #[test]
    fn only_the_end_of_an_object_target_counts() {
        let digest = "ab".repeat(32);
        let expected = VerityDigest::from_hex(&digest).unwrap();
        let rest = &digest[2..];
        let parse = |target: String| parse_object_target(target.as_bytes(), Algorithm::Sha256);
        assert_eq!(parse(format!("../objects/ab/{rest}")), Some(expected));
        assert_eq!(parse(format!("/anywhere/AB/{rest}")), Some(expected));
        assert_eq!(parse(format!("../objects/ab{rest}")), None);
        assert_eq!(parse(format!("../objects/ab/{rest}0")), None);
        assert_eq!(parse("short".into()), None);
        assert_eq!(
            object_target(&expected),
            PathBuf::from(format!("../objects/ab/{rest}"))
        );
    }
}
