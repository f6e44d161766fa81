//! `fsck`.

use std::io::{self, Write};
use std::path::Path;

use gc::boot::Orphans;
use gc::fsck::{Comparison, Data, Depth, add_owners};
use gc::{FsckOptions, Host as _, Repaired};
use repository::Repository;
use repository::oci::{self, ManifestDigest};
use serde::Serialize;

use super::Context;
use crate::args::{DepthArg, Fsck};
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::output::count;
use crate::progress::Level;
use crate::repair::Suppliers;
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    found: gc::Report,
    /// Only with `--repair`: what was done about an earlier look, after which `found` was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<Repaired>,
}

pub(crate) fn fsck(context: &Context, args: &Fsck) -> anyhow::Result<Outcome> {
    let interrupt = Interrupt::watch(&context.channel)?;
    let repository = repo::open(&context.repo)?;
    let mut host = Host::new(&args.host, Orphans::Keep)?;
    let image = args.image.as_deref();
    let image = image.map(|name| oci::find_digest(&repository, name));
    let image = image.transpose()?;
    let mut look = || look(context, args, &repository, image, &mut host);
    let mut found = look()?;
    let mut suppliers = Suppliers::default();
    let mut repaired: Option<Repaired> = None;
    // What a stream needs shows only once the stream is whole.
    while args.repair && !found.broken().is_empty() {
        suppliers.add(&repository, &found, args, &interrupt, context)?;
        let progress = context.channel.phases();
        let done = gc::repair(&repository, &found, suppliers.all(), progress.as_ref())?;
        drop(progress);
        let is_stuck = done.mended.is_empty();
        let all = repaired.get_or_insert_default();
        all.mended.extend(done.mended);
        all.remaining = done.remaining;
        found = look()?;
        if is_stuck {
            break;
        }
    }
    if args.repair && !found.is_clean() {
        let mended = store_driver::mend_published(&repository)?;
        for layer in &mended {
            let told = format!("replaced the image of the published layer {layer}");
            context.channel.tell(Level::Note, &told);
        }
        if !mended.is_empty() {
            found = look()?;
        }
    }
    if args.repair && gc::confirm(&repository, &found)? > 0 {
        found = look()?;
    }
    let report = Report { found, repaired };
    context.style.print(&report, |out| print(&report, out))?;
    Ok(if report.found.is_clean() {
        Outcome::Done
    } else {
        Outcome::Findings
    })
}

fn look(
    context: &Context,
    args: &Fsck,
    repository: &Repository,
    image: Option<ManifestDigest>,
    host: &mut Host,
) -> anyhow::Result<gc::Report> {
    let mut options = FsckOptions {
        depth: match args.depth {
            DepthArg::Structure => Depth::Structure,
            DepthArg::Content => Depth::Content,
            DepthArg::Meaning => Depth::Meaning,
        },
        data: if args.read_data {
            Data::Read
        } else {
            Data::Measured
        },
        ..FsckOptions::default()
    };
    if let Some(jobs) = args.jobs {
        options.jobs = jobs.into();
    }
    let progress = context.channel.phases();
    let mut report = match image {
        Some(image) => gc::fsck_image(repository, image, options, progress.as_ref())?,
        None => gc::fsck(repository, options, progress.as_ref())?,
    };
    if options.depth == Depth::Meaning {
        for fault in store_driver::check_published(repository, image.as_ref())? {
            let path = relative(repository, &fault.path);
            report.add_dependent(path, fault.problem);
        }
        for (path, problem) in host.unresolved(repository, image.as_ref())? {
            report.add_dependent(path, problem);
        }
    }
    drop(progress);
    if !report.is_clean() {
        add_owners(repository, host.known(repository), &mut report)?;
    }
    Ok(report)
}

/// Findings name what is in the repository relative to it.
fn relative(repository: &Repository, path: &Path) -> std::path::PathBuf {
    path.strip_prefix(repository.path())
        .unwrap_or(path)
        .to_owned()
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    if let Some(repaired) = &report.repaired {
        for mended in &repaired.mended {
            writeln!(out, "mended object {} from {}", mended.object, mended.from)?;
        }
        for object in &repaired.remaining {
            writeln!(
                out,
                "cannot mend object {object}: nobody has it; name another source with --from"
            )?;
        }
    }
    for finding in &report.found.findings {
        writeln!(out, "{finding}")?;
    }
    for unverified in &report.found.unverified {
        let layer = unverified.layer;
        match unverified.diff_id {
            Comparison::NotCompared => writeln!(
                out,
                "note: layer {layer} was imported with --trust-source, and its diff ID was never \
                 compared; a whole fsck does that, or an import without it"
            )?,
            Comparison::Right => writeln!(
                out,
                "note: layer {layer} was imported with --trust-source; its diff ID is right, and \
                 fsck --repair notes that"
            )?,
            // A finding.
            Comparison::Wrong => {}
        }
    }
    let counts = &report.found.counts;
    writeln!(
        out,
        "checked {}, {}, {}: {}",
        count(counts.objects, "object"),
        count(counts.streams, "stream"),
        count(counts.images, "image"),
        match report.found.findings.len() as u64 {
            0 => "no findings".to_owned(),
            n => count(n, "finding"),
        }
    )
}
