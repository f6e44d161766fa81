//! `publish`, `unpublish`, `podman-store-path`.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use containers_storage::{Environment, StorageConf};
use repository::{Repository, oci};
use serde::Serialize;
use store_driver::{
    Enforcement, KeptLayer, Layout, PublishOptions, PublishReport, StorePaths, UnpublishReport,
    WhileInUse, find_published,
};

use super::Context;
use crate::args::{LayoutArg, LayoutArgs, Publish, Unpublish};
use crate::host::stores;
use crate::output::count;
use crate::progress::{Channel, Level, short};
use crate::{Outcome, repo};

pub(crate) fn publish(context: &Context, args: &Publish) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let mut reports = Vec::new();
    for (index, name) in args.images.iter().enumerate() {
        context.channel.image(name, index, args.images.len());
        let image = oci::find(&repository, name)?;
        reports.push(
            publish_one(&repository, &image, &args.layout)
                .with_context(|| format!("cannot publish {name}"))?,
        );
    }
    context.style.print(&reports, |out| {
        reports.iter().try_for_each(|report| print(report, out))
    })?;
    for report in &reports {
        tell(report, &context.channel);
    }
    Ok(Outcome::Done)
}

/// Publishes an image for the podman that `args` describe.
pub(crate) fn publish_one(
    repository: &Repository,
    image: &oci::Image,
    args: &LayoutArgs,
) -> anyhow::Result<PublishReport> {
    let conf = podman_conf(args.storage_conf.as_deref())?;
    let options = PublishOptions {
        layout: layout(args.layout),
        conf: &conf,
        enforcement: if args.verified {
            Enforcement::Required
        } else {
            Enforcement::WhereSecure
        },
    };
    Ok(store_driver::publish(repository, image, &options)?)
}

pub(crate) fn layout(word: LayoutArg) -> Layout {
    match word {
        LayoutArg::Blob => Layout::Blob,
        LayoutArg::Mounted => Layout::Mounted,
    }
}

/// The configuration of the podman that will use the store.
pub(crate) fn podman_conf(file: Option<&Path>) -> anyhow::Result<StorageConf> {
    StorageConf::discover(&podman_environment(file))
        .context("cannot read podman's storage configuration")
}

/// The environment of the podman that will use the store.
pub(crate) fn podman_environment(file: Option<&Path>) -> Environment {
    let mut environment = Environment::current();
    if let Some(file) = file {
        environment
            .variables
            .insert("CONTAINERS_STORAGE_CONF".into(), file.into());
    }
    environment
}

/// What was published.
pub(crate) fn print(report: &PublishReport, out: &mut dyn Write) -> io::Result<()> {
    let new = report
        .layers
        .iter()
        .filter(|layer| layer.outcome == store_driver::LayerOutcome::New)
        .count() as u64;
    writeln!(
        out,
        "published {} as {} ({}{}, {} of {} new) in {}",
        short(report.image.as_str()),
        report.names.join(", "),
        report.layout,
        if report.verified { ", verified" } else { "" },
        new,
        count(report.layers.len() as u64, "layer"),
        report.view.display()
    )
}

/// What the user should know about it.
pub(crate) fn tell(report: &PublishReport, channel: &Channel) {
    for note in &report.notes {
        channel.tell(Level::Note, &format!("note: {note}"));
    }
}

pub(crate) fn unpublish(context: &Context, args: &Unpublish) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let stores = stores(&args.host)?;
    let in_use = if args.when_unused {
        WhileInUse::Hide
    } else {
        WhileInUse::Refuse
    };
    let mut reports = Vec::new();
    for name in &args.images {
        let image = find_published(&repository, name)?;
        reports.push(
            store_driver::unpublish(&repository, &image.id, in_use, &stores)
                .with_context(|| format!("cannot unpublish {name}"))?,
        );
    }
    context.style.print(&reports, |out| {
        reports
            .iter()
            .try_for_each(|report| print_unpublished(report, out))
    })?;
    Ok(Outcome::Done)
}

fn print_unpublished(report: &UnpublishReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "unpublished {}, removed {}",
        short(report.image.as_str()),
        count(report.removed.len() as u64, "layer")
    )?;
    print_kept(&report.kept, out)
}

/// Layers that stay because somebody uses them.
fn print_kept(layers: &[KeptLayer], out: &mut dyn Write) -> io::Result<()> {
    for layer in layers {
        writeln!(out, "kept published layer {}", short(layer.layer.as_str()))?;
        for user in &layer.users {
            writeln!(out, "    {user}")?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct StorePath<'a> {
    path: &'a Path,
}

pub(crate) fn podman_store_path(context: &Context) -> anyhow::Result<Outcome> {
    let view = StorePaths::of(&repo::open(&context.repo)?).view();
    context.style.print(&StorePath { path: &view }, |out| {
        writeln!(out, "{}", view.display())
    })?;
    Ok(Outcome::Done)
}
