//! Whether there is room for what is missing, before anything is read.
//!
//! What is missing is known only when it is read and hashed, so this finds out what is missing at least:
//! content of a size of which the repository has no object, or not enough of them. A tar-split has size
//! and CRC-64 of every file, so contents of the same size are told apart. What can be cloned needs no
//! room but an inode. An import is refused only if that much is certain to be lacking; one that passes can
//! still run out of space, and then stops with nothing published.
//!
//! On a filesystem with room for all layers, as if nothing were there and nothing could be cloned, none
//! of this is looked at.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;

use containers_storage::{OpenLayer, TarSplitEntry};
use repository::layers::INLINE_LIMIT;
use repository::{Batch, CopyPolicy, Repository};

use crate::error::{ImportError, LayerError, Shortage};
use crate::image::ImportOptions;
use crate::source::{LayerContent, SourceLayer};

/// What a file with content has in a tar at least, in bytes: a header and a block.
const MEMBER_LEAST: u64 = 1024;

/// What is free on the repository's filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Free {
    pub(crate) bytes: u64,
    /// `None` where inodes are made as they are needed.
    inodes: Option<u64>,
}

/// What has to be written at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    bytes: u64,
    inodes: u64,
}

/// Fails if the layers are certain not to fit.
pub(crate) fn check(
    repository: &Repository,
    layers: &[&SourceLayer<'_>],
    options: &ImportOptions,
) -> Result<(), ImportError> {
    let free = free(repository)?;
    let most: Option<u64> = layers.iter().map(|layer| layer.estimate()).sum();
    if most.is_some_and(|most| free.holds(&Need::at_most(most))) {
        return Ok(());
    }
    let batch = repository.batch_until(options.cancel.flag())?;
    let mut contents = Contents::default();
    for layer in layers {
        contents
            .add(layer, &batch, options)
            .map_err(|source| ImportError::Layer {
                layer: Box::new(layer.plan()),
                source,
            })?;
    }
    let need = contents.need(&present(repository)?);
    if free.holds(&need) {
        return Ok(());
    }
    let shortage = |needed, free| {
        Err(ImportError::NoRoom {
            repository: repository.path().to_owned(),
            shortage: free,
            needed,
        })
    };
    if need.bytes > free.bytes {
        shortage(need.bytes, Shortage::Bytes { free: free.bytes })
    } else {
        let inodes = free.inodes.unwrap_or_default();
        shortage(need.inodes, Shortage::Inodes { free: inodes })
    }
}

impl Free {
    fn holds(&self, need: &Need) -> bool {
        need.bytes <= self.bytes && self.inodes.is_none_or(|free| need.inodes <= free)
    }
}

impl Need {
    /// What tars of so many bytes need if all of their content is copied.
    fn at_most(bytes: u64) -> Self {
        Self {
            bytes,
            inodes: bytes / MEMBER_LEAST,
        }
    }
}

/// What is free for whoever runs this.
pub(crate) fn free(repository: &Repository) -> Result<Free, repository::Error> {
    let stat = rustix::fs::fstatvfs(repository.dir()).map_err(|error| repository::Error::Io {
        action: "ask for the free space of",
        path: repository.path().to_owned(),
        source: error.into(),
    })?;
    Ok(Free {
        bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

/// How many objects of which size there are.
fn present(repository: &Repository) -> Result<HashMap<u64, u64>, repository::Error> {
    let mut sizes = HashMap::new();
    for shard in 0..=u8::MAX {
        for object in repository.objects_in(shard)?.entries {
            if let Some(size) = repository.object_size(&object)? {
                *sizes.entry(size).or_default() += 1;
            }
        }
    }
    Ok(sizes)
}

/// Size and CRC-64 of a file.
type Content = (u64, [u8; 8]);

/// The contents of layers that become objects, each once.
#[derive(Debug, Default)]
struct Contents {
    copied: HashSet<Content>,
    cloned: HashSet<Content>,
    /// Bytes of layers of which no more is known.
    other: u64,
}

impl Contents {
    fn add(
        &mut self,
        layer: &SourceLayer<'_>,
        batch: &Batch<'_>,
        options: &ImportOptions,
    ) -> Result<(), LayerError> {
        match &layer.content {
            LayerContent::Stored(stored) => self.add_stored(&stored.open()?, batch, options),
            LayerContent::Blob { descriptor, .. } => {
                // Compression makes hardly any blob larger.
                let least = descriptor.as_ref().map(|blob| blob.size).or(layer.size);
                self.other = self.other.saturating_add(least.unwrap_or_default());
                Ok(())
            }
        }
    }

    fn add_stored(
        &mut self,
        layer: &OpenLayer,
        batch: &Batch<'_>,
        options: &ImportOptions,
    ) -> Result<(), LayerError> {
        let mut clones = None;
        for entry in layer.tar_split()? {
            if options.cancel.is_cancelled() {
                return Err(LayerError::Stopped);
            }
            let TarSplitEntry::File { name, size, crc64 } = entry? else {
                continue;
            };
            if size <= INLINE_LIMIT {
                continue;
            }
            // One file stands for all of a layer.
            let cloned = match clones {
                Some(known) => known,
                // Where nothing may be copied, the import itself says what it cannot clone.
                None if options.copy == CopyPolicy::Refuse => true,
                None => batch.can_clone(layer.open_file(&name)?.as_fd())?,
            };
            clones = Some(cloned);
            let contents = if cloned {
                &mut self.cloned
            } else {
                &mut self.copied
            };
            contents.insert((size, crc64));
        }
        Ok(())
    }

    /// What is certain to be missing where there are so many objects of each size.
    fn need(&self, present: &HashMap<u64, u64>) -> Need {
        let mut by_size: HashMap<u64, (u64, u64)> = HashMap::new();
        for (size, _) in &self.copied {
            by_size.entry(*size).or_default().0 += 1;
        }
        for (size, _) in self.cloned.difference(&self.copied) {
            by_size.entry(*size).or_default().1 += 1;
        }
        let mut need = Need {
            bytes: 0,
            inodes: 0,
        };
        for (size, (copied, cloned)) in by_size {
            // Any of these may be what is there.
            let there = present.get(&size).copied().unwrap_or_default();
            need.bytes += copied.saturating_sub(there).saturating_mul(size);
            need.inodes += (copied + cloned).saturating_sub(there);
        }
        let there = present
            .iter()
            .fold(0u64, |sum, (size, count)| sum.saturating_add(size * count));
        need.bytes = need.bytes.saturating_add(self.other.saturating_sub(there));
        need
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(copied: &[(u64, u8)], cloned: &[(u64, u8)], other: u64) -> Contents {
        let set = |list: &[(u64, u8)]| list.iter().map(|&(size, crc)| (size, [crc; 8])).collect();
        Contents {
            copied: set(copied),
            cloned: set(cloned),
            other,
        }
    }

    fn need(contents: &Contents, present: &[(u64, u64)]) -> (u64, u64) {
        let Need { bytes, inodes } = contents.need(&present.iter().copied().collect());
        (bytes, inodes)
    }

    #[test]
    fn the_same_content_is_needed_once_and_clones_need_an_inode_only() {
        let all = contents(
            &[(100, 1), (100, 1), (100, 2), (500, 1)],
            &[(100, 2), (9000, 1)],
            0,
        );
        assert_eq!(need(&all, &[]), (700, 4));
    }

    #[test]
    fn what_may_be_there_is_not_counted_as_missing() {
        let all = contents(&[(100, 1), (100, 2), (500, 1)], &[(9000, 1)], 0);
        assert_eq!(need(&all, &[(100, 1), (77, 5)]), (600, 3));
        assert_eq!(need(&all, &[(100, 9), (500, 1), (9000, 1)]), (0, 0));
    }

    #[test]
    fn blobs_count_as_far_as_they_cannot_be_there_in_pieces() {
        let all = contents(&[], &[], 10_000);
        assert_eq!(need(&all, &[]), (10_000, 0));
        assert_eq!(need(&all, &[(1000, 4)]), (6000, 0));
        assert_eq!(need(&all, &[(20_000, 1)]), (0, 0));
    }

    #[test]
    fn a_filesystem_that_makes_inodes_as_needed_never_lacks_them() {
        let need = Need {
            bytes: 10,
            inodes: 1000,
        };
        let free = |bytes, inodes| Free { bytes, inodes };
        assert!(free(10, None).holds(&need));
        assert!(!free(10, Some(999)).holds(&need));
        assert!(!free(9, Some(1000)).holds(&need));
    }
}
