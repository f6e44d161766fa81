//! `import`.

use std::io::{self, Write};
use std::num::NonZeroUsize;

use anyhow::{Context as _, bail};
use containers_storage::{OpenOptions, Storage, rootless};
use importer::source::from_storage;
use importer::{
    Cancel, Counts, ImportOptions, ImportReport, LayerOutcome, Progress, Quiet, Tally, import_image,
};
use repository::{CopyPolicy, Repository, Tag, oci};
use serde::Serialize;

use super::{Context, publish};
use crate::args::Import;
use crate::output::{Style, count, size};
use crate::progress::{Bars, short};
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    imported: Vec<ImportReport>,
    published: Vec<store_driver::PublishReport>,
}

pub(crate) fn import(context: &Context, args: &Import) -> anyhow::Result<Outcome> {
    if args.images.len() > 1 && !args.tag.is_empty() {
        bail!("--tag names one image, but {} are given", args.images.len());
    }
    if rootless::is_needed() {
        rootless::reexecute().context("cannot read the layers of a user's podman")?;
    }
    let repository = repo::open(&context.repo)?;
    let storage = Storage::open(&OpenOptions {
        root: args.storage_root.clone(),
        conf: None,
    })?;
    let cancel = cancel_on_interrupt()?;
    let mut report = Report {
        imported: Vec::new(),
        published: Vec::new(),
    };
    for name in &args.images {
        let imported = import_one(&repository, &storage, name, args, &cancel)
            .with_context(|| format!("cannot import {name}"))?;
        if context.style == Style::Text {
            print(&imported)?;
        }
        if args.publish {
            let manifest = imported.manifest.to_string();
            let image = oci::find(&repository, &manifest)?;
            let published = publish::publish_one(&repository, &image, &args.layout)
                .with_context(|| format!("cannot publish {name}"))?;
            if context.style == Style::Text {
                publish::print(&published, &mut io::stdout().lock())?;
            }
            report.published.push(published);
        }
        report.imported.push(imported);
    }
    if context.style == Style::Json {
        context.style.print(&report, |_| Ok(()))?;
    }
    Ok(Outcome::Done)
}

fn import_one(
    repository: &Repository,
    storage: &Storage,
    name: &str,
    args: &Import,
    cancel: &Cancel,
) -> anyhow::Result<ImportReport> {
    let image = storage.find_image(name)?;
    let names = if args.tag.is_empty() {
        image.names()
    } else {
        &args.tag
    };
    if names.is_empty() {
        bail!("it has no name in podman's storage; give it one with --tag NAME");
    }
    let options = ImportOptions {
        copy: if args.no_copy {
            CopyPolicy::Refuse
        } else {
            CopyPolicy::Allow
        },
        jobs: args.jobs.and_then(|jobs| NonZeroUsize::new(jobs.into())),
        tags: names.iter().map(Tag::new).collect::<Result<_, _>>()?,
        cancel: cancel.clone(),
    };
    let bars = Bars::on_terminal();
    let progress: &dyn Progress = match &bars {
        Some(bars) => bars,
        None => &Quiet,
    };
    let image = from_storage(&image)?;
    Ok(import_image(repository, &image, &options, progress)?)
}

/// The first interrupt asks the import to stop, which takes back what it staged; the second ends the
/// process at once, and the next gc takes it back.
fn cancel_on_interrupt() -> anyhow::Result<Cancel> {
    let cancel = Cancel::new();
    let flag = cancel.clone();
    ctrlc::set_handler(move || {
        if flag.is_cancelled() {
            std::process::exit(130);
        }
        flag.cancel();
    })
    .context("cannot watch for interrupts")?;
    Ok(cancel)
}

fn print(report: &ImportReport) -> io::Result<()> {
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
    let read = report
        .layers
        .iter()
        .filter(|layer| layer.outcome == LayerOutcome::Imported);
    writeln!(
        out,
        "  layers     {}, of which {} read",
        report.layers.len(),
        read.count()
    )?;
    let Counts {
        reflinked,
        copied,
        present,
        inlined,
    } = report.total;
    for (word, tally) in [
        ("reflinked", reflinked),
        ("copied", copied),
        ("present", present),
        ("inlined", inlined),
    ] {
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
    for warning in &report.warnings {
        eprintln!("composefs-store: warning: {warning}");
    }
    Ok(())
}
