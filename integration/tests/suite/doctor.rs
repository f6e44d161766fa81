//! `doctor` on real hosts: well ones, and ill ones, whose remedies are applied as they are printed.

use crate::scene::{IMAGE, Scene, unique};
use anyhow::{Context, Result, bail, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::user::SubordinateIds;
use integration::{Finished, Fixture, Kind, Podman, Release, User, finish, ok};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn small(dir: &Path) -> Result<Fixture> {
    let layer = |n: u64| vec![Member::file(format!("layer{n}"), noise(n, 1000))];
    Fixture::of_own_layers(dir, unique(), (61..63).map(layer).collect())
}

/// A scene with the image published for a podman of its own, which is asked for as root's.
struct Patient {
    podman: Podman,
    scene: Scene,
}

impl Patient {
    fn new(release: Release, layout: Layout) -> Result<Self> {
        let scene = Scene::new(release, Kind::Xfs, small)?;
        let podman = scene.published(layout)?;
        Ok(Self { podman, scene })
    }

    /// A shell command on the machine, which has the program and podman's configuration.
    fn shell(&self, script: &str) -> Result<Finished> {
        ok(self.in_environment("sh")?.args(["-euc", script]))
    }

    fn in_environment(&self, program: &str) -> Result<Command> {
        let mut command = self.podman.command(program);
        let store = self.scene.machine.peers().composefs_store()?;
        let bin = store.parent().context("a directory")?;
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.env("PATH", format!("{}:{path}", bin.display()));
        Ok(command)
    }

    /// What `doctor` says; its exit status has to agree.
    fn report(&self, arguments: &[&str]) -> Result<Value> {
        let done = finish(
            self.in_environment("composefs-store")?
                .arg("--repo")
                .arg(self.scene.store.repo())
                .args(["--json", "doctor"])
                .args(arguments),
        )?;
        let report: Value =
            serde_json::from_slice(&done.stdout).with_context(|| format!("{done}"))?;
        let expected = i32::from(!bad(&report).is_empty());
        ensure!(done.status.code() == Some(expected), "{done}");
        Ok(report)
    }

    fn is_well(&self) -> Result<()> {
        let report = self.report(&[])?;
        ensure!(bad(&report).is_empty(), "{:#}", report["findings"]);
        Ok(())
    }

    /// Finds exactly these things.
    fn finds(&self, kinds: &[&str]) -> Result<Value> {
        let report = self.report(&[])?;
        let mut found = bad(&report);
        found.sort_unstable();
        found.dedup();
        let mut expected = kinds.to_vec();
        expected.sort_unstable();
        ensure!(found == expected, "{:#}", report["findings"]);
        Ok(report)
    }

    /// Finds exactly these things, applies what mends them, and then all is well.
    fn finds_and_mends(&self, kinds: &[&str]) -> Result<()> {
        let report = self.finds(kinds)?;
        for finding in list(&report) {
            if finding["severity"] == "note" {
                continue;
            }
            self.apply(&finding["remedy"])
                .with_context(|| format!("{finding:#}"))?;
        }
        self.is_well().with_context(|| format!("after {kinds:?}"))
    }

    /// Finds this, and perhaps what follows from it, applies what mends all that, and then all is well.
    fn mends(&self, kind: &str) -> Result<()> {
        let report = self.report(&[])?;
        ensure!(bad(&report).contains(&kind), "{:#}", report["findings"]);
        for finding in list(&report).filter(|finding| finding["severity"] != "note") {
            self.apply(&finding["remedy"])
                .with_context(|| format!("{finding:#}"))?;
        }
        self.is_well().with_context(|| format!("after {kind}"))
    }

    fn apply(&self, remedy: &Value) -> Result<()> {
        match remedy["kind"].as_str() {
            Some("command") => {
                self.shell(remedy["command"].as_str().context("a command")?)?;
            }
            Some("line") => {
                ensure!(remedy["copy_of"].is_null(), "{remedy}");
                let file = Path::new(remedy["file"].as_str().context("a file")?);
                let line = remedy["line"].as_str().context("a line")?;
                set_line(file, remedy["table"].as_str().context("a table")?, line)?;
            }
            // What follows from something else goes with it.
            Some("advice") => {}
            other => bail!("a remedy of the kind {other:?}"),
        }
        Ok(())
    }

    fn conf(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.podman.storage_conf())?)
    }

    /// Replaces something in storage.conf.
    fn edit(&self, from: &str, to: &str) -> Result<()> {
        let text = self.conf()?;
        ensure!(text.contains(from), "{from:?} is not in {text}");
        std::fs::write(self.podman.storage_conf(), text.replace(from, to))?;
        Ok(())
    }

    /// The store behind the view.
    fn writable(&self) -> PathBuf {
        self.scene.store.repo().join("composefs-store/podman-store")
    }

    fn layer(&self) -> Result<String> {
        let records = self.writable().join("overlay-layers/layers.json");
        let records: Value = serde_json::from_slice(&std::fs::read(records)?)?;
        Ok(records[0]["id"].as_str().context("an ID")?.to_owned())
    }
}

fn list(report: &Value) -> impl Iterator<Item = &Value> {
    report["findings"].as_array().into_iter().flatten()
}

/// The errors and warnings.
fn bad(report: &Value) -> Vec<&str> {
    list(report)
        .filter(|finding| finding["severity"] != "note")
        .filter_map(|finding| finding["finding"].as_str())
        .collect()
}

/// Does what a person does with a line of storage.conf.
fn set_line(file: &Path, table: &str, line: &str) -> Result<()> {
    let key = line.split_once(" = ").context("a key")?.0;
    let header = format!("[{table}]");
    let text = std::fs::read_to_string(file)?;
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|other| !other.starts_with(&format!("{key} =")))
        .collect();
    let at = lines.iter().position(|other| *other == header);
    lines.insert(at.with_context(|| format!("{header} in {text}"))? + 1, line);
    std::fs::write(file, lines.join("\n") + "\n")?;
    Ok(())
}

fn a_healthy_host_has_no_errors(release: Release, layout: Layout) -> Result<()> {
    let patient = Patient::new(release, layout)?;
    patient.is_well()?;
    // Containers change nothing about that.
    patient
        .podman
        .ok(&["create", "--name", "kept", IMAGE, "true"])?;
    patient.is_well()?;
    let text = patient.shell(&format!(
        "composefs-store --repo {} doctor",
        patient.scene.store.repo().display()
    ))?;
    ensure!(text.text().contains("0 errors, 0 warnings"), "{text}");
    // The kernel of these tests mounts everything.
    let report = patient.report(&[])?;
    let kernel = &report["host"]["kernel"];
    for ability in [
        "file_backed_erofs",
        "data_only_layers",
        "overlay_verity",
        "idmapped_store",
    ] {
        ensure!(kernel[ability] == true, "{ability}: {kernel}");
    }
    let version = &report["host"]["podman"]["version"];
    let expected = match release {
        Release::Host => (4, 3),
        Release::Trixie => (5, 4),
        Release::Sid => (5, 8),
    };
    ensure!(
        version["major"] == expected.0 && version["minor"] == expected.1,
        "{version}"
    );
    Ok(())
}

#[test]
fn doctor_finds_no_errors_on_a_healthy_host_with_podman_4() -> Result<()> {
    a_healthy_host_has_no_errors(Release::Host, Layout::Mounted)
}

#[test]
fn doctor_finds_no_errors_on_a_healthy_host_with_podman_5_4() -> Result<()> {
    a_healthy_host_has_no_errors(Release::Trixie, Layout::Blob)
}

#[test]
fn doctor_finds_no_errors_on_a_healthy_host_with_podman_5_8() -> Result<()> {
    a_healthy_host_has_no_errors(Release::Sid, Layout::Blob)
}

#[test]
fn doctor_mends_what_is_wrong_in_storage_conf() -> Result<()> {
    let patient = Patient::new(Release::Sid, Layout::Blob)?;
    let view = patient.scene.store.podman_store()?;
    let view = view.display().to_string();

    patient.edit(&format!("\"{view}\""), "")?;
    patient.finds_and_mends(&["not-configured"])?;
    patient.edit("nodev,metacopy=on", "nodev")?;
    patient.finds_and_mends(&["native-diff"])?;
    patient.edit("nodev,metacopy=on", "nodev,metacopy=on,verity=require")?;
    patient.mends("verity-insecure")?;
    Ok(())
}

#[test]
fn doctor_mends_a_view_that_is_not_mounted() -> Result<()> {
    let patient = Patient::new(Release::Sid, Layout::Blob)?;
    let view = patient.scene.store.podman_store()?;
    patient.shell(&format!("umount {}", view.display()))?;
    patient.finds_and_mends(&["view-not-mounted"])
}

#[test]
fn doctor_fix_mends_what_is_ours_and_nothing_else() -> Result<()> {
    let patient = Patient::new(Release::Host, Layout::Mounted)?;
    let machine = &patient.scene.machine;
    machine.sh(
        "umount --lazy $(awk '$2 ~ \"^/run/composefs-store/\" { print $2 }' /proc/self/mounts)",
    )?;
    patient.finds_and_mends(&["layer-not-mounted"])?;
    machine.sh(
        "umount --lazy $(awk '$2 ~ \"^/run/composefs-store/\" { print $2 }' /proc/self/mounts)",
    )?;
    patient.edit(
        &format!("\"{}\"", patient.scene.store.podman_store()?.display()),
        "",
    )?;
    let conf = patient.conf()?;
    let report = patient.report(&["--fix"])?;
    ensure!(
        report["fixed"] == serde_json::json!(["serve-mounts"]),
        "{report:#}"
    );
    ensure!(bad(&report) == ["not-configured"], "{report:#}");
    ensure!(patient.conf()? == conf, "storage.conf was changed");
    patient.finds_and_mends(&["not-configured"])?;
    patient.podman.ok(&["run", "--rm", IMAGE, "true"])?;
    Ok(())
}

#[test]
fn doctor_fix_puts_a_damaged_image_right() -> Result<()> {
    let patient = Patient::new(Release::Sid, Layout::Blob)?;
    let directory = patient.writable().join("overlay").join(patient.layer()?);
    let blob = directory.join("composefs-data/composefs.blob");
    let mut bytes = std::fs::read(&blob)?;
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    // The blob is a name of the repository's object.
    std::fs::remove_file(&blob)?;
    std::fs::write(&blob, &bytes)?;
    patient.finds(&["layer-damaged"])?;
    let report = patient.report(&["--fix"])?;
    ensure!(
        bad(&report).is_empty() && report["fixed"][0] == "images",
        "{report:#}"
    );
    patient.finds(&[])?;
    Ok(())
}

#[test]
fn doctor_mends_what_podman_has_built_on_our_layers() -> Result<()> {
    let patient = Patient::new(Release::Sid, Layout::Blob)?;
    let podman = &patient.podman;
    podman.ok(&["create", "--name", "kept", IMAGE, "true"])?;
    patient.is_well()?;

    // Its layer was built when ours had another short name.
    let overlay = podman.graphroot().join("overlay");
    let lower = std::fs::read_dir(&overlay)?
        .filter_map(|entry| Some(entry.ok()?.path().join("lower")))
        .find(|lower| lower.exists())
        .context("a layer with a lower file")?;
    let right = std::fs::read_to_string(&lower)?;
    std::fs::write(&lower, "l/AAAAAAAAAAAAAAAAAAAAAAAAAA")?;
    patient.finds_and_mends(&["dangling-lower"])?;
    ensure!(std::fs::read_to_string(&lower)? == right);
    podman.ok(&["start", "--attach", "kept"])?;

    // The store is no longer configured.
    let view = patient.scene.store.podman_store()?.display().to_string();
    patient.edit(&format!("\"{view}\""), "")?;
    let report = patient.report(&[])?;
    let lost = list(&report).find(|finding| finding["finding"] == "lost-parent");
    patient.apply(&lost.with_context(|| format!("{report:#}"))?["remedy"])?;
    patient.is_well()?;

    // Another image of the same name.
    let other = Fixture::with_layers(
        &patient.scene.disk.path().join("other"),
        vec![vec![Member::file("other", noise(70, 1000))]],
    )?;
    podman.load(other.layout(), IMAGE)?;
    patient.finds_and_mends(&["same-name"])?;
    podman.ok(&["run", "--rm", IMAGE, "test", "-e", "/layer61"])?;
    Ok(())
}

fn a_layer_that_podman_only_began_is_mended(release: Release, layout: Layout) -> Result<()> {
    let patient = Patient::new(release, layout)?;
    patient.podman.ok(&["images"])?;
    let records = patient
        .podman
        .graphroot()
        .join("overlay-layers/layers.json");
    let layer = patient.layer()?;
    std::fs::write(
        records,
        format!("[{{\"id\": \"{layer}\", \"flags\": {{\"incomplete\": true}}}}]"),
    )?;
    let report = patient.report(&[])?;
    let found = list(&report).find(|finding| finding["finding"] == "incomplete-layer");
    patient.apply(&found.with_context(|| format!("{report:#}"))?["remedy"])?;
    patient.podman.ok(&["run", "--rm", IMAGE, "true"])?;
    patient.is_well()
}

#[test]
fn doctor_mends_a_layer_that_podman_4_only_began() -> Result<()> {
    a_layer_that_podman_only_began_is_mended(Release::Host, Layout::Mounted)
}

#[test]
fn doctor_mends_a_layer_that_podman_5_8_only_began() -> Result<()> {
    a_layer_that_podman_only_began_is_mended(Release::Sid, Layout::Blob)
}

#[test]
fn doctor_finds_a_podman_too_old_for_the_layout_blob() -> Result<()> {
    let patient = Patient::new(Release::Host, Layout::Blob)?;
    patient.finds(&["podman-too-old"])?;
    let store = &patient.scene.store;
    store.ok(&["unpublish", IMAGE])?;
    patient.scene.publish(Layout::Mounted, &patient.podman)?;
    patient.is_well()
}

#[test]
fn doctor_finds_units_that_are_missing_or_serve_another_repository() -> Result<()> {
    let patient = Patient::new(Release::Sid, Layout::Blob)?;
    let machine = &patient.scene.machine;
    patient.shell("mkdir -p /run/systemd/system")?;
    patient.finds(&["unit-disabled"])?;
    let unit = "composefs-store-mounts.service";
    let text = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../contrib/systemd")
        .join(unit);
    machine.sh("mkdir -p /etc/systemd/system/basic.target.wants")?;
    machine.write(
        &format!("/etc/systemd/system/{unit}"),
        &std::fs::read_to_string(text)?,
    )?;
    let report = patient.finds(&["unit-disabled"])?;
    let finding = list(&report).find(|finding| finding["severity"] == "warning");
    let command = finding.context("a warning")?["remedy"]["command"].as_str();
    ensure!(
        command == Some(&format!("systemctl enable {unit}")),
        "{report:#}"
    );
    // What that does; the machine has no systemctl.
    machine.sh(&format!(
        "ln -s /etc/systemd/system/{unit} /etc/systemd/system/basic.target.wants/{unit}"
    ))?;
    patient.finds_and_mends(&["unit-other-repository"])
}

#[test]
fn doctor_looks_at_the_configuration_of_a_user() -> Result<()> {
    let patient = Patient::new(Release::Sid, Layout::Blob)?;
    let scene = &patient.scene;
    let user = User::add(
        &scene.machine,
        &scene.disk.path().join("home"),
        SubordinateIds::Some,
    )?;
    let name = format!("user{}", user.id());
    let directory = user.home().join(".config/containers");
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("storage.conf");
    std::fs::write(&file, patient.conf()?)?;
    let report = patient.report(&["--user", &name])?;
    ensure!(
        bad(&report) == ["rootless-store", "rootless-mountopt"],
        "{report:#}"
    );
    for finding in list(&report).filter(|finding| finding["severity"] != "note") {
        ensure!(
            finding["remedy"]["file"] == file.display().to_string(),
            "{finding:#}"
        );
        patient.apply(&finding["remedy"])?;
    }
    let report = patient.report(&["--user", &name])?;
    ensure!(bad(&report).is_empty(), "{report:#}");
    patient
        .report(&["--user", "nobody-of-that-name"])
        .expect_err("there is no such user");
    Ok(())
}

#[test]
fn the_printed_storage_conf_is_all_that_podman_needs() -> Result<()> {
    for (release, layout) in [
        (Release::Host, Layout::Mounted),
        (Release::Sid, Layout::Blob),
    ] {
        let scene = Scene::new(release, Kind::Xfs, small)?;
        let store = &scene.store;
        store.ok(&["serve-mounts"])?;
        // The machine has no storage.conf at all.
        let lines = store.ok(&["podman-conf", "--layout", layout.word()])?;
        ensure!(
            lines.stderr.contains("/etc/containers/storage.conf"),
            "{lines}"
        );
        let conf = scene.disk.path().join("storage.conf");
        let printed = lines.text();
        let moved = printed.replace(
            "/var/lib/containers",
            &scene.disk.path().join("new").display().to_string(),
        );
        std::fs::write(&conf, moved)?;
        let conf = conf.display().to_string();
        scene.import()?;
        let publish = [
            "publish",
            "--layout",
            layout.word(),
            "--storage-conf",
            &conf,
            IMAGE,
        ];
        let told = store.ok(&publish)?;
        ensure!(!told.stderr.contains("does not name the store"), "{told}");
        ok(scene
            .own
            .command("podman")
            .env("CONTAINERS_STORAGE_CONF", &conf)
            .args(["run", "--rm", IMAGE, "true"]))?;
        // Once more for the configuration that there is now.
        let again = store.ok(&[
            "podman-conf",
            "--layout",
            layout.word(),
            "--storage-conf",
            &conf,
        ])?;
        ensure!(again.stderr.contains("in place of"), "{again}");
        let last = |text: &str| text.lines().last().map(str::to_owned);
        ensure!(last(&again.text()) == last(&printed), "{again}");
        store
            .finish(&["podman-conf", "--verified"])?
            .refused_with(&["no fs-verity"])?;
    }
    Ok(())
}

#[test]
fn systemd_understands_what_we_ship_for_the_boot() -> Result<()> {
    let contrib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib");
    let dir = integration::Peers::from_env()?.scratch_dir("units")?;
    for entry in std::fs::read_dir(contrib.join("systemd"))? {
        let entry = entry?;
        // It looks for the program, too.
        let text = std::fs::read_to_string(entry.path())?;
        let text = text.replace("/usr/bin/composefs-store", "/bin/true");
        std::fs::write(dir.join(entry.file_name()), text)?;
    }
    for entry in std::fs::read_dir(&dir)? {
        let done = ok(Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(entry?.path()))?;
        ensure!(done.stderr.is_empty(), "{done}");
    }
    let root = dir.join("root");
    std::fs::create_dir_all(root.join("run"))?;
    ok(Command::new("systemd-tmpfiles")
        .arg(format!("--root={}", root.display()))
        .arg("--create")
        .arg(contrib.join("tmpfiles.d/composefs-store.conf")))?;
    ensure!(root.join("run/composefs-store").is_dir());
    Ok(())
}
