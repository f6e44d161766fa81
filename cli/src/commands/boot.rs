//! `boot prepare`, `boot karg`, `boot find`.

use anyhow::{Context as _, bail};
use composefs_image::karg::{ArgumentForm, ImageArgument, VerityRequirement};
use repository::boot::{self, Origin};
use repository::layers::XattrFilter;
use repository::oci;
use repository::{Format, VerityDigest};
use serde::Serialize;

use super::Context;
use crate::args::{Boot, BootFind, BootKarg, BootPrepare, FormatArg, VerityArg, XattrsArg};
use crate::output::count;
use crate::progress::{Level, short};
use crate::{Outcome, repo};

pub(crate) fn boot(context: &Context, args: &Boot) -> anyhow::Result<Outcome> {
    match args {
        Boot::Prepare(args) => prepare(context, args),
        Boot::Karg(args) => karg(context, args),
        Boot::Find(args) => find(context, args),
    }
}

#[derive(Serialize)]
struct BootImage {
    format: String,
    digest: String,
    made: bool,
}

#[derive(Serialize)]
struct Prepared {
    id: String,
    xattrs: &'static str,
    images: Vec<BootImage>,
}

fn prepare(context: &Context, args: &BootPrepare) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let image = oci::find(&repository, &args.image)?;
    let xattrs = filter(args.xattrs);
    let images = boot::prepare(&repository, &image, xattrs)
        .with_context(|| format!("cannot make the boot image of {}", args.image))?;
    let report = Prepared {
        id: image.config().digest().to_hex(),
        xattrs: xattrs.name(),
        images: images
            .into_iter()
            .map(|image| BootImage {
                format: image.format.to_string(),
                digest: image.digest.to_string(),
                made: image.origin == Origin::Made,
            })
            .collect(),
    };
    context.style.print(&report, |out| {
        for image in &report.images {
            let was = if image.made { "made" } else { "there" };
            writeln!(out, "{} {} ({was})", image.format, image.digest)?;
        }
        Ok(())
    })?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Karg {
    argument: String,
    format: String,
    digest: String,
}

fn karg(context: &Context, args: &BootKarg) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let image = oci::find(&repository, &args.image)?;
    let format = match args.format {
        None => repository.formats().default_format(),
        Some(FormatArg::V1) => Format::V1,
        Some(FormatArg::V2) => Format::V2,
    };
    let Some(digest) = image.boot(format, filter(args.xattrs)) else {
        if repository.formats().contains(format) {
            bail!(
                "{0} has no boot image in format {format}; make it with: composefs-store boot prepare {0}",
                args.image
            );
        }
        bail!(
            "{} has no boot image in format {format}, which is none of the repository's: {}",
            args.image,
            repository.formats()
        );
    };
    let verity = args.verity.unwrap_or(if repository.is_secure() {
        VerityArg::Required
    } else {
        VerityArg::Optional
    });
    let verity = match verity {
        VerityArg::Required => VerityRequirement::Required,
        VerityArg::Optional => VerityRequirement::Optional,
    };
    let mut argument = ImageArgument::new(format, *digest, verity);
    if args.bootc {
        argument.form = ArgumentForm::Plain;
    }
    let report = Karg {
        argument: argument.to_string(),
        format: format.to_string(),
        digest: digest.to_string(),
    };
    context
        .style
        .print(&report, |out| writeln!(out, "{}", report.argument))?;
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct Found {
    id: String,
    manifest: String,
    tags: Vec<String>,
    kind: &'static str,
    format: Option<String>,
    xattrs: Option<&'static str>,
    recovered: bool,
}

#[derive(Serialize)]
struct Search {
    digest: String,
    found: Option<Found>,
    tried: usize,
}

fn find(context: &Context, args: &BootFind) -> anyhow::Result<Outcome> {
    let digest = VerityDigest::from_hex(&args.digest.to_ascii_lowercase())
        .with_context(|| format!("{} is not the digest of an image", args.digest))?;
    let repository = repo::open(&context.repo)?;
    let images = match &args.image {
        Some(name) => vec![oci::find(&repository, name)?],
        None => boot::candidates(&repository)?,
    };
    let search = boot::find(&repository, &digest, &images)?;
    let found = search.found.as_ref().and_then(|found| {
        let image = images
            .iter()
            .find(|image| image.manifest().digest() == found.image)?;
        let variant = found.key.boot_variant();
        let format = found
            .key
            .rootfs_format()
            .or(variant.map(|(format, _)| format));
        Some(Found {
            id: image.config().digest().to_hex(),
            manifest: found.image.to_string(),
            tags: image.tags().iter().map(ToString::to_string).collect(),
            kind: if found.key.rootfs_format().is_some() {
                "rootfs"
            } else {
                "boot"
            },
            format: format.map(|format| format.to_string()),
            xattrs: variant.map(|(_, xattrs)| xattrs.name()),
            recovered: found.origin == Origin::Made,
        })
    });
    let report = Search {
        digest: digest.to_string(),
        found,
        tried: search.tried,
    };
    context.style.print(&report, |out| {
        let Some(found) = &report.found else {
            return Ok(());
        };
        let name = found.tags.first().map_or("<none>", String::as_str);
        let (format, xattrs) = (found.format.as_deref(), found.xattrs);
        writeln!(
            out,
            "{name} {}: {} image{}{}{}",
            short(&found.id),
            found.kind,
            format.map_or(String::new(), |format| format!(", {format}")),
            xattrs.map_or(String::new(), |xattrs| format!(", xattrs {xattrs}")),
            if found.recovered { ", recovered" } else { "" },
        )
    })?;
    for (manifest, error) in &search.unfit {
        let text = format!("{manifest} was left out: {error}");
        context.channel.tell(Level::Note, &text);
    }
    if report.found.is_some() {
        return Ok(Outcome::Done);
    }
    let text = format!(
        "no image has the boot image {digest}; tried {} of {}",
        count(search.tried as u64, "boot image"),
        count(images.len() as u64, "image"),
    );
    context.channel.tell(Level::Note, &text);
    Ok(Outcome::Findings)
}

fn filter(xattrs: XattrsArg) -> XattrFilter {
    match xattrs {
        XattrsArg::AllowlistOnly => XattrFilter::AllowlistOnly,
        XattrsArg::KeepUserXattrs => XattrFilter::KeepUser,
    }
}
