//! `inspect`.

use std::collections::BTreeSet;
use std::io::{self, Write};

use gc::boot::Orphans;
use gc::{Host as _, LayerUsage, OwnerKind};
use repository::oci::{self, ErofsKey};
use repository::{Repository, VerityDigest};
use serde::Serialize;
use serde_json::Value;
use store_driver::PublishedImage;

use super::Context;
use crate::args::Inspect;
use crate::host::Host;
use crate::output::{count, size, table};
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    id: String,
    tags: Vec<String>,
    manifest: Stored,
    config: Stored,
    layers: Vec<Layer>,
    erofs: Vec<Erofs>,
    /// How podman is shown it.
    published: Option<PublishedImage>,
    kept_by: Vec<Keeper>,
}

/// A manifest or config.
#[derive(Serialize)]
struct Stored {
    digest: String,
    /// The object of its stream.
    stream: String,
    document: Value,
}

#[derive(Serialize)]
struct Layer {
    diff_id: String,
    /// The object of its stream.
    stream: String,
    /// Its blob, as the manifest has it.
    blob: Option<String>,
    #[serde(flatten)]
    usage: LayerUsage,
    verified: bool,
}

/// An EROFS image.
#[derive(Serialize)]
struct Erofs {
    kind: &'static str,
    format: Option<String>,
    /// Which xattrs an image to boot from keeps.
    xattrs: Option<&'static str>,
    digest: String,
}

/// A root that leads to the image, or to an EROFS image of it.
#[derive(Serialize)]
struct Keeper {
    kind: OwnerKind,
    name: String,
    reason: String,
}

pub(crate) fn inspect(context: &Context, args: &Inspect) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let image = oci::find(&repository, &args.image)?;
    let digest = image.manifest().digest();
    let published = store_driver::published(&repository)?;
    let id = image.config().digest().to_hex();
    let published = published.into_iter().find(|other| other.id.as_str() == id);
    let of_published = published.as_ref().and_then(|image| image.image);
    let objects: BTreeSet<VerityDigest> = image
        .erofs()
        .values()
        .chain([image.manifest_stream()])
        .chain(&of_published)
        .copied()
        .collect();
    let known = Host::new(&args.host, Orphans::Keep)?.known(&repository);
    let kept_by = gc::keepers(&repository, known, &objects)?;
    let report = Report {
        id,
        tags: image.tags().iter().map(ToString::to_string).collect(),
        manifest: Stored {
            digest: digest.to_string(),
            stream: image.manifest_stream().to_string(),
            document: serde_json::from_slice(image.manifest().bytes())?,
        },
        config: Stored {
            digest: image.config().digest().to_string(),
            stream: image.config_stream().to_string(),
            document: serde_json::from_slice(image.config().bytes())?,
        },
        layers: layers(&repository, &image)?,
        erofs: image.erofs().iter().map(erofs).collect(),
        published,
        kept_by: kept_by
            .into_iter()
            .map(|root| Keeper {
                kind: root.owner.kind,
                name: root.owner.name,
                reason: root.reason,
            })
            .collect(),
    };
    context.style.print(&report, |out| print(&report, out))?;
    Ok(Outcome::Done)
}

fn layers(repository: &Repository, image: &oci::Image) -> anyhow::Result<Vec<Layer>> {
    let blobs = image.manifest().layers();
    let layer = |(index, layer): (usize, &oci::ImageLayer)| -> anyhow::Result<Layer> {
        Ok(Layer {
            diff_id: layer.diff_id.to_string(),
            stream: layer.stream.to_string(),
            blob: blobs.get(index).map(|blob| blob.digest.to_string()),
            usage: gc::layer_usage(repository, &layer.stream)?,
            verified: !repository.is_unverified(&layer.diff_id)?,
        })
    };
    image.layers().iter().enumerate().map(layer).collect()
}

fn erofs((key, digest): (&ErofsKey, &VerityDigest)) -> Erofs {
    let boot = key.boot_variant();
    let format = key
        .rootfs_format()
        .or_else(|| boot.map(|(format, _)| format));
    Erofs {
        kind: match key {
            ErofsKey::RootfsV1 | ErofsKey::RootfsV2 => "rootfs",
            ErofsKey::Boot(_) => "boot",
        },
        format: format.map(|format| format.to_string()),
        xattrs: boot.map(|(_, xattrs)| xattrs.name()),
        digest: digest.to_string(),
    }
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "image     {}", report.id)?;
    for tag in &report.tags {
        writeln!(out, "tag       {tag}")?;
    }
    writeln!(out, "manifest  {}", report.manifest.digest)?;
    writeln!(out, "config    {}", report.config.digest)?;
    for key in ["created", "os", "architecture", "variant"] {
        if let Some(text) = report.config.document[key].as_str() {
            writeln!(out, "{key:<13} {text}")?;
        }
    }
    for erofs in &report.erofs {
        let format = erofs.format.as_deref().unwrap_or("of another release");
        let xattrs = erofs.xattrs.unwrap_or_default();
        let what = format!("{} {format} {xattrs}", erofs.kind);
        writeln!(out, "{}: {}", what.trim_end(), erofs.digest)?;
    }
    match &report.published {
        Some(published) => writeln!(
            out,
            "podman is shown {} in the {} layout: {}",
            published.names.join(", "),
            published.layout,
            published
                .image
                .map_or_else(|| "its image is missing".into(), |image| image.to_string()),
        )?,
        None => writeln!(out, "podman is not shown it")?,
    }
    let rows: Vec<_> = report.layers.iter().map(row).collect();
    table(out, ["LAYER", "TAR", "FILES", "DIFF ID"], &rows)?;
    for keeper in &report.kept_by {
        writeln!(
            out,
            "kept by {} {}: {}",
            keeper.kind, keeper.name, keeper.reason
        )?;
    }
    if report.kept_by.is_empty() {
        writeln!(out, "kept by nobody: the next gc removes it")?;
    }
    Ok(())
}

fn row(layer: &Layer) -> [String; 4] {
    let files = layer.usage.files;
    [
        layer.diff_id.clone(),
        size(layer.usage.tar_bytes),
        format!(
            "{} in {}",
            size(files.bytes),
            count(files.objects, "object")
        ),
        if layer.verified {
            "compared".into()
        } else {
            "not compared".into()
        },
    ]
}
