//! `doctor`, `podman-conf`.

use std::io::{self, Write};

use anyhow::{Context as _, bail};
use containers_storage::{Environment, StorageConf};
use serde::Serialize;
use store_driver::doctor::{
    Examination, Facts, Finding, Fix, Remedy, Severity, diagnose, examine, fix, podman_rules,
};
use store_driver::{Enforcement, Place, StorePaths};

use super::Context;
use super::publish::{layout, podman_environment};
use crate::args::{Doctor, PodmanConf};
use crate::output::count;
use crate::progress::Level;
use crate::{Outcome, repo};

#[derive(Serialize)]
struct Report {
    host: Facts,
    findings: Vec<Finding>,
    /// What `--fix` did about an earlier look.
    fixed: Vec<Fix>,
}

pub(crate) fn doctor(context: &Context, args: &Doctor) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    let mut users = Vec::new();
    for name in &args.user {
        let environment = Environment::of_user(name)
            .with_context(|| format!("cannot look up the user {name}"))?;
        match environment {
            Some(environment) => users.push((name.clone(), environment)),
            None => bail!("there is no user {name}"),
        }
    }
    let examination = Examination {
        environment: podman_environment(args.storage_conf.as_deref()),
        users,
    };
    let look = || {
        let host = examine(&repository, &examination);
        let findings = diagnose(&host);
        Report {
            host,
            findings,
            fixed: Vec::new(),
        }
    };
    let mut report = look();
    if args.fix {
        let fixed = fix(&repository, &report.findings)?;
        if !fixed.is_empty() {
            report = Report { fixed, ..look() };
        }
    }
    context.style.print(&report, |out| print(&report, out))?;
    let is_bad = |finding: &Finding| finding.severity < Severity::Note;
    Ok(if report.findings.iter().any(is_bad) {
        Outcome::Findings
    } else {
        Outcome::Done
    })
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    for fix in &report.fixed {
        writeln!(
            out,
            "mended: {}",
            match fix {
                Fix::ObjectsMode => "owner and mode of the directory of objects",
                Fix::ServeMounts => "the store, its view and its mounts",
                Fix::Images => "images of published layers",
            }
        )?;
    }
    for finding in &report.findings {
        print_finding(finding, out)?;
    }
    let host = &report.host;
    let podman = match &host.podman {
        Some(podman) => match &podman.storage {
            Some(storage) => format!("podman {} (c/storage {storage})", podman.version),
            None => format!("podman {}", podman.version),
        },
        None => "no podman".into(),
    };
    let filesystem = host.filesystem.as_ref().map_or("?", |it| it.kind.as_str());
    let of = |severity| {
        let found = report.findings.iter();
        found.filter(|it| it.severity == severity).count() as u64
    };
    writeln!(
        out,
        "{} on {filesystem}, {podman}, {}: {}, {}, {}",
        host.repository.path.display(),
        count(
            (host.repository.blob_layers + host.repository.mounted_layers) as u64,
            "published layer"
        ),
        count(of(Severity::Error), "error"),
        count(of(Severity::Warning), "warning"),
        count(of(Severity::Note), "note"),
    )
}

fn print_finding(finding: &Finding, out: &mut dyn Write) -> io::Result<()> {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    writeln!(out, "{severity}: {}: {}", finding.subject, finding.problem)?;
    writeln!(out, "    {}", finding.why)?;
    match &finding.remedy {
        Remedy::Command { command, .. } => writeln!(out, "    # {command}"),
        Remedy::Advice { text } => writeln!(out, "    -> {text}"),
        Remedy::Line {
            file,
            copy_of,
            table,
            line,
        } => {
            if let Some(original) = copy_of {
                let (original, file) = (original.display(), file.display());
                writeln!(out, "    # cp {original} {file}")?;
            }
            writeln!(out, "    -> in {}, below [{table}]:", file.display())?;
            line.lines()
                .try_for_each(|line| writeln!(out, "        {line}"))
        }
    }
}

pub(crate) fn podman_conf(context: &Context, args: &PodmanConf) -> anyhow::Result<Outcome> {
    let repository = repo::open(&context.repo)?;
    if args.verified && !repository.is_secure() {
        bail!(
            "the repository {} has no fs-verity, so no file could be read: make one without --insecure",
            repository.path().display()
        );
    }
    let enforcement = if args.verified {
        Enforcement::Required
    } else {
        Enforcement::WhereSecure
    };
    let rules = podman_rules();
    let environment = podman_environment(args.storage_conf.as_deref());
    let conf = StorageConf::discover_by(&environment, rules)
        .context("cannot read podman's storage configuration")?;
    let view = StorePaths::of(&repository).view();
    let lines = store_driver::podman_conf(&conf, rules, &view, layout(args.layout), enforcement);
    let file = lines.file.display();
    let place = match lines.place {
        Place::NewFile | Place::DropIn => format!("the whole file {file}"),
        Place::Edit => format!("in place of these lines of {file}"),
        Place::CopyAndEdit => format!(
            "in place of these lines of {file}, a copy of {}",
            conf.source
        ),
    };
    context.channel.tell(Level::Note, &place);
    context
        .style
        .print(&lines, |out| out.write_all(lines.text.as_bytes()))?;
    Ok(Outcome::Done)
}
