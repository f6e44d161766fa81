//! What each thing in a repository needs: the edges that marking follows.
//!
//! References are followed by object, whatever the links say now: a config that a second pull has
//! replaced is still needed by the first manifest. The names that composefs-rs would look for are
//! followed as well. A stream or image is verified before its word is taken for what it needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use composefs_image::{VerityDigest, VerityHasher};
use repository::list::{ImageLink, StreamLink};
use repository::oci::{BlobDigest, ConfigDigest, DiffId, NamesStream};
use repository::splitstream::{self, Reader};
use repository::sys::Measured;
use repository::{Repository, StreamName};

use crate::digests::Digests;
use crate::image::{self, Contents, sniff};
use crate::mark::{Rank, Reached};

/// Something that can be needed, by its index in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// A link in `streams/`.
    Stream(usize),
    /// A link in `images/`.
    Image(usize),
    /// An object that must be a splitstream or image.
    Container(usize),
    /// An object that may be a splitstream or image.
    Object(usize),
    /// An object that names nothing else.
    Payload(usize),
}

/// Something that can be needed, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The link of this name in `streams/`.
    Stream(StreamName),
    /// The link of this name in `images/`, or the object itself.
    Image(VerityDigest),
    /// An object, whatever it is.
    Object(VerityDigest),
    /// Everything that has a link.
    Links,
}

/// A repository as a graph.
pub(crate) struct Graph<'r> {
    repository: &'r Repository,
    /// Sorted by name, as are the images.
    streams: &'r [StreamLink],
    images: &'r [ImageLink],
    objects: &'r Digests,
    /// Objects that names nothing else, are needed and don't exist.
    missing: Mutex<BTreeSet<VerityDigest>>,
}

/// Why it isn't known what a node needs.
#[derive(Debug)]
pub(crate) enum Unknown {
    /// There is no link of this name.
    NoLink(String),
    /// The object can't be read, or isn't what it should be.
    Object(VerityDigest, String),
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoLink(name) => write!(f, "{name} does not exist"),
            Self::Object(object, error) => write!(f, "object {object}: {error}"),
        }
    }
}

impl<'r> Graph<'r> {
    pub(crate) fn new(
        repository: &'r Repository,
        streams: &'r [StreamLink],
        images: &'r [ImageLink],
        objects: &'r Digests,
    ) -> Self {
        Self {
            repository,
            streams,
            images,
            objects,
            missing: Mutex::default(),
        }
    }

    /// The nodes of this name.
    pub(crate) fn resolve(&self, target: &Target) -> Result<Vec<Node>, Unknown> {
        let node = match target {
            Target::Stream(name) => match self.stream(name) {
                Some(index) => Node::Stream(index),
                None => return Err(Unknown::NoLink(name.to_string())),
            },
            Target::Image(name) => {
                let link = self.images.binary_search_by(|link| link.name.cmp(name));
                match (link, self.objects.find(name)) {
                    (Ok(index), _) => Node::Image(index),
                    (Err(_), Some(index)) => Node::Container(index),
                    (Err(_), None) => return Err(Unknown::NoLink(name.to_string())),
                }
            }
            Target::Object(digest) => Node::Object(self.object(digest)?),
            Target::Links => {
                let streams = (0..self.streams.len()).map(Node::Stream);
                return Ok(streams
                    .chain((0..self.images.len()).map(Node::Image))
                    .collect());
            }
        };
        Ok(vec![node])
    }

    /// Hands everything that `node` needs to `needs`, and what can't be told to `unknown`.
    pub(crate) fn references(
        &self,
        node: Node,
        needs: &mut dyn FnMut(Node),
        unknown: &mut dyn FnMut(Unknown),
    ) {
        let link = match node {
            Node::Stream(index) => self.streams.get(index).map(|link| link.object),
            Node::Image(index) => self.images.get(index).map(|link| link.object),
            Node::Container(_) | Node::Object(_) | Node::Payload(_) => None,
        };
        if let Some(object) = link {
            match self.object(&object) {
                Ok(index) => needs(Node::Container(index)),
                Err(error) => unknown(error),
            }
        }
        let (Node::Container(index) | Node::Object(index)) = node else {
            return;
        };
        let Some(object) = self.objects.get(index) else {
            return;
        };
        match self.object_references(&object, needs, unknown) {
            Ok(Contents::Other) if matches!(node, Node::Container(_)) => {
                let error = "it is neither a splitstream nor an image".to_owned();
                unknown(Unknown::Object(object, error));
            }
            Ok(_) => {}
            Err(error) => unknown(Unknown::Object(object, error.to_string())),
        }
    }

    /// Objects that files of images and layers need and that don't exist.
    pub(crate) fn into_missing(self) -> Vec<VerityDigest> {
        let missing = self.missing.into_inner();
        let missing = missing.unwrap_or_else(std::sync::PoisonError::into_inner);
        missing.into_iter().collect()
    }

    fn stream(&self, name: &StreamName) -> Option<usize> {
        let link = self.streams.binary_search_by(|link| link.name.cmp(name));
        link.ok()
    }

    fn object(&self, digest: &VerityDigest) -> Result<usize, Unknown> {
        self.objects
            .find(digest)
            .ok_or_else(|| Unknown::Object(*digest, "it is missing".into()))
    }

    fn payload(&self, digest: VerityDigest, needs: &mut dyn FnMut(Node)) {
        match self.objects.find(&digest) {
            Some(index) => needs(Node::Payload(index)),
            None => {
                self.missing
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .insert(digest);
            }
        }
    }

    fn object_references(
        &self,
        object: &VerityDigest,
        needs: &mut dyn FnMut(Node),
        unknown: &mut dyn FnMut(Unknown),
    ) -> Result<Contents, Damaged> {
        let mut file = self.repository.open_object(object)?;
        // If the kernel has a digest, opening has compared it, and what is read is checked.
        let is_measured = matches!(self.repository.measure(&file, object)?, Measured::Digest(_));
        let contents = sniff(&mut file)?;
        match contents {
            Contents::Splitstream => {
                if !is_measured {
                    check(&mut file, object)?;
                }
                self.stream_references(file, needs, unknown)?;
            }
            Contents::Image => {
                let image = image::read(self.repository, object)?;
                if !is_measured {
                    check(&mut image.as_slice(), object)?;
                }
                for object in image::objects(&image)? {
                    self.payload(object.map_err(image::Invalid::from)?, needs);
                }
            }
            Contents::Other if !is_measured => check(&mut file, object)?,
            Contents::Other => {}
        }
        Ok(contents)
    }

    fn stream_references(
        &self,
        file: File,
        needs: &mut dyn FnMut(Node),
        unknown: &mut dyn FnMut(Unknown),
    ) -> Result<(), splitstream::SplitstreamError> {
        let reader = Reader::new(file, self.repository.algorithm(), None)?;
        for name in reader.named_refs()?.keys() {
            if let Some(stream) = stream_of(name)
                && let Some(index) = self.stream(&stream)
            {
                needs(Node::Stream(index));
            }
        }
        for object in reader.stream_refs() {
            match self.object(&object?) {
                Ok(index) => needs(Node::Object(index)),
                Err(error) => unknown(error),
            }
        }
        for object in reader.object_refs() {
            self.payload(object?, needs);
        }
        Ok(())
    }
}

/// What of a repository has been reached: eight bytes and one for each thing in it.
pub(crate) struct Marks {
    streams: Ranks,
    images: Ranks,
    objects: Ranks,
    /// How an object has been followed.
    followed: Vec<AtomicU8>,
}

const AS_OBJECT: u8 = 1;
const AS_CONTAINER: u8 = 2;

impl Marks {
    pub(crate) fn new(streams: usize, images: usize, objects: usize) -> Self {
        Self {
            streams: Ranks::new(streams),
            images: Ranks::new(images),
            objects: Ranks::new(objects),
            followed: (0..objects).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// The root that a thing was reached from, if it was.
    pub(crate) fn root(&self, node: Node) -> Option<usize> {
        Some(self.of(node).0.get()?.root as usize)
    }

    fn of(&self, node: Node) -> (Slot<'_>, usize) {
        let (ranks, index) = match node {
            Node::Stream(index) => (&self.streams, index),
            Node::Image(index) => (&self.images, index),
            Node::Container(index) | Node::Object(index) | Node::Payload(index) => {
                (&self.objects, index)
            }
        };
        (Slot(ranks.0.get(index)), index)
    }
}

impl Reached<Node> for Marks {
    fn reach(&self, node: Node, rank: Rank) -> bool {
        let (slot, index) = self.of(node);
        let is_new = slot.lower(rank);
        let mode = match node {
            Node::Stream(_) | Node::Image(_) => return is_new,
            Node::Payload(_) => return false,
            Node::Object(_) => AS_OBJECT,
            Node::Container(_) => AS_CONTAINER,
        };
        let Some(followed) = self.followed.get(index) else {
            return false;
        };
        // Following a container says all that following an object does.
        let before = followed.fetch_or(mode, Ordering::Relaxed);
        before & (mode | AS_CONTAINER) == 0
    }

    fn rank(&self, node: Node) -> Rank {
        self.of(node).0.get().unwrap_or(Rank {
            distance: 0,
            root: 0,
        })
    }
}

/// A rank for each thing of a kind.
struct Ranks(Vec<AtomicU64>);

const UNREACHED: u64 = u64::MAX;

impl Ranks {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| AtomicU64::new(UNREACHED)).collect())
    }
}

/// The rank of one thing, packed so that the smaller number is the smaller rank.
struct Slot<'a>(Option<&'a AtomicU64>);

impl Slot<'_> {
    /// Whether it was unreached before.
    fn lower(&self, rank: Rank) -> bool {
        let packed = u64::from(rank.distance) << 32 | u64::from(rank.root);
        self.0
            .is_some_and(|slot| slot.fetch_min(packed, Ordering::Relaxed) == UNREACHED)
    }

    fn get(&self) -> Option<Rank> {
        let packed = self.0?.load(Ordering::Relaxed);
        (packed != UNREACHED).then_some(Rank {
            distance: (packed >> 32) as u32,
            root: packed as u32,
        })
    }
}

/// Recomputes the digest of an object.
fn check(content: &mut impl Read, object: &VerityDigest) -> Result<(), Damaged> {
    let mut hasher = VerityHasher::new(object.algorithm());
    std::io::copy(content, &mut hasher)?;
    let actual = hasher.finish();
    if actual == *object {
        Ok(())
    } else {
        Err(Damaged::Content(actual))
    }
}

/// Why an object's word can't be taken.
#[derive(Debug, thiserror::Error)]
enum Damaged {
    #[error(transparent)]
    Repository(#[from] repository::Error),
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("it is damaged: its content has the digest {0}")]
    Content(VerityDigest),
    #[error(transparent)]
    Stream(#[from] splitstream::SplitstreamError),
    #[error(transparent)]
    Image(#[from] image::Invalid),
}

/// The stream that a named reference of a manifest or config stands for.
fn stream_of(reference: &str) -> Option<StreamName> {
    if let Some(digest) = reference.strip_prefix("config:") {
        digest.parse().ok().map(|id: ConfigDigest| id.stream_name())
    } else if let Some(digest) = reference.strip_prefix("index:") {
        digest.parse().ok().map(|id: BlobDigest| id.stream_name())
    } else {
        reference.parse().ok().map(|id: DiffId| id.stream_name())
    }
}
