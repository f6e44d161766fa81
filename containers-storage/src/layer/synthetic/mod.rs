//! The tar of a layer that has no tar-split, in a canonical form of our own (`docs/synthetic-layers.md`).
//!
//! Its bytes are not those that the layer once had, so its diff ID is another one. What comes out is a
//! tar-split in an unnamed file and the diff ID that belongs to it; from there on the layer is read like any
//! other, checksums and all. Members come in the order of the tree, or of the table of contents of a
//! partial pull, which has metadata that a flat layer's directory does not have.

mod header;
mod toc;
mod tree;

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Layer, LayerKind, OpenLayer};
use crate::digest::DiffId;
use crate::error::Error;
use crate::storage::Driver;
use crate::tar_split::{ContentCrc, EntryName};
use header::{Member, REGULAR};

/// Bytes of headers that are collected before a line is written.
const SEGMENT: usize = 64 << 10;

impl Layer {
    /// The layer with a tar made from what is on disk, and that tar's diff ID. Reads every file once.
    ///
    /// Fails with [`Error::NoTarSplit`] where that cannot be done: for composefs-backed layers, which have
    /// lost their whiteouts, and for the upper layers of a vfs store, whose directories hold more than
    /// the layer.
    pub fn synthesised(&self) -> Result<Self, Error> {
        let open = self.open()?;
        let is_whole_tree = self.store_root().driver() == Driver::Vfs;
        let mut builder = Builder::new(&open)?;
        match open.kind() {
            LayerKind::Tree if !is_whole_tree || self.record.parent.is_none() => {
                tree::members(&open, &mut |member| builder.member(&member))?;
            }
            LayerKind::Flat => toc::members(&open, &mut |member| builder.member(&member))?,
            _ => {
                return Err(Error::NoTarSplit {
                    layer: self.record.id.clone(),
                });
            }
        }
        let (file, diff_id, size) = builder.finish()?;
        // A directory that was being removed would have looked like a smaller one.
        open.check_unchanged()?;
        let mut layer = self.clone();
        layer.diff_id = diff_id;
        layer.record.diff_size = i64::try_from(size).ok();
        layer.synthetic = Some(Arc::new(file));
        Ok(layer)
    }

    /// Whether the layer has a tar-split, so that its tar can be reproduced byte for byte.
    pub fn has_tar_split(&self) -> Result<bool, Error> {
        Ok(self.tar_split_path()?.is_some())
    }
}

/// Writes the tar-split, and hashes the tar that it stands for.
struct Builder<'a> {
    open: &'a OpenLayer,
    lines: zstd::Encoder<'static, File>,
    segment: Vec<u8>,
    tar: Sha256,
    size: u64,
    buffer: Vec<u8>,
}

impl<'a> Builder<'a> {
    fn new(open: &'a OpenLayer) -> Result<Self, Error> {
        let failed = failed(open);
        let lines = tempfile::tempfile().and_then(|file| zstd::Encoder::new(file, 1));
        Ok(Self {
            open,
            lines: lines.map_err(failed)?,
            segment: Vec::new(),
            tar: Sha256::new(),
            size: 0,
            buffer: vec![0; 128 << 10],
        })
    }

    fn member(&mut self, member: &Member) -> Result<(), Error> {
        if self.open.layer().storage.interrupt().is_set() {
            return Err(Error::Interrupted {
                lock: self
                    .open
                    .layer()
                    .store_root()
                    .layers_dir()
                    .join("layers.lock"),
            });
        }
        self.bytes(&member.headers())?;
        if member.kind != REGULAR || member.size == 0 {
            return Ok(());
        }
        let name = EntryName::from(member.name.clone());
        let mut file = self.open.open_file(&name)?;
        let unreadable = |source| Error::FileUnreadable {
            layer: self.open.layer().id().clone(),
            name: name.clone(),
            source,
        };
        let (mut crc, mut left) = (ContentCrc::new(), member.size);
        loop {
            let read = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error)),
            };
            left = left
                .checked_sub(read as u64)
                .ok_or_else(|| unreadable(io::Error::other("it grew while it was read")))?;
            crc.update(&self.buffer[..read]);
            self.tar.update(&self.buffer[..read]);
        }
        if left > 0 {
            return Err(unreadable(io::Error::other(
                "it is shorter than it should be",
            )));
        }
        self.flush()?;
        let text = std::str::from_utf8(&member.name).ok();
        let mut line = json!({
            "type": 1, "size": member.size, "payload": STANDARD.encode(crc.finish()),
        });
        match text {
            Some(text) => line["name"] = json!(text),
            None => line["name_raw"] = json!(STANDARD.encode(&member.name)),
        }
        writeln!(self.lines, "{line}").map_err(failed(self.open))?;
        self.size += member.size;
        let padding = (member.size.wrapping_neg() % 512) as usize;
        self.bytes(&[0; 512][..padding])
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.tar.update(bytes);
        self.size += bytes.len() as u64;
        self.segment.extend_from_slice(bytes);
        if self.segment.len() >= SEGMENT {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.segment.is_empty() {
            return Ok(());
        }
        let line = json!({"type": 2, "payload": STANDARD.encode(&self.segment)});
        self.segment.clear();
        writeln!(self.lines, "{line}").map_err(failed(self.open))
    }

    fn finish(mut self) -> Result<(File, DiffId, u64), Error> {
        self.bytes(&[0; 1024])?;
        self.flush()?;
        let file = self.lines.finish().map_err(failed(self.open))?;
        Ok((
            file,
            DiffId::from_bytes(self.tar.finalize().into()),
            self.size,
        ))
    }
}

/// A temporary file could not be made or written.
fn failed(open: &OpenLayer) -> impl Fn(io::Error) -> Error + use<> {
    let layer = open.layer().id().clone();
    move |source| Error::Synthetic {
        layer: layer.clone(),
        source,
    }
}

/// The layer cannot be put into a tar.
fn unfit(open: &OpenLayer, name: &[u8], problem: &'static str) -> Error {
    Error::UnsafeFile {
        layer: open.layer().id().clone(),
        name: EntryName::from(name.to_vec()),
        problem,
    }
}
