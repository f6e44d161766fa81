//! `gc`, `roots`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::SystemTime;

use gc::boot::Orphans;
use gc::{
    Decision, Doubt, InDoubt, Plan, Problem, PublishedKind, RemoveReason, Retention, Root, Swept,
};
use repository::Wait;
use serde::Serialize;

use super::Context;
use crate::args::{Gc, Roots};
use crate::host::Host;
use crate::output::{count, size, table};
use crate::progress::Level;
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    plan: Plan,
    /// Absent in a dry run.
    swept: Option<Swept>,
}

pub(crate) fn gc(context: &Context, args: &Gc) -> anyhow::Result<Outcome> {
    let mut repository = repo::open(&context.repo)?;
    let progress = context.channel.phases();
    let orphans = if args.prune_orphans {
        Orphans::Prune
    } else {
        Orphans::Keep
    };
    let mut host = Host::new(&args.host, orphans)?;
    if !args.tags.is_empty() {
        host.retain(Retention {
            patterns: args.tags.clone(),
            keep_last: args.keep_last,
            older_than: args.older_than,
            now: SystemTime::now(),
        });
    }
    let plan = gc::plan(&repository, &mut host, progress.as_ref())?;
    let report = if args.dry_run {
        Report { plan, swept: None }
    } else {
        let prepared = gc::prepare(
            &mut repository,
            plan,
            Wait::Block,
            &mut host,
            progress.as_ref(),
        )?;
        let (plan, swept) = prepared.execute(&mut host, progress.as_ref())?;
        if swept.refs > 0 {
            store_driver::refresh_names(&repository)?;
        }
        Report {
            plan,
            swept: Some(swept),
        }
    };
    drop(progress);
    context.style.print(&report, |out| match &report.swept {
        Some(swept) => print_swept(swept, out),
        None => print_plan(&report.plan, out),
    })?;
    for problem in &report.plan.problems {
        let text = format!("{problem}; {}", kept(&report.plan, problem));
        context.channel.tell(Level::Note, &text);
    }
    Ok(outcome(&report.plan.problems))
}

/// What is kept because of a problem.
fn kept(plan: &Plan, problem: &Problem) -> String {
    if problem.doubt() == Doubt::Everything {
        let InDoubt {
            refs,
            streams,
            images,
            objects,
        } = plan.in_doubt();
        return format!(
            "so nothing goes: {}, {}, {} and {} that nothing is known to need are kept",
            count(objects, "object"),
            count(streams, "stream"),
            count(images, "image"),
            count(refs, "ref"),
        );
    }
    let needs: Vec<String> = plan
        .roots_of(problem)
        .flat_map(|root| &root.needs)
        .map(ToString::to_string)
        .collect();
    match needs.as_slice() {
        [] => "what it can mean is kept by other roots".into(),
        [first] => format!("{first} is kept for it"),
        [first, rest @ ..] => format!(
            "{first} and {} are kept for it",
            count(rest.len() as u64, "other thing")
        ),
    }
}

pub(crate) fn roots(context: &Context, args: &Roots) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let known = gc::Host::known(&mut Host::new(&args.host, Orphans::Keep)?, &repository);
    let report = gc::roots(&repository, known)?;
    context
        .style
        .print(&report, |out| print_roots(&report.roots, out))?;
    for problem in &report.problems {
        let meaning = match problem.doubt() {
            Doubt::Everything => "it may need anything, and gc keeps everything",
            Doubt::Kept => "what it can mean is kept",
        };
        context
            .channel
            .tell(Level::Note, &format!("{problem}; {meaning}"));
    }
    Ok(outcome(&report.problems))
}

fn outcome(problems: &[Problem]) -> Outcome {
    if problems.is_empty() {
        Outcome::Done
    } else {
        Outcome::Findings
    }
}

fn print_roots(roots: &[Root], out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<_> = roots
        .iter()
        .map(|root| {
            [
                root.owner.kind.to_string(),
                root.owner.name.clone(),
                root.reason.clone(),
            ]
        })
        .collect();
    table(out, ["KIND", "OWNER", "REASON"], &rows)
}

fn print_swept(swept: &Swept, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "removed {} ({}), {}, {}, {}, {}, {}, {}, {}",
        count(swept.objects, "object"),
        size(swept.object_bytes),
        count(swept.streams, "stream"),
        count(swept.images, "image"),
        count(swept.refs, "ref"),
        count(swept.layers, "published layer"),
        count(swept.image_records, "image record"),
        count(swept.staging, "unfinished import"),
        count(swept.orphans, "orphan"),
    )
}

fn print_plan(plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
    for root in &plan.roots {
        writeln!(out, "keep {root}: {}", root.reason)?;
    }
    for tag in &plan.missing_tags {
        writeln!(out, "make tag {}: {}", tag.tag, tag.reason)?;
    }
    for orphan in &plan.orphans {
        let path = orphan.path.display();
        writeln!(out, "remove {} {path}: no boot entry names it", orphan.kind)?;
    }
    for item in &plan.unpublished {
        let what = match item.kind {
            PublishedKind::Layer => "published layer",
            PublishedKind::ImageRecord => "record of the image",
        };
        writeln!(out, "remove {what} {}: {}", item.id, words(item.reason))?;
    }
    let mut line = |what: &str, name: &dyn std::fmt::Display, decision: Decision| match decision {
        Decision::Keep(_) => Ok(()),
        Decision::Remove(reason) => writeln!(out, "remove {what} {name}: {}", words(reason)),
    };
    for item in &plan.refs {
        match item.id.tag() {
            Some(tag) => line("tag", &tag, item.decision)?,
            None => line("ref", &item.id, item.decision)?,
        }
    }
    for item in &plan.streams {
        line("stream", &item.name, item.decision)?;
    }
    for item in &plan.images {
        line("image", &item.name, item.decision)?;
    }
    for item in &plan.staging {
        line("staging directory", &item.name, item.decision)?;
    }
    for item in &plan.leases {
        line("lease", &item.name, item.decision)?;
    }
    let mut totals: BTreeMap<RemoveReason, (u64, u64)> = BTreeMap::new();
    for item in plan.objects.iter() {
        if let Decision::Remove(reason) = item.decision {
            let (objects, bytes) = totals.entry(reason).or_default();
            *objects += 1;
            *bytes += item.bytes.unwrap_or(0);
        }
    }
    if totals.is_empty() {
        writeln!(out, "remove no objects")?;
    }
    for (reason, (objects, bytes)) in totals {
        let objects = count(objects, "object");
        writeln!(out, "remove {objects} ({}): {}", size(bytes), words(reason))?;
    }
    Ok(())
}

fn words(reason: RemoveReason) -> &'static str {
    match reason {
        RemoveReason::Unreferenced => "nothing needs it",
        RemoveReason::Abandoned => "its process is gone",
        RemoveReason::Unpublished => "no published image has it and nobody uses it",
        RemoveReason::NoContainers => "it was unpublished, and has no containers any more",
        RemoveReason::NotDeployed => "no deployment needs it",
        RemoveReason::SubjectGone => "what it refers to is gone",
        RemoveReason::BeyondLast => "newer tags are kept",
        RemoveReason::TooOld => "it is older than what is kept",
    }
}
