//! Imports an image and prints the report as JSON:
//! `cargo run --release -p importer --example import REPOSITORY STORAGE-ROOT IMAGE [TAG...]`.

use std::error::Error;

use containers_storage::{OpenOptions, Storage};
use importer::source::from_storage;
use importer::{ImportOptions, Quiet, import_image};
use repository::{Repository, Tag};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || {
        arguments
            .next()
            .ok_or("REPOSITORY STORAGE-ROOT IMAGE [TAG...]")
    };
    let repository = Repository::open(next()?)?;
    let storage = Storage::open(&OpenOptions {
        root: Some(next()?.into()),
        conf: None,
    })?;
    let image = from_storage(&storage.find_image(&next()?)?)?;
    let options = ImportOptions {
        tags: arguments.map(Tag::new).collect::<Result<_, _>>()?,
        ..ImportOptions::default()
    };
    let report = import_image(&repository, &image, &options, &Quiet)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
