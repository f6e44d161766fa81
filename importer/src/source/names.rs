//! Names of images as podman completes them: the rules for names of Docker, which `oci-spec` has.

use oci_spec::distribution::Reference;

/// A name in full: with a registry, `library/` and `:latest` where the rules add them. What is no name
/// stays as it is.
pub(super) fn completed(name: &str) -> String {
    name.parse::<Reference>()
        .map_or_else(|_| name.to_owned(), |reference| reference.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_podman_does() {
        for (name, expected) in [
            ("app", "/library/app:latest"),
            ("app:1", "/library/app:1"),
            ("me/app", "/me/app:latest"),
        ] {
            let full = completed(name);
            let registry = full.strip_suffix(expected).unwrap();
            assert!(registry.contains('.') && !registry.contains('/'), "{full}");
        }
        for (name, expected) in [
            ("localhost/app:1", "localhost/app:1"),
            ("host:5000/app", "host:5000/app:latest"),
            ("a.example/b/c:1", "a.example/b/c:1"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("a.example/b@sha256:00", "a.example/b@sha256:00"),
        ] {
            assert_eq!(completed(name), expected);
        }
        let digest = format!("a.example/b@sha256:{}", "0".repeat(64));
        assert_eq!(completed(&digest), digest);
    }
}
