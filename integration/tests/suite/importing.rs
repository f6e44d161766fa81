//! How an import behaves: what it tells, how it stops, what it does beside others, and when it refuses.

use crate::crashes::{relative, staged};
use crate::peers::{cfsctl_json, cfsctl_ok};
use crate::scene::{IMAGE, Scene};
use anyhow::{Context, Result, bail, ensure};
use integration::fixture::noise;
use integration::locks::{Access, State, WriteLock, exists, wait_until};
use integration::tar::Member;
use integration::{Engine, Filesystem, Finished, Fixture, Kind, Peers, Podman, Release, Store, ok};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Three layers, one of them large, one of many files.
fn fixture(dir: &Path) -> Result<Fixture> {
    let large = (0..12).map(|n| Member::file(format!("large/{n}"), noise(900 + n, 4 << 20)));
    let many = (0..3000).map(|n| Member::file(format!("many/{n}"), noise(5000 + n, 80)));
    let last = vec![Member::file("last", noise(1, 100_000))];
    Fixture::with_layers(dir, vec![large.collect(), many.collect(), last])
}

fn scene() -> Result<Scene> {
    Scene::new(Release::Host, Kind::Xfs, fixture)
}

/// Every line of standard error as JSON.
fn events(stderr: &str) -> Result<Vec<Value>> {
    stderr
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line:?}")))
        .collect()
}

fn event_is(event: &Value, name: &str) -> bool {
    event["event"] == name
}

/// An import with `--progress json`, running.
pub(crate) struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    seen: Vec<Value>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("no pipe")?;
        Ok(Self {
            child,
            stderr: BufReader::new(stderr),
            seen: Vec::new(),
        })
    }

    fn of(scene: &Scene) -> Result<Self> {
        let mut arguments = vec!["--progress".to_owned(), "json".to_owned()];
        arguments.extend(scene.import_arguments());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Self::start(&mut scene.store.command(&arguments)?)
    }

    fn next(&mut self) -> Result<Option<Value>> {
        let mut line = String::new();
        if self.stderr.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let event: Value =
            serde_json::from_str(&line).with_context(|| format!("no JSON: {line:?}"))?;
        self.seen.push(event.clone());
        Ok(Some(event))
    }

    /// Reads to the first event that fits.
    pub(crate) fn until(&mut self, fits: impl Fn(&Value) -> bool) -> Result<()> {
        while let Some(event) = self.next()? {
            if fits(&event) {
                return Ok(());
            }
        }
        bail!("the import ended first: {:?}", self.seen)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn interrupt(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::INT)?)
    }

    /// Reads to the end; gives the last event and the status.
    pub(crate) fn end(mut self) -> Result<(Value, ExitStatus)> {
        while self.next()?.is_some() {}
        let status = self.child.wait()?;
        let ends = self.seen.iter().filter(|event| event_is(event, "end"));
        assert_eq!(ends.count(), 1, "{:?}", self.seen);
        Ok((self.seen.pop().context("no event")?, status))
    }
}

/// Whether the image is in the repository, which must be sound in either case.
fn is_there(store: &Store) -> Result<bool> {
    store.ok(&["fsck"])?;
    ensure!(staged(store) == 0, "staged files are left");
    let images: Value = serde_json::from_slice(&store.ok(&["--json", "images"])?.stdout)?;
    let images = images["images"].as_array().context("no list")?;
    Ok(!images.is_empty())
}

fn assert_interrupted(end: &Value, status: ExitStatus) {
    assert_eq!(status.code(), Some(130), "{end}");
    assert_eq!(end["outcome"], "interrupted");
    assert_eq!(end["status"], 130);
}

#[test]
fn import_is_stopped_by_an_interrupt_at_any_time_and_leaves_nothing() -> Result<()> {
    let scene = scene()?;

    // While it waits for podman.
    let lock_file = scene.own.graphroot().join("overlay-layers/layers.lock");
    let lock = WriteLock::take(&lock_file)?;
    let mut import = Running::of(&scene)?;
    import.until(|event| event_is(event, "image"))?;
    wait_until("import waits for the read lock", LIMIT, || {
        exists(&lock_file, State::Waiting, Access::Read)
    })?;
    import.interrupt()?;
    let (end, status) = import.end()?;
    assert_interrupted(&end, status);
    drop(lock);
    ensure!(!is_there(&scene.store)?);

    // While it reads.
    let mut import = Running::of(&scene)?;
    import.until(|event| event_is(event, "layer-advanced"))?;
    import.interrupt()?;
    let (end, status) = import.end()?;
    assert_interrupted(&end, status);
    let message = end["error"].as_str().unwrap_or_default();
    ensure!(message.contains("nothing of the image"), "{end}");
    ensure!(!is_there(&scene.store)?);

    // Later it may be done before the signal arrives, but never half done.
    for stage in ["rootfs", "publish"] {
        let mut import = Running::of(&scene)?;
        import.until(|event| event_is(event, "stage") && event["stage"] == stage)?;
        import.interrupt()?;
        let (end, status) = import.end()?;
        if status.success() {
            assert_eq!(end["outcome"], "done");
            ensure!(is_there(&scene.store)?);
            scene.store.ok(&["untag", IMAGE])?;
            scene.store.ok(&["gc"])?;
        } else {
            assert_interrupted(&end, status);
            ensure!(
                !is_there(&scene.store)?,
                "the image is there, stopped at {stage}"
            );
        }
    }
    scene.import()?;
    ensure!(is_there(&scene.store)?);
    Ok(())
}

#[test]
fn import_is_stopped_by_an_interrupt_while_another_one_enters_its_image() -> Result<()> {
    let scene = scene()?;
    let staging = scene.store.repo().join("composefs-store/staging");
    std::fs::create_dir_all(&staging)?;
    // What an import holds while it enters an image.
    let lock = File::open(&staging)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let mut import = Running::of(&scene)?;
    import.until(|event| event_is(event, "stage") && event["stage"] == "publish")?;
    import.interrupt()?;
    let (end, status) = import.end()?;
    assert_interrupted(&end, status);
    drop(lock);
    ensure!(!is_there(&scene.store)?);
    assert_eq!(scene.store.objects()?, Vec::<std::path::PathBuf>::new());
    scene.import()?;
    ensure!(is_there(&scene.store)?);
    Ok(())
}

#[test]
fn progress_for_programs_is_json_whose_counts_add_up() -> Result<()> {
    let scene = scene()?;
    let [import, option, root, image] = scene.import_arguments();
    let arguments = [
        "--json",
        "--progress",
        "json",
        &import,
        &option,
        &root,
        &image,
    ];
    let done = scene.store.ok(&arguments)?;
    let report: Value = serde_json::from_slice(&done.stdout)?;
    let events = events(&done.stderr)?;
    assert_eq!(events[0]["event"], "begin");
    assert_eq!(events[0]["version"], 1);
    assert_eq!(events[0]["command"], "import");
    let imported = events.iter().find(|event| event_is(event, "imported"));
    assert_eq!(
        imported.context("no report")?["report"],
        report["imported"][0]
    );
    let end = events.last().context("no events")?;
    assert_eq!(
        *end,
        serde_json::json!({"event": "end", "outcome": "done", "status": 0, "error": null})
    );

    let mut counts: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut finished = 0;
    for event in &events {
        let number = |key: &str| {
            event[key]
                .as_u64()
                .with_context(|| format!("{key} of {event}"))
        };
        match event["event"].as_str() {
            Some("layer-started") => ensure!(
                counts.insert(number("layer")?, (0, 0)).is_none(),
                "{event} again"
            ),
            Some("layer-advanced") => {
                let now = (number("bytes")?, number("files")?);
                let before = counts
                    .insert(number("layer")?, now)
                    .context("not started")?;
                ensure!(
                    now.0 >= before.0 && now.1 >= before.1,
                    "{before:?}, then {event}"
                );
            }
            Some("layer-finished") => {
                finished += 1;
                let count = counts.get(&number("layer")?).context("not started")?;
                assert_eq!(event["report"]["tar_bytes"], count.0);
            }
            _ => {}
        }
    }
    assert_eq!(finished, 4);
    let stages: Vec<_> = events
        .iter()
        .filter(|event| event_is(event, "stage"))
        .filter_map(|event| event["stage"].as_str())
        .collect();
    assert_eq!(stages, ["check", "layers", "rootfs", "publish"]);

    for command in ["fsck", "gc"] {
        let done = scene.store.ok(&["--progress", "json", command])?;
        let events = self::events(&done.stderr)?;
        let mut phase = None;
        for event in &events {
            match event["event"].as_str() {
                Some("phase") => phase = Some((event["phase"].clone(), 0)),
                Some("phase-advanced") => {
                    let (name, before) = phase.as_mut().context("no phase")?;
                    assert_eq!(event["phase"], *name);
                    let done = event["done"].as_u64().context("no count")?;
                    ensure!(done > *before, "{events:?}");
                    *before = done;
                }
                _ => {}
            }
        }
        ensure!(phase.is_some(), "{command} told no phase: {events:?}");
        assert_eq!(events.last().context("no events")?["outcome"], "done");
    }

    // Failing is told in the same way, and nothing else is among the lines.
    let failed = scene
        .store
        .finish(&["--progress", "json", "import", "nonsense"])?
        .refused()?;
    let last = self::events(&failed.stderr)?.pop().context("no events")?;
    assert_eq!(last["outcome"], "failed");
    ensure!(
        last["error"]
            .as_str()
            .is_some_and(|text| text.contains("nonsense")),
        "{last}"
    );
    Ok(())
}

#[test]
fn progress_is_silent_in_a_pipe_and_plain_on_request() -> Result<()> {
    let scene = scene()?;
    let [import, option, root, image] = scene.import_arguments();
    let words = [import.as_str(), &option, &root, &image];
    let plain = scene
        .store
        .ok(&[&["--progress", "plain"], words.as_slice()].concat())?;
    for line in ["reading layers", "layer 4 of 4", "making it durable"] {
        ensure!(plain.stderr.contains(line), "{plain}");
    }
    for summary in ["reflinked", "copied", "present", "inlined", "time"] {
        ensure!(plain.text().contains(summary), "{plain}");
    }
    let silent = scene.store.ok(&words)?;
    assert_eq!(silent.stderr, "");
    Ok(())
}

#[test]
fn imports_at_the_same_time_do_not_disturb_each_other() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, |dir| {
        let shared = (0..200).map(|n| Member::file(format!("s/{n}"), noise(n, 3000)));
        Fixture::with_layers(dir, vec![shared.collect()])
    })?;
    // Another image with the same layers below; and the same layers compressed in another way, which
    // is another manifest with the same config.
    let other = Fixture::with_layers(
        &scene.disk.path().join("other-layout"),
        vec![
            (0..200)
                .map(|n| Member::file(format!("s/{n}"), noise(n, 3000)))
                .collect(),
            vec![Member::file("more", noise(7, 70_000))],
        ],
    )?;
    scene.own.load(other.layout(), "localhost/other:1")?;
    let recompressed = scene.disk.path().join("recompressed");
    ok(scene
        .own
        .command("skopeo")
        .args([
            "copy",
            "--quiet",
            "--dest-compress-format",
            "zstd",
            "--dest-compress",
        ])
        .arg(format!("oci:{}:latest", scene.fixture.layout().display()))
        .arg(format!("oci:{}:latest", recompressed.display())))?;
    let second = Podman::new(
        &scene.machine,
        &scene.disk.path().join("second"),
        &Engine::default(),
    )?;
    second.load(&recompressed, "localhost/recompressed:1")?;

    let first_root = scene.own.graphroot().display().to_string();
    let second_root = second.graphroot().display().to_string();
    let jobs = [
        (&first_root, IMAGE),
        (&second_root, "localhost/recompressed:1"),
        (&first_root, "localhost/other:1"),
    ];
    let mut running = Vec::new();
    for _ in 0..3 {
        for (root, image) in jobs {
            let arguments = [
                "--progress",
                "json",
                "import",
                "--storage-root",
                root,
                image,
            ];
            running.push(Running::start(&mut scene.store.command(&arguments)?)?);
        }
    }
    for import in running {
        let (end, status) = import.end()?;
        ensure!(status.success(), "{end}");
    }

    // The objects are those of the same imports one after the other.
    let one_by_one = Store::init(&scene.machine, &scene.disk.path().join("one-by-one"))?;
    for (root, image) in jobs {
        one_by_one.ok(&["import", "--storage-root", root, image])?;
    }
    for store in [&scene.store, &one_by_one] {
        store.ok(&["gc"])?;
        ensure!(is_there(store)?);
    }
    assert_eq!(relative(&scene.store)?, relative(&one_by_one)?);

    // What shares a config survives the other's end, in our eyes and those of composefs-rs.
    scene.store.ok(&["untag", IMAGE])?;
    cfsctl_ok(scene.store.repo(), &["gc"])?;
    scene.store.ok(&["gc"])?;
    ensure!(is_there(&scene.store)?);
    cfsctl_ok(scene.store.repo(), &["oci", "fsck"])?;
    for image in ["localhost/recompressed:1", "localhost/other:1"] {
        cfsctl_json(scene.store.repo(), &["oci", "inspect", image])?;
    }
    Ok(())
}

/// A scene's image, and an empty repository on a filesystem of its own.
fn elsewhere(scene: &Scene, kind: Kind, megabytes: u64) -> Result<(Filesystem, Store)> {
    let disk = Filesystem::new(&Peers::from_env()?, kind, megabytes)?;
    let store = Store::init(&scene.machine, &disk.path().join("repository"))?;
    Ok((disk, store))
}

fn import_into(store: &Store, scene: &Scene) -> Result<Finished> {
    let [import, option, root, image] = scene.import_arguments();
    store.finish(&["--progress", "json", &import, &option, &root, &image])
}

/// Fills the filesystem under `dir` up to about `left` bytes.
fn fill(dir: &Path, left: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)?;
    let size = (stat.f_bavail * stat.f_frsize).saturating_sub(left);
    ok(Command::new("fallocate")
        .args(["--length", &size.to_string()])
        .arg(dir.join("filling")))?;
    Ok(())
}

#[test]
fn import_refuses_before_reading_where_there_is_no_room() -> Result<()> {
    let scene = scene()?;
    let (_disk, store) = elsewhere(&scene, Kind::Ext4, 40)?;
    let refused = import_into(&store, &scene)?.refused_with(&["no room", "MiB are needed"])?;
    ensure!(!refused.stderr.contains("layer-started"), "{refused}");
    ensure!(!is_there(&store)?);

    // On a full filesystem that clones, the same image fits.
    fill(scene.disk.path(), 16 << 20)?;
    scene.import()?;
    ensure!(is_there(&scene.store)?);
    Ok(())
}

#[test]
fn import_refuses_before_reading_where_there_are_no_inodes() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Xfs, |dir| {
        let many = (0..9000).map(|n| Member::file(format!("many/{n}"), noise(5000 + n, 80)));
        Fixture::with_layers(dir, vec![many.collect()])
    })?;
    // ext4 has an inode for 16 KiB, or for 4 KiB on small disks.
    let (_disk, store) = elsewhere(&scene, Kind::Ext4, 32)?;
    let refused = import_into(&store, &scene)?.refused_with(&["no room", "inodes are needed"])?;
    ensure!(!refused.stderr.contains("layer-started"), "{refused}");
    ensure!(!is_there(&store)?);
    Ok(())
}

#[test]
fn import_that_runs_out_of_space_publishes_nothing() -> Result<()> {
    let image = |dir: &Path, seed: u64| {
        let files = (0..8).map(|n| Member::file(format!("f/{n}"), noise(seed + n, 2 << 20)));
        Fixture::with_layers(dir, vec![files.collect()])
    };
    let scene = Scene::new(Release::Host, Kind::Xfs, |dir| image(dir, 100))?;
    // What an image of files of the same sizes has brought may be what is missing, for all that can be
    // told before reading.
    let other = image(&scene.disk.path().join("other-layout"), 200)?;
    scene.own.load(other.layout(), "localhost/other:1")?;
    let (disk, store) = elsewhere(&scene, Kind::Ext4, 64)?;
    let root = scene.own.graphroot().display().to_string();
    store.ok(&["import", "--storage-root", &root, "localhost/other:1"])?;
    let before = relative(&store)?;
    fill(disk.path(), 8 << 20)?;
    let failed = import_into(&store, &scene)?.refused_with(&["No space left on device"])?;
    ensure!(failed.stderr.contains("layer-started"), "{failed}");
    std::fs::remove_file(disk.path().join("filling"))?;
    ensure!(is_there(&store)?);
    assert_eq!(relative(&store)?, before);
    let again = import_into(&store, &scene)?.success()?;
    ensure!(again.stderr.contains("imported"), "{again}");
    ensure!(is_there(&store)?);
    Ok(())
}

#[test]
fn import_copies_where_the_settings_of_files_forbid_clones() -> Result<()> {
    let scene = Scene::new(Release::Host, Kind::Btrfs, fixture)?;
    // btrfs gives EINVAL where only one of two files has checksums.
    let dir = scene.disk.path().join("without-checksums");
    std::fs::create_dir(&dir)?;
    ok(Command::new("chattr").arg("+C").arg(&dir))?;
    let store = Store::init(&scene.machine, &dir.join("repository"))?;
    let [import, option, root, image] = scene.import_arguments();
    let words = ["--json", &import, &option, &root, &image];
    store
        .finish(&[&words[..], &["--no-copy"]].concat())?
        .refused_with(&["Invalid argument"])?;
    let done = store.ok(&words)?;
    let report: Value = serde_json::from_slice(&done.stdout)?;
    let total = &report["imported"][0]["total"];
    ensure!(
        total["reflinked"]["files"] == 0 && total["copied"]["files"].as_u64() > Some(3000),
        "{total}"
    );
    ensure!(is_there(&store)?);
    Ok(())
}
