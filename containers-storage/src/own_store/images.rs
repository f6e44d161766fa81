//! Adding and removing images of a store of our own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{NewRecords, big_data_file_name, check_images, files};
use crate::digest::{ConfigDigest, Digest};
use crate::error::Error;
use crate::ids::ImageId;
use crate::lock::{Interrupt, WriteLock};
use crate::read::read_records;
use crate::records::ImageRecord;
use crate::storage::StoreRoot;

/// An item of an image's big data.
#[derive(Debug, Clone)]
pub struct BigData {
    /// The key: `manifest`, `manifest-sha256:…`, `sha256:…`.
    pub key: String,
    /// The content.
    pub bytes: Vec<u8>,
}

/// A change of the images, under the write lock.
#[derive(Debug)]
pub struct ImagesTxn<'a> {
    root: &'a StoreRoot,
    lock: WriteLock,
    records: Vec<ImageRecord>,
    data: Vec<(ImageId, Vec<BigData>)>,
    removed: BTreeSet<ImageId>,
}

impl<'a> ImagesTxn<'a> {
    pub(super) fn begin(root: &'a StoreRoot, interrupt: &Interrupt) -> Result<Self, Error> {
        let dir = root.images_dir();
        let lock = dir.join("images.lock");
        let lock =
            WriteLock::acquire_unless(&lock, interrupt)?.ok_or(Error::Interrupted { lock })?;
        let records = read_records(&dir.join("images.json"))?;
        Ok(Self {
            root,
            lock,
            records,
            data: Vec::new(),
            removed: BTreeSet::new(),
        })
    }

    /// The records as they will be after `commit`.
    pub fn records(&self) -> &[ImageRecord] {
        &self.records
    }

    /// The record of an image, as it will be after `commit`.
    pub fn get(&self, id: &ImageId) -> Option<&ImageRecord> {
        self.records.iter().find(|record| record.id == *id)
    }

    /// The record of an image, to change its names.
    pub fn get_mut(&mut self, id: &ImageId) -> Option<&mut ImageRecord> {
        self.records.iter_mut().find(|record| record.id == *id)
    }

    /// Adds an image with its big data, or replaces it. The record's names, sizes and digests of big data
    /// are set here.
    pub fn put(&mut self, mut record: ImageRecord, data: Vec<BigData>) {
        record.big_data_names = data.iter().map(|item| item.key.clone()).collect();
        record.big_data_sizes = data
            .iter()
            .map(|item| (item.key.clone(), item.bytes.len() as i64))
            .collect();
        record.big_data_digests = data
            .iter()
            .map(|item| (item.key.clone(), sha256(&item.bytes)))
            .collect();
        self.removed.remove(&record.id);
        self.data.retain(|(id, _)| *id != record.id);
        self.data.push((record.id.clone(), data));
        match self.get_mut(&record.id) {
            Some(old) => *old = record,
            None => self.records.push(record),
        }
    }

    /// Removes an image and returns its record.
    pub fn remove(&mut self, id: &ImageId) -> Option<ImageRecord> {
        let index = self.records.iter().position(|record| record.id == *id)?;
        self.removed.insert(id.clone());
        self.data.retain(|(added, _)| added != id);
        Some(self.records.remove(index))
    }

    /// Makes the change. Nothing is changed if the records would not be valid. Durable when this returns.
    pub fn commit(self) -> Result<(), Error> {
        let path = self.root.images_dir().join("images.json");
        check_images(&self.records).map_err(|problem| Error::InvalidRecords {
            path: path.clone(),
            problem,
        })?;
        let new = NewRecords::write(&path, &self.records)?;

        for (id, data) in &self.data {
            let dir = self.data_dir(id);
            files::make_dir(&dir)?;
            for item in data {
                files::replace_file(&dir.join(big_data_file_name(&item.key)), &item.bytes)?;
            }
            files::sync_dir(&dir)?;
        }
        files::sync_dir(&self.root.images_dir())?;
        new.publish(&self.lock)?;
        // Only now does no record name these files.
        for id in &self.removed {
            files::remove_dir_all(&self.data_dir(id))?;
        }
        Ok(())
    }

    fn data_dir(&self, id: &ImageId) -> PathBuf {
        self.root.images_dir().join(id.as_str())
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    ConfigDigest::of(bytes).into()
}
