//! What is no image, and what refers to one: a part of `import` and `pull`.

use std::io::{self, Write};

use anyhow::Context as _;
use importer::source::{Reference, SourceImage, SourceOptions};
use importer::{ArtifactReport, Keep, import_artifact};
use repository::oci::ManifestDigest;
use repository::{Repository, Tag};

use crate::interrupt::Interrupt;
use crate::output::{count, size};

/// Imports what refers to an image, or to an index that it was chosen from.
pub(super) fn referrers(
    repository: &Repository,
    reference: &Reference,
    image: &SourceImage<'_>,
    options: &SourceOptions,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<ArtifactReport>> {
    let documents = std::iter::once(&image.manifest).chain(&image.indexes);
    let mut reports = Vec::new();
    for document in documents {
        let subject = ManifestDigest::of(document);
        let artifacts = interrupt
            .at_work(|| reference.referrers(&subject, options))
            .with_context(|| format!("cannot find what refers to {subject}"))?;
        for artifact in artifacts {
            let keep = Keep::Referring(subject);
            let imported = interrupt
                .at_work(|| import_artifact(repository, &artifact, &keep, &interrupt.cancel))
                .with_context(|| format!("cannot import {}", artifact.name))?;
            reports.push(imported);
        }
    }
    Ok(reports)
}

/// Imports what is no image.
pub(super) fn import(
    repository: &Repository,
    reference: &Reference,
    tags: &[String],
    options: &SourceOptions,
    interrupt: &Interrupt,
) -> anyhow::Result<ArtifactReport> {
    let artifact = interrupt.at_work(|| reference.open_artifact(options))?;
    let names = if tags.is_empty() {
        &artifact.names
    } else {
        tags
    };
    if names.is_empty() {
        anyhow::bail!("it has no full name where it is; give it one with --tag NAME");
    }
    let tags = names.iter().map(Tag::new).collect::<Result<_, _>>()?;
    let keep = Keep::Tagged(tags);
    Ok(interrupt.at_work(|| import_artifact(repository, &artifact, &keep, &interrupt.cancel))?)
}

pub(super) fn print(report: &ArtifactReport) -> io::Result<()> {
    let ArtifactReport {
        manifest,
        tags,
        blobs,
        bytes,
        ..
    } = report;
    let mut out = io::stdout().lock();
    let what = if tags.is_empty() {
        "refers to it".to_owned()
    } else {
        format!("as {}", tags.join(", "))
    };
    writeln!(
        out,
        "imported artifact {manifest} {what}: {} in {}",
        size(*bytes),
        count(*blobs as u64, "blob")
    )
}
