//! The CRC-64 of each object of a layer, kept from its import.
//!
//! podman's tar-split names the content of a file by its CRC-64. Whoever gives podman a layer needs those of
//! all its objects, and would have to read all of its content again. An import has it in its hands, and
//! keeps it in `composefs-store/checksums/<diff ID in hexadecimal digits>`:
//!
//! | bytes | what |
//! |---|---|
//! | 16 | [`MAGIC`] |
//! | 8 for each object | its CRC-64, big-endian, in the order of the object refs of the splitstream |
//! | 32 or 64 | the digest of the splitstream that this is about |
//! | 32 or 64 | the fs-verity digest of everything before |
//!
//! It appears before the layer's name does, and goes after it. It is of use only, never needed: a file that
//! is missing or damaged, or is about another splitstream, is as good as none.

use std::fs::File;
use std::io::Read;

use composefs_image::{VerityDigest, verity_digest};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::layer_files::LayerFiles;
use crate::oci::DiffId;
use crate::repo::Repository;
use crate::splitstream::{self, ContentType, Refs};

/// What every file begins with.
pub(crate) const MAGIC: &[u8; 16] = b"composefs-crc64\n";

pub(crate) const CHECKSUMS: LayerFiles = LayerFiles("checksums");

/// The length of a checksum in bytes.
const LENGTH: usize = 8;

/// The objects of a layer and the CRC-64 of each, as [`Repository::layer_checksums`] finds them.
pub struct LayerChecksums {
    stream: VerityDigest,
    objects: Refs<File>,
    checksums: Vec<u8>,
    next: usize,
}

impl Iterator for LayerChecksums {
    type Item = Result<(VerityDigest, [u8; 8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let (checksums, _) = self.checksums.as_chunks::<LENGTH>();
        let checksum = *checksums.get(self.next)?;
        self.next += 1;
        let object = self.objects.next()?;
        let pair = object.map(|object| (object, checksum));
        Some(pair.map_err(|source| Error::Splitstream {
            digest: self.stream,
            source,
        }))
    }
}

impl Repository {
    /// The CRC-64s (Go's `crc64.ISO`, big-endian) of all objects of a layer, each once, if they were kept when
    /// its splitstream `stream` was stored.
    pub fn layer_checksums(
        &self,
        layer: &DiffId,
        stream: &VerityDigest,
    ) -> Result<Option<LayerChecksums>> {
        let objects = splitstream::open(self, stream, Some(ContentType::OCI_LAYER))?.object_refs();
        let Some(file) = self.open_checksums(layer) else {
            return Ok(None);
        };
        Ok(
            read(file, stream, Refs::count(&objects)).map(|checksums| LayerChecksums {
                stream: *stream,
                objects,
                checksums,
                next: 0,
            }),
        )
    }

    fn open_checksums(&self, layer: &DiffId) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let dir = CHECKSUMS.open(self).ok()??;
        let file = rustix::fs::openat(dir, layer.to_hex(), flags, Mode::empty()).ok()?;
        Some(file.into())
    }
}

/// The checksums in a file that is whole and about `stream`, which has `count` objects.
fn read(file: File, stream: &VerityDigest, count: u64) -> Option<Vec<u8>> {
    let digest = stream.as_bytes();
    let body = (MAGIC.len() as u64).checked_add(count.checked_mul(LENGTH as u64)?)?;
    let size = body.checked_add(2 * digest.len() as u64)?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() != size {
        return None;
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).ok()?);
    file.take(size).read_to_end(&mut bytes).ok()?;
    let (bytes, sum) = bytes.split_at_checked(bytes.len().checked_sub(digest.len())?)?;
    if verity_digest(stream.algorithm(), bytes).as_bytes() != sum {
        return None;
    }
    let checksums = bytes.strip_prefix(MAGIC)?.strip_suffix(digest)?;
    Some(checksums.to_vec())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::oci::NamesStream;
    use crate::splitstream::Writer;
    use crate::{InitOptions, PRIVATE_DIRECTORY, Security, Wait};

    struct Scene {
        dir: tempfile::TempDir,
        repository: Repository,
        layer: DiffId,
        stream: VerityDigest,
        kept: Vec<(VerityDigest, [u8; 8])>,
    }

    impl Scene {
        /// A repository with a layer of two objects, one of which comes twice.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = InitOptions {
                security: Security::Insecure,
                ..InitOptions::default()
            };
            Repository::init(dir.path(), &options).unwrap();
            let repository = Repository::open(dir.path()).unwrap();
            let layer = DiffId::of(b"layer");
            let batch = repository.batch().unwrap();
            let mut writer = Writer::new(&batch, ContentType::OCI_LAYER).unwrap();
            let mut checksums = batch.checksum_writer().unwrap();
            let mut kept = Vec::new();
            for (content, checksum) in [(b"one", [1; 8]), (b"two", [2; 8])] {
                let (object, _) = batch.store_bytes(content).unwrap();
                writer.external(&object, 3).unwrap();
                checksums.push(checksum).unwrap();
                kept.push((object, checksum));
            }
            writer.external(&kept[0].0, 3).unwrap();
            let (stream, _) = writer.finish().unwrap();
            batch.link_stream(&layer.stream_name(), &stream);
            let checksums = checksums.finish(&stream).unwrap();
            batch.keep_checksums(&layer, checksums);
            batch.commit().unwrap();
            Self {
                dir,
                repository,
                layer,
                stream,
                kept,
            }
        }

        fn file(&self) -> PathBuf {
            let dir = self.dir.path().join(PRIVATE_DIRECTORY).join(CHECKSUMS.0);
            dir.join(self.layer.to_hex())
        }

        fn read(&self) -> Option<Vec<(VerityDigest, [u8; 8])>> {
            let found = self.repository.layer_checksums(&self.layer, &self.stream);
            Some(found.unwrap()?.collect::<Result<_>>().unwrap())
        }
    }

    #[test]
    fn checksums_come_back_with_the_objects_they_are_of() {
        let scene = Scene::new();
        assert_eq!(scene.read().unwrap(), scene.kept);
    }

    #[test]
    fn checksums_that_are_damaged_missing_or_of_another_stream_are_none() {
        let mut scene = Scene::new();
        let whole = fs::read(scene.file()).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(scene.file(), damaged).unwrap();
            assert_eq!(scene.read(), None, "byte {at}");
        }
        for len in [0, 1, whole.len() - 1] {
            fs::write(scene.file(), &whole[..len]).unwrap();
            assert_eq!(scene.read(), None, "{len} bytes");
        }
        fs::write(scene.file(), [&whole[..], b"x"].concat()).unwrap();
        assert_eq!(scene.read(), None, "one byte more");
        fs::write(scene.file(), &whole).unwrap();
        assert_eq!(scene.read().unwrap(), scene.kept);

        // As composefs-rs might have stored the layer: cut alike, and compressed in another way.
        let batch = scene.repository.batch().unwrap();
        let mut writer = Writer::new(&batch, ContentType::OCI_LAYER).unwrap();
        for (object, _) in scene.kept.iter().rev() {
            writer.external(object, 3).unwrap();
        }
        let (other, _) = writer.finish().unwrap();
        batch.link_stream(&scene.layer.stream_name(), &other);
        batch.commit().unwrap();
        scene.stream = other;
        assert_eq!(scene.read(), None, "another stream");

        fs::remove_file(scene.file()).unwrap();
        std::os::unix::fs::symlink("/dev/zero", scene.file()).unwrap();
        assert_eq!(scene.read(), None, "a symlink");
        fs::remove_file(scene.file()).unwrap();
        assert_eq!(scene.read(), None, "nothing");
    }

    #[test]
    fn checksums_go_when_their_layer_is_gone() {
        let mut scene = Scene::new();
        let (layer, file) = (scene.layer, scene.file());
        let exclusive = scene.repository.exclusive(Wait::Fail).unwrap();
        exclusive.sync_names().unwrap();
        assert!(file.exists());
        exclusive.remove_stream(&layer.stream_name()).unwrap();
        exclusive.sync_names().unwrap();
        assert!(!file.exists());
    }
}
