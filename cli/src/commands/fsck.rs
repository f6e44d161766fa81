//! `fsck`.

use gc::{FsckOptions, fsck as check};

use super::Context;
use crate::args::Fsck;
use crate::output::count;
use crate::{Outcome, repo};

pub(crate) fn fsck(context: &Context, args: &Fsck) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let mut options = FsckOptions::default();
    if let Some(jobs) = args.jobs {
        options.jobs = jobs.into();
    }
    let progress = context.channel.phases();
    let report = check(&repository, options, progress.as_ref())?;
    drop(progress);
    context.style.print(&report, |out| {
        for finding in &report.findings {
            writeln!(out, "{finding}")?;
        }
        writeln!(
            out,
            "checked {}, {}, {}: {}",
            count(report.counts.objects, "object"),
            count(report.counts.streams, "stream"),
            count(report.counts.images, "image"),
            match report.findings.len() as u64 {
                0 => "no findings".to_owned(),
                n => count(n, "finding"),
            }
        )
    })?;
    Ok(if report.findings.is_empty() {
        Outcome::Done
    } else {
        Outcome::Findings
    })
}
