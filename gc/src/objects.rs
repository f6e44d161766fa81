//! The objects of a plan: millions of them, in little memory, and in the order of their digests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use repository::list::Foreign;
use repository::{Repository, Result};
use serde::{Serialize, Serializer};

use crate::digests::Digests;
use crate::plan::{ObjectItem, decide};
use crate::progress::{Phase, Progress};

/// What becomes of each object. Takes twelve bytes for each beside its digest.
#[derive(Debug, Clone)]
pub struct Objects {
    digests: Digests,
    /// The root that needs it.
    roots: Vec<u32>,
    /// The sizes of those that go; others have none.
    sizes: Vec<u64>,
    in_doubt: bool,
}

const NO_ROOT: u32 = u32::MAX;
const NO_SIZE: u64 = u64::MAX;

impl Objects {
    /// Looks up the sizes of those that go.
    pub(crate) fn decided(
        repository: &Repository,
        digests: Digests,
        in_doubt: bool,
        root_of: impl Fn(usize) -> Option<usize>,
        jobs: usize,
    ) -> Result<Self> {
        let roots: Vec<u32> = (0..digests.len())
            .map(|index| root_of(index).map_or(NO_ROOT, |root| root as u32))
            .collect();
        let mut objects = Self {
            digests,
            roots,
            sizes: Vec::new(),
            in_doubt,
        };
        let sizes = each_shard(jobs, |shard| {
            let range = objects.digests.shard(shard);
            let mut sizes = Vec::with_capacity(range.len());
            for index in range {
                let removed = objects
                    .item(index)
                    .filter(|item| item.decision.is_removal());
                let size = match removed {
                    Some(item) => repository.object_size(&item.digest)?,
                    None => None,
                };
                sizes.push(size.unwrap_or(NO_SIZE));
            }
            Ok(sizes)
        })?;
        objects.sizes = sizes.concat();
        Ok(objects)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = ObjectItem> {
        (0..self.len()).filter_map(|index| self.item(index))
    }

    /// Those that go.
    pub fn removed(&self) -> impl Iterator<Item = ObjectItem> {
        self.iter().filter(|item| item.decision.is_removal())
    }

    /// Those that go and whose digests have this first byte.
    pub(crate) fn removed_in(&self, shard: u8) -> impl Iterator<Item = ObjectItem> {
        self.digests
            .shard(shard)
            .filter_map(|index| self.item(index))
            .filter(|item| item.decision.is_removal())
    }

    fn item(&self, index: usize) -> Option<ObjectItem> {
        let root = self
            .roots
            .get(index)
            .copied()
            .filter(|root| *root != NO_ROOT);
        let size = self.sizes.get(index).copied();
        Some(ObjectItem {
            digest: self.digests.get(index)?,
            bytes: size.filter(|size| *size != NO_SIZE),
            decision: decide(root.map(|root| root as usize), self.in_doubt),
        })
    }
}

impl Serialize for Objects {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// All objects of a repository. What else is among them goes to `ignored`.
pub(crate) fn list(
    repository: &Repository,
    jobs: usize,
    progress: &dyn Progress,
    ignored: &mut Vec<Foreign>,
) -> Result<Digests> {
    progress.begin(Phase::Listing, Some(256));
    let found = each_shard(jobs, |shard| {
        let listing = repository.objects_in(shard)?;
        let mut bytes =
            Vec::with_capacity(listing.entries.len() * repository.algorithm().digest_len());
        for digest in &listing.entries {
            bytes.extend_from_slice(digest.as_bytes());
        }
        progress.advance(1);
        Ok((bytes, listing.foreign))
    })?;
    let mut shards = Vec::new();
    for (bytes, foreign) in found {
        shards.push(bytes);
        ignored.extend(foreign);
    }
    Ok(Digests::new(repository.algorithm(), shards))
}

/// Does something for each first byte of a digest, in several threads; the results in order.
pub(crate) fn each_shard<T: Send>(
    jobs: usize,
    act: impl Fn(u8) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let results = Mutex::new(Vec::with_capacity(256));
    let next = AtomicUsize::new(0);
    let work = || {
        while let Ok(shard) = u8::try_from(next.fetch_add(1, Ordering::Relaxed)) {
            let result = act(shard);
            if result.is_err() {
                // The others need not go on.
                next.store(256, Ordering::Relaxed);
            }
            results
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push((shard, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs {
            scope.spawn(work);
        }
        work();
    });
    let mut results = results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_unstable_by_key(|(shard, _)| *shard);
    results.into_iter().map(|(_, result)| result).collect()
}
