//! A filesystem context (`fsopen`) that keeps its subject and the kernel's messages together.

use std::io;

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    },
};

use super::MountError;

/// Enough for any message the kernel keeps; it drops older ones itself.
const MAX_MESSAGES: usize = 32;

pub(super) struct FsContext<'a> {
    fd: OwnedFd,
    subject: &'a str,
}

impl<'a> FsContext<'a> {
    pub(super) fn open(filesystem: &'static str, subject: &'a str) -> Result<Self, MountError> {
        match fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Self { fd, subject }),
            Err(Errno::NODEV) => Err(MountError::NoFilesystem { filesystem }),
            Err(error) => Err(MountError::Kernel {
                subject: subject.to_owned(),
                step: "opening a mount context",
                error: error.into(),
                log: Vec::new(),
            }),
        }
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<(), MountError> {
        fsconfig_set_flag(self.fd.as_fd(), key).map_err(|error| self.fail(key, error))
    }

    /// The kernel refuses values of 256 bytes and more, which is why descriptors are passed as
    /// `/proc/self/fd/N` rather than as paths.
    pub(super) fn string(&self, key: &'static str, value: &str) -> Result<(), MountError> {
        fsconfig_set_string(self.fd.as_fd(), key, value).map_err(|error| self.fail(key, error))
    }

    pub(super) fn descriptor(
        &self,
        key: &'static str,
        fd: BorrowedFd<'_>,
    ) -> Result<(), MountError> {
        fsconfig_set_fd(self.fd.as_fd(), key, fd).map_err(|error| self.fail(key, error))
    }

    /// Creates the filesystem and gives its detached mount.
    pub(super) fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, MountError> {
        fsconfig_create(self.fd.as_fd())
            .map_err(|error| self.fail("creating the filesystem", error))?;
        fsmount(self.fd.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| self.fail("making the mount", error))
    }

    fn fail(&self, step: &'static str, error: Errno) -> MountError {
        MountError::Kernel {
            subject: self.subject.to_owned(),
            step,
            error: io::Error::from(error),
            log: self.messages(),
        }
    }

    fn messages(&self) -> Vec<String> {
        let mut messages = Vec::new();
        let mut buffer = [0_u8; 1024];
        while messages.len() < MAX_MESSAGES {
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(length) if length > 0 => {
                    messages.push(clean_message(buffer.get(..length).unwrap_or_default()));
                }
                // ENODATA: nothing more to say.
                _ => break,
            }
        }
        messages
    }
}

/// `e overlay: text\n` (severity, space, text) to `overlay: text`.
fn clean_message(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let text = text.trim();
    match text.split_once(' ') {
        Some(("e" | "w" | "i", rest)) => rest.to_owned(),
        _ => text.to_owned(),
    }
}

/// The path by which this process reaches a descriptor in a mount option.
pub(super) fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_messages_lose_their_severity_letter() {
        assert_eq!(
            clean_message(b"e overlay: bad lower\n"),
            "overlay: bad lower"
        );
        assert_eq!(clean_message(b"plain"), "plain");
        assert_eq!(clean_message(b"error text"), "error text");
    }
}
