//! `df`.

use gc::{ImageUsage, Part};

use super::Context;
use crate::output::{count, size, table};
use crate::progress::short;
use crate::{Outcome, repo};

/// How many parts that images share are listed.
const PARTS: usize = 10;

pub(crate) fn df(context: &Context) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let progress = context.channel.phases();
    let usage = gc::usage(&repository, progress.as_ref())?;
    drop(progress);
    context.style.print(&usage, |out| {
        let rows: Vec<_> = usage.images.iter().map(row).collect();
        table(out, ["IMAGE", "SIZE", "OWN", "SHARED"], &rows)?;
        let shared = usage.parts.iter().filter(|part| part.images.len() > 1);
        for part in shared.take(PARTS) {
            let images = part.images.iter().filter_map(|n| usage.images.get(*n));
            let names: Vec<_> = images.map(name).collect();
            let bytes = size(part.size.bytes);
            writeln!(out, "{bytes} shared by {}", names.join(", "))?;
        }
        let others = usage.parts.iter().filter(|part| part.images.is_empty());
        for Part { size: other, .. } in others {
            let objects = count(other.objects, "object");
            writeln!(
                out,
                "{} in {objects} that no image needs",
                size(other.bytes)
            )?;
        }
        let objects = count(usage.total.objects, "object");
        writeln!(out, "{} in {objects}", size(usage.total.bytes))
    })?;
    let broken = usage.images.iter().any(|image| !image.problems.is_empty());
    Ok(if broken {
        Outcome::Findings
    } else {
        Outcome::Done
    })
}

fn row(image: &ImageUsage) -> [String; 4] {
    [
        name(image),
        size(image.all.bytes),
        size(image.own.bytes),
        size(image.all.bytes - image.own.bytes),
    ]
}

fn name(image: &ImageUsage) -> String {
    match image.tags.first() {
        Some(tag) => tag.to_string(),
        None => short(image.manifest.to_string().trim_start_matches("sha256:")).to_owned(),
    }
}
