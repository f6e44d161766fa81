//! podman as a child process.

use std::io;
use std::process::{Command, Stdio};

use containers_storage::ImageId;

use super::{PullError, PullOptions, Pulled};
use crate::child::{self, Messages};
use crate::registry::{Problem, RegistryOptions, complaint};

/// Most bytes of podman's output: IDs of images.
const OUTPUT_MAX: u64 = 64 << 10;

/// What podman shows of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodmanOutput {
    /// Its progress, on our standard error. For a terminal.
    Progress,
    /// Nothing; its complaint becomes the error's text.
    Quiet,
}

/// Pulls into podman's own storage.
pub(super) fn pull(reference: &str, options: &PullOptions) -> Result<Pulled, PullError> {
    let arguments = arguments(reference, options, || Command::new("podman"))?;
    let mut podman = Command::new("podman");
    podman.args(arguments);
    let said = run(podman, "podman", reference, options)?;
    pulled_id(reference, &said)
}

/// The arguments after those that choose a storage. `podman` makes a command to ask for its options.
pub(super) fn arguments(
    reference: &str,
    options: &PullOptions,
    podman: impl FnOnce() -> Command,
) -> Result<Vec<String>, PullError> {
    let RegistryOptions {
        authfile,
        cert_dir,
        tls_verify,
        signature_policy,
        retries,
    } = &options.registry;
    let mut arguments = vec!["pull".to_owned()];
    let mut push = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.to_owned(), value]);
        }
    };
    let path = |path: &Option<std::path::PathBuf>| Some(path.as_ref()?.display().to_string());
    push("--authfile", path(authfile));
    push("--cert-dir", path(cert_dir));
    push("--signature-policy", path(signature_policy));
    push(
        "--platform",
        options.platform.as_ref().map(ToString::to_string),
    );
    if let Some(retries) = retries {
        if !knows_retry(podman())? {
            return Err(PullError::NoRetry);
        }
        push("--retry", Some(retries.to_string()));
    }
    arguments.extend(tls_verify.argument().map(str::to_owned));
    if options.output == PodmanOutput::Quiet {
        arguments.push("--quiet".to_owned());
    }
    arguments.extend(["--".to_owned(), reference.to_owned()]);
    Ok(arguments)
}

/// Whether `podman pull` has `--retry`: from 5.0.
fn knows_retry(mut podman: Command) -> Result<bool, PullError> {
    let help = podman
        .args(["pull", "--help"])
        .stdin(Stdio::null())
        .output()
        .map_err(|source| not_run("podman", source))?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--retry "))
}

pub(super) fn not_run(program: &'static str, source: io::Error) -> PullError {
    if program == "podman" && source.kind() == io::ErrorKind::NotFound {
        PullError::NoPodman
    } else {
        PullError::Run { program, source }
    }
}

/// Runs a command that is podman, or becomes it, and gives what it wrote to standard output.
pub(super) fn run(
    command: Command,
    program: &'static str,
    reference: &str,
    options: &PullOptions,
) -> Result<String, PullError> {
    let messages = match options.output {
        PodmanOutput::Progress => Messages::Shown,
        PodmanOutput::Quiet => Messages::Kept,
    };
    let ended = child::finish(command, messages, OUTPUT_MAX, &options.cancel)
        .map_err(|source| not_run(program, source))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.output).into_owned());
    }
    let reference = reference.to_owned();
    if messages == Messages::Shown {
        return Err(PullError::Shown { reference });
    }
    let message = complaint(&ended.messages);
    Err(PullError::Podman {
        reference,
        problem: Problem::of(&message),
        message,
    })
}

/// The image ID that podman printed.
pub(super) fn pulled_id(reference: &str, said: &str) -> Result<Pulled, PullError> {
    let ids: Vec<ImageId> = said
        .lines()
        .map(str::trim)
        .filter(|line| line.len() == 64)
        .filter_map(|line| line.parse().ok())
        .collect();
    let reference = || reference.to_owned();
    match ids.as_slice() {
        [id] => Ok(Pulled::Id(id.clone())),
        [] => Err(PullError::NoId {
            reference: reference(),
        }),
        several => Err(PullError::Several {
            reference: reference(),
            count: several.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_one_line_that_is_an_id() {
        let id = "5a".repeat(32);
        let said = format!("Trying to pull\n{id}\n");
        assert!(matches!(pulled_id("a", &said), Ok(Pulled::Id(found)) if found.as_str() == id));
        assert!(matches!(pulled_id("a", "no"), Err(PullError::NoId { .. })));
        let two = format!("{id}\n{id}\n");
        assert!(matches!(
            pulled_id("a", &two),
            Err(PullError::Several { count: 2, .. })
        ));
    }
}
