//! Registries: pulling with podman, and straight into the repository.

mod referrers;

use crate::peers::{cfsctl, cfsctl_ok};
use anyhow::{Context, Result, ensure};
use integration::docker_registry::PASSWORD;
use integration::fixture::{Limits, noise};
use integration::tar::Member;
use integration::{
    Access, DockerRegistry, Engine, Fault, FaultyProxy, Filesystem, Finished, Fixture, Kind,
    Machine, Peers, Podman, Release, Store, finish, ok,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

/// A registry, and a machine with an empty podman and an empty repository on one filesystem. Fields in
/// the order in which they must be dropped.
struct Scene {
    podman: Podman,
    store: Store,
    machine: Arc<Machine>,
    registry: DockerRegistry,
    disk: Filesystem,
}

impl Scene {
    fn new(release: Release, access: Access) -> Result<Self> {
        let peers = Peers::from_env()?;
        let disk = Filesystem::new(&peers, Kind::Xfs, 1024)?;
        let machine = Machine::start(&peers, release)?;
        let podman = Podman::new(&machine, &disk.path().join("podman"), &Engine::default())?;
        let store = Store::init(&machine, &disk.path().join("repository"))?;
        let registry = DockerRegistry::start(&peers, access)?;
        Ok(Self {
            podman,
            store,
            machine,
            registry,
            disk,
        })
    }

    /// An open registry with an image of four layers, `app:1`, of which three have `megabytes` each.
    fn with_large_layers(release: Release, megabytes: usize) -> Result<Self> {
        let scene = Self::new(release, Access::Open)?;
        let layer = |n: u64| vec![Member::file(format!("file{n}"), noise(n, megabytes << 20))];
        let fixture = Fixture::with_layers(
            &scene.disk.path().join("layout"),
            vec![layer(1), layer(2), layer(3)],
        )?;
        scene.push(&fixture, "app:1")?;
        Ok(scene)
    }

    fn push(&self, fixture: &Fixture, name: &str) -> Result<()> {
        let from = format!("oci:{}:latest", fixture.layout().display());
        self.registry.push(&self.machine, &from, name)
    }

    /// Pushes the hard image as `name`.
    fn push_hard(&self, name: &str) -> Result<()> {
        let dir = self.disk.path().join("layout");
        self.push(&Fixture::hard(&dir, Limits::PORTABLE)?, name)
    }

    /// The program on `repo`, with the environment of the scene's podman.
    fn command_on(&self, repo: &Path, args: &[&str]) -> Result<Command> {
        let program = self.machine.peers().composefs_store()?;
        let mut command = self.podman.command(&text(&program));
        command.arg("--repo").arg(repo).args(args);
        Ok(command)
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        self.command_on(self.store.repo(), args)
    }

    fn finish(&self, args: &[&str]) -> Result<Finished> {
        finish(&mut self.command(args)?)
    }

    /// Runs the program, which must succeed without a word, and reads its report.
    fn json(&self, args: &[&str]) -> Result<Value> {
        let done = ok(self.command(&["--json"])?.args(args))?;
        ensure!(done.stderr.is_empty(), "not quiet: {done}");
        Ok(serde_json::from_slice(&done.stdout)?)
    }

    /// The options for a protected registry, with the right password.
    fn options(&self) -> Result<[String; 4]> {
        Ok([
            "--cert-dir".into(),
            text(&self.registry.certs()),
            "--authfile".into(),
            text(&self.registry.auth_file(PASSWORD)?),
        ])
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn strs<const N: usize>(words: &[String; N]) -> [&str; N] {
    words.each_ref().map(String::as_str)
}

/// What two repositories with the same image must have in common: names of streams, and the objects of
/// layers, images and tags. Documents are named by their digests; their streams differ with the order
/// of their references.
fn names(repo: &Path) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut found = BTreeMap::new();
    for dir in ["streams", "images", "streams/refs/oci"] {
        let dir = repo.join(dir);
        if !dir.exists() {
            continue;
        }
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Ok(target) = path.read_link() else {
                continue;
            };
            let name = path.strip_prefix(repo)?.to_owned();
            let is_document = ["oci-config", "oci-manifest"]
                .iter()
                .any(|kind| name.starts_with("streams") && text(&name).contains(kind));
            let target = if is_document { PathBuf::new() } else { target };
            found.insert(name, target);
        }
    }
    Ok(found)
}

#[test]
fn a_pulled_image_runs_from_podmans_storage_and_shares_its_blocks() -> Result<()> {
    for release in [Release::Host, Release::Trixie, Release::Sid] {
        let scene = Scene::new(release, Access::Protected)?;
        scene.push_hard("hard:1")?;
        let image = scene.registry.image("hard:1");
        let options = scene.options()?;
        let pull = [&["pull", "--no-copy"], &strs(&options)[..], &[&image]].concat();
        let pulled = scene.json(&pull)?;
        ensure!(pulled["imported"]["tags"][0] == *image, "{pulled}");
        let total = &pulled["imported"]["total"];
        ensure!(
            total["copied"]["files"] == 0 && total["reflinked"]["files"] != 0,
            "{pulled}"
        );
        scene.store.ok(&["fsck"])?;
        scene
            .podman
            .ok(&["run", "--rm", "--pull", "never", &image, "/bin/true"])?;

        // Again: podman asks, and no layer is fetched or read.
        let before = scene.registry.requests()?.len();
        let again = scene.json(&pull)?;
        ensure!(again["imported"]["outcome"] == "present", "{again}");
        let fetched = scene.registry.blobs_fetched(before)?;
        ensure!(fetched.len() <= 1, "{fetched:?}");
    }
    Ok(())
}

#[test]
fn pull_for_bootc_uses_bootcs_storage_credentials_and_tag() -> Result<()> {
    for release in [Release::Host, Release::Sid] {
        let scene = Scene::new(release, Access::Open)?;
        scene.push_hard("hard:1")?;
        let image = scene.registry.image("hard:1");
        let sysroot = scene.disk.path().join("sysroot");
        std::fs::create_dir(&sysroot)?;
        let repo = sysroot.join("composefs");
        Store::init(&scene.machine, &repo)?;
        let program = text(&scene.machine.peers().composefs_store()?);
        let at = text(&sysroot);
        let pull = |image: &str| -> Result<Value> {
            let mut command = scene.podman.command(&program);
            command.args(["--json", "pull", "--bootc", "--sysroot", &at, "--no-copy"]);
            let done = ok(command.args(["--tls-verify=false", image]))?;
            Ok(serde_json::from_slice(&done.stdout)?)
        };
        let pulled = pull(&image)?;
        let manifest = pulled["imported"]["manifest"]
            .as_str()
            .context("manifest")?;
        ensure!(
            pulled["imported"]["tags"] == json!([format!("localhost/bootc-{manifest}")]),
            "{pulled}"
        );
        assert_eq!(
            sysroot.join("ostree/bootc").read_link()?,
            Path::new("../composefs/bootc")
        );
        let storage = sysroot.join("composefs/bootc/storage");
        ensure!(storage.join("overlay-images/images.json").exists());
        ensure!(!sysroot.join("composefs/bootc/storage.tmp").exists());
        ensure!(scene.podman.ok(&["images", "--quiet"])?.text().is_empty());
        Store::open(&scene.machine, &repo).ok(&["fsck"])?;
        ensure!(
            cfsctl_ok(&repo, &["oci", "images"])?
                .text()
                .contains("bootc-sha256")
        );

        // Others see it as an additional image store.
        let dir = scene.disk.path().join("consumer");
        let consumer = Podman::new(&scene.machine, &dir, &Engine::with_store(&storage))?;
        consumer.ok(&["run", "--rm", "--pull", "never", &image, "/bin/true"])?;

        // From the host's own storage, and again into the storage that is there now.
        scene
            .podman
            .ok(&["pull", "--quiet", "--tls-verify=false", &image])?;
        let copied = pull(&format!("containers-storage:{image}"))?;
        ensure!(
            copied["imported"]["config"] == pulled["imported"]["config"],
            "{copied}"
        );
    }
    Ok(())
}

#[test]
fn an_image_from_a_registry_is_that_of_podmans_storage_and_of_cfsctl() -> Result<()> {
    for release in [Release::Host, Release::Trixie, Release::Sid] {
        let scene = Scene::new(release, Access::Protected)?;
        scene.push_hard("hard:1")?;
        let image = scene.registry.image("hard:1");
        let options = scene.options()?;
        let by_name = format!("docker://{image}");
        let import = [&["import"], &strs(&options)[..], &[&by_name]].concat();
        let imported = scene.json(&import)?;
        ensure!(imported["imported"][0]["tags"][0] == *image, "{imported}");
        scene.store.ok(&["fsck"])?;

        let pulled = scene.disk.path().join("pulled");
        Store::init(&scene.machine, &pulled)?;
        let pull = [&["pull"], &strs(&options)[..], &[&image]].concat();
        ok(&mut scene.command_on(&pulled, &pull)?)?;
        let ours = names(scene.store.repo())?;
        assert_eq!(ours, names(&pulled)?);

        if release == Release::Host {
            let theirs = scene.disk.path().join("theirs");
            cfsctl_ok(&theirs, &["init", "--insecure"])?;
            // cfsctl has no options for registries.
            scene.machine.write(
                "/etc/containers/registries.conf",
                &format!("[[registry]]\nlocation = {:?}\n", scene.registry.address()),
            )?;
            let address = scene.registry.address();
            let certs = text(&scene.registry.certs());
            scene.machine.sh(&format!(
                "mkdir -p /etc/containers/certs.d && cp -r {certs} /etc/containers/certs.d/{address}"
            ))?;
            let mut command = scene.machine.command(cfsctl(&theirs, &[])?.get_program());
            command
                .env("REGISTRY_AUTH_FILE", &options[3])
                .arg("--repo")
                .arg(&theirs)
                .args(["oci", "pull", &by_name, &image]);
            ok(&mut command)?;
            assert_eq!(ours, names(&theirs)?);
        }
    }
    Ok(())
}

#[test]
fn a_wrong_password_and_an_unknown_tag_give_one_clear_error() -> Result<()> {
    for release in [Release::Host, Release::Sid] {
        let scene = Scene::new(release, Access::Protected)?;
        scene.push_hard("hard:1")?;
        let image = scene.registry.image("hard:1");
        let by_name = format!("docker://{image}");
        let certs = text(&scene.registry.certs());
        let wrong = text(&scene.registry.auth_file("wrong")?);
        let right = text(&scene.registry.auth_file(PASSWORD)?);
        let host = scene.registry.address().to_owned();
        let unknown = |name: &str| name.replace("hard:1", "hard:2");
        let refused = |args: &[&str], words: &[&str]| -> Result<()> {
            let done = scene.finish(args)?.refused_with(words)?;
            ensure!(done.stderr.lines().count() == 1, "{done}");
            Ok(())
        };
        let before = scene.registry.requests()?.len();
        for command in [["import", &by_name], ["pull", &image]] {
            let [command, name] = command;
            let given = [command, "--cert-dir", &certs, "--authfile", &wrong, name];
            refused(&given, &[&format!("podman login {host}"), "--authfile"])?;
            let given = [command, "--cert-dir", &certs, "--authfile", &right];
            let unknown = unknown(name);
            refused(
                &[&given[..], &[&unknown]].concat(),
                &["no image of this name"],
            )?;
            let given = [command, "--authfile", &right, name];
            refused(&given, &["--cert-dir DIR", "certs.d"])?;
        }
        // What cannot pass by itself is asked once; skopeo and podman begin with one or two questions
        // about the registry itself.
        let asked = scene.registry.requests()?.split_off(before);
        let manifests = asked.iter().filter(|it| it.path.contains("/manifests/"));
        ensure!(manifests.count() <= 8, "{asked:#?}");
        ensure!(scene.store.objects()?.is_empty());
    }
    Ok(())
}

#[test]
fn a_signature_policy_is_applied_or_the_image_is_refused() -> Result<()> {
    for (release, word) in [
        (Release::Host, "does not apply the signature policy"),
        (Release::Trixie, "--signature-policy"),
        (Release::Sid, "--signature-policy"),
    ] {
        let scene = Scene::with_large_layers(release, 1)?;
        let policy = scene.disk.path().join("policy.json");
        std::fs::write(&policy, r#"{"default": [{"type": "reject"}]}"#)?;
        let policy = text(&policy);
        let image = scene.registry.image("app:1");
        let by_name = format!("docker://{image}");
        let options = ["--tls-verify=false", "--signature-policy", &policy];
        let import = [&["import"], &options[..], &[&by_name]].concat();
        scene.finish(&import)?.refused_with(&[word])?;
        let pull = [&["pull"], &options[..], &[&image]].concat();
        scene.finish(&pull)?.refused_with(&["--signature-policy"])?;
        ensure!(scene.store.objects()?.is_empty());
    }
    Ok(())
}

#[test]
fn a_platform_is_chosen_and_the_image_is_found_by_the_digest_of_its_index() -> Result<()> {
    for release in [Release::Host, Release::Sid] {
        let scene = Scene::with_large_layers(release, 1)?;
        let dir = scene.disk.path().join("other");
        let foreign = Fixture::with_layers(&dir, vec![vec![Member::file("s390x", "1")]])?;
        integration::oci::rename_architecture(foreign.layout(), "s390x")?;
        scene.push(&foreign, "foreign:1")?;
        let podman = &scene.podman;
        let of = |name: &str| format!("docker://{}", scene.registry.image(name));
        podman.ok(&["manifest", "create", "list"])?;
        for name in ["foreign:1", "app:1"] {
            podman.ok(&["manifest", "add", "--tls-verify=false", "list", &of(name)])?;
        }
        let list = of("both:1");
        podman.ok(&[
            "manifest",
            "push",
            "--all",
            "--tls-verify=false",
            "list",
            &list,
        ])?;
        let raw =
            ok(podman
                .command("skopeo")
                .args(["inspect", "--raw", "--tls-verify=false", &list]))?;
        let index: Value = serde_json::from_slice(&raw.stdout)?;
        let digest = format!("sha256:{}", integration::oci::sha256(&raw.stdout));
        let of_arch = |foreign: bool| -> Result<Value> {
            let all = index["manifests"].as_array().context("manifests")?;
            let is_foreign = |it: &&Value| (it["platform"]["architecture"] == "s390x") == foreign;
            let found = all.iter().find(is_foreign).context("no such platform")?;
            Ok(found["digest"].clone())
        };
        let manifest_of = |name: &str| -> Result<Value> {
            let tagged = scene.json(&["tag", name, "by-index"])?;
            Ok(tagged["manifest"].clone())
        };

        let own = scene.json(&["import", "--tls-verify=false", &list])?;
        ensure!(own["imported"][0]["manifest"] == of_arch(false)?, "{own}");
        assert_eq!(manifest_of(&digest)?, of_arch(false)?);
        let none = [
            "import",
            "--tls-verify=false",
            "--platform",
            "linux/arm/v6",
            &list,
        ];
        scene.finish(&none)?.refused_with(&["--platform os/arch"])?;

        // By podman, the same.
        let pulled = scene.disk.path().join("pulled");
        Store::init(&scene.machine, &pulled)?;
        let list = &list["docker://".len()..];
        ok(&mut scene.command_on(&pulled, &["pull", "--tls-verify=false", list])?)?;
        assert_eq!(names(&pulled)?, {
            scene.store.ok(&["untag", "by-index"])?;
            names(scene.store.repo())?
        });

        let list = format!("docker://{list}");
        let foreign = [
            "import",
            "--tls-verify=false",
            "--platform",
            "linux/s390x",
            "--tag",
        ];
        let other = scene.json(&[&foreign[..], &["foreign", &list]].concat())?;
        ensure!(
            other["imported"][0]["manifest"] == of_arch(true)?,
            "{other}"
        );
        // Now it could be either.
        scene
            .finish(&["tag", &digest, "which"])?
            .refused_with(&["several"])?;
        scene.store.ok(&["fsck"])?;
        cfsctl_ok(scene.store.repo(), &["oci", "fsck"])?;
        cfsctl_ok(scene.store.repo(), &["gc"])?;
        scene.store.ok(&["gc"])?;
        scene.store.ok(&["fsck"])?;
        scene
            .finish(&["tag", &digest, "which"])?
            .refused_with(&["several"])?;
    }
    Ok(())
}

#[test]
fn broken_connections_are_tried_again_and_not_for_ever() -> Result<()> {
    for release in [Release::Host, Release::Trixie, Release::Sid] {
        let scene = Scene::with_large_layers(release, 3)?;
        let faults = [
            Fault::Status(503),
            Fault::None,
            Fault::Cut(2_000_000),
            Fault::Cut(10),
            Fault::Status(502),
        ];
        let proxy = FaultyProxy::start(scene.registry.address(), &faults)?;
        let image = format!("docker://{}", proxy.image("app:1"));
        ok(&mut scene.command(&["import", "--tls-verify=false", "--tag", "app", &image])?)?;
        let met = proxy.downloads();
        ensure!(
            faults
                .iter()
                .all(|fault| met.iter().any(|(_, met)| met == fault)),
            "{met:#?}"
        );
        scene.store.ok(&["fsck"])?;

        let stubborn = FaultyProxy::start(scene.registry.address(), &[Fault::Status(503); 100])?;
        let image = format!("docker://{}", stubborn.image("app:1"));
        let other = scene.disk.path().join("other");
        Store::init(&scene.machine, &other)?;
        let import = ["import", "--tls-verify=false", "--retry", "1", &image];
        finish(&mut scene.command_on(&other, &import)?)?.refused_with(&["503"])?;
        ensure!(stubborn.downloads().len() < 20);
        let never = FaultyProxy::start(scene.registry.address(), &[Fault::Status(404); 100])?;
        let image = format!("docker://{}", never.image("app:1"));
        let import = ["import", "--tls-verify=false", &image];
        finish(&mut scene.command_on(&other, &import)?)?.refused()?;
        assert_eq!(never.downloads().len(), 1);
    }
    Ok(())
}

/// Interrupts an import in the middle of its third large layer, and completes it.
fn interrupted(release: Release, signal: rustix::process::Signal) -> Result<()> {
    let scene = Scene::with_large_layers(release, 3)?;
    // The config, two large layers, and no end of the third.
    let faults = [
        Fault::None,
        Fault::None,
        Fault::None,
        Fault::Stall(2_000_000),
    ];
    let proxy = FaultyProxy::start(scene.registry.address(), &faults)?;
    let image = format!("docker://{}", proxy.image("app:1"));
    let import = ["import", "--tls-verify=false", "--jobs", "1", &image];
    let mut child = scene.command(&import)?.stderr(Stdio::null()).spawn()?;
    proxy.wait_for_stalled(1);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, signal)?;
    let status = child.wait()?;
    if signal == rustix::process::Signal::KILL {
        assert_eq!(status.signal(), Some(signal.as_raw()));
    } else {
        assert_eq!(status.code(), Some(130));
    }
    // skopeo is gone too.
    proxy.wait_for_stalled(0);
    let first = proxy.downloads();
    assert_eq!(first.len(), 4);
    ensure!(!scene.json(&["images"])?.to_string().contains("manifest"));

    ok(&mut scene.command(&import)?)?;
    let second = proxy.downloads().split_off(first.len());
    let complete: Vec<_> = first[1..3].iter().map(|(digest, _)| digest).collect();
    ensure!(
        !second.iter().any(|(digest, _)| complete.contains(&digest)),
        "fetched again: {second:#?} after {first:#?}"
    );
    ensure!(second.iter().any(|(digest, _)| *digest == first[3].0));
    scene.store.ok(&["fsck"])?;
    Ok(())
}

#[test]
fn a_killed_import_goes_on_with_the_layers_that_are_missing() -> Result<()> {
    interrupted(Release::Host, rustix::process::Signal::KILL)?;
    interrupted(Release::Sid, rustix::process::Signal::KILL)
}

#[test]
fn an_interrupted_import_ends_at_once_and_keeps_complete_layers() -> Result<()> {
    interrupted(Release::Host, rustix::process::Signal::INT)?;
    interrupted(Release::Sid, rustix::process::Signal::INT)
}

/// The images of daemons that skopeo keeps while it reads them. Only one test has such.
fn unpacked_by_skopeo() -> Result<BTreeSet<OsString>> {
    let entries = std::fs::read_dir("/var/tmp")?;
    let mut names = BTreeSet::new();
    for entry in entries {
        names.insert(entry?.file_name());
    }
    names.retain(|name| name.to_string_lossy().starts_with("docker-tar"));
    Ok(names)
}

#[test]
fn an_image_of_a_docker_daemon_is_imported() -> Result<()> {
    for release in [Release::Host, Release::Trixie] {
        let scene = Scene::with_large_layers(release, 1)?;
        let image = scene.registry.image("app:1");
        scene
            .podman
            .ok(&["pull", "--quiet", "--tls-verify=false", &image])?;
        // podman answers as Docker does, and where Docker does: older skopeos look nowhere else.
        let socket = Path::new("/run/docker.sock");
        let mut daemon = scene
            .podman
            .command("podman")
            .args(["--log-level", "info", "system", "service", "--time", "0"])
            .arg(format!("unix://{}", socket.display()))
            .stderr(Stdio::piped())
            .spawn()?;
        let said = BufReader::new(daemon.stderr.take().context("its messages")?);
        let mut lines = said.lines().map_while(Result::ok);
        let listening = lines.any(|line| line.contains("listening on"));
        std::thread::spawn(move || lines.for_each(drop));
        let reference = format!("docker-daemon:{image}");
        let mut command = scene.command(&["--json", "import", &reference])?;
        let before = unpacked_by_skopeo()?;
        let imported = ok(&mut command);
        let left: Vec<_> = unpacked_by_skopeo()?.difference(&before).cloned().collect();
        daemon.kill()?;
        daemon.wait()?;
        ensure!(listening, "podman's service did not begin to listen");
        ensure!(left.is_empty(), "skopeo left {left:?}");
        let report: Value = serde_json::from_slice(&imported?.stdout)?;
        ensure!(report["imported"][0]["tags"][0] == *image, "{report}");
        // The config, and so the image's ID, is that of the registry.
        let id = scene
            .podman
            .ok(&["inspect", "--format", "{{.Id}}", &image])?
            .text();
        ensure!(report["imported"][0]["image"] == *id, "{report}");
        scene.store.ok(&["fsck"])?;
    }
    Ok(())
}
