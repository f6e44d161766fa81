//! `serve-mounts`, `mount`, `umount`.

use anyhow::{Context as _, bail};
use repository::oci;
use serde::Serialize;
use store_driver::mount::{Busy, Stacking, unmount};
use store_driver::{Enforcement, ViewState, mount_image};

use super::Context;
use crate::args::{Mount, ServeMounts, Umount};
use crate::output::count;
use crate::{Outcome, repo};

pub(crate) fn serve_mounts(context: &Context, args: &ServeMounts) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    if args.stop {
        store_driver::unmount_all(&repository)?;
        context
            .style
            .print(&serde_json::json!({ "stopped": true }), |out| {
                writeln!(out, "unmounted the view and every published layer")
            })?;
        return Ok(Outcome::Done);
    }
    let report = store_driver::serve_mounts(&repository)?;
    context.style.print(&report, |out| {
        writeln!(
            out,
            "{} {}, mounted {}, {} were mounted before",
            report.view.display(),
            match report.view_state {
                ViewState::Mounted => "is mounted now",
                ViewState::AlreadyMounted => "was mounted before",
            },
            count(report.mounted.len() as u64, "layer"),
            report.already_mounted.len(),
        )
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Mounted {
    image: String,
    directory: String,
}

pub(crate) fn mount(context: &Context, args: &Mount) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let image = oci::find(&repository, &args.image)?;
    let Some(rootfs) = image.rootfs(repository.formats().default_format()) else {
        bail!(
            "{} has no root filesystem image (it has no /usr directory); publish it and let podman mount it",
            args.image
        );
    };
    let (enforcement, stacking) = (Enforcement::WhereSecure, Stacking::BelowOverlay);
    mount_image(&repository, rootfs, enforcement, stacking, &args.dir)
        .with_context(|| format!("cannot mount {}", args.image))?;
    let report = Mounted {
        image: rootfs.to_string(),
        directory: args.dir.display().to_string(),
    };
    context.style.print(&report, |out| {
        writeln!(out, "{} on {}", report.image, report.directory)
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Unmounted {
    directory: String,
}

pub(crate) fn umount(context: &Context, args: &Umount) -> anyhow::Result<Outcome> {
    unmount(&args.dir, Busy::Fail)
        .with_context(|| format!("cannot unmount {}", args.dir.display()))?;
    let report = Unmounted {
        directory: args.dir.display().to_string(),
    };
    context.style.print(&report, |out| {
        writeln!(out, "unmounted {}", report.directory)
    })?;
    Ok(Outcome::Done)
}
