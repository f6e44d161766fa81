//! The tar-split of a layer, made from its splitstream.
//!
//! podman needs it to give the layer back byte for byte (`save`, `push`). A file entry stands for
//! content that podman takes from below the layer's `diff`, so it is written only for a file that the
//! *merged* tree has at that very path; everything else (small files that live inside the EROFS image,
//! files that a later entry of the layer replaced, names that podman refuses to see twice) is embedded
//! in segments. Only the concatenation counts.
//!
//! Nearly always the tree has every file where the layer says. So the tar-split is written while the tree is
//! still being made ([`Expected`]), and once more only if it turns out that something is elsewhere
//! ([`Known`]).
//!
//! The checksums of contents are those that the import has kept ([`repository::LayerChecksums`]). Only of layers
//! that somebody else stored the content is read.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::{self, BufWriter, Read, Write},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use composefs_image::{Content, InodeId, Kind, Tree, VerityDigest};
use containers_storage::ContentCrc;
use flate2::{Compression, write::GzEncoder};
use repository::{
    ReadObjects,
    layers::{Chunk, Chunks, LayerError, Step, TarError, TarSplitter, components},
};

/// Bytes in one segment, before base64.
const SEGMENT: usize = 256 << 10;

const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Content checksums of objects.
pub(crate) type Checksums = hashbrown::HashMap<VerityDigest, [u8; 8]>;

/// What a layer record needs to know of the tar.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TarFacts {
    /// Length of the tar in bytes.
    pub(crate) size: u64,
    /// Owners that occur, whiteouts not counted.
    pub(crate) uids: BTreeSet<u32>,
    /// Groups that occur, whiteouts not counted.
    pub(crate) gids: BTreeSet<u32>,
}

/// Why a tar-split could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TarSplitError {
    /// The layer cannot be read.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// An object of the layer cannot be read.
    #[error("object {digest}")]
    Object {
        /// The object.
        digest: VerityDigest,
        /// Why.
        source: io::Error,
    },
    /// The tar-split cannot be written.
    #[error("writing")]
    Write(#[from] io::Error),
}

/// The objects that stand in a layer, each once, in the order of the tar.
pub(crate) fn objects_of(chunks: &mut impl Chunks) -> repository::Result<Vec<VerityDigest>> {
    let mut seen = HashSet::new();
    let mut objects = Vec::new();
    while let Some(chunk) = chunks.next_chunk()? {
        if let Chunk::External(digest) = chunk
            && seen.insert(digest)
        {
            objects.push(digest);
        }
    }
    Ok(objects)
}

/// Reads objects on all processors and gives their checksums. `digests` has each once.
pub(crate) fn checksum(
    objects: &impl ReadObjects,
    digests: &[VerityDigest],
) -> Result<Checksums, TarSplitError> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Ok(Checksums::with_capacity(digests.len())));
    let worker = || {
        let mut buffer = vec![0; 128 << 10];
        while let Some(digest) = digests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = checksum_one(objects, digest, &mut buffer);
            let mut results = results
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            match (&mut *results, result) {
                (Ok(done), Ok(crc)) => {
                    done.insert(*digest, crc);
                }
                (Ok(_), Err(error)) => *results = Err(error),
                (Err(_), _) => return,
            }
        }
    };
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8);
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(worker);
        }
        worker();
    });
    results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn checksum_one(
    objects: &impl ReadObjects,
    digest: &VerityDigest,
    buffer: &mut [u8],
) -> Result<[u8; 8], TarSplitError> {
    let mut file = objects.open_object(digest).map_err(LayerError::from)?;
    let mut crc = ContentCrc::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(crc.finish()),
            Ok(length) => crc.update(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(TarSplitError::Object {
                    digest: *digest,
                    source,
                });
            }
        }
    }
}

/// Where podman finds files.
pub(crate) trait Places {
    /// The path by which podman finds the file that a layer has at `path`, the object `digest`. Each path is
    /// given once.
    fn name_of(&mut self, path: &[u8], digest: &VerityDigest) -> Option<Vec<u8>>;
}

/// Every file at its own path, so far: [`Self::are_right`] tells when there is a tree.
#[derive(Default)]
pub(crate) struct Expected {
    names: Vec<u8>,
    /// Where each name ends in `names`.
    files: Vec<(usize, VerityDigest)>,
}

impl Places for Expected {
    fn name_of(&mut self, path: &[u8], digest: &VerityDigest) -> Option<Vec<u8>> {
        let name = clean(path);
        self.names.extend_from_slice(&name);
        self.files.push((self.names.len(), *digest));
        Some(name)
    }
}

impl Expected {
    /// Whether `tree`, merged up to and with the layer, has all that was expected, and nothing twice.
    pub(crate) fn are_right(&self, tree: &Tree) -> bool {
        let mut known = Known::new(tree);
        let mut begin = 0;
        self.files.iter().all(|(end, digest)| {
            let name = self.names.get(begin..*end).unwrap_or_default();
            begin = *end;
            known.take(name, digest)
        })
    }
}

/// The files of a tree, merged up to and with the layer.
pub(crate) struct Known<'a> {
    tree: &'a Tree,
    taken: hashbrown::HashSet<InodeId>,
    /// The last directory, and its path: files come directory by directory.
    recent: (Vec<u8>, Option<InodeId>),
}

impl<'a> Known<'a> {
    pub(crate) fn new(tree: &'a Tree) -> Self {
        Self {
            tree,
            taken: hashbrown::HashSet::new(),
            recent: (Vec::new(), Some(tree.root())),
        }
    }

    /// Whether the file `name` is this object, and was not taken before.
    fn take(&mut self, name: &[u8], digest: &VerityDigest) -> bool {
        let slash = name.iter().rposition(|byte| *byte == b'/');
        let (directory, name) = match slash {
            Some(slash) => (&name[..slash], &name[slash + 1..]),
            None => (&name[..0], name),
        };
        if self.recent.0 != directory {
            self.recent = (directory.to_vec(), self.tree.lookup_path(directory));
        }
        let Some(id) = self.recent.1.and_then(|at| self.tree.lookup(at, name)) else {
            return false;
        };
        match self.tree.kind(id) {
            Kind::Regular(Content::External {
                digest: Some(found),
                ..
            }) => found == *digest && self.taken.insert(id),
            _ => false,
        }
    }
}

impl Places for Known<'_> {
    fn name_of(&mut self, path: &[u8], digest: &VerityDigest) -> Option<Vec<u8>> {
        let name = clean(path);
        self.take(&name, digest).then_some(name)
    }
}

/// A path without what means nothing in it.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(path.len());
    for part in components(path) {
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend_from_slice(part);
    }
    name
}

/// Writes the gzipped tar-split of a layer.
pub(crate) fn write_tar_split(
    layer: &mut impl Chunks,
    places: &mut impl Places,
    checksums: &Checksums,
    objects: &impl ReadObjects,
    out: impl Write,
) -> Result<TarFacts, TarSplitError> {
    let mut writer = Lines::new(out);
    let mut splitter = TarSplitter::new();
    let mut facts = TarFacts::default();
    while let Some(chunk) = layer.next_chunk().map_err(LayerError::from)? {
        match chunk {
            Chunk::Inline(mut bytes) => {
                writer.segment(bytes)?;
                while !bytes.is_empty() {
                    let taken = match splitter.push(bytes).map_err(layer_error)? {
                        Step::Inline(taken) | Step::Payload(taken) => taken,
                        Step::Member { consumed, .. } => {
                            note_owner(&splitter, &mut facts);
                            consumed
                        }
                    };
                    bytes = bytes.get(taken..).unwrap_or_default();
                }
            }
            Chunk::External(digest) => {
                let member = splitter.member();
                let size = member.map_or(0, |member| member.size);
                let crc = checksums.get(&digest);
                let name = member.and_then(|member| places.name_of(&member.path, &digest));
                if let (Some(name), Some(crc)) = (name, crc) {
                    writer.file(&name, size, *crc)?;
                } else {
                    let file = objects.open_object(&digest).map_err(LayerError::from)?;
                    writer
                        .embed(file)
                        .map_err(|source| TarSplitError::Object { digest, source })?;
                }
            }
        }
    }
    splitter.finish().map_err(layer_error)?;
    facts.size = splitter.offset();
    writer.finish()?;
    Ok(facts)
}

fn layer_error(error: TarError) -> TarSplitError {
    TarSplitError::Layer(error.into())
}

fn note_owner(splitter: &TarSplitter, facts: &mut TarFacts) {
    let Some(member) = splitter.member() else {
        return;
    };
    let base = member
        .path
        .split(|byte| *byte == b'/')
        .rfind(|part| !part.is_empty())
        .unwrap_or_default();
    if !base.starts_with(WHITEOUT_PREFIX) {
        facts.uids.insert(member.uid);
        facts.gids.insert(member.gid);
    }
}

/// The types of lines.
const FILE: u8 = 1;
const SEGMENT_TYPE: u8 = 2;

/// Writes lines; collects bytes until a segment is worth one.
struct Lines<W: Write> {
    /// The encoder clears a buffer of its own for every write, so it gets few large ones.
    out: BufWriter<GzEncoder<W>>,
    pending: Vec<u8>,
    /// A payload in base64.
    text: String,
    position: u64,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        Self {
            out: BufWriter::with_capacity(64 << 10, GzEncoder::new(out, Compression::fast())),
            pending: Vec::new(),
            text: String::new(),
            position: 0,
        }
    }

    fn segment(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(SEGMENT - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == SEGMENT {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn embed(&mut self, mut content: File) -> io::Result<()> {
        let mut buffer = vec![0; SEGMENT];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => self.segment(buffer.get(..length).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn file(&mut self, name: &[u8], size: u64, crc: [u8; 8]) -> io::Result<()> {
        self.flush()?;
        self.begin(FILE)?;
        match std::str::from_utf8(name) {
            Ok(name) => {
                self.out.write_all(b",\"name\":")?;
                serde_json::to_writer(&mut self.out, name)?;
            }
            Err(_) => write!(self.out, ",\"name_raw\":\"{}\"", STANDARD.encode(name))?,
        }
        write!(self.out, ",\"size\":{size}")?;
        self.end(&crc)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        self.begin(SEGMENT_TYPE)?;
        self.end(&pending)?;
        pending.clear();
        self.pending = pending;
        Ok(())
    }

    // Lines are put together here: nothing but names needs escapes, and there are two lines for each file.
    fn begin(&mut self, kind: u8) -> io::Result<()> {
        write!(self.out, "{{\"type\":{kind}")
    }

    fn end(&mut self, payload: &[u8]) -> io::Result<()> {
        self.text.clear();
        STANDARD.encode_string(payload, &mut self.text);
        self.out.write_all(b",\"payload\":\"")?;
        self.out.write_all(self.text.as_bytes())?;
        writeln!(self.out, "\",\"position\":{}}}", self.position)?;
        self.position += 1;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let encoder = self
            .out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        encoder.finish()?.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use composefs_image::{Algorithm, verity_digest};
    use containers_storage::{TarSplit, TarSplitEntry};
    use repository::layers::{Merge, Rules};

    use super::*;

    /// Files of these names and contents as a tar; whiteouts included.
    fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (number, (name, content)) in members.iter().enumerate() {
            let mut header = [0_u8; 512];
            header[..name.len()].copy_from_slice(name.as_bytes());
            let mut field = |at: usize, text: String| {
                header[at..at + text.len()].copy_from_slice(text.as_bytes());
            };
            let is_directory = name.ends_with('/');
            field(100, "0000755\0".to_owned());
            field(108, format!("{:07o}\0", 1000 + number));
            field(116, format!("{:07o}\0", 2000 + number));
            field(124, format!("{:011o}\0", content.len()));
            field(136, "00000000001\0".to_owned());
            field(156, if is_directory { "5" } else { "0" }.to_owned());
            field(257, "ustar\x0000".to_owned());
            field(148, " ".repeat(8));
            let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            tar.extend(header);
            tar.extend(*content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.resize(tar.len() + 1024, 0);
        tar
    }

    enum Portion {
        Inline(Vec<u8>),
        External(VerityDigest),
    }

    /// A tar split as a repository splits it, with its objects.
    #[derive(Default)]
    struct Layer {
        portions: Vec<Portion>,
        objects: HashMap<VerityDigest, Vec<u8>>,
    }

    impl Layer {
        fn split(mut tar: &[u8]) -> Self {
            let mut layer = Self::default();
            let mut splitter = TarSplitter::new();
            while !tar.is_empty() {
                let (taken, payload) = match splitter.push(tar).unwrap() {
                    Step::Inline(taken) | Step::Payload(taken) => (taken, 0),
                    Step::Member {
                        consumed,
                        placement: repository::layers::Placement::External,
                    } => (consumed, splitter.member().unwrap().size as usize),
                    Step::Member { consumed, .. } => (consumed, 0),
                };
                let (inline, rest) = tar.split_at(taken);
                let (object, rest) = rest.split_at(payload);
                layer.portions.push(Portion::Inline(inline.to_vec()));
                if !object.is_empty() {
                    let digest = verity_digest(Algorithm::Sha256, object);
                    layer.objects.insert(digest, object.to_vec());
                    layer.portions.push(Portion::External(digest));
                }
                tar = rest;
            }
            layer
        }

        fn chunks(&self) -> Portions<'_> {
            Portions(self.portions.iter())
        }
    }

    struct Portions<'a>(std::slice::Iter<'a, Portion>);

    impl Chunks for Portions<'_> {
        fn next_chunk(&mut self) -> repository::Result<Option<Chunk<'_>>> {
            Ok(self.0.next().map(|portion| match portion {
                Portion::Inline(bytes) => Chunk::Inline(bytes),
                Portion::External(digest) => Chunk::External(*digest),
            }))
        }
    }

    impl ReadObjects for Layer {
        fn algorithm(&self) -> Algorithm {
            Algorithm::Sha256
        }

        fn open_object(&self, digest: &VerityDigest) -> repository::Result<File> {
            use std::io::Seek;
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&self.objects[digest]).unwrap();
            file.rewind().unwrap();
            Ok(file)
        }
    }

    /// Writes the tar-split of `layers`' top, and reads it back: the tar that podman would make, with
    /// the names it would look up.
    fn round_trip(layers: &[Layer]) -> (Vec<u8>, Vec<String>, TarFacts) {
        let mut merge = Merge::new(Rules::Podman);
        for layer in layers {
            merge.add_layer(layer.chunks()).unwrap();
        }
        let top = layers.last().unwrap();
        let objects = objects_of(&mut top.chunks()).unwrap();
        let checksums = checksum(top, &objects).unwrap();
        let mut written = Vec::new();
        let mut expected = Expected::default();
        let mut at_once = Vec::new();
        write_tar_split(
            &mut top.chunks(),
            &mut expected,
            &checksums,
            top,
            &mut at_once,
        )
        .unwrap();
        let facts = write_tar_split(
            &mut top.chunks(),
            &mut Known::new(merge.tree()),
            &checksums,
            top,
            &mut written,
        )
        .unwrap();
        assert_eq!(expected.are_right(merge.tree()), at_once == written);

        let (mut tar, mut names) = (Vec::new(), Vec::new());
        for entry in TarSplit::new(&written[..]) {
            match entry.unwrap() {
                TarSplitEntry::Segment(bytes) => tar.extend(bytes),
                TarSplitEntry::File { name, size, crc64 } => {
                    let id = merge.tree().lookup_path(name.as_bytes()).unwrap();
                    let Kind::Regular(Content::External {
                        digest: Some(digest),
                        ..
                    }) = merge.tree().kind(id)
                    else {
                        panic!("{name} has no object");
                    };
                    let content = &top.objects[&digest];
                    let mut crc = ContentCrc::new();
                    crc.update(content);
                    assert_eq!((content.len() as u64, crc.finish()), (size, crc64));
                    tar.extend(content);
                    names.push(String::from_utf8(name.into_bytes()).unwrap());
                }
            }
        }
        (tar, names, facts)
    }

    #[test]
    fn the_tar_comes_back_from_segments_and_files_of_the_merged_tree() {
        let large = vec![b'x'; 100_000];
        let tar = tar(&[
            ("./", b""),
            ("./d/", b""),
            ("./d/large", &large),
            ("./d/small", b"at most 64 bytes live in the image"),
            ("./d/empty", b""),
        ]);
        let (back, names, facts) = round_trip(&[Layer::split(&tar)]);
        assert!(back == tar, "same bytes");
        assert_eq!(names, ["d/large"]);
        assert_eq!(facts.size, tar.len() as u64);
        assert_eq!(facts.uids, (1000..1005).collect());
        assert_eq!(facts.gids, (2000..2005).collect());
    }

    #[test]
    fn what_the_merged_tree_does_not_have_is_embedded() {
        let (first, second) = (vec![b'1'; 300_000], vec![b'2'; 1000]);
        let tar = tar(&[
            ("first", &first),
            ("./second", &second),
            ("a/../escape", &second),
        ]);
        let (back, names, _) = round_trip(&[Layer::split(&tar)]);
        assert!(back == tar, "same bytes");
        assert_eq!(names, ["first", "second"]);
    }

    #[test]
    fn owners_of_whiteouts_are_not_counted() {
        let base = tar(&[("gone", b""), ("d/", b"")]);
        let top = tar(&[("kept", b""), (".wh.gone", b""), ("d/.wh..wh..opq", b"")]);
        let (back, _, facts) = round_trip(&[Layer::split(&base), Layer::split(&top)]);
        assert!(back == top, "same bytes");
        assert_eq!(facts.uids, BTreeSet::from([1000]));
    }

    #[test]
    fn a_missing_checksum_or_a_truncated_layer_is_no_panic() {
        let tar = tar(&[("large", &[b'x'; 1000])]);
        let mut layer = Layer::split(&tar);
        layer.portions.truncate(2);
        let tree = Tree::new(composefs_image::Metadata::default());
        let result = write_tar_split(
            &mut layer.chunks(),
            &mut Known::new(&tree),
            &Checksums::new(),
            &layer,
            io::sink(),
        );
        assert!(matches!(result, Err(TarSplitError::Layer(_))));
    }
}
