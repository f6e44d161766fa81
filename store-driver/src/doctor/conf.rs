//! Every storage.conf that is really read: root's, and those of users who are named.

use std::path::Path;

use containers_storage::{ConfRules, ConfSource, Environment, StorageConf};
use serde::Serialize;

use super::{
    Facts,
    finding::{Finding, Kind, Remedy, Severity, shell},
    value_or_error,
};
use crate::{
    Enforcement, Error, Layout, check_host,
    podman_conf::{
        DROP_IN, MAIN_FILE, OVERLAY_TABLE, STORES_TABLE, mountopt_line, names_store, stores_line,
        stores_line_without,
    },
};

/// A user's configuration, as their podman reads it.
#[derive(Clone, Debug, Serialize)]
pub struct ConfFacts {
    /// Whose.
    pub user: String,
    /// Their ID.
    pub uid: u32,
    /// What it says, or why it cannot be read.
    #[serde(serialize_with = "value_or_error")]
    pub conf: Result<StorageConf, String>,
    /// Variables of the environment that take the place of what the files say.
    pub overriding: Vec<&'static str>,
}

/// The variables that drop or replace the settings that the store needs.
const OVERRIDING: [&str; 2] = ["STORAGE_OPTS", "STORAGE_DRIVER"];

/// Reads the configuration in `environment` by the rules of the podman that is installed.
pub(super) fn read(user: &str, environment: &Environment, rules: Option<ConfRules>) -> ConfFacts {
    let conf = match rules {
        Some(rules) => StorageConf::discover_by(environment, rules),
        None => StorageConf::discover(environment),
    };
    let is_set = |name: &&str| {
        environment
            .variables
            .contains_key(std::ffi::OsStr::new(name))
    };
    ConfFacts {
        user: user.to_owned(),
        uid: environment.uid,
        conf: conf.map_err(|error| sentence(&error)),
        overriding: OVERRIDING.into_iter().filter(is_set).collect(),
    }
}

/// An error with its causes.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(error.to_string().trim_end());
        cause = error.source();
    }
    text
}

/// The line in the file that decides; where there is none, all lines that it needs.
fn configure(
    facts: &Facts,
    conf: &StorageConf,
    layout: Layout,
    table: &'static str,
    line: String,
) -> Remedy {
    if conf.source != ConfSource::BuiltIn {
        return Remedy::line(conf, table, line);
    }
    let rules = facts.podman.as_ref().map(|podman| podman.rules);
    let file = match rules {
        Some(ConfRules::DropIns) => DROP_IN,
        _ => MAIN_FILE,
    };
    let directory = Path::new(file).parent().unwrap_or(Path::new("/"));
    Remedy::command(format!(
        "conf=$(composefs-store --repo {} podman-conf --layout {layout}) && mkdir -p {} && \
         printf '%s\\n' \"$conf\" >{file}",
        shell(&facts.repository.path),
        directory.display(),
    ))
}

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for user in &facts.confs {
        match &user.conf {
            Ok(conf) if user.uid == 0 => check_root(facts, user, conf, &mut findings),
            Ok(conf) => check_user(facts, user, conf, &mut findings),
            Err(message) => findings.push(Finding {
                finding: Kind::ConfUnreadable,
                severity: Severity::Error,
                subject: format!("storage.conf of {}", user.user),
                problem: message.clone(),
                why: format!("every podman command of {} fails", user.user),
                remedy: Remedy::advice(
                    "correct the file, or let `composefs-store podman-conf` print another",
                ),
            }),
        }
    }
    findings
}

fn check_root(facts: &Facts, user: &ConfFacts, conf: &StorageConf, findings: &mut Vec<Finding>) {
    let repository = &facts.repository;
    let published = repository.blob_layers + repository.mounted_layers;
    let subject = conf.source.to_string();
    let mut add = |finding, severity, problem: String, why: &str, remedy| {
        findings.push(Finding {
            finding,
            severity,
            subject: subject.clone(),
            problem,
            why: why.into(),
            remedy,
        });
    };
    let layout = match repository.blob_layers {
        0 => Layout::Mounted,
        _ => Layout::Blob,
    };
    match check_host(conf, layout) {
        Err(Error::OtherDriver { driver, .. }) => add(
            Kind::OtherDriver,
            Severity::Error,
            format!("it has the storage driver {driver:?}"),
            "podman looks for images of that driver, and finds none of ours",
            Remedy::line(conf, "storage", "driver = \"overlay\""),
        ),
        Err(Error::MountProgram { program, .. }) => add(
            Kind::MountProgram,
            Severity::Error,
            format!("it has the mount program {}", program.display()),
            "a mount program cannot mount the layout blob",
            Remedy::line(conf, OVERLAY_TABLE, "mount_program = \"\""),
        ),
        Err(Error::NativeDiff { line, .. }) => add(
            Kind::NativeDiff,
            Severity::Error,
            "images are published in the layout blob, and it does not ask for naive diff".into(),
            "`podman build` and `podman commit` on them turn changed files into zeros and empty renamed \
             directories, without a word",
            configure(facts, conf, layout, OVERLAY_TABLE, line),
        ),
        _ => {}
    }
    let overlay = conf.overlay_options();
    if names_store(conf, &repository.store) {
        let store = repository.store.display().to_string();
        let view = repository.view.display().to_string();
        let line = if names_store(conf, &repository.view) {
            stores_line_without(conf, &repository.store)
        } else {
            stores_line(conf, &repository.view).replace(&format!("{store:?}, "), "")
        };
        add(
            Kind::WritableStore,
            Severity::Error,
            format!("it names {store}, which can be written to, in place of {view}"),
            "podman removes layer directories that it has no record of, ours too",
            Remedy::line(conf, STORES_TABLE, line),
        );
    } else if !names_store(conf, &repository.view) {
        add(
            Kind::NotConfigured,
            if published > 0 {
                Severity::Warning
            } else {
                Severity::Note
            },
            "it does not name the store".into(),
            "podman does not see what is published",
            configure(
                facts,
                conf,
                layout,
                STORES_TABLE,
                stores_line(conf, &repository.view),
            ),
        );
    }
    let requires = overlay.has_mount_option("verity=require");
    if requires && !repository.secure && repository.blob_layers > 0 {
        let options: Vec<&str> = overlay
            .mountopt
            .split(',')
            .filter(|option| !option.trim().starts_with("verity="))
            .collect();
        add(
            Kind::VerityInsecure,
            Severity::Error,
            "its mountopt has verity=require, and the repository has no fs-verity".into(),
            "no file of an image in the layout blob can be read",
            Remedy::line(
                conf,
                OVERLAY_TABLE,
                mountopt_line(&options.join(","), Layout::Blob, Enforcement::WhereSecure),
            ),
        );
    } else if !requires && repository.secure && repository.blob_layers > 0 {
        add(
            Kind::VerityOff,
            if facts.is_verification_wanted() {
                Severity::Error
            } else {
                Severity::Note
            },
            "its mountopt has no verity=require".into(),
            "in the layout blob a changed file is served without a word, although the repository has \
             fs-verity",
            Remedy::line(
                conf,
                OVERLAY_TABLE,
                mountopt_line(&overlay.mountopt, Layout::Blob, Enforcement::Required),
            ),
        );
    }
    let mut main_only = Vec::new();
    if overlay.size.is_some() {
        main_only.push("size");
    }
    if overlay.force_mask.is_some() {
        main_only.push("force_mask");
    }
    if overlay.ignore_chown_errors {
        main_only.push("ignore_chown_errors");
    }
    if !main_only.is_empty() {
        add(
            Kind::MainStoreOptions,
            Severity::Note,
            format!("it has {}", main_only.join(", ")),
            "that applies to layers of podman's own storage; published layers are used as they are",
            Remedy::advice("nothing, if that is what you want"),
        );
    }
    for variable in &user.overriding {
        add(
            Kind::OptionsReplaced,
            Severity::Warning,
            format!("{variable} is set in the environment"),
            "it takes the place of additionalimagestores and mountopt, or of the driver, in every podman \
             that has it",
            Remedy::command(format!("unset {variable}")),
        );
    }
}

fn check_user(facts: &Facts, user: &ConfFacts, conf: &StorageConf, findings: &mut Vec<Finding>) {
    let repository = &facts.repository;
    let subject = format!("{} of {}", conf.source, user.user);
    for store in [&repository.view, &repository.store] {
        if names_store(conf, store) {
            findings.push(Finding {
                finding: Kind::RootlessStore,
                severity: Severity::Error,
                subject: subject.clone(),
                problem: format!("it names {}", store.display()),
                why: "no user can mount EROFS, and files belong to IDs that a user's containers do not have"
                    .into(),
                remedy: Remedy::line(conf, STORES_TABLE, stores_line_without(conf, store)),
            });
        }
    }
    let options: Vec<&str> = conf.overlay_options().mountopt.split(',').collect();
    let is_roots = |option: &str| {
        let option = option.trim();
        option == "metacopy=on" || option == "redirect_dir=on" || option.starts_with("verity=")
    };
    if options.iter().any(|option| is_roots(option)) {
        let others: Vec<&str> = options
            .into_iter()
            .filter(|option| !is_roots(option))
            .collect();
        findings.push(Finding {
            finding: Kind::RootlessMountopt,
            severity: Severity::Error,
            subject,
            problem: format!("its mountopt is {:?}", conf.overlay_options().mountopt),
            why: "an overlay in a user namespace takes neither metacopy nor verity: no container of theirs \
                  starts"
                .into(),
            remedy: Remedy::line(
                conf,
                OVERLAY_TABLE,
                mountopt_line(&others.join(","), Layout::Mounted, Enforcement::WhereSecure),
            ),
        });
    }
    for variable in &user.overriding {
        findings.push(Finding {
            finding: Kind::OptionsReplaced,
            severity: Severity::Warning,
            subject: user.user.clone(),
            problem: format!("{variable} is set in the environment"),
            why: "it takes the place of what storage.conf says".into(),
            remedy: Remedy::command(format!("unset {}", shell(variable))),
        });
    }
}
