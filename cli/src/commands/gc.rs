//! `gc`.

use std::io::{self, Write};

use gc::{Decision, Plan, PlanOptions, RemoveReason, Swept};
use repository::{Category, Wait};
use serde::Serialize;
use store_driver::{UnusedLayers, remove_unused_layers, unused_layers};

use super::Context;
use super::publish::{podman_conf, print_kept};
use crate::args::Gc;
use crate::output::{count, size};
use crate::progress::Phases;
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    /// Layers that are published no more.
    layers: UnusedLayers,
    plan: Plan,
    /// Absent in a dry run.
    swept: Option<Swept>,
}

pub(crate) fn gc(context: &Context, args: &Gc) -> anyhow::Result<Outcome> {
    let mut repository = repo::open(&context.repo)?;
    let progress = Phases::on_terminal();
    let conf = podman_conf(args.storage_conf.as_deref())?;
    let report = if args.dry_run {
        let layers = unused_layers(&repository, &conf)?;
        let refs = layers.refs.iter().cloned();
        let options = PlanOptions {
            given_up: refs.map(|path| (Category::Images, path)).collect(),
        };
        Report {
            plan: gc::plan(&repository, &options, &progress)?,
            layers,
            swept: None,
        }
    } else {
        let layers = remove_unused_layers(&repository, &conf)?;
        let prepared = gc::prepare(&mut repository, Wait::Block, &progress)?;
        let (plan, swept) = prepared.execute(&progress)?;
        Report {
            layers,
            plan,
            swept: Some(swept),
        }
    };
    drop(progress);
    context.style.print(&report, |out| match &report.swept {
        Some(swept) => print_swept(&report.layers, swept, out),
        None => print_plan(&report.layers, &report.plan, out),
    })?;
    for problem in &report.plan.problems {
        eprintln!("composefs-store: kept everything in doubt: {problem}");
    }
    Ok(if report.plan.problems.is_empty() {
        Outcome::Done
    } else {
        Outcome::Findings
    })
}

fn print_swept(layers: &UnusedLayers, swept: &Swept, out: &mut dyn Write) -> io::Result<()> {
    print_kept(&layers.kept, out)?;
    writeln!(
        out,
        "removed {} ({}), {}, {}, {}",
        count(swept.objects, "object"),
        size(swept.object_bytes),
        count(swept.streams, "stream"),
        count(swept.images, "image"),
        count(swept.staging, "unfinished import"),
    )
}

fn print_plan(layers: &UnusedLayers, plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
    print_kept(&layers.kept, out)?;
    for layer in &layers.removed {
        writeln!(out, "remove published layer {layer}: nobody uses it")?;
    }
    for root in &plan.roots {
        writeln!(out, "keep {root} and what it needs")?;
    }
    let mut line = |what: &str, name: &dyn std::fmt::Display, decision: Decision| match decision {
        Decision::Keep(_) => Ok(()),
        Decision::Remove(RemoveReason::Unreferenced) => {
            writeln!(out, "remove {what} {name}: nothing needs it")
        }
        Decision::Remove(RemoveReason::Abandoned) => {
            writeln!(out, "remove {what} {name}: its process is gone")
        }
    };
    for item in &plan.streams {
        line("stream", &item.name, item.decision)?;
    }
    for item in &plan.images {
        line("image", &item.name, item.decision)?;
    }
    for item in &plan.staging {
        line("staging directory", &item.name, item.decision)?;
    }
    let objects = plan
        .objects
        .iter()
        .filter(|item| item.decision.is_removal());
    let bytes = objects.clone().filter_map(|item| item.bytes).sum();
    writeln!(
        out,
        "remove {} ({})",
        count(objects.count() as u64, "object"),
        size(bytes)
    )
}
