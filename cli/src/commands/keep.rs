//! `pin`, `unpin`, `lease`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use gc::Lease;
use repository::oci;
use serde::Serialize;

use super::Context;
use crate::args::{LeaseCommand, LeaseRun, Pin, Unpin};
use crate::output::table;
use crate::progress::short;
use crate::{Outcome, repo};

/// The environment variable with the number of the descriptor that holds the lease.
const LEASE_FD: &str = "COMPOSEFS_STORE_LEASE_FD";

#[derive(Serialize)]
struct Entry {
    manifest: String,
    reason: Option<String>,
    since: Option<u64>,
}

pub(crate) fn pin(context: &Context, args: &Pin) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    if let (Some(image), Some(reason)) = (&args.image, &args.reason) {
        let image = oci::find(&repository, image)?;
        gc::pin(&repository, &image.manifest().digest(), reason)?;
    }
    let pins: Vec<Entry> = gc::pins(&repository)?
        .into_iter()
        .map(|pin| Entry {
            manifest: pin.manifest.to_string(),
            reason: pin.reason,
            since: pin.since,
        })
        .collect();
    context.style.print(&pins, |out| {
        let row = |pin: &Entry| {
            let digest = pin.manifest.trim_start_matches("sha256:");
            [
                short(digest).to_owned(),
                pin.reason.clone().unwrap_or_else(|| "-".into()),
            ]
        };
        let rows: Vec<_> = pins.iter().map(row).collect();
        table(out, ["MANIFEST", "REASON"], &rows)
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Unpinned {
    manifest: String,
    removed: bool,
}

pub(crate) fn unpin(context: &Context, args: &Unpin) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let manifest = oci::find(&repository, &args.image)?.manifest().digest();
    let report = Unpinned {
        removed: gc::unpin(&repository, &manifest)?,
        manifest: manifest.to_string(),
    };
    context.style.print(&report, |out| {
        let what = if report.removed {
            "unpinned"
        } else {
            "was not pinned:"
        };
        writeln!(out, "{what} {}", report.manifest)
    })?;
    Ok(if report.removed {
        Outcome::Done
    } else {
        Outcome::Findings
    })
}

pub(crate) fn lease(context: &Context, command: &LeaseCommand) -> anyhow::Result<Outcome> {
    let LeaseCommand::Run(LeaseRun { reason, command }) = command;
    let [program, arguments @ ..] = command.as_slice() else {
        anyhow::bail!("there is no command to run");
    };
    let repository = repo::open(&context.repo)?;
    let purpose = match reason {
        Some(reason) => reason.clone(),
        None => program.to_string_lossy().into_owned(),
    };
    let mut lease = Lease::take(&repository, &purpose)?;
    let descriptor = lease.share()?;
    // The repository's own lock ends here: collections go on, with the lease in mind.
    drop(repository);
    let error = Command::new(program)
        .args(arguments)
        .env(LEASE_FD, descriptor.to_string())
        .exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
