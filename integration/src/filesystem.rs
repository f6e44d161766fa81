//! Filesystems on loop devices, and proofs of what they share.

use crate::command::ok;
use crate::peers::Peers;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a [`Filesystem`] is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// XFS with reflinks; symlink targets of at most 1,023 bytes.
    Xfs,
    /// btrfs: reflinks, symlink targets of any length.
    Btrfs,
    /// ext4: no reflinks.
    Ext4,
}

/// A mounted filesystem of its own on a sparse file, detached when dropped.
#[derive(Debug)]
pub struct Filesystem {
    mount_point: PathBuf,
    file: PathBuf,
}

impl Filesystem {
    /// Makes and mounts a filesystem of `megabytes` below the scratch directory. It appears in every
    /// machine under the same path.
    pub fn new(peers: &Peers, kind: Kind, megabytes: u64) -> Result<Self> {
        let dir = peers.scratch_dir(match kind {
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
            Kind::Ext4 => "ext4",
        })?;
        let file = dir.join("disk");
        std::fs::File::create(&file)?.set_len(megabytes << 20)?;
        let mut mkfs = match kind {
            Kind::Xfs => Command::new("mkfs.xfs"),
            Kind::Btrfs => Command::new("mkfs.btrfs"),
            Kind::Ext4 => Command::new("mkfs.ext4"),
        };
        match kind {
            Kind::Xfs => mkfs.args(["-q", "-m", "reflink=1"]),
            Kind::Btrfs | Kind::Ext4 => mkfs.arg("-q"),
        };
        ok(mkfs.arg(&file))?;
        let mount_point = dir.join("mnt");
        std::fs::create_dir(&mount_point)?;
        ok(Command::new("mount")
            .args(["-o", "loop"])
            .args([&file, &mount_point]))?;
        Ok(Self { mount_point, file })
    }

    /// The root directory of the filesystem.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Takes away what is behind the disk from a block of the filesystem on: reading there, unless it is
    /// cached, is an I/O error.
    pub fn cut_off(&self, block: u64) -> Result<()> {
        ok(Command::new("sync").arg("-f").arg(&self.mount_point))?;
        let stat = rustix::fs::statvfs(&self.mount_point)?;
        let file = std::fs::File::options().write(true).open(&self.file)?;
        file.set_len(block * stat.f_frsize)?;
        Ok(())
    }

    /// Bytes in use, after everything dirty has been written.
    pub fn used(&self) -> Result<u64> {
        ok(Command::new("sync").arg("-f").arg(&self.mount_point))?;
        let stat = rustix::fs::statvfs(&self.mount_point)?;
        Ok((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        // The namespace ends anyway; this only frees the space and the loop device earlier.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.mount_point)
            .status();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// One extent of a file as FIEMAP reports it, in filesystem blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block of the extent on the device.
    pub physical: u64,
    /// Length in blocks.
    pub length: u64,
    /// Whether the kernel says that another file uses these blocks, too.
    pub shared: bool,
}

/// The extents of `file`, from the kernel (FIEMAP, through filefrag).
pub fn extents(file: &Path) -> Result<Vec<Extent>> {
    ok(Command::new("sync").arg(file))?;
    let listing = ok(Command::new("filefrag").arg("-v").arg(file))?.text();
    listing
        .lines()
        .filter(|line| {
            line.trim_start()
                .split(':')
                .next()
                .is_some_and(|n| n.parse::<u32>().is_ok())
        })
        .map(|line| parse_extent(line).with_context(|| format!("filefrag line {line:?}")))
        .collect()
}

fn parse_extent(line: &str) -> Result<Extent> {
    // `   0:        0..     511:      12345..     12856:    512:             last,shared,eof`
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let [_, _, physical, length, rest @ ..] = fields.as_slice() else {
        bail!("too few fields");
    };
    let first = physical.split("..").next().unwrap_or_default().trim();
    Ok(Extent {
        physical: first.parse()?,
        length: length.parse()?,
        shared: rest.iter().any(|flags| flags.contains("shared")),
    })
}

/// Whether the kernel says that `a` and `b` have the same blocks and that these are shared.
pub fn share_extents(a: &Path, b: &Path) -> Result<bool> {
    let (a, b) = (extents(a)?, extents(b)?);
    let blocks = |list: &[Extent]| -> Vec<u64> {
        list.iter()
            .flat_map(|e| e.physical..e.physical + e.length)
            .collect()
    };
    Ok(!a.is_empty() && a.iter().chain(&b).all(|e| e.shared) && blocks(&a) == blocks(&b))
}
