//! What `mount.composefs` does: options as in `-o` of a mount command or the fourth field of `fstab`,
//! and an image mounted by them.
//!
//! Trusts the image only as far as the options ask: with `digest` the kernel must vouch for the file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use composefs_image::{DigestError, VerityDigest};
use repository::sys::{Measured, measure_verity};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use store_driver::mount::{Composefs, MountError};
use thiserror::Error;

pub use store_driver::mount::{Access, Verity};

/// The writable layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Takes the changes.
    pub upper: PathBuf,
    /// The overlay's own, on the same filesystem.
    pub work: PathBuf,
}

/// How an image is to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Object directories, searched in this order. At least one.
    pub base: Vec<PathBuf>,
    /// The fs-verity digest that the image file must have. Makes `verity` [`Verity::Require`].
    pub digest: Option<VerityDigest>,
    /// Checks of content.
    pub verity: Verity,
    /// Writing.
    pub access: Access,
    /// Where writes go.
    pub upper: Option<Upper>,
    /// A user namespace whose maps shift the owners in the image, e.g. `/proc/PID/ns/user`.
    pub id_map: Option<PathBuf>,
}

/// What is wrong with mount options.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MountOptionsError {
    /// An option of another filesystem, or none.
    #[error("unsupported option \"{0}\"")]
    Unsupported(String),
    /// An option that needs a value has none.
    #[error("option {0} needs a value: {0}=…")]
    NoValue(&'static str),
    /// `basedir` is not a colon-separated list of directories.
    #[error("basedir has an empty directory name")]
    EmptyBase,
    /// There is no `basedir`.
    #[error("no object directory: give basedir=DIR")]
    NoBase,
    /// Only one of `upperdir` and `workdir`.
    #[error("upperdir and workdir need each other")]
    HalfUpper,
    /// `digest` is none.
    #[error("digest: {0}")]
    Digest(#[from] DigestError),
}

/// Why an image could not be mounted.
#[derive(Debug, Error)]
pub enum MountImageError {
    /// A file or directory could not be opened, or its digest not asked for.
    #[error("{}: {error}", .path.display())]
    Open {
        /// The file or directory.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
    /// A digest was asked for, and the kernel vouches for none.
    #[error("{}: the image has no fs-verity", .0.display())]
    NoVerity(PathBuf),
    /// The image is another one.
    #[error("{}: the image has the wrong fs-verity digest: {found}, not {wanted}", .path.display())]
    WrongVerity {
        /// The image.
        path: PathBuf,
        /// The digest asked for.
        wanted: VerityDigest,
        /// What the kernel says.
        found: VerityDigest,
    },
    /// The kernel refused.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// What the mount table shows as the source.
const SOURCE: &str = "composefs";

impl MountOptions {
    /// Mounts `image` on the directory `target`.
    pub fn mount(&self, image: &Path, target: &Path) -> Result<(), MountImageError> {
        let opened = |path: &Path, flags| {
            open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|error| {
                MountImageError::Open {
                    path: path.to_owned(),
                    error: error.into(),
                }
            })
        };
        let directory = |path: &Path| opened(path, OFlags::PATH | OFlags::DIRECTORY);
        let file = File::from(opened(image, OFlags::RDONLY)?);
        if let Some(wanted) = &self.digest {
            check_digest(&file, wanted, image)?;
        }
        let data: Vec<OwnedFd> = self
            .base
            .iter()
            .map(|base| directory(base))
            .collect::<Result<_, _>>()?;
        let upper = match &self.upper {
            Some(Upper { upper, work }) => Some((directory(upper)?, directory(work)?)),
            None => None,
        };
        let id_map = match &self.id_map {
            Some(path) => Some(opened(path, OFlags::RDONLY | OFlags::NOCTTY)?),
            None => None,
        };

        let mut mount = Composefs::new(file.as_fd(), SOURCE)
            .verity(self.verity)
            .access(self.access);
        for data in &data {
            mount = mount.data(data.as_fd());
        }
        if let Some((upper, work)) = &upper {
            mount = mount.upper(store_driver::mount::Upper {
                upper: upper.as_fd(),
                work: work.as_fd(),
            });
        }
        if let Some(id_map) = &id_map {
            mount = mount.id_map(id_map.as_fd());
        }
        Ok(mount.mount()?.attach(target)?)
    }

    /// Reads comma-separated options. In a value a backslash takes the meaning from the character behind
    /// it. The last of several values of one option counts.
    pub fn parse(options: Option<&OsStr>) -> Result<Self, MountOptionsError> {
        let mut parsed = Self {
            base: Vec::new(),
            digest: None,
            verity: Verity::Off,
            access: Access::ReadWrite,
            upper: None,
            id_map: None,
        };
        let mut upper = None;
        let mut work = None;
        let mut verity = false;
        let mut try_verity = false;
        for (key, value) in options.into_iter().flat_map(|all| split(all.as_bytes())) {
            let path = |name| match &value {
                Some(value) => Ok(path(value)),
                None => Err(MountOptionsError::NoValue(name)),
            };
            match key {
                b"basedir" => {
                    parsed.base = path("basedir")?
                        .as_os_str()
                        .as_bytes()
                        .split(|&byte| byte == b':')
                        .map(self::path)
                        .collect();
                }
                b"digest" => {
                    let text = path("digest")?;
                    let text = text.as_os_str().as_bytes().to_ascii_lowercase();
                    parsed.digest = Some(VerityDigest::from_hex_bytes(&text)?);
                }
                b"upperdir" => upper = Some(path("upperdir")?),
                b"workdir" => work = Some(path("workdir")?),
                b"idmap" => parsed.id_map = Some(path("idmap")?),
                b"verity" => verity = true,
                b"tryverity" => try_verity = true,
                b"ro" => parsed.access = Access::ReadOnly,
                b"rw" => parsed.access = Access::ReadWrite,
                other => {
                    return Err(MountOptionsError::Unsupported(
                        String::from_utf8_lossy(other).into_owned(),
                    ));
                }
            }
        }
        if parsed.base.is_empty() {
            return Err(MountOptionsError::NoBase);
        }
        if parsed.base.iter().any(|base| base.as_os_str().is_empty()) {
            return Err(MountOptionsError::EmptyBase);
        }
        parsed.upper = match (upper, work) {
            (Some(upper), Some(work)) => Some(Upper { upper, work }),
            (None, None) => None,
            _ => return Err(MountOptionsError::HalfUpper),
        };
        parsed.verity = if verity || parsed.digest.is_some() {
            Verity::Require
        } else if try_verity {
            Verity::Try
        } else {
            Verity::Off
        };
        Ok(parsed)
    }
}

fn check_digest(image: &File, wanted: &VerityDigest, path: &Path) -> Result<(), MountImageError> {
    match measure_verity(image) {
        Ok(Measured::Digest(found)) if found == *wanted => Ok(()),
        Ok(Measured::Digest(found)) => Err(MountImageError::WrongVerity {
            path: path.to_owned(),
            wanted: *wanted,
            found,
        }),
        Ok(Measured::Disabled | Measured::Unsupported) => {
            Err(MountImageError::NoVerity(path.to_owned()))
        }
        Err(error) => Err(MountImageError::Open {
            path: path.to_owned(),
            error,
        }),
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

/// Keys and values; a comma behind a backslash does not end a value.
fn split(options: &[u8]) -> Vec<(&[u8], Option<Vec<u8>>)> {
    let mut parts = Vec::new();
    let mut escaped = false;
    let comma = |byte: &u8| {
        let ends = *byte == b',' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    };
    for part in options.split(comma) {
        let mut halves = part.splitn(2, |&byte| byte == b'=');
        let key = halves.next().unwrap_or_default();
        parts.push((key, halves.next().map(unescape)));
    }
    parts
}

fn unescape(value: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'\\' {
            plain.extend(bytes.next());
        } else {
            plain.push(byte);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Result<MountOptions, MountOptionsError> {
        MountOptions::parse(Some(OsStr::new(options)))
    }

    #[test]
    fn all_options_are_understood() {
        let digest = "4c".repeat(32);
        let parsed = parse(&format!(
            "ro,basedir=/a:/b,digest={digest},upperdir=/u,workdir=/w,idmap=/proc/1/ns/user"
        ))
        .unwrap();
        assert_eq!(
            parsed,
            MountOptions {
                base: vec!["/a".into(), "/b".into()],
                digest: Some(VerityDigest::from_hex(&digest).unwrap()),
                verity: Verity::Require,
                access: Access::ReadOnly,
                upper: Some(Upper {
                    upper: "/u".into(),
                    work: "/w".into()
                }),
                id_map: Some("/proc/1/ns/user".into()),
            }
        );
    }

    #[test]
    fn a_backslash_takes_the_meaning_of_the_next_character() {
        let parsed = parse(r"basedir=/a\,b\\\=c,verity").unwrap();
        assert_eq!(parsed.base, [PathBuf::from(r"/a,b\=c")]);
        assert_eq!(parsed.verity, Verity::Require);
        // At the end there is no next one.
        assert_eq!(parse(r"basedir=/a\").unwrap().base, [PathBuf::from("/a")]);
    }

    #[test]
    fn requiring_verity_wins_over_trying() {
        assert_eq!(parse("basedir=/a").unwrap().verity, Verity::Off);
        assert_eq!(parse("basedir=/a,tryverity").unwrap().verity, Verity::Try);
        assert_eq!(
            parse("verity,basedir=/a,tryverity").unwrap().verity,
            Verity::Require
        );
    }

    #[test]
    fn what_c_refuses_is_refused() {
        for (options, error) in [
            ("verity", MountOptionsError::NoBase),
            ("basedir", MountOptionsError::NoValue("basedir")),
            ("basedir=/a::/b", MountOptionsError::EmptyBase),
            ("basedir=", MountOptionsError::EmptyBase),
            ("basedir=/a,upperdir=/u", MountOptionsError::HalfUpper),
            (
                "basedir=/a,noatime",
                MountOptionsError::Unsupported("noatime".to_owned()),
            ),
            ("basedir=/a,", MountOptionsError::Unsupported(String::new())),
            (
                "basedir=/a,digest=12",
                MountOptionsError::Digest(DigestError::HexLength(2)),
            ),
        ] {
            assert_eq!(parse(options), Err(error), "{options}");
        }
        assert_eq!(MountOptions::parse(None), Err(MountOptionsError::NoBase));
    }
}
