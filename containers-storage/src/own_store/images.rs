//! Adding and removing images of a store of our own.

use std::collections::HashSet;
use std::path::PathBuf;

use super::{NewRecords, big_data_file_name, check_images, files};
use crate::digest::{ConfigDigest, Digest};
use crate::error::Error;
use crate::ids::ImageId;
use crate::lock::{Interrupt, WriteLock};
use crate::read::{io_error, read_records};
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
        self.data.retain(|(added, _)| added != id);
        Some(self.records.remove(index))
    }

    /// Makes the change. Nothing is changed if the records would not be valid. Durable when this returns.
    pub fn commit(self) -> Result<(), Error> {
        self.write()?.publish(&self.lock)?;
        // Only now does no list that an engine goes by have these.
        for id in withdrawn(self.root)? {
            files::remove_dir_all(&data_dir(self.root, &id))?;
        }
        Ok(())
    }

    /// Makes the change for engines that read the records for the first time. An engine reads them again
    /// when the last-write mark was renewed, and only then: one that is running keeps the list it has, and
    /// finds the big data of every image in it, until the next [`Self::commit`], which may be without a
    /// change. Durable when this returns.
    pub fn commit_unmarked(self) -> Result<(), Error> {
        self.write()?.publish_unmarked()
    }

    /// Writes big data, and the records beside their place.
    fn write(&self) -> Result<NewRecords, Error> {
        let path = self.root.images_dir().join("images.json");
        check_images(&self.records).map_err(|problem| Error::InvalidRecords {
            path: path.clone(),
            problem,
        })?;
        let new = NewRecords::write(&path, &self.records)?;
        for (id, data) in &self.data {
            let dir = data_dir(self.root, id);
            files::make_dir(&dir)?;
            for item in data {
                files::replace_file(&dir.join(big_data_file_name(&item.key)), &item.bytes)?;
            }
            files::sync_dir(&dir)?;
        }
        files::sync_dir(&self.root.images_dir())?;
        Ok(new)
    }
}

fn data_dir(root: &StoreRoot, id: &ImageId) -> PathBuf {
    root.images_dir().join(id.as_str())
}

/// The images that have big data and no record.
pub(super) fn withdrawn(root: &StoreRoot) -> Result<Vec<ImageId>, Error> {
    let dir = root.images_dir();
    let records: Vec<ImageRecord> = read_records(&dir.join("images.json"))?;
    let recorded: HashSet<&ImageId> = records.iter().map(|record| &record.id).collect();
    let mut found = Vec::new();
    for entry in dir.read_dir().map_err(io_error(&dir))? {
        let name = entry.map_err(io_error(&dir))?.file_name();
        let id = name.to_str().and_then(|name| name.parse::<ImageId>().ok());
        found.extend(id.filter(|id| id.is_canonical() && !recorded.contains(id)));
    }
    Ok(found)
}

fn sha256(bytes: &[u8]) -> Digest {
    ConfigDigest::of(bytes).into()
}
