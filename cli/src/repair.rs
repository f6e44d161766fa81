//! Where `fsck --repair` gets objects from.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use containers_storage::{OpenOptions, Storage};
use gc::{OwnerKind, Report, Supplier};
use importer::source::{Reference, SourceError, SourceImage, SourceOptions};
use importer::{Aside, ImportOptions, Quiet};
use repository::{Repository, VerityDigest};

use crate::args::Fsck;
use crate::commands::Context;
use crate::commands::publish::podman_conf;
use crate::interrupt::Interrupt;
use crate::progress::Level;

/// Who may have objects: what the user named, then what podman's storage still has of the images concerned,
/// then the layers of what is published.
#[derive(Default)]
pub(crate) struct Suppliers {
    all: Vec<Box<dyn Supplier>>,
    /// The tags of which podman's storage was asked. Each image is read once.
    asked: BTreeSet<String>,
}

impl Suppliers {
    /// In the order in which they are to be asked.
    pub(crate) fn all(&mut self) -> &mut [Box<dyn Supplier>] {
        &mut self.all
    }

    /// Adds who may help with what was found now, beside those that are there.
    pub(crate) fn add(
        &mut self,
        repository: &Repository,
        found: &Report,
        args: &Fsck,
        interrupt: &Interrupt,
        context: &Context,
    ) -> anyhow::Result<()> {
        if self.all.is_empty() {
            for source in &args.from {
                let supplier = named(repository, source, args, interrupt)
                    .with_context(|| format!("cannot take objects from {source}"))?;
                self.all.push(supplier);
            }
            self.all.push(Box::new(Published::of(repository)?));
        }
        let names: BTreeSet<&str> = found
            .findings
            .iter()
            .flat_map(|finding| &finding.needed_by)
            .filter(|owner| owner.kind == OwnerKind::Tag)
            .map(|owner| owner.name.as_str())
            .collect();
        for name in names {
            if !self.asked.insert(name.to_owned()) {
                continue;
            }
            let stored = format!("containers-storage:{name}");
            match aside(repository, &stored, args, interrupt) {
                Ok(image) => {
                    // Making images again is the last resort.
                    let last = self.all.len() - 1;
                    self.all.insert(last, Box::new(image));
                }
                Err(error) => {
                    interrupt.check()?;
                    let told = format!("podman's storage is of no help with {name}: {error:#}");
                    context.channel.tell(Level::Note, &told);
                }
            }
        }
        Ok(())
    }
}

/// A repository, if it is the directory of one, else an image.
fn named(
    repository: &Repository,
    source: &str,
    args: &Fsck,
    interrupt: &Interrupt,
) -> anyhow::Result<Box<dyn Supplier>> {
    let directory = Path::new(source);
    Ok(if directory.join("objects").is_dir() {
        Box::new(Repository::open(directory)?)
    } else {
        Box::new(aside(repository, source, args, interrupt)?)
    })
}

/// An image beside the repository.
struct Beside(Aside);

impl Supplier for Beside {
    fn name(&self) -> String {
        self.0.name().to_owned()
    }

    fn open(&mut self, object: &VerityDigest) -> Option<File> {
        self.0.open(object)
    }
}

fn aside(
    repository: &Repository,
    source: &str,
    args: &Fsck,
    interrupt: &Interrupt,
) -> anyhow::Result<Beside> {
    let conf = Some(podman_conf(args.host.storage_conf.as_deref())?);
    let storage = || Storage::open(&OpenOptions { root: None, conf }).map_err(SourceError::from);
    let from = SourceOptions {
        platform: None,
        max_size: None,
        registry: args.registry.options(),
        cancel: interrupt.cancel.clone(),
        ..SourceOptions::default()
    };
    let reference = Reference::parse(source)?;
    let options = ImportOptions {
        cancel: interrupt.cancel.clone(),
        ..ImportOptions::default()
    };
    let image: SourceImage<'_> = interrupt.at_work(|| reference.open(storage, &from))?;
    let aside = interrupt.at_work(|| Aside::import(repository, &image, &options, &Quiet))?;
    Ok(Beside(aside))
}

/// The images of published layers, made again.
struct Published {
    repository: Repository,
    path: PathBuf,
}

impl Published {
    /// Those that are published from `repository`.
    fn of(repository: &Repository) -> anyhow::Result<Self> {
        let path = repository.path().to_owned();
        Ok(Self {
            repository: Repository::open(&path)?,
            path,
        })
    }
}

impl Supplier for Published {
    fn name(&self) -> String {
        format!(
            "the layers of what is published from {}",
            self.path.display()
        )
    }

    fn open(&mut self, object: &VerityDigest) -> Option<File> {
        store_driver::published_image_again(&self.repository, object)
            .ok()
            .flatten()
    }
}
