//! What a message of podman or skopeo means.
//!
//! They are read as text, in the words of the library that both share (containers/image) from 5.22 to
//! 5.36; a message in other words is [`Problem::Other`], which has no remedy and is not tried again.

/// What went wrong between us and a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// No credentials, or wrong ones.
    Unauthorized,
    /// The credentials are right, and do not suffice. Also what some registries say of a repository
    /// that does not exist.
    Denied,
    /// There is no such repository, tag or digest.
    NotFound,
    /// The index has nothing for the platform.
    NoPlatform,
    /// The registry's certificate is not trusted.
    Certificate,
    /// The registry speaks HTTP only.
    PlainHttp,
    /// The signature policy rejects the image.
    Policy,
    /// There is no signature policy.
    NoPolicy,
    /// A name without registry that `registries.conf` does not complete.
    ShortName,
    /// The disk is full.
    NoSpace,
    /// Nobody listens there, or the name of the host is not known.
    Unreachable,
    /// It may pass by itself: a connection that broke, an overloaded registry.
    Transient,
    /// None of these.
    Other,
}

/// What is looked for in a message, in lower case. The first problem with a fitting text is taken, so
/// that those which never pass by themselves come first.
const WORDS: &[(Problem, &[&str])] = &[
    (
        Problem::NoPolicy,
        &["no policy.json file found", "policy.json: no such file"],
    ),
    (
        Problem::Policy,
        &[
            "rejected by policy",
            "source image rejected",
            "a signature was required",
            "invalid policy in",
        ],
    ),
    (
        Problem::Unauthorized,
        &[
            "unauthorized",
            "authentication required",
            "invalid username/password",
            "unable to retrieve auth token",
            "status 401",
            "status: 401",
            "401 (unauthorized)",
        ],
    ),
    (
        Problem::NoPlatform,
        &[
            "no image found in manifest list",
            "no image found in image index",
        ],
    ),
    (
        Problem::NotFound,
        &[
            "manifest unknown",
            "name unknown",
            "repository name not known",
            "status 404",
            "status: 404",
            "404 (not found)",
        ],
    ),
    (
        Problem::Denied,
        &[
            "access to the resource is denied",
            "denied:",
            "status 403",
            "status: 403",
            "403 (forbidden)",
        ],
    ),
    (
        Problem::PlainHttp,
        &["server gave http response to https client"],
    ),
    (Problem::Certificate, &["x509:", "tls: failed to verify"]),
    (
        Problem::ShortName,
        &["short-name", "did not resolve to an alias"],
    ),
    (Problem::NoSpace, &["no space left on device"]),
    (
        Problem::Transient,
        &[
            "unexpected eof",
            ": eof",
            "connection reset",
            "broken pipe",
            "timeout",
            "deadline exceeded",
            "temporary failure",
            "too many requests",
            "toomanyrequests",
            "status 429",
            "status 500",
            "status 502",
            "status 503",
            "status 504",
            "status: 429",
            "status: 500",
            "status: 502",
            "status: 503",
            "status: 504",
            "500 (internal server error)",
            "502 (bad gateway)",
            "503 (service unavailable)",
            "504 (gateway time",
            "500 internal server error",
            "502 bad gateway",
            "503 service unavailable",
            "504 gateway time",
            "http2: server sent goaway",
            "stream error",
        ],
    ),
    (
        Problem::Unreachable,
        &[
            "connection refused",
            "no such host",
            "network is unreachable",
            "no route to host",
            "server misbehaving",
        ],
    ),
];

impl Problem {
    /// Reads a message.
    pub fn of(message: &str) -> Self {
        let message = message.to_lowercase();
        WORDS
            .iter()
            .find(|(_, texts)| texts.iter().any(|text| message.contains(text)))
            .map_or(Self::Other, |(problem, _)| *problem)
    }

    /// Whether trying again can help. A registry that nobody listens at may be starting.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Transient | Self::Unreachable)
    }

    /// What the user can do, as the end of a sentence. `registry` is the host, where it is known.
    pub fn remedy(self, registry: Option<&str>) -> Option<String> {
        let registry = registry.unwrap_or("REGISTRY");
        Some(match self {
            Self::Unauthorized => format!(
                "log in with `podman login {registry}`, or name a file with credentials: --authfile FILE"
            ),
            Self::Denied => format!(
                "these credentials do not suffice, or there is no such repository; log in as another \
                 user with `podman login {registry}`"
            ),
            Self::NotFound => "the registry has no image of this name and tag or digest".to_owned(),
            Self::NoPlatform => {
                "choose another platform that the image is made for: --platform os/arch[/variant]"
                    .to_owned()
            }
            Self::Certificate => format!(
                "give the authority's certificate with --cert-dir DIR, or put it into \
                 /etc/containers/certs.d/{registry}/"
            ),
            Self::PlainHttp => {
                "the registry speaks plain HTTP; --tls-verify=false allows it".to_owned()
            }
            Self::Policy => "the image must satisfy /etc/containers/policy.json, or the file that \
                 --signature-policy names"
                .to_owned(),
            Self::NoPolicy => "install the package containers-common, or name a file: \
                               --signature-policy FILE"
                .to_owned(),
            Self::ShortName => "write the image's name with its registry".to_owned(),
            Self::NoSpace => {
                "make room and try again; what is complete is not fetched again".to_owned()
            }
            Self::Unreachable => format!("is {registry} right, and is the registry running?"),
            Self::Transient | Self::Other => return None,
        })
    }
}

/// A remedy to end a message with, if there is one.
pub(crate) fn and_remedy(problem: Problem, reference: &str) -> String {
    match problem.remedy(registry_of(reference)) {
        Some(remedy) => format!("; {remedy}"),
        None => String::new(),
    }
}

/// The registry in a reference: what comes before the first `/` after the transport, if it looks like a
/// host.
fn registry_of(reference: &str) -> Option<&str> {
    let name = reference.strip_prefix("docker://").unwrap_or(reference);
    let (host, _) = name.split_once('/')?;
    (host == "localhost" || host.contains(['.', ':'])).then_some(host)
}

/// What a program said went wrong: its last `Error:` or `FATA` line, else its last line.
pub(crate) fn complaint(stderr: &str) -> String {
    let lines = || {
        stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let worst = |line: &&str| line.starts_with("Error:") || line.contains("level=fatal");
    let line = lines().rfind(worst).or_else(|| lines().next_back());
    let line = line.unwrap_or("it gave no reason");
    // logrus: time="…" level=fatal msg="…"
    let quoted = line
        .split_once(" msg=\"")
        .and_then(|(_, message)| message.strip_suffix('"'));
    match quoted {
        Some(message) => message.replace("\\\"", "\""),
        None => line.strip_prefix("Error: ").unwrap_or(line).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_pass_by_itself_is_not_tried_again() {
        for (message, problem) in [
            (
                "initializing source docker://127.0.0.1:1/a:1: reading manifest 1 in 127.0.0.1:1/a: \
                 unauthorized: authentication required",
                Problem::Unauthorized,
            ),
            (
                "unable to retrieve auth token: invalid username/password: unauthorized: \
                 incorrect username or password",
                Problem::Unauthorized,
            ),
            (
                "reading manifest 2 in 127.0.0.1:1/a: manifest unknown: manifest unknown",
                Problem::NotFound,
            ),
            (
                "pinging container registry 127.0.0.1:1: Get \"https://127.0.0.1:1/v2/\": x509: \
                 certificate signed by unknown authority",
                Problem::Certificate,
            ),
            (
                "no image found in image index for architecture \"s390x\", variant \"\", OS \"linux\"",
                Problem::NoPlatform,
            ),
            (
                "Source image rejected: Running image docker://a/b:1 is rejected by policy.",
                Problem::Policy,
            ),
        ] {
            assert_eq!(Problem::of(message), problem, "{message}");
            assert!(!problem.may_pass());
            assert!(problem.remedy(registry_of("docker://a.b/c")).is_some());
        }
        assert_eq!(Problem::of("something else"), Problem::Other);
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for message in [
            "reading blob sha256:00: unexpected EOF",
            "read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer",
            "received unexpected HTTP status: 503 Service Unavailable",
            "fetching blob: status 502 (Bad Gateway)",
            "received unexpected HTTP status: 503 Overloaded",
            "dial tcp 127.0.0.1:1: connect: connection refused",
        ] {
            assert!(Problem::of(message).may_pass(), "{message}");
        }
    }

    #[test]
    fn the_last_error_is_the_complaint() {
        assert_eq!(
            complaint("Trying to pull a...\nError: no such thing\n"),
            "no such thing"
        );
        assert_eq!(
            complaint("time=\"2026-01-01T00:00:00Z\" level=fatal msg=\"reading \\\"x\\\"\"\n"),
            "reading \"x\""
        );
        assert_eq!(complaint(""), "it gave no reason");
    }

    #[test]
    fn a_registry_is_told_from_a_directory_of_a_name() {
        assert_eq!(registry_of("docker://127.0.0.1:1/a:1"), Some("127.0.0.1:1"));
        assert_eq!(registry_of("localhost/a"), Some("localhost"));
        assert_eq!(registry_of("library/debian"), None);
        assert_eq!(registry_of("debian"), None);
    }
}
