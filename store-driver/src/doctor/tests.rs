//! Bad hosts, as facts.

use std::path::Path;

use containers_storage::{ConfRules, ConfSource, ImageRecord, LayerId, LayerRecord};

use super::{
    published::LayerMount,
    stores::{Diff, LayerDirectory},
    *,
};
use crate::Fault;

const CONF: &str = r#"
[storage]
driver = "overlay"
[storage.options]
additionalimagestores = ["/repo/composefs-store/podman"]
[storage.options.overlay]
mountopt = "nodev,metacopy=on"
"#;

const LINK: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

fn conf(user: &str, uid: u32, text: &str) -> ConfFacts {
    let environment = Environment {
        uid,
        ..Environment::default()
    };
    let path = Path::new("/etc/containers/storage.conf");
    ConfFacts {
        user: user.into(),
        uid,
        conf: StorageConf::parse(text, path, &environment).map_err(|e| e.to_string()),
        overriding: Vec::new(),
    }
}

fn layer(digit: char) -> LayerId {
    digit.to_string().repeat(64).parse().unwrap()
}

fn record(digit: char, parent: Option<char>) -> LayerRecord {
    let mut record = LayerRecord::new(layer(digit));
    record.parent = parent.map(layer);
    record.diff_digest = Some(format!("sha256:{}", "d".repeat(64)).parse().unwrap());
    record.diff_size = Some(1);
    record
}

/// The view with one layer and an image.
fn view() -> StoreFacts {
    let id = layer('a');
    let mut image = ImageRecord::new("b".repeat(64).parse().unwrap());
    image.names = vec!["localhost/app:1".into()];
    image.layer = Some(id.clone());
    let directory = LayerDirectory {
        link: LINK.into(),
        diff: Diff::Link("/run/composefs-store/x".into()),
        ..LayerDirectory::default()
    };
    StoreFacts {
        path: "/repo/composefs-store/podman".into(),
        ours: Some("/repo/composefs-store/podman-store".into()),
        exists: true,
        images: 1,
        layers: 1,
        image_records: vec![image],
        layer_records: vec![record('a', None)],
        directories: [(id.to_string(), directory)].into(),
        links: [(
            LINK.to_owned(),
            Path::new("..").join(id.as_str()).join("diff"),
        )]
        .into(),
        tar_splits: [id.to_string()].into(),
        ..StoreFacts::default()
    }
}

/// A host on which all is well, with one image in the layout blob and a container on it.
fn healthy() -> Facts {
    let mut container = record('c', Some('a'));
    container.diff_digest = None;
    let version = Version::new(5, 8);
    Facts {
        repository: RepositoryFacts {
            path: "/repo".into(),
            view: "/repo/composefs-store/podman".into(),
            store: "/repo/composefs-store/podman-store".into(),
            objects: "/repo/objects".into(),
            secure: false,
            blob_layers: 1,
            mounted_layers: 0,
        },
        kernel: Some(KernelFacts {
            release: "6.18".into(),
            missing_filesystem: None,
            file_backed_erofs: true,
            loop_devices: true,
            data_only_layers: true,
            overlay_verity: true,
            overlay_on_container: true,
            idmapped_store: true,
        }),
        filesystem: Some(FilesystemFacts {
            kind: "xfs".into(),
            reflink: Some(true),
            verity: None,
            free_bytes: 1 << 40,
            bytes: 1 << 41,
            free_inodes: Some(1 << 30),
            graphroot_elsewhere: None,
            objects_mode: None,
        }),
        podman: Some(PodmanFacts {
            version,
            storage: None,
            rules: ConfRules::SingleFile,
            failure: None,
            info: Some(Info {
                graphroot: "/var/lib/containers/storage".into(),
                runroot: "/run/containers/storage".into(),
                native_diff: Some(false),
                ..Info::default()
            }),
        }),
        confs: vec![conf("root", 0, CONF)],
        stores: vec![view()],
        published: Ok(PublishedFacts {
            view: ViewMount::Ours,
            moved_from: None,
            mounts: [(layer('a'), LayerMount::Right)].into(),
            faults: Vec::new(),
        }),
        main: Some(MainFacts {
            graphroot: "/var/lib/containers/storage".into(),
            layers: vec![container],
            directories: [(layer('c').to_string(), Some(format!("l/{LINK}")))].into(),
            ..MainFacts::default()
        }),
        units: UnitFacts {
            systemd: true,
            enabled: [units::MOUNTS, "composefs-store-gc.timer"]
                .map(str::to_owned)
                .into(),
            mounts_repository: Some("/repo".into()),
            ..UnitFacts::default()
        },
        selinux: SelinuxFacts {
            mode: Mode::Off,
            labels: Vec::new(),
        },
    }
}

/// What is found that is worse than a note.
fn problems(facts: &Facts) -> Vec<(Kind, Severity)> {
    diagnose(facts)
        .into_iter()
        .filter(|finding| finding.severity < Severity::Note)
        .map(|finding| (finding.finding, finding.severity))
        .collect()
}

fn notes(facts: &Facts) -> Vec<Kind> {
    let findings = diagnose(facts).into_iter();
    findings
        .filter(|finding| finding.severity == Severity::Note)
        .map(|finding| finding.finding)
        .collect()
}

fn published(facts: &mut Facts) -> &mut PublishedFacts {
    facts.published.as_mut().unwrap()
}

fn set_conf(facts: &mut Facts, text: &str) {
    facts.confs[0] = conf("root", 0, text);
}

#[test]
fn a_healthy_host_has_no_problem() {
    let facts = healthy();
    assert_eq!(problems(&facts), []);
    // The one thing that has to be known.
    assert_eq!(notes(&facts), [Kind::SystemCheck]);
}

/// A change of a healthy host, and what has to be found then.
type Bad = (Kind, Severity, fn(&mut Facts));

const BAD: &[Bad] = &[
    (Kind::KernelFilesystem, Severity::Error, |facts| {
        facts.kernel.as_mut().unwrap().missing_filesystem = Some("erofs");
    }),
    (Kind::KernelDataOnly, Severity::Error, |facts| {
        facts.kernel.as_mut().unwrap().data_only_layers = false;
    }),
    (Kind::KernelLoop, Severity::Error, |facts| {
        let kernel = facts.kernel.as_mut().unwrap();
        (kernel.file_backed_erofs, kernel.loop_devices) = (false, false);
    }),
    (Kind::KernelVerity, Severity::Error, |facts| {
        facts.repository.secure = true;
        facts.kernel.as_mut().unwrap().overlay_verity = false;
    }),
    (Kind::NoVerity, Severity::Error, |facts| {
        facts.repository.secure = true;
        facts.filesystem.as_mut().unwrap().verity = Some(false);
    }),
    (Kind::LowSpace, Severity::Warning, |facts| {
        facts.filesystem.as_mut().unwrap().free_bytes = 1 << 20;
    }),
    (Kind::LowInodes, Severity::Warning, |facts| {
        facts.filesystem.as_mut().unwrap().free_inodes = Some(10);
    }),
    (Kind::ObjectsMode, Severity::Error, |facts| {
        facts.filesystem.as_mut().unwrap().objects_mode = Some("0700".into());
    }),
    (Kind::NoPodman, Severity::Warning, |facts| {
        facts.podman = None;
    }),
    (Kind::PodmanTooOld, Severity::Error, |facts| {
        facts.podman.as_mut().unwrap().version = Version::new(4, 9);
    }),
    (Kind::PodmanFails, Severity::Error, |facts| {
        facts.podman.as_mut().unwrap().failure = Some("no".into());
    }),
    (Kind::OtherRoots, Severity::Warning, |facts| {
        let podman = facts.podman.as_mut().unwrap();
        podman.info.as_mut().unwrap().graphroot = "/old".into();
    }),
    (Kind::NativeDiff, Severity::Error, |facts| {
        let podman = facts.podman.as_mut().unwrap();
        podman.info.as_mut().unwrap().native_diff = Some(true);
    }),
    (Kind::NativeDiff, Severity::Error, |facts| {
        set_conf(facts, &CONF.replace(",metacopy=on", ""));
    }),
    (Kind::ConfUnreadable, Severity::Error, |facts| {
        facts.main = None;
        set_conf(facts, "[");
    }),
    (Kind::OtherDriver, Severity::Error, |facts| {
        set_conf(facts, &CONF.replace("\"overlay\"", "\"vfs\""));
    }),
    (Kind::MountProgram, Severity::Error, |facts| {
        set_conf(
            facts,
            &format!("{CONF}mount_program = \"/usr/bin/fuse-overlayfs\"\n"),
        );
    }),
    (Kind::WritableStore, Severity::Error, |facts| {
        set_conf(facts, &CONF.replace("/podman\"", "/podman-store\""));
        facts.main = None;
    }),
    (Kind::NotConfigured, Severity::Warning, |facts| {
        set_conf(facts, &CONF.replace("/repo/", "/other/"));
        facts.main = None;
    }),
    (Kind::VerityInsecure, Severity::Error, |facts| {
        set_conf(
            facts,
            &CONF.replace("metacopy=on", "metacopy=on,verity=require"),
        );
    }),
    (Kind::OptionsReplaced, Severity::Warning, |facts| {
        facts.confs[0].overriding = vec!["STORAGE_OPTS"];
    }),
    (Kind::RootlessStore, Severity::Error, |facts| {
        facts
            .confs
            .push(conf("ann", 1000, &CONF.replace(",metacopy=on", "")));
    }),
    (Kind::RootlessMountopt, Severity::Error, |facts| {
        facts
            .confs
            .push(conf("ann", 1000, &CONF.replace("/repo/", "/other/")));
    }),
    (Kind::StoreMissing, Severity::Error, |facts| {
        facts.main = None;
        facts.stores = vec![StoreFacts {
            path: facts.repository.view.clone(),
            ours: Some(facts.repository.store.clone()),
            ..StoreFacts::default()
        }];
    }),
    (Kind::StoreNoLock, Severity::Error, |facts| {
        let lock = facts.stores[0].path.join("overlay-layers/layers.lock");
        facts.stores[0].missing_locks.push(lock);
    }),
    (Kind::StoreUnreadable, Severity::Error, |facts| {
        facts.stores[0].unreadable.push("broken".into());
    }),
    (Kind::StoreUnreadable, Severity::Error, |facts| {
        facts.published = Err("broken".into());
    }),
    (Kind::StoreDuplicate, Severity::Error, |facts| {
        let mut other = facts.stores[0].image_records[0].clone();
        other.id = "e".repeat(64).parse().unwrap();
        facts.stores[0].image_records.push(other);
    }),
    (Kind::StorePair, Severity::Error, |facts| {
        let directory = LayerDirectory::default();
        facts.stores[0]
            .directories
            .insert(layer('f').to_string(), directory);
    }),
    (Kind::StorePair, Severity::Error, |facts| {
        facts.main = None;
        facts.stores[0].directories.clear();
    }),
    (Kind::StoreLink, Severity::Error, |facts| {
        facts.stores[0]
            .links
            .insert(LINK.into(), "../x/diff".into());
    }),
    (Kind::StoreLayer, Severity::Error, |facts| {
        for directory in facts.stores[0].directories.values_mut() {
            directory.missing = vec!["empty"];
        }
    }),
    (Kind::StoreLayer, Severity::Error, |facts| {
        for directory in facts.stores[0].directories.values_mut() {
            directory.lower = true;
        }
    }),
    (Kind::StoreLayer, Severity::Warning, |facts| {
        facts.stores[0].tar_splits.clear();
    }),
    (Kind::StoreLocked, Severity::Warning, |facts| {
        facts.stores[0].locked.insert("/lock".into(), Some(7));
    }),
    (Kind::SameLink, Severity::Error, |facts| {
        facts.stores.push(StoreFacts {
            path: "/other".into(),
            exists: true,
            links: facts.stores[0].links.clone(),
            ..StoreFacts::default()
        });
    }),
    (Kind::SameName, Severity::Warning, |facts| {
        let mut image = facts.stores[0].image_records[0].clone();
        image.id = "e".repeat(64).parse().unwrap();
        facts.main.as_mut().unwrap().images.push(image);
    }),
    (Kind::HiddenName, Severity::Warning, |facts| {
        let mut image = facts.stores[0].image_records[0].clone();
        image.names = vec!["localhost/own:1".into()];
        facts.main.as_mut().unwrap().images.push(image);
    }),
    (Kind::ViewNotMounted, Severity::Error, |facts| {
        published(facts).view = ViewMount::None;
    }),
    (Kind::ForeignMount, Severity::Error, |facts| {
        published(facts).view = ViewMount::Other("tmpfs".into());
    }),
    (Kind::ForeignMount, Severity::Error, |facts| {
        let mount = LayerMount::Other("/run/x".into());
        published(facts).mounts.insert(layer('a'), mount);
    }),
    (Kind::StoreMoved, Severity::Error, |facts| {
        published(facts).moved_from = Some("/old".into());
    }),
    (Kind::LayerNotMounted, Severity::Error, |facts| {
        let mount = LayerMount::Missing("/run/x".into());
        published(facts).mounts.insert(layer('a'), mount);
    }),
    (Kind::LayerDamaged, Severity::Error, |facts| {
        published(facts).faults.push(Fault {
            path: "/x".into(),
            problem: "broken".into(),
        });
    }),
    (Kind::IncompleteLayer, Severity::Error, |facts| {
        let main = facts.main.as_mut().unwrap();
        let mut record = record('a', None);
        record.flags.incomplete = true;
        main.layers = vec![record];
        main.directories.clear();
    }),
    (Kind::LostParent, Severity::Error, |facts| {
        facts.main.as_mut().unwrap().layers[0].parent = Some(layer('9'));
    }),
    (Kind::DanglingLower, Severity::Error, |facts| {
        let directories = &mut facts.main.as_mut().unwrap().directories;
        directories.insert(layer('c').to_string(), Some("l/OLD:l/OLDER".into()));
    }),
    (Kind::UnitDisabled, Severity::Warning, |facts| {
        facts.units.enabled.clear();
    }),
    (Kind::UnitDisabled, Severity::Warning, |facts| {
        facts.repository.blob_layers = 0;
        facts.repository.mounted_layers = 1;
        facts.repository.secure = true;
        facts.stores[0].verified_images = 1;
    }),
    (Kind::VerityOff, Severity::Error, |facts| {
        facts.repository.secure = true;
        facts.stores[0].verified_images = 1;
        facts.units.systemd = false;
    }),
    (Kind::UnitOtherRepository, Severity::Warning, |facts| {
        facts.units.mounts_repository = None;
    }),
    (Kind::OptionsReplaced, Severity::Warning, |facts| {
        let line = "ExecStart=podman --root /x".to_owned();
        facts.units.dropping.push(("/etc/x.service".into(), line));
    }),
    (Kind::ImageCollector, Severity::Warning, |facts| {
        facts.units.enabled.insert("crio.service".into());
    }),
    (Kind::SelinuxLabel, Severity::Warning, |facts| {
        facts.selinux.mode = Mode::Enforcing;
        let label = "system_u:object_r:unlabeled_t:s0".to_owned();
        facts
            .selinux
            .labels
            .push(("/repo/objects".into(), Some(label)));
    }),
];

#[test]
fn each_bad_host_has_its_finding_and_no_other() {
    for (kind, severity, change) in BAD {
        let mut facts = healthy();
        change(&mut facts);
        assert_eq!(problems(&facts), [(*kind, *severity)], "{}", kind.name());
    }
}

/// The same for what is only told.
type Note = (Kind, fn(&mut Facts));

#[test]
fn what_works_less_well_is_a_note() {
    let bad: &[Note] = &[
        (Kind::NotRoot, |facts| facts.kernel = None),
        (Kind::KernelLoop, |facts| {
            facts.kernel.as_mut().unwrap().file_backed_erofs = false;
        }),
        (Kind::KernelStacking, |facts| {
            facts.kernel.as_mut().unwrap().overlay_on_container = false;
        }),
        (Kind::KernelIdmap, |facts| {
            facts.kernel.as_mut().unwrap().idmapped_store = false;
        }),
        (Kind::NoReflink, |facts| {
            facts.filesystem.as_mut().unwrap().reflink = Some(false);
        }),
        (Kind::OtherFilesystem, |facts| {
            facts.filesystem.as_mut().unwrap().graphroot_elsewhere = Some("/other".into());
        }),
        (Kind::NoVerity, |facts| {
            facts.filesystem.as_mut().unwrap().verity = Some(false);
        }),
        (Kind::VerityOff, |facts| facts.repository.secure = true),
        (Kind::MainStoreOptions, |facts| {
            set_conf(facts, &format!("{CONF}size = \"10G\"\n"));
        }),
        (Kind::SameLayer, |facts| {
            facts.main.as_mut().unwrap().layers.push(record('a', None));
        }),
    ];
    for (kind, change) in bad {
        let mut facts = healthy();
        change(&mut facts);
        assert_eq!(problems(&facts), [], "{}", kind.name());
        assert!(notes(&facts).contains(kind), "{}", kind.name());
    }
}

#[test]
fn an_image_built_on_a_store_that_is_not_configured_gets_the_line_back() {
    let mut facts = healthy();
    set_conf(
        &mut facts,
        &CONF.replace("\"/repo/composefs-store/podman\"", ""),
    );
    let findings = diagnose(&facts);
    let lost = findings
        .iter()
        .find(|it| it.finding == Kind::LostParent)
        .unwrap();
    match &lost.remedy {
        Remedy::Line { file, line, .. } => {
            assert_eq!(file, Path::new("/etc/containers/storage.conf"));
            assert_eq!(
                line,
                "additionalimagestores = [\"/repo/composefs-store/podman\"]"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn where_there_is_no_storage_conf_one_is_made_with_all_that_podman_needs() {
    let mut facts = healthy();
    let mut conf = StorageConf::parse("", Path::new("/x"), &Environment::default()).unwrap();
    conf.source = ConfSource::BuiltIn;
    facts.confs[0].conf = Ok(conf);
    facts.main = None;
    let findings = diagnose(&facts);
    let found = findings
        .iter()
        .find(|it| it.finding == Kind::NotConfigured)
        .unwrap();
    match &found.remedy {
        Remedy::Command { command, .. } => assert_eq!(
            command,
            "conf=$(composefs-store --repo /repo podman-conf --layout blob) && mkdir -p /etc/containers && \
             printf '%s\\n' \"$conf\" >/etc/containers/storage.conf"
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_writable_store_gives_way_to_the_view() {
    let mut facts = healthy();
    set_conf(&mut facts, &CONF.replace("/podman\"", "/podman-store\""));
    let findings = diagnose(&facts);
    let found = findings
        .iter()
        .find(|it| it.finding == Kind::WritableStore)
        .unwrap();
    match &found.remedy {
        Remedy::Line { line, .. } => assert_eq!(
            line,
            "additionalimagestores = [\"/repo/composefs-store/podman\"]"
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_finding_is_in_the_documentation() {
    let docs = include_str!("../../../docs/doctor.md");
    let tested = BAD.iter().map(|(kind, ..)| *kind);
    let others = [
        Kind::NotRoot,
        Kind::KernelStacking,
        Kind::KernelIdmap,
        Kind::NoReflink,
        Kind::OtherFilesystem,
        Kind::VerityOff,
        Kind::MainStoreOptions,
        Kind::SameLayer,
        Kind::SystemCheck,
    ];
    for kind in tested.chain(others) {
        let cell = format!("`{}`", kind.name());
        assert!(docs.contains(&cell), "{cell}");
    }
    for hazard in 1..=23 {
        assert!(docs.contains(&format!("| H{hazard} |")), "H{hazard}");
    }
}
