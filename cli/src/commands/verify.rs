//! `verify`.

use std::io::{self, Write};

use gc::FsckOptions;
use repository::{Repository, oci};
use serde::Serialize;
use store_driver::{PublishedImage, VerifyReport};

use super::Context;
use super::publish::podman_conf;
use crate::args::Verify;
use crate::output::count;
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    chains: Vec<Chain>,
    /// Only with `--published`.
    published: Option<VerifyReport>,
}

/// What an image consists of, each made again from the one before.
#[derive(Serialize)]
struct Chain {
    id: String,
    manifest: String,
    config: String,
    layers: Vec<String>,
    erofs: Vec<Erofs>,
    /// How podman is shown it.
    published: Option<PublishedImage>,
    /// Whether the kernel has measured every object.
    measured: bool,
    #[serde(flatten)]
    found: gc::Report,
}

#[derive(Serialize)]
struct Erofs {
    kind: String,
    digest: String,
}

pub(crate) fn verify(context: &Context, args: &Verify) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let mut chains = Vec::new();
    for name in &args.images {
        chains.push(chain(context, &repository, name)?);
    }
    let published = args
        .published
        .then(|| -> anyhow::Result<_> {
            let conf = podman_conf(None)?;
            Ok(store_driver::verify_published(&repository, &conf)?)
        })
        .transpose()?;
    let report = Report { chains, published };
    context.style.print(&report, |out| print(&report, out))?;
    let is_clean = report.chains.iter().all(|chain| chain.found.is_clean())
        && report
            .published
            .iter()
            .all(|report| report.findings.is_empty());
    Ok(if is_clean {
        Outcome::Done
    } else {
        Outcome::Findings
    })
}

/// The deepest look of `fsck`, at one image, and what it is that was found right.
fn chain(context: &Context, repository: &Repository, name: &str) -> anyhow::Result<Chain> {
    let image = oci::find(repository, name)?;
    let digest = image.manifest().digest();
    let progress = context.channel.phases();
    let options = FsckOptions::default();
    let mut found = gc::fsck_image(repository, digest, options, progress.as_ref())?;
    for fault in store_driver::check_published(repository, Some(&digest))? {
        found.add_dependent(fault.path, fault.problem);
    }
    drop(progress);
    let id = image.config().digest().to_hex();
    let published = store_driver::published(repository)?;
    let erofs = image.erofs().iter().map(|(key, digest)| Erofs {
        kind: key.to_string(),
        digest: digest.to_string(),
    });
    Ok(Chain {
        manifest: digest.to_string(),
        config: image.config().digest().to_string(),
        layers: image
            .layers()
            .iter()
            .map(|layer| layer.diff_id.to_string())
            .collect(),
        erofs: erofs.collect(),
        published: published.into_iter().find(|image| image.id.as_str() == id),
        measured: repository.is_secure(),
        id,
        found,
    })
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for chain in &report.chains {
        print_chain(chain, out)?;
    }
    let Some(report) = &report.published else {
        return Ok(());
    };
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    writeln!(
        out,
        "measured {}, {}, {}: {}",
        count(report.images.len() as u64, "image"),
        count(report.layers, "layer"),
        count(report.objects, "object"),
        findings(report.findings.len())
    )
}

fn print_chain(chain: &Chain, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "image     {}", chain.id)?;
    writeln!(out, "manifest  {}", chain.manifest)?;
    writeln!(out, "config    {}", chain.config)?;
    for layer in &chain.layers {
        writeln!(out, "layer     {layer}")?;
    }
    for erofs in &chain.erofs {
        writeln!(out, "image     {} {}", erofs.kind, erofs.digest)?;
    }
    if let Some(published) = &chain.published
        && let Some(image) = &published.image
    {
        writeln!(out, "podman    {} {image}", published.layout)?;
    }
    for finding in &chain.found.findings {
        writeln!(out, "{finding}")?;
    }
    let how = if chain.measured {
        "measured by the kernel"
    } else {
        "read"
    };
    writeln!(
        out,
        "{} {how}, all else made again: {}",
        count(chain.found.counts.objects, "object"),
        findings(chain.found.findings.len())
    )
}

fn findings(number: usize) -> String {
    match number as u64 {
        0 => "no findings".to_owned(),
        n => count(n, "finding"),
    }
}
