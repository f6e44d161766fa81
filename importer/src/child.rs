//! podman and skopeo as child processes: what they say, and an end to them when we are told to stop.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cancel::Cancel;

/// What is kept of the end of a child's messages, in bytes.
const KEPT: usize = 64 << 10;
/// Between two looks at [`Cancel`].
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// Where a child's messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Messages {
    /// To our own standard error.
    Shown,
    /// Into [`Ended::messages`].
    Kept,
}

/// A child that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Its standard output, at most one byte more than was allowed.
    pub(crate) output: Vec<u8>,
    /// The last part of its standard error.
    pub(crate) messages: String,
}

/// Runs a child to its end, which comes early if `cancel` is set. Of its output no more than `limit`
/// bytes and one are kept.
pub(crate) fn finish(
    mut command: Command,
    messages: Messages,
    limit: u64,
    cancel: &Cancel,
) -> io::Result<Ended> {
    let stderr = match messages {
        Messages::Shown => Stdio::inherit(),
        Messages::Kept => Stdio::piped(),
    };
    tracing::debug!(?command, "run");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()?;
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    thread::scope(|scope| {
        let output = scope.spawn(|| head(stdout, limit));
        let messages = scope.spawn(|| tail(stderr));
        let status = wait(child, cancel);
        let output = output.join().unwrap_or_else(|_| Ok(Vec::new()));
        let messages = messages.join().unwrap_or_default();
        Ok(Ended {
            status: status?,
            output: output?,
            messages,
        })
    })
}

/// Waits for the child; ends it when `cancel` is set.
fn wait(mut child: Child, cancel: &Cancel) -> io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (send, ended) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || send.send(child.wait()));
        let mut asked = false;
        loop {
            match ended.recv_timeout(LOOK) {
                Ok(status) => return status,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("nobody waited for it"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if cancel.is_cancelled()
                && !asked
                && let Some(pid) = pid
            {
                // An error means that it is ending just now.
                let _ = kill_process(pid, Signal::TERM);
                asked = true;
            }
        }
    })
}

/// Reads the beginning, and the rest in vain, so that the child does not wait for us.
fn head(from: Option<impl Read>, limit: u64) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(limit + 1).read_to_end(&mut kept)?;
        io::copy(&mut from, &mut io::sink())?;
    }
    Ok(kept)
}

/// Reads to the end and keeps the last part of it.
fn tail(from: Option<impl Read>) -> String {
    let Some(mut from) = from else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match from.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => kept.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        if kept.len() > 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_long_messages_is_kept() {
        let long = "x".repeat(5 * KEPT) + "end";
        let kept = tail(Some(long.as_bytes()));
        assert!(kept.len() <= 2 * KEPT + 4096 && kept.ends_with("xend"));
    }

    #[test]
    fn a_child_ends_when_it_is_cancelled() {
        let cancel = Cancel::new();
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        thread::scope(|scope| {
            let ended = scope.spawn(|| finish(sleep, Messages::Kept, 0, &cancel));
            cancel.cancel();
            let ended = ended.join().unwrap().unwrap();
            assert!(!ended.status.success());
        });
    }

    #[test]
    fn output_is_limited_and_messages_are_kept() {
        let mut echo = Command::new("sh");
        echo.args(["-c", "echo 12345; echo why >&2; exit 3"]);
        let ended = finish(echo, Messages::Kept, 2, &Cancel::new()).unwrap();
        assert_eq!(ended.output, b"123");
        assert_eq!(ended.messages, "why\n");
        assert_eq!(ended.status.code(), Some(3));
    }
}
