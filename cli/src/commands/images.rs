//! `images`, `tag`, `untag`.

use repository::Tag;
use repository::oci::{self, Image};
use serde::Serialize;

use super::Context;
use crate::args;
use crate::output::{count, table};
use crate::progress::{Level, short};
use crate::{Outcome, repo};

/// An image as `images --json` lists it.
#[derive(Serialize)]
struct Entry {
    id: String,
    manifest: String,
    tags: Vec<String>,
    layers: usize,
    unverified_layers: Vec<String>,
    rootfs: Option<String>,
    published: Option<String>,
}

#[derive(Serialize)]
struct Damaged {
    manifest: String,
    error: String,
}

#[derive(Serialize)]
struct Report {
    images: Vec<Entry>,
    damaged: Vec<Damaged>,
}

pub(crate) fn images(context: &Context) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let published = store_driver::published(&repository)?;
    let found = oci::images(&repository)?;
    let entry = |image: &Image| -> anyhow::Result<Entry> {
        let id = image.config().digest().to_hex();
        let mut unverified_layers = Vec::new();
        for layer in image.layers() {
            if repository.is_unverified(&layer.diff_id)? {
                unverified_layers.push(layer.diff_id.to_string());
            }
        }
        Ok(Entry {
            unverified_layers,
            manifest: image.manifest().digest().to_string(),
            tags: image.tags().iter().map(ToString::to_string).collect(),
            layers: image.layers().len(),
            rootfs: image
                .rootfs(repository.formats().default_format())
                .map(ToString::to_string),
            published: published
                .iter()
                .find(|other| other.id.as_str() == id)
                .map(|image| image.layout.to_string()),
            id,
        })
    };
    let report = Report {
        images: found.images.iter().map(entry).collect::<Result<_, _>>()?,
        damaged: found
            .damaged
            .iter()
            .map(|(manifest, error)| Damaged {
                manifest: manifest.to_string(),
                error: error.to_string(),
            })
            .collect(),
    };
    context.style.print(&report, |out| {
        let rows: Vec<_> = report.images.iter().flat_map(rows).collect();
        table(out, ["NAME", "IMAGE ID", "LAYERS", "PUBLISHED"], &rows)
    })?;
    for image in &report.damaged {
        let text = format!("image {} is damaged: {}", image.manifest, image.error);
        context.channel.tell(Level::Note, &text);
    }
    Ok(if report.damaged.is_empty() {
        Outcome::Done
    } else {
        Outcome::Findings
    })
}

/// A row for each name, as podman lists images.
fn rows(image: &Entry) -> Vec<[String; 4]> {
    let row = |name: &str| {
        [
            name.to_owned(),
            short(&image.id).to_owned(),
            image.layers.to_string(),
            image.published.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    if image.tags.is_empty() {
        vec![row("<none>")]
    } else {
        image.tags.iter().map(|tag| row(tag)).collect()
    }
}

#[derive(Serialize)]
struct Tagged {
    tag: String,
    id: String,
    manifest: String,
}

pub(crate) fn tag(context: &Context, args: &args::Tag) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let image = oci::find(&repository, &args.image)?;
    let tag = Tag::new(&args.name)?;
    let batch = repository.batch()?;
    oci::tag(&batch, &tag, &image.manifest().digest())?;
    batch.commit()?;
    store_driver::refresh_names(&repository)?;
    let report = Tagged {
        tag: tag.to_string(),
        id: image.config().digest().to_hex(),
        manifest: image.manifest().digest().to_string(),
    };
    context.style.print(&report, |out| {
        writeln!(out, "{} {}", report.tag, short(&report.id))
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Untagged {
    removed: Vec<String>,
    missing: Vec<String>,
}

pub(crate) fn untag(context: &Context, args: &args::Untag) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let mut report = Untagged {
        removed: Vec::new(),
        missing: Vec::new(),
    };
    for name in &args.names {
        let there = oci::untag(&repository, &Tag::new(name)?)?;
        let list = if there {
            &mut report.removed
        } else {
            &mut report.missing
        };
        list.push(name.clone());
    }
    store_driver::refresh_names(&repository)?;
    context.style.print(&report, |out| {
        writeln!(out, "removed {}", count(report.removed.len() as u64, "tag"))
    })?;
    if report.missing.is_empty() {
        return Ok(Outcome::Done);
    }
    for name in &report.missing {
        let text = format!("there is no tag {name}; composefs-store images lists them");
        context.channel.tell(Level::Note, &text);
    }
    Ok(Outcome::Findings)
}
