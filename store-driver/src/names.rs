//! The names under which podman lists an image, made from the repository's tags.
//!
//! podman wants fully qualified references (domain, path, and a tag or digest) and fails on names that
//! are none, so a tag that cannot be made into one is left out rather than written. Follows the
//! reference grammar of the OCI distribution world.

use containers_storage::{ImageId, ImageRecord};

/// Which of our names for an image podman does not find: from version 5 on it ignores the names in other stores
/// of an image that it has itself (seen with 5.4 and 5.8, not with 4.3).
pub(crate) fn names_hidden_by<'a>(
    own: &[ImageRecord],
    image: &ImageId,
    ours: &'a [String],
) -> Vec<&'a str> {
    let copies: Vec<&ImageRecord> = own.iter().filter(|record| record.id == *image).collect();
    let has = |name: &String| copies.iter().any(|record| record.names.contains(name));
    ours.iter()
        .filter(|name| !copies.is_empty() && !has(name))
        .map(String::as_str)
        .collect()
}

/// What gives names to an image of podman's. Names that are not ours must be quoted for a shell.
pub(crate) fn tag_command(image: &ImageId, names: &[impl std::borrow::Borrow<str>]) -> String {
    format!("podman tag {image} {}", names.join(" "))
}

/// The reference that podman lists for a repository tag: `app:1` is `localhost/app:1`, and a name
/// without tag gets `:latest`. `None` if the tag is no image reference.
pub fn podman_name(tag: &str) -> Option<String> {
    let (name, digest) = match tag.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (tag, None),
    };
    if !digest.is_none_or(is_digest) {
        return None;
    }
    // A colon before the last slash belongs to the domain's port.
    let (name, version) = match name.rsplit_once(':') {
        Some((name, version)) if !version.contains('/') => (name, Some(version)),
        _ => (name, None),
    };
    if !version.is_none_or(is_version) {
        return None;
    }
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) => (first, rest),
        _ => ("localhost", name),
    };
    if !is_domain(domain) || path.is_empty() || !path.split('/').all(is_path_component) {
        return None;
    }
    let name = format!("{domain}/{path}");
    if name.len() > MAX_NAME {
        return None;
    }
    Some(match (version, digest) {
        (Some(version), Some(digest)) => format!("{name}:{version}@{digest}"),
        (None, Some(digest)) => format!("{name}@{digest}"),
        (Some(version), None) => format!("{name}:{version}"),
        (None, None) => format!("{name}:latest"),
    })
}

const MAX_NAME: usize = 255;

fn is_digest(digest: &str) -> bool {
    digest.parse::<containers_storage::Digest>().is_ok()
}

fn is_version(version: &str) -> bool {
    let mut bytes = version.bytes();
    version.len() <= 128
        && bytes.next().is_some_and(is_word)
        && bytes.all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (domain, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label)
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Runs of lower-case letters and digits, separated by one of `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(is_alphanumeric)
        && component.ends_with(is_alphanumeric)
        && component
            .split(is_alphanumeric)
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || is_dashes(separator))
}

fn is_dashes(separator: &str) -> bool {
    separator.bytes().all(|byte| byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_become_fully_qualified_references() {
        for (tag, name) in [
            ("app", "localhost/app:latest"),
            ("app:1", "localhost/app:1"),
            ("org/app:1", "localhost/org/app:1"),
            ("localhost/app", "localhost/app:latest"),
            (
                "registry.example/org/app:v1.2_x-3",
                "registry.example/org/app:v1.2_x-3",
            ),
            ("reg:5000/app", "reg:5000/app:latest"),
            ("a__b-.c", ""),
            ("a__b---c.d_e", "localhost/a__b---c.d_e:latest"),
        ] {
            assert_eq!(podman_name(tag).unwrap_or_default(), name, "{tag}");
        }
    }

    #[test]
    fn digests_are_kept_and_must_be_valid() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(
            podman_name(&format!("registry.example/app@{digest}")).unwrap(),
            format!("registry.example/app@{digest}")
        );
        assert_eq!(podman_name("registry.example/app@sha256:abc"), None);
    }

    #[test]
    fn what_is_no_reference_gets_no_name() {
        let long = format!("localhost/{}", "a".repeat(300));
        for tag in [
            "",
            ":",
            "/",
            "App",
            "a b",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a:",
            "a:.x",
            "é",
            "a/",
            "/a",
            "a\n",
            "x.-y/app",
            "host:port/app",
            &long,
        ] {
            assert_eq!(podman_name(tag), None, "{tag:?}");
        }
    }
}
