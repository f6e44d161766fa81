//! The names of one directory: a sorted list, cut into chunks so that adding and removing anywhere
//! stays cheap in directories of 100,000 names.

use super::InodeId;

/// The bytes of all names of a tree, back to back. Names that were removed stay until the tree goes.
#[derive(Clone, Default)]
pub(super) struct Names(Vec<u8>);

/// One name: 12 bytes.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// Start of the name in [`Names`] `<< 9`, "later" flag `<< 8`, length of the name.
    name: [u32; 2],
    inode: InodeId,
}

impl Entry {
    pub(super) const fn inode(&self) -> InodeId {
        self.inode
    }

    fn packed(&self) -> u64 {
        u64::from(self.name[1]) << 32 | u64::from(self.name[0])
    }

    /// Whether the inode had another name when it got this one.
    pub(super) fn is_later(&self) -> bool {
        self.packed() & 0x100 != 0
    }
}

impl Names {
    pub(super) fn get(&self, entry: &Entry) -> &[u8] {
        let packed = entry.packed();
        &self.0[(packed >> 9) as usize..][..(packed & 0xff) as usize]
    }

    /// `name` has at most 255 bytes.
    fn add(&mut self, name: &[u8], inode: InodeId, later: bool) -> Entry {
        let packed = (self.0.len() as u64) << 9 | u64::from(later) << 8 | name.len() as u64;
        self.0.extend_from_slice(name);
        Entry {
            name: [packed as u32, (packed >> 32) as u32],
            inode,
        }
    }
}

/// A chunk that is full is cut in two.
const CHUNK: usize = 512;

#[derive(Clone, Default)]
pub(super) struct Entries {
    /// None is empty.
    chunks: Vec<Vec<Entry>>,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> + Clone {
        self.chunks.iter().flatten()
    }

    /// The chunk that `name` is in or belongs into, and its place there.
    fn find(&self, names: &Names, name: &[u8]) -> (usize, Result<usize, usize>) {
        let after = self
            .chunks
            .partition_point(|chunk| names.get(&chunk[0]) <= name);
        let Some(chunk) = after.checked_sub(1) else {
            return (0, Err(0));
        };
        let entries = &self.chunks[chunk];
        // Sorted input arrives at the end.
        if after == self.chunks.len() && entries.last().is_some_and(|last| names.get(last) < name) {
            return (chunk, Err(entries.len()));
        }
        (
            chunk,
            entries.binary_search_by(|entry| names.get(entry).cmp(name)),
        )
    }

    pub(super) fn get(&self, names: &Names, name: &[u8]) -> Option<InodeId> {
        let (chunk, place) = self.find(names, name);
        // An empty directory has no chunk at all.
        let place = place.ok()?;
        Some(self.chunks[chunk][place].inode)
    }

    /// Adds or replaces a name; the inode it had before is returned.
    pub(super) fn insert(
        &mut self,
        names: &mut Names,
        name: &[u8],
        inode: InodeId,
        later: bool,
    ) -> Option<InodeId> {
        let (chunk, place) = self.find(names, name);
        match place {
            Ok(place) => {
                let entry = &mut self.chunks[chunk][place];
                let replaced = entry.inode;
                entry.inode = inode;
                entry.name[0] = entry.name[0] & !0x100 | u32::from(later) << 8;
                Some(replaced)
            }
            Err(place) => {
                let entry = names.add(name, inode, later);
                if self.chunks.is_empty() {
                    self.chunks.reserve_exact(1);
                    self.chunks.push(vec![entry]);
                } else if self.chunks[chunk].len() < CHUNK {
                    self.chunks[chunk].insert(place, entry);
                } else if place == CHUNK {
                    // The end of a full chunk: sorted input fills chunks to the brim.
                    self.chunks.insert(chunk + 1, vec![entry]);
                } else {
                    let mut upper = self.chunks[chunk].split_off(CHUNK / 2);
                    match place.checked_sub(CHUNK / 2) {
                        Some(place) => upper.insert(place, entry),
                        None => self.chunks[chunk].insert(place, entry),
                    }
                    self.chunks.insert(chunk + 1, upper);
                }
                None
            }
        }
    }

    pub(super) fn remove(&mut self, names: &Names, name: &[u8]) -> Option<InodeId> {
        let (chunk, place) = self.find(names, name);
        let removed = self.chunks.get_mut(chunk)?.remove(place.ok()?);
        if self.chunks[chunk].is_empty() {
            self.chunks.remove(chunk);
        }
        Some(removed.inode)
    }
}
