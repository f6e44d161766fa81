//! `pull`.

use std::num::NonZeroUsize;

use anyhow::{Context as _, bail};
use containers_storage::{Image, rootless};
use importer::pull::{BootcStorage, PullInto, PullOptions, bootc_tag};
use importer::source::{Reference, SourceOptions, from_storage};
use importer::{ArtifactReport, ImportOptions, ImportReport, import_image};
use repository::{CopyPolicy, Tag};
use serde::Serialize;

use super::{Context, artifacts, import};
use crate::args::registry::Pull;
use crate::interrupt::Interrupt;
use crate::output::Style;
use crate::progress::Level;
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    pulled: Pulled,
    imported: ImportReport,
    /// What refers to the image.
    artifacts: Vec<ArtifactReport>,
}

#[derive(Serialize)]
struct Pulled {
    reference: String,
    image: String,
    storage: String,
}

/// Goes on in the user's namespace, if the command works on a user's storage. Returns where it does not.
pub(crate) fn prepare(args: &Pull) -> anyhow::Result<()> {
    if !args.bootc && rootless::is_needed() {
        rootless::reexecute().context("cannot read the layers of a user's podman")?;
    }
    Ok(())
}

pub(crate) fn pull(context: &Context, args: &Pull) -> anyhow::Result<Outcome> {
    let interrupt = Interrupt::watch(&context.channel)?;
    let options = PullOptions {
        into: if args.bootc {
            PullInto::Bootc(BootcStorage::of_sysroot(&args.sysroot))
        } else {
            PullInto::Podman
        },
        registry: args.registry.options(),
        platform: args.platform.clone(),
        output: context.channel.podman(),
        cancel: interrupt.cancel.clone(),
    };
    options.into.check()?;
    // Before anything is fetched; not kept open, because that would keep gc waiting for the network.
    drop(repo::open(&context.repo)?);
    let image = interrupt.at_work(|| importer::pull::pull(&args.reference, &options))?;

    let repository = repo::open(&context.repo)?;
    let options = ImportOptions {
        copy: if args.no_copy {
            CopyPolicy::Refuse
        } else {
            CopyPolicy::Allow
        },
        jobs: args.jobs.and_then(|jobs| NonZeroUsize::new(jobs.into())),
        tags: tags(args, &image)?,
        cancel: interrupt.cancel.clone(),
        ..ImportOptions::default()
    };
    let source = from_storage(&image)?;
    context.channel.image(&args.reference, 0, 1);
    let progress = context.channel.import();
    let imported = interrupt
        .at_work(|| import_image(&repository, &source, &options, progress.as_ref()))
        .with_context(|| format!("cannot import {}", args.reference))?;
    context.channel.imported(&imported);
    if context.style == Style::Text {
        import::print(&imported)?;
    }
    for warning in &imported.warnings {
        context.channel.tell(Level::Warning, &warning.to_string());
    }
    let artifacts = if args.with_referrers {
        let from = SourceOptions {
            registry: args.registry.options(),
            cancel: interrupt.cancel.clone(),
            ..SourceOptions::default()
        };
        artifacts::referrers(
            &repository,
            &in_registry(args, &image),
            &source,
            &from,
            &interrupt,
        )?
    } else {
        Vec::new()
    };
    if context.style == Style::Text {
        for artifact in &artifacts {
            artifacts::print(artifact)?;
        }
    }
    let report = Report {
        artifacts,
        pulled: Pulled {
            reference: args.reference.clone(),
            image: image.id().to_string(),
            storage: image.store_root().path().display().to_string(),
        },
        imported,
    };
    if context.style == Style::Json {
        context.style.print(&report, |_| Ok(()))?;
    }
    Ok(Outcome::Done)
}

/// Where podman had the image from: a name without a transport is one in a registry, and podman knows
/// which.
fn in_registry(args: &Pull, image: &Image) -> Reference {
    let given = &args.reference;
    match Reference::parse(given) {
        Ok(reference) if !matches!(reference, Reference::Storage(_)) => reference,
        _ => {
            let named = image
                .names()
                .iter()
                .find(|name| name.contains(given.as_str()));
            Reference::Skopeo(format!("docker://{}", named.unwrap_or(given)))
        }
    }
}

/// bootc's tag, or podman's names; and those that were asked for.
fn tags(args: &Pull, image: &Image) -> anyhow::Result<Vec<Tag>> {
    let mut tags = args
        .tag
        .iter()
        .map(Tag::new)
        .collect::<Result<Vec<_>, _>>()?;
    if args.bootc {
        tags.push(bootc_tag(&image.digest()?));
    } else if tags.is_empty() {
        for name in image.names() {
            tags.push(Tag::new(name)?);
        }
        if tags.is_empty() {
            bail!("podman gave the image no name; give it one with --tag NAME");
        }
    }
    Ok(tags)
}
