//! `init`.

use anyhow::Context as _;
use repository::{Algorithm, Format, Formats, InitOptions, InitOutcome, Repository, Security};
use serde::Serialize;

use super::Context;
use crate::Outcome;
use crate::args::{AlgorithmArg, FormatsArg, Init};
use crate::repo;

#[derive(Serialize)]
struct Report {
    repository: String,
    created: bool,
    algorithm: String,
    formats: String,
    secure: bool,
}

pub(crate) fn init(context: &Context, args: &Init) -> anyhow::Result<Outcome> {
    let options = InitOptions {
        algorithm: match args.algorithm {
            AlgorithmArg::Sha512 => Algorithm::Sha512,
            AlgorithmArg::Sha256 => Algorithm::Sha256,
        },
        formats: match args.format {
            FormatsArg::V1 => Formats::single(Format::V1),
            FormatsArg::V2 => Formats::single(Format::V2),
            FormatsArg::Dual => Formats::dual(),
        },
        security: if args.insecure {
            Security::Insecure
        } else {
            Security::Secure
        },
    };
    let outcome = Repository::init(&context.repo, &options)
        .with_context(|| format!("cannot make a repository at {}", context.repo.display()))?;
    let repository = repo::open(&context.repo)?;
    let report = Report {
        repository: repository.path().display().to_string(),
        created: outcome == InitOutcome::Created,
        algorithm: repository.algorithm().to_string(),
        formats: repository.formats().to_string(),
        secure: repository.is_secure(),
    };
    context.style.print(&report, |out| {
        writeln!(
            out,
            "{} {}: {}, {}, fs-verity {}",
            if report.created {
                "made repository"
            } else {
                "repository is there:"
            },
            report.repository,
            report.algorithm,
            report.formats,
            if report.secure {
                "required"
            } else {
                "not required"
            },
        )
    })?;
    Ok(Outcome::Done)
}
