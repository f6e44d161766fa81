use tempfile::TempDir;

use super::*;

fn environment(uid: u32, variables: &[(&str, &str)]) -> Environment {
    Environment {
        uid,
        variables: variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
    }
}

fn parse(text: &str, environment: &Environment) -> StorageConf {
    StorageConf::parse(text, Path::new("/etc/containers/storage.conf"), environment).unwrap()
}

/// A system with these files.
fn system(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn discover_single(sysroot: &Path, environment: &Environment) -> Result<StorageConf, ConfError> {
    StorageConf::discover_below(sysroot, environment, ConfRules::SingleFile)
}

fn discover_drop_ins(sysroot: &Path, environment: &Environment) -> StorageConf {
    StorageConf::discover_below(sysroot, environment, ConfRules::DropIns).unwrap()
}

const ETC: &str = "etc/containers/storage.conf";
const USR: &str = "usr/share/containers/storage.conf";

#[test]
fn a_complete_file_is_understood() {
    let conf = parse(
        r#"
        [storage]
        driver = "overlay2"
        graphroot = "/srv/graph"
        runroot = "/srv/run"
        imagestore = "/srv/images"
        transient_store = true
        something_new = { a = 1 }
        [storage.options]
        additionalimagestores = ["/usr/lib/containers/storage", "/a/,/b"]
        pull_options = { enable_partial_images = "true" }
        [storage.options.overlay]
        mountopt = "nodev,metacopy=on"
        use_composefs = "true"
        mount_program = "/usr/bin/fuse-overlayfs"
        force_mask = "0700"
        "#,
        &Environment::default(),
    );
    assert_eq!(conf.driver.as_deref(), Some("overlay"));
    assert_eq!(conf.graphroot, Path::new("/srv/graph"));
    assert_eq!(conf.runroot, Path::new("/srv/run"));
    assert_eq!(conf.imagestore.as_deref(), Some(Path::new("/srv/images")));
    assert!(conf.transient_store);
    assert_eq!(
        conf.additional_image_stores,
        ["/usr/lib/containers/storage", "/a", "/b"].map(PathBuf::from)
    );
    let overlay = conf.overlay_options();
    assert!(overlay.has_mount_option("metacopy=on") && !overlay.has_mount_option("metacopy"));
    assert!(overlay.use_composefs);
    assert_eq!(
        overlay.mount_program.as_deref(),
        Some(Path::new("/usr/bin/fuse-overlayfs"))
    );
    assert_eq!(overlay.force_mask.as_deref(), Some("0700"));
}

#[test]
fn an_empty_file_means_the_defaults() {
    let conf = parse("", &Environment::default());
    assert_eq!(conf.graphroot, Path::new(DEFAULT_GRAPHROOT));
    assert_eq!(conf.driver, None);
    assert_eq!(conf.overlay_options().naive_diff(), None);
}

#[test]
fn the_reasons_for_naive_diff_are_told_apart() {
    let reason = |options: &str| {
        parse(
            &format!("[storage.options.overlay]\n{options}"),
            &Environment::default(),
        )
        .overlay_options()
        .naive_diff()
    };
    assert_eq!(reason(r#"mountopt = "nodev""#), None);
    assert_eq!(reason(r#"mountopt = "nodev,metacopy=off""#), None);
    assert_eq!(
        reason(r#"mountopt = "nodev,metacopy=on""#),
        Some(NaiveDiffReason::MountOption)
    );
    assert_eq!(
        reason(r#"mountopt = "redirect_dir=on""#),
        Some(NaiveDiffReason::MountOption)
    );
    assert_eq!(
        reason(r#"mount_program = "/bin/x""#),
        Some(NaiveDiffReason::MountProgram)
    );
    assert_eq!(
        reason("use_composefs = true"),
        Some(NaiveDiffReason::UseComposefs)
    );
}

#[test]
fn older_places_of_overlay_options_count_where_the_newer_are_unset() {
    let text = "[storage.options]\nmountopt = \"old\"\nmount_program = \"/bin/old\"\n";
    let conf = parse(text, &Environment::default());
    assert_eq!(conf.overlay_options().mountopt, "old");
    assert_eq!(
        conf.overlay_options().mount_program.as_deref(),
        Some(Path::new("/bin/old"))
    );
    let conf = parse(
        &format!("{text}[storage.options.overlay]\nmountopt = \"new\""),
        &Environment::default(),
    );
    assert_eq!(conf.overlay_options().mountopt, "new");
}

#[test]
fn values_that_podman_refuses_are_errors_that_name_file_and_key() {
    for (text, part) in [
        ("[storage", "not a valid storage.conf"),
        ("[storage]\ngraphroot = 3", "not a valid storage.conf"),
        (
            "[storage]\ngraphroot = \"/x/g\"\nimagestore = \"/x/g\"",
            "imagestore",
        ),
        (
            "[storage.options]\nadditionalimagestores = [\"a/b\"]",
            "additionalimagestores",
        ),
        (
            "[storage.options.overlay]\nuse_composefs = \"maybe\"",
            "use_composefs",
        ),
    ] {
        let path = Path::new("/some/storage.conf");
        let error = StorageConf::parse(text, path, &Environment::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(part) && error.contains("/some/storage.conf"),
            "{text}: {error}"
        );
    }
}

#[test]
fn storage_driver_and_storage_opts_replace_what_the_file_says() {
    let text = "[storage]\ndriver = \"vfs\"\n[storage.options]\nadditionalimagestores = [\"/file\"]\n\
                [storage.options.overlay]\nmountopt = \"nodev\"\n";
    let opts =
        "overlay.imagestore=/one,additionalimagestore=/two,.mountopt=metacopy=on,overlay.size=3";
    let conf = parse(
        text,
        &environment(0, &[("STORAGE_DRIVER", "overlay"), ("STORAGE_OPTS", opts)]),
    );
    assert_eq!(conf.driver.as_deref(), Some("overlay"));
    assert_eq!(
        conf.additional_image_stores,
        ["/one", "/two"].map(PathBuf::from)
    );
    assert_eq!(conf.overlay_options().mountopt, "metacopy=on");
    // Set but empty replaces too; an empty driver does not.
    let conf = parse(
        text,
        &environment(0, &[("STORAGE_DRIVER", ""), ("STORAGE_OPTS", "")]),
    );
    assert_eq!(conf.driver.as_deref(), Some("vfs"));
    assert!(conf.additional_image_stores.is_empty());
    assert_eq!(conf.overlay_options().mountopt, "");
}

#[test]
fn for_root_the_file_in_etc_replaces_the_one_in_usr() {
    let both = system(&[
        (ETC, "[storage]\ngraphroot = \"/etc-graph\""),
        (USR, "[storage]\ndriver = \"vfs\""),
    ]);
    let conf = discover_single(both.path(), &environment(0, &[])).unwrap();
    assert_eq!(conf.source, ConfSource::File(both.path().join(ETC)));
    assert_eq!((conf.driver, conf.graphroot), (None, "/etc-graph".into()));
    fs::remove_file(both.path().join(ETC)).unwrap();
    let conf = discover_single(both.path(), &environment(0, &[])).unwrap();
    assert_eq!(conf.driver.as_deref(), Some("vfs"));
    fs::remove_file(both.path().join(USR)).unwrap();
    let conf = discover_single(both.path(), &environment(0, &[])).unwrap();
    assert_eq!(
        (conf.source, conf.graphroot),
        (ConfSource::BuiltIn, DEFAULT_GRAPHROOT.into())
    );
}

#[test]
fn the_file_that_the_environment_names_must_exist_and_counts_alone() {
    let files = system(&[
        (ETC, "[storage]\ndriver = \"vfs\""),
        ("mine", "[storage]\nrunroot = \"/mine\""),
    ]);
    let named = |path: &str| {
        let path = files.path().join(path);
        environment(0, &[("CONTAINERS_STORAGE_CONF", path.to_str().unwrap())])
    };
    let conf = discover_single(files.path(), &named("mine")).unwrap();
    assert_eq!((conf.driver, conf.runroot), (None, "/mine".into()));
    let error = discover_single(files.path(), &named("missing")).unwrap_err();
    assert!(matches!(error, ConfError::Read { .. }));
}

#[test]
fn a_user_without_a_file_takes_over_only_the_driver_and_the_path_for_users() {
    let text = "[storage]\ndriver = \"overlay\"\ngraphroot = \"/root-only\"\n\
                rootless_storage_path = \"/users/$UID\"\n[storage.options]\n\
                additionalimagestores = [\"/shared\"]\n[storage.options.overlay]\nmountopt = \"nodev\"\n";
    let files = system(&[
        (ETC, text),
        (
            "home/.config/containers/storage.conf",
            "[storage]\ndriver = \"mine\"",
        ),
    ]);
    let home = files.path().join("home");
    let user = |home: &Path| {
        environment(
            7,
            &[
                ("HOME", home.to_str().unwrap()),
                ("XDG_RUNTIME_DIR", "/run/user/7"),
            ],
        )
    };
    let conf = discover_single(files.path(), &user(Path::new("/nobody"))).unwrap();
    assert_eq!(conf.driver.as_deref(), Some("overlay"));
    assert_eq!(conf.graphroot, Path::new("/users/7"));
    assert_eq!(conf.runroot, Path::new("/run/user/7/containers"));
    assert!(conf.additional_image_stores.is_empty());
    assert_eq!(conf.overlay_options(), &OverlayOptions::default());
    // With a file of their own, nothing of the system's counts.
    let conf = discover_single(files.path(), &user(&home)).unwrap();
    assert_eq!(conf.driver.as_deref(), Some("mine"));
    assert_eq!(conf.graphroot, home.join(".local/share/containers/storage"));
}

#[test]
fn a_root_named_by_the_caller_has_no_options_and_no_additional_stores() {
    let conf = StorageConf::for_root(
        Path::new("/srv/x"),
        &environment(0, &[("STORAGE_OPTS", "imagestore=/a")]),
    );
    assert_eq!(conf.graphroot, Path::new("/srv/x"));
    assert!(conf.additional_image_stores.is_empty() && conf.imagestore.is_none());
}

#[test]
fn drop_ins_lie_on_top_of_the_main_file_in_the_order_of_their_names() {
    let driver = |text: &str| format!("[storage]\ndriver=\"{text}\"\n");
    let system = system(&[
        (USR, "[storage]\ndriver=\"usr\"\nrunroot=\"/usr-run\"\n"),
        (ETC, "[storage]\ndriver=\"etc\"\ngraphroot=\"/etc-graph\"\n"),
        (
            "usr/share/containers/storage.conf.d/90-last.conf",
            &driver("last"),
        ),
        (
            "etc/containers/storage.conf.d/10-first.conf",
            &driver("first"),
        ),
        (
            "etc/containers/storage.conf.d/95-other.txt",
            &driver("no conf"),
        ),
        (
            "usr/share/containers/storage.rootful.conf.d/50.conf",
            "[storage]\nrunroot=\"/replaced\"",
        ),
        (
            "etc/containers/storage.rootful.conf.d/50.conf",
            "[storage]\nrunroot=\"/rootful\"",
        ),
        (
            "etc/containers/storage.rootless.conf.d/50.conf",
            "[storage]\nrunroot=\"/rootless\"",
        ),
        (
            "etc/containers/storage.rootless.conf.d/1000/60.conf",
            "[storage]\ngraphroot=\"/of-1000\"",
        ),
    ]);
    let link = system
        .path()
        .join("etc/containers/storage.conf.d/99-link.conf");
    std::os::unix::fs::symlink(system.path().join(ETC), link).unwrap();

    let none = environment(0, &[("HOME", "/nowhere")]);
    let root = discover_drop_ins(system.path(), &none);
    assert_eq!(root.driver.as_deref(), Some("last"));
    assert_eq!(root.graphroot, Path::new("/etc-graph"));
    assert_eq!(root.runroot, Path::new("/rootful"));
    let ConfSource::Files(files) = &root.source else {
        panic!("{}", root.source);
    };
    let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap()).collect();
    assert_eq!(
        names,
        ["storage.conf", "10-first.conf", "50.conf", "90-last.conf"]
    );

    let user = discover_drop_ins(system.path(), &environment(1000, &[("HOME", "/nowhere")]));
    assert_eq!(user.graphroot, Path::new("/of-1000"));
    assert_eq!(user.runroot, Path::new("/rootless"));
    // podman 5 knows none of that.
    let single = discover_single(system.path(), &none).unwrap();
    assert_eq!(single.driver.as_deref(), Some("etc"));
    assert!(!single.is_same_store(&root));
}

#[test]
fn a_list_of_a_drop_in_replaces_or_from_append_on_adds() {
    let stores = |list: &str| format!("[storage.options]\nadditionalimagestores=[{list}]\n");
    let system = system(&[
        (ETC, &stores("\"/main\"")),
        ("etc/containers/storage.conf.d/1.conf", &stores("\"/one\"")),
        (
            "etc/containers/storage.conf.d/2.conf",
            &stores("\"/two\", {append=true}"),
        ),
        (
            "etc/containers/storage.conf.d/3.conf",
            &stores("\"/three\""),
        ),
    ]);
    let home = system.path().join("home");
    let environment = environment(1000, &[("HOME", home.to_str().unwrap())]);
    let conf = discover_drop_ins(system.path(), &environment);
    // Users have the system's additional stores, too.
    let expected = ["/one", "/two", "/three"].map(PathBuf::from);
    assert_eq!(conf.additional_image_stores, expected);

    fs::create_dir_all(home.join(".config/containers/storage.conf.d")).unwrap();
    let own = home.join(".config/containers/storage.conf.d/4.conf");
    fs::write(own, stores("{append=false}, \"/own\"")).unwrap();
    let conf = discover_drop_ins(system.path(), &environment);
    assert_eq!(conf.additional_image_stores, [PathBuf::from("/own")]);
}

#[test]
fn a_named_file_replaces_drop_ins_and_an_override_lies_on_top_of_all() {
    let system = system(&[
        (ETC, "[storage]\ndriver=\"etc\""),
        (
            "etc/containers/storage.conf.d/1.conf",
            "[storage]\nrunroot=\"/drop-in\"",
        ),
        ("named.conf", "[storage]\ndriver=\"named\""),
        ("over.conf", "[storage]\ngraphroot=\"/over\""),
    ]);
    let path = |name: &str| system.path().join(name).to_str().unwrap().to_owned();
    let (named, over) = (path("named.conf"), path("over.conf"));
    let variables = [
        ("CONTAINERS_STORAGE_CONF", &*named),
        ("CONTAINERS_STORAGE_CONF_OVERRIDE", &*over),
    ];
    let conf = discover_drop_ins(system.path(), &environment(0, &variables));
    assert_eq!(conf.driver.as_deref(), Some("named"));
    assert_eq!(conf.graphroot, Path::new("/over"));
    assert_eq!(conf.runroot, Path::new(DEFAULT_RUNROOT));
    let conf = discover_drop_ins(system.path(), &environment(0, &variables[1..]));
    assert_eq!(conf.driver.as_deref(), Some("etc"));
    assert_eq!(
        (&*conf.graphroot, &*conf.runroot),
        (Path::new("/over"), Path::new("/drop-in"))
    );
    let missing = environment(0, &[("CONTAINERS_STORAGE_CONF_OVERRIDE", "/no/such.conf")]);
    let error = StorageConf::discover_below(system.path(), &missing, ConfRules::DropIns);
    assert!(matches!(error, Err(ConfError::Read { .. })), "{error:?}");
}

#[test]
fn storage_opts_count_without_any_file_only_by_the_newer_rules() {
    let system = system(&[]);
    let variables = [
        ("HOME", "/nowhere"),
        ("STORAGE_OPTS", "overlay.mountopt=nodev"),
    ];
    let environment = environment(0, &variables);
    let new = discover_drop_ins(system.path(), &environment);
    assert!(new.overlay_options().has_mount_option("nodev"));
    let old = discover_single(system.path(), &environment).unwrap();
    assert!(!old.overlay_options().has_mount_option("nodev"));
}

#[test]
fn a_drop_in_that_is_no_toml_is_named() {
    let name = "etc/containers/storage.conf.d/1.conf";
    let system = system(&[(ETC, "[storage]\n"), (name, "[storage")]);
    let none = environment(0, &[("HOME", "/nowhere")]);
    let error = StorageConf::discover_below(system.path(), &none, ConfRules::DropIns).unwrap_err();
    assert!(error.to_string().contains("1.conf"), "{error}");
}

#[test]
fn the_rules_are_those_of_podmans_major_version() {
    for (version, rules) in [
        ("podman version 4.3.1\n", ConfRules::SingleFile),
        ("podman version 5.8.0", ConfRules::SingleFile),
        ("podman version 6.0.0-dev", ConfRules::DropIns),
        ("podman version 10.1", ConfRules::DropIns),
        ("", ConfRules::DropIns),
    ] {
        assert_eq!(ConfRules::of_version(version), rules, "{version}");
    }
}
