//! What takes the space: how much each image has for itself, and what is shared with whom.
//!
//! Objects are divided by the set of images that need them, so that the sizes of all parts add up to
//! that of all objects. Sizes are those of files; blocks that a file shares with one elsewhere, by a
//! reflink for example, count here all the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use composefs_image::VerityDigest;
use repository::oci::{ManifestDigest, NamesStream as _};
use repository::splitstream::{self, ContentType};
use repository::{Category, Repository, Tag};
use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::graph::{Graph, Node};
use crate::mark::{Rank, Reached, mark};
use crate::objects::{self, each_shard};
use crate::plan::jobs;
use crate::progress::{Phase, Progress};

/// What takes the space in a repository.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// All images, in the order of their manifests' digests.
    pub images: Vec<ImageUsage>,
    /// The objects by who needs them, most bytes first. Those that no image needs have an empty list.
    pub parts: Vec<Part>,
    /// All objects.
    pub total: Size,
}

/// What an image takes.
#[derive(Debug, Clone, Serialize)]
pub struct ImageUsage {
    /// Its manifest.
    #[serde(serialize_with = "text")]
    pub manifest: ManifestDigest,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// All that it needs.
    pub all: Size,
    /// What no other image needs: what removing it would free, unless something else keeps it.
    pub own: Size,
    /// What of it can't be told, in words: it takes more than is said here then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Objects that the same images need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Indexes into [`Usage::images`].
    pub images: Vec<usize>,
    /// How much it is.
    #[serde(flatten)]
    pub size: Size,
}

/// A number of objects and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Size {
    /// The sum of their sizes.
    pub bytes: u64,
    /// How many.
    pub objects: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.objects += other.objects;
    }
}

/// What a layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LayerUsage {
    /// The size of its tar in bytes.
    pub tar_bytes: u64,
    /// The objects that its files are.
    pub files: Size,
}

/// What the layer with this stream takes.
pub fn layer_usage(
    repository: &Repository,
    stream: &VerityDigest,
) -> repository::Result<LayerUsage> {
    let damaged = |source| repository::Error::Splitstream {
        digest: *stream,
        source,
    };
    let reader = splitstream::open(repository, stream, Some(ContentType::OCI_LAYER))?;
    let mut files = Size::default();
    for object in reader.object_refs() {
        let object = object.map_err(damaged)?;
        files.add(Size {
            bytes: repository.object_size(&object)?.unwrap_or(0),
            objects: 1,
        });
    }
    Ok(LayerUsage {
        tar_bytes: reader.total_size(),
        files,
    })
}

/// Looks at all images. Writes nothing.
pub fn usage(repository: &Repository, progress: &dyn Progress) -> Result<Usage> {
    let streams = repository.streams()?;
    let links = repository.images()?;
    let digests = objects::list(repository, jobs(), progress, &mut Vec::new())?;
    let graph = Graph::new(repository, &streams.entries, &links.entries, &digests);
    let mut tags: HashMap<String, Vec<Tag>> = HashMap::new();
    for entry in repository.refs(Category::Streams)?.entries {
        if let Some(tag) = entry.path.tag() {
            tags.entry(entry.target).or_default().push(tag);
        }
    }

    let manifests: Vec<(usize, ManifestDigest)> = streams
        .entries
        .iter()
        .enumerate()
        .filter_map(|(index, link)| Some((index, ManifestDigest::from_stream_name(&link.name)?)))
        .collect();
    progress.begin(Phase::Marking, Some(manifests.len() as u64));
    // Which part each object is in: none at first, and with each image that needs it a further one.
    let parts: Vec<AtomicU32> = (0..digests.len()).map(|_| AtomicU32::new(0)).collect();
    let reached = Stamps::new(streams.entries.len(), links.entries.len(), digests.len());
    let mut sets: Vec<(u32, usize)> = vec![(0, 0)];
    let mut images = Vec::new();
    for (number, (stream, manifest)) in manifests.into_iter().enumerate() {
        reached.begin(number);
        let problems = std::sync::Mutex::new(Vec::new());
        let rank = Rank {
            distance: 0,
            root: 0,
        };
        mark(
            [(Node::Stream(stream), rank)],
            &reached,
            1,
            |node, _, needs| {
                graph.references(node, needs, &mut |unknown| {
                    problems
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(unknown.to_string());
                });
            },
        );
        let mut further: HashMap<u32, u32> = HashMap::new();
        for (object, part) in parts.iter().enumerate() {
            if reached.is_new(object) {
                let before = part.load(Ordering::Relaxed);
                let next = *further.entry(before).or_insert_with(|| {
                    sets.push((before, number));
                    (sets.len() - 1) as u32
                });
                part.store(next, Ordering::Relaxed);
            }
        }
        images.push(ImageUsage {
            tags: tags
                .remove(manifest.stream_name().as_str())
                .unwrap_or_default(),
            manifest,
            all: Size::default(),
            own: Size::default(),
            problems: problems
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        });
        progress.advance(1);
    }

    let sizes = each_shard(jobs(), |shard| {
        let mut sizes: HashMap<u32, Size> = HashMap::new();
        for index in digests.shard(shard) {
            let Some(digest) = digests.get(index) else {
                continue;
            };
            let part = parts
                .get(index)
                .map_or(0, |part| part.load(Ordering::Relaxed));
            sizes.entry(part).or_default().add(Size {
                bytes: repository.object_size(&digest)?.unwrap_or(0),
                objects: 1,
            });
        }
        Ok(sizes)
    })?;
    let mut by_part: HashMap<u32, Size> = HashMap::new();
    for (part, size) in sizes.into_iter().flatten() {
        by_part.entry(part).or_default().add(size);
    }
    let mut usage = Usage {
        images,
        parts: Vec::new(),
        total: Size::default(),
    };
    for (part, size) in by_part {
        let images = members(&sets, part);
        usage.total.add(size);
        for image in &images {
            if let Some(image) = usage.images.get_mut(*image) {
                image.all.add(size);
                if images.len() == 1 {
                    image.own.add(size);
                }
            }
        }
        usage.parts.push(Part { images, size });
    }
    usage
        .parts
        .sort_unstable_by(|a, b| b.size.cmp(&a.size).then_with(|| a.images.cmp(&b.images)));
    Ok(usage)
}

/// The images of a part: each part is another one and one image more.
fn members(sets: &[(u32, usize)], part: u32) -> Vec<usize> {
    let mut images = Vec::new();
    let mut part = part;
    while part != 0
        && let Some((before, image)) = sets.get(part as usize)
    {
        images.push(*image);
        part = *before;
    }
    images.reverse();
    images
}

/// What the image in work has reached: the number of the last image that reached it, for each thing.
struct Stamps {
    image: AtomicU32,
    streams: Vec<AtomicU32>,
    links: Vec<AtomicU32>,
    objects: Vec<AtomicU32>,
    followed: Vec<AtomicU32>,
}

impl Stamps {
    fn new(streams: usize, links: usize, objects: usize) -> Self {
        let stamps = |count: usize| (0..count).map(|_| AtomicU32::new(0)).collect();
        Self {
            image: AtomicU32::new(0),
            streams: stamps(streams),
            links: stamps(links),
            objects: stamps(objects),
            followed: stamps(objects),
        }
    }

    fn begin(&self, image: usize) {
        self.image.store(image as u32 + 1, Ordering::Relaxed);
    }

    /// Whether the image in work has reached an object.
    fn is_new(&self, object: usize) -> bool {
        let image = self.image.load(Ordering::Relaxed);
        let stamp = self.objects.get(object);
        stamp.is_some_and(|stamp| stamp.load(Ordering::Relaxed) == image)
    }

    fn stamp(&self, stamps: &[AtomicU32], index: usize) -> bool {
        let image = self.image.load(Ordering::Relaxed);
        stamps
            .get(index)
            .is_some_and(|stamp| stamp.swap(image, Ordering::Relaxed) != image)
    }
}

impl Reached<Node> for Stamps {
    fn reach(&self, node: Node, _: Rank) -> bool {
        match node {
            Node::Stream(index) => self.stamp(&self.streams, index),
            Node::Image(index) => self.stamp(&self.links, index),
            Node::Payload(index) => {
                self.stamp(&self.objects, index);
                false
            }
            Node::Container(index) | Node::Object(index) => {
                self.stamp(&self.objects, index);
                self.stamp(&self.followed, index)
            }
        }
    }

    fn rank(&self, _: Node) -> Rank {
        Rank {
            distance: 0,
            root: 0,
        }
    }
}

fn text<S: Serializer>(
    manifest: &ManifestDigest,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(manifest)
}
