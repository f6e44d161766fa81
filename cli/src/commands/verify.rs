//! `verify`.

use super::Context;
use crate::args::Verify;
use crate::output::count;
use crate::{Outcome, repo};

pub(crate) fn verify(context: &Context, _: &Verify) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let report = store_driver::verify_published(&repository)?;
    context.style.print(&report, |out| {
        for finding in &report.findings {
            writeln!(out, "{finding}")?;
        }
        writeln!(
            out,
            "measured {}, {}, {}: {}",
            count(report.images.len() as u64, "image"),
            count(report.layers, "layer"),
            count(report.objects, "object"),
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
