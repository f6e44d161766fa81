//! `upgrade-format`.

use repository::upgrade::{self, PlannedImage};
use repository::{Format, Formats, Wait};
use serde::Serialize;

use super::Context;
use crate::args::{FormatsArg, UpgradeFormat};
use crate::output::count;
use crate::progress::Level;
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Planned {
    tags: Vec<String>,
    manifest: String,
    missing: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    from: String,
    to: String,
    /// What was missing when it began.
    images: Vec<Planned>,
    /// Absent in a dry run.
    made: Option<usize>,
}

pub(crate) fn upgrade_format(context: &Context, args: &UpgradeFormat) -> anyhow::Result<Outcome> {
    let mut repository = repo::open(&context.repo)?;
    let to = match args.formats {
        FormatsArg::V1 => Formats::single(Format::V1),
        FormatsArg::V2 => Formats::single(Format::V2),
        FormatsArg::Dual => upgrade::dual(repository.formats()),
    };
    let mut report = Report {
        from: repository.formats().to_string(),
        to: to.to_string(),
        images: Vec::new(),
        made: None,
    };
    let mut unfit = Vec::new();
    if args.dry_run {
        let plan = upgrade::plan(&repository, &to)?;
        report.images = plan.images.iter().map(planned).collect();
    } else {
        let begin = |image: &PlannedImage| {
            let image = planned(image);
            tracing::info!("making {} of {}", image.missing.join(", "), image.name());
            report.images.push(image);
        };
        let done = upgrade::upgrade(&mut repository, &to, Wait::Block, begin)?;
        report.made = Some(done.made);
        unfit = done.unfit;
    }
    context.style.print(&report, |out| match report.made {
        None => {
            for image in &report.images {
                for key in &image.missing {
                    writeln!(out, "make {key} of {}", image.name())?;
                }
            }
            if report.from == report.to {
                writeln!(
                    out,
                    "the repository has the formats {} already",
                    report.from
                )
            } else {
                writeln!(
                    out,
                    "change the formats from {} to {}",
                    report.from, report.to
                )
            }
        }
        Some(made) => writeln!(
            out,
            "made {}; the repository has the formats {}",
            count(made as u64, "image"),
            report.to
        ),
    })?;
    for (manifest, error) in &unfit {
        let text = format!("{manifest} was left out: {error}");
        context.channel.tell(Level::Note, &text);
    }
    Ok(Outcome::Done)
}

fn planned(planned: &PlannedImage) -> Planned {
    let image = planned.image();
    Planned {
        tags: image.tags().iter().map(ToString::to_string).collect(),
        manifest: image.manifest().digest().to_string(),
        missing: planned.missing.iter().map(ToString::to_string).collect(),
    }
}

impl Planned {
    fn name(&self) -> &str {
        self.tags.first().unwrap_or(&self.manifest)
    }
}
