//! `import`.

use std::io::{self, Write};
use std::num::NonZeroUsize;

use anyhow::{Context as _, bail};
use containers_storage::{Interrupt as LockInterrupt, OpenOptions, Storage, rootless};
use importer::source::{Reference, SourceError, SourceOptions, SyntheticLayers};
use importer::{
    ArtifactReport, Counts, DiffIdCheck, ImportOptions, ImportReport, LayerOutcome, Tally, Times,
    free_space, import_image,
};
use repository::{CopyPolicy, Repository, Tag, oci};
use serde::Serialize;

use super::{Context, artifacts, publish};
use crate::args::Import;
use crate::interrupt::Interrupt;
use crate::output::{Style, count, size};
use crate::progress::{Channel, Level, short};
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    imported: Vec<ImportReport>,
    /// What is no image, and what refers to one.
    artifacts: Vec<ArtifactReport>,
    published: Vec<store_driver::PublishReport>,
}

/// Goes on in the user's namespace, if the command reads a user's storage. Returns where it does not.
pub(crate) fn prepare(args: &Import) -> anyhow::Result<()> {
    let stored = |name: &String| matches!(Reference::parse(name), Ok(Reference::Storage(_)));
    if rootless::is_needed() && args.images.iter().any(stored) {
        rootless::reexecute().context("cannot read the layers of a user's podman")?;
    }
    Ok(())
}

pub(crate) fn import(context: &Context, args: &Import) -> anyhow::Result<Outcome> {
    if args.images.len() > 1 && !args.tag.is_empty() {
        bail!("--tag names one image, but {} are given", args.images.len());
    }
    let interrupt = Interrupt::watch(&context.channel)?;
    let repository = repo::open(&context.repo)?;
    let mut report = Report {
        imported: Vec::new(),
        artifacts: Vec::new(),
        published: Vec::new(),
    };
    for (index, name) in args.images.iter().enumerate() {
        context.channel.image(name, index, args.images.len());
        let imported = import_one(&repository, name, args, &interrupt, &context.channel)
            .with_context(|| format!("cannot import {name}"))?;
        let Imported { image, artifacts } = imported;
        let print_artifacts = || match context.style {
            Style::Text => artifacts.iter().try_for_each(artifacts::print),
            Style::Json => Ok(()),
        };
        let Some(imported) = image else {
            print_artifacts()?;
            report.artifacts.extend(artifacts);
            continue;
        };
        context.channel.imported(&imported);
        if context.style == Style::Text {
            print(&imported)?;
        }
        for warning in &imported.warnings {
            context.channel.tell(Level::Warning, &warning.to_string());
        }
        print_artifacts()?;
        report.artifacts.extend(artifacts);
        if args.publish {
            let too_late = || format!("{name} is imported, but not published");
            interrupt.check().with_context(too_late)?;
            let manifest = imported.manifest.to_string();
            let image = oci::find(&repository, &manifest)?;
            let published = publish::publish_one(&repository, &image, &args.layout)
                .with_context(|| format!("cannot publish {name}"))?;
            if context.style == Style::Text {
                publish::print(&published, &mut io::stdout().lock())?;
            }
            publish::tell(&published, &context.channel);
            report.published.push(published);
        }
        report.imported.push(imported);
    }
    if context.style == Style::Json {
        context.style.print(&report, |_| Ok(()))?;
    }
    Ok(Outcome::Done)
}

/// What became of one name.
struct Imported {
    /// `None` if it is no image.
    image: Option<ImportReport>,
    artifacts: Vec<ArtifactReport>,
}

fn import_one(
    repository: &Repository,
    name: &str,
    args: &Import,
    interrupt: &Interrupt,
    channel: &Channel,
) -> anyhow::Result<Imported> {
    let max_size = match args.max_size {
        Some(size) => size,
        None => free_space(repository)?,
    };
    let storage = || {
        let options = OpenOptions {
            root: args.storage_root.clone(),
            conf: None,
        };
        let cancel = interrupt.cancel.clone();
        let storage = Storage::open(&options).map_err(SourceError::from)?;
        Ok::<_, SourceError>(
            storage.interrupted_by(LockInterrupt::when(move || cancel.is_cancelled())),
        )
    };
    let from = SourceOptions {
        platform: args.platform.clone(),
        max_size: Some(max_size),
        registry: args.registry.options(),
        cancel: interrupt.cancel.clone(),
        synthetic: if args.allow_synthetic {
            SyntheticLayers::Allow
        } else {
            SyntheticLayers::Refuse
        },
    };
    let reference = Reference::parse(name)?;
    let image = match interrupt.at_work(|| reference.open(storage, &from)) {
        Err(error) if error.is_artifact() => {
            let artifact = artifacts::import(repository, &reference, &args.tag, &from, interrupt)?;
            return Ok(Imported {
                image: None,
                artifacts: vec![artifact],
            });
        }
        image => image?,
    };
    let names = if args.tag.is_empty() {
        &image.names
    } else {
        &args.tag
    };
    if names.is_empty() {
        bail!("it has no full name where it is; give it one with --tag NAME");
    }
    let options = ImportOptions {
        copy: if args.no_copy {
            CopyPolicy::Refuse
        } else {
            CopyPolicy::Allow
        },
        jobs: args.jobs.and_then(|jobs| NonZeroUsize::new(jobs.into())),
        tags: names.iter().map(Tag::new).collect::<Result<_, _>>()?,
        diff_ids: if args.trust_source {
            DiffIdCheck::TrustSource
        } else {
            DiffIdCheck::Verify
        },
        cancel: interrupt.cancel.clone(),
        max_size: Some(max_size),
    };
    let progress = channel.import();
    let report =
        interrupt.at_work(|| import_image(repository, &image, &options, progress.as_ref()))?;
    let artifacts = if args.with_referrers {
        artifacts::referrers(repository, &reference, &image, &from, interrupt)?
    } else {
        Vec::new()
    };
    Ok(Imported {
        image: Some(report),
        artifacts,
    })
}

pub(super) fn print(report: &ImportReport) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let what = match report.outcome {
        importer::Outcome::Imported => "imported",
        importer::Outcome::Present => "already there:",
    };
    writeln!(
        out,
        "{what} {} as {}",
        short(report.image.as_str()),
        report.tags.join(", ")
    )?;
    let read = report.layers.iter().filter(|layer| {
        matches!(
            layer.outcome,
            LayerOutcome::Imported | LayerOutcome::Trusted
        )
    });
    writeln!(
        out,
        "  layers     {}, of which {} read",
        report.layers.len(),
        read.count()
    )?;
    let Counts {
        reflinked,
        copied,
        written,
        present,
        inlined,
    } = report.total;
    for (word, tally) in [
        ("reflinked", reflinked),
        ("copied", copied),
        ("written", written),
        ("present", present),
        ("inlined", inlined),
    ] {
        // Only blobs have it.
        if word == "written" && tally == Tally::default() {
            continue;
        }
        let Tally { files, bytes } = tally;
        writeln!(
            out,
            "  {word:9}  {} in {}",
            size(bytes),
            count(files, "file")
        )?;
    }
    for rootfs in &report.rootfs {
        writeln!(out, "  rootfs     {rootfs}")?;
    }
    let Times {
        check,
        layers,
        rootfs,
        publish,
    } = report.times;
    writeln!(
        out,
        "  time       check {:.2} s, layers {:.2} s, rootfs {:.2} s, publish {:.2} s",
        check.as_secs_f64(),
        layers.as_secs_f64(),
        rootfs.as_secs_f64(),
        publish.as_secs_f64(),
    )
}
