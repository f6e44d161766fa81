//! Modes and owners, each combination once: the files of a tree have few, and each file its own time.

use std::collections::HashMap;

use super::Metadata;

/// Mode, owner and group.
type Owner = (u16, u32, u32);

#[derive(Clone, Default)]
pub(super) struct Owners {
    list: Vec<Owner>,
    numbers: HashMap<Owner, u32>,
}

impl Owners {
    /// The number of what a metadata says, the same each time.
    pub(super) fn number(&mut self, metadata: &Metadata) -> u32 {
        let owner = (metadata.mode, metadata.uid, metadata.gid);
        *self.numbers.entry(owner).or_insert_with(|| {
            self.list.push(owner);
            // No more than there were inodes.
            self.list.len() as u32 - 1
        })
    }

    pub(super) fn get(&self, number: u32) -> Owner {
        self.list[number as usize]
    }
}
