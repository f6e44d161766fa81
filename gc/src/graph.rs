//! What each thing in a repository needs: the edges that marking follows.
//!
//! References are followed by object, whatever the links say now: a config that a second pull has
//! replaced is still needed by the first manifest. The names that composefs-rs would look for are
//! followed as well. A stream or image is verified before its word is taken for what it needs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};

use composefs_image::{Algorithm, VerityDigest, VerityHasher};
use repository::list::{ImageLink, StreamLink};
use repository::oci::{ConfigDigest, DiffId, NamesStream};
use repository::splitstream::{self, Reader};
use repository::sys::Measured;
use repository::{Category, Repository, StreamName};

use crate::image::{self, Contents, sniff};

/// Something that can be needed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Node {
    /// The link of this name in `streams/`.
    Stream(StreamName),
    /// The link of this name in `images/`.
    Image(VerityDigest),
    /// An object that must be a splitstream or image.
    Container(VerityDigest),
    /// An object that may be a splitstream or image.
    Object(VerityDigest),
    /// An object that names nothing else.
    Payload(VerityDigest),
}

impl Node {
    /// The link of this name; `None` if no link can have it.
    pub(crate) fn named(category: Category, name: &str, algorithm: Algorithm) -> Option<Self> {
        match category {
            Category::Streams => StreamName::new(name).ok().map(Self::Stream),
            Category::Images => VerityDigest::from_hex(name)
                .ok()
                .filter(|digest| digest.algorithm() == algorithm)
                .map(Self::Image),
        }
    }
}

/// A repository as a graph.
pub(crate) struct Graph<'r> {
    repository: &'r Repository,
    streams: HashMap<&'r StreamName, VerityDigest>,
    images: HashMap<VerityDigest, VerityDigest>,
}

/// Why it isn't known what a node needs.
#[derive(Debug)]
pub(crate) enum Unknown {
    /// There is no link of this name.
    NoLink(String),
    /// The object can't be read, or isn't what it should be.
    Object(VerityDigest, String),
}

impl<'r> Graph<'r> {
    pub(crate) fn new(
        repository: &'r Repository,
        streams: &'r [StreamLink],
        images: &[ImageLink],
    ) -> Self {
        Self {
            repository,
            streams: streams
                .iter()
                .map(|link| (&link.name, link.object))
                .collect(),
            images: images.iter().map(|link| (link.name, link.object)).collect(),
        }
    }

    /// Hands everything that `node` needs to `needs`. After an error that may be incomplete.
    pub(crate) fn references(
        &self,
        node: &Node,
        needs: &mut dyn FnMut(Node),
    ) -> Result<(), Unknown> {
        match node {
            Node::Stream(name) => match self.streams.get(name) {
                Some(object) => needs(Node::Container(*object)),
                None => return Err(Unknown::NoLink(name.to_string())),
            },
            Node::Image(name) => match self.images.get(name) {
                Some(object) => needs(Node::Container(*object)),
                None => return Err(Unknown::NoLink(name.to_string())),
            },
            Node::Container(object) => {
                let contents = self.object_references(object, needs)?;
                if contents == Contents::Other {
                    let error = "it is neither a splitstream nor an image".to_owned();
                    return Err(Unknown::Object(*object, error));
                }
            }
            Node::Object(object) => {
                self.object_references(object, needs)?;
            }
            Node::Payload(_) => {}
        }
        Ok(())
    }

    fn object_references(
        &self,
        object: &VerityDigest,
        needs: &mut dyn FnMut(Node),
    ) -> Result<Contents, Unknown> {
        let failed = |error: &dyn std::fmt::Display| Unknown::Object(*object, error.to_string());
        let mut file = self
            .repository
            .open_object(object)
            .map_err(|error| failed(&error))?;
        self.verify(&mut file, object)
            .map_err(|error| failed(&error))?;
        let contents = sniff(&mut file).map_err(|error| failed(&error))?;
        match contents {
            Contents::Splitstream => self
                .stream_references(file, needs)
                .map_err(|error| failed(&error))?,
            Contents::Image => {
                image::objects(self.repository, object, |object| {
                    needs(Node::Payload(object));
                })
                .map_err(|error| failed(&error))?;
            }
            Contents::Other => {}
        }
        Ok(contents)
    }

    /// Recomputes the digest of an open object, unless the kernel checks what is read of it.
    fn verify(&self, file: &mut File, object: &VerityDigest) -> Result<(), Damaged> {
        if let Measured::Digest(_) = self.repository.measure(file, object)? {
            // Opening it has compared the digest.
            return Ok(());
        }
        let mut hasher = VerityHasher::new(object.algorithm());
        std::io::copy(file, &mut hasher)?;
        file.seek(SeekFrom::Start(0))?;
        let actual = hasher.finish();
        if actual == *object {
            Ok(())
        } else {
            Err(Damaged::Content(actual))
        }
    }

    fn stream_references(
        &self,
        file: File,
        needs: &mut dyn FnMut(Node),
    ) -> Result<(), splitstream::SplitstreamError> {
        let reader = Reader::new(file, self.repository.algorithm(), None)?;
        for name in reader.named_refs()?.keys() {
            if let Some(stream) = stream_of(name)
                && self.streams.contains_key(&stream)
            {
                needs(Node::Stream(stream));
            }
        }
        for object in reader.stream_refs() {
            needs(Node::Object(object?));
        }
        for object in reader.object_refs() {
            needs(Node::Payload(object?));
        }
        Ok(())
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
}

/// The stream that a named reference of a manifest or config stands for.
fn stream_of(reference: &str) -> Option<StreamName> {
    match reference.strip_prefix("config:") {
        Some(digest) => digest.parse().ok().map(|id: ConfigDigest| id.stream_name()),
        None => reference.parse().ok().map(|id: DiffId| id.stream_name()),
    }
}
