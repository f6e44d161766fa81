//! One image from every kind of source: the repository is the same, object by object and name by name,
//! and what composefs-rs makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use integration::{Engine, Finished, Kind, Podman, Release, Store, ok};
use repository::splitstream::{SNIFF_LENGTH, copy_stream, is_splitstream};
use repository::{Repository, VerityDigest};
use serde_json::Value;

use crate::peers::{cfsctl_json, cfsctl_ok};
use crate::scene::{IMAGE, Scene};

/// The names in a repository and what they lead to, and its objects.
#[derive(Debug, PartialEq)]
pub(crate) struct Contents {
    links: BTreeMap<PathBuf, PathBuf>,
    objects: BTreeSet<PathBuf>,
}

impl Contents {
    pub(crate) fn of(repo: &Path) -> Result<Self> {
        let mut contents = Self {
            links: BTreeMap::new(),
            objects: BTreeSet::new(),
        };
        let mut pending: Vec<_> = ["objects", "streams", "images"].map(PathBuf::from).into();
        while let Some(directory) = pending.pop() {
            for entry in std::fs::read_dir(repo.join(&directory))? {
                let entry = entry?;
                let path = directory.join(entry.file_name());
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_symlink() {
                    let target = std::fs::read_link(entry.path())?;
                    contents.links.insert(path, target);
                } else {
                    contents.objects.insert(path);
                }
            }
        }
        Ok(contents)
    }

    /// The names below a directory of the repository.
    fn names(&self, directory: &str) -> Vec<&Path> {
        let names = self.links.keys().map(PathBuf::as_path);
        names.filter(|name| name.starts_with(directory)).collect()
    }

    pub(crate) fn must_equal(&self, name: &str, other: &Self, other_name: &str) -> Result<()> {
        ensure!(
            self.links == other.links,
            "names of {name}: {:#?}\nnames of {other_name}: {:#?}",
            self.links,
            other.links
        );
        let only = |a: &Self, b: &Self| -> Vec<PathBuf> {
            a.objects.difference(&b.objects).cloned().collect()
        };
        ensure!(
            self.objects == other.objects,
            "objects in {name} only: {:#?}\nin {other_name} only: {:#?}",
            only(self, other),
            only(other, self)
        );
        Ok(())
    }
}

/// A new repository with the image of one source, and what the import says of it.
fn imported(scene: &Scene, name: &str, arguments: &[&str]) -> Result<(Store, Value)> {
    let store = Store::init(&scene.machine, &scene.disk.path().join(name))?;
    let arguments = [&["--json", "import", "--tag", IMAGE], arguments].concat();
    let report: Value = serde_json::from_slice(&store.ok(&arguments)?.stdout)?;
    store.ok(&["fsck"])?;
    Ok((store, report["imported"][0].clone()))
}

pub(crate) fn contents_of(scene: &Scene, name: &str, arguments: &[&str]) -> Result<Contents> {
    let (store, _) = imported(scene, name, arguments)?;
    Contents::of(store.repo())
}

/// `skopeo copy` without any change of blobs or manifest.
pub(crate) fn copy(engine: &Podman, from: &str, to: &str) -> Result<Finished> {
    ok(engine
        .command("skopeo")
        .args(["copy", "--quiet", "--preserve-digests", from, to]))
}

pub(crate) fn path(scene: &Scene, name: &str) -> String {
    scene.disk.path().join(name).display().to_string()
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("no text: {value}"))
}

#[test]
fn a_repository_is_the_same_from_every_source_of_the_same_image() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Btrfs)?;
    let layout = format!("oci:{}:latest", scene.fixture.layout().display());
    let archive = format!("oci-archive:{}:latest", path(&scene, "archive.tar"));
    let directory = format!("dir:{}", path(&scene, "dir"));
    copy(&scene.own, &layout, &archive)?;
    copy(&scene.own, &layout, &directory)?;
    ok(Command::new("gzip").args(["--keep", &path(&scene, "archive.tar")]))?;
    let compressed = format!("oci-archive:{}:latest", path(&scene, "archive.tar.gz"));

    let root = scene.own.graphroot().display().to_string();
    let expected = contents_of(&scene, "storage", &["--storage-root", &root, IMAGE])?;
    for (name, reference) in [
        ("oci", &layout),
        ("oci-archive", &archive),
        ("oci-archive-gzip", &compressed),
        ("dir", &directory),
    ] {
        contents_of(&scene, name, &[reference])?.must_equal(
            name,
            &expected,
            "containers-storage",
        )?;
    }

    // A docker-archive has another manifest of the same config and layers: only that differs.
    let docker = format!("docker-archive:{}:{IMAGE}", path(&scene, "docker.tar"));
    ok(scene
        .own
        .command("skopeo")
        .args(["copy", "--quiet", &layout, &docker]))?;
    let (store, report) = imported(&scene, "docker-archive", &[&docker])?;
    let actual = Contents::of(store.repo())?;
    let of_manifest = |contents: &Contents| -> Result<(PathBuf, PathBuf)> {
        let names = contents.names("streams");
        let name = names
            .iter()
            .find(|name| name.to_string_lossy().contains("oci-manifest-"))
            .context("a manifest stream")?;
        Ok((name.to_path_buf(), contents.links[*name].clone()))
    };
    let (our_name, _) = of_manifest(&expected)?;
    let (their_name, _) = of_manifest(&actual)?;
    ensure!(their_name.ends_with(format!("oci-manifest-{}", text(&report["manifest"])?)));
    let rest = |contents: &Contents, name: &Path| -> BTreeMap<PathBuf, PathBuf> {
        let links = contents.links.iter();
        links
            .filter(|(link, _)| *link != name && !link.starts_with("streams/refs"))
            .map(|(link, target)| (link.clone(), target.clone()))
            .collect()
    };
    assert_eq!(rest(&actual, &their_name), rest(&expected, &our_name));
    assert_eq!(actual.names("streams/refs"), expected.names("streams/refs"));
    // The manifest and its stream, on each side.
    let difference = |a: &Contents, b: &Contents| a.objects.difference(&b.objects).count();
    assert_eq!(difference(&actual, &expected), 2);
    assert_eq!(difference(&expected, &actual), 2);
    Ok(())
}

#[test]
fn the_manifest_of_a_docker_archive_is_the_one_that_podman_gives_it() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Btrfs)?;
    let archive = path(&scene, "save.tar");
    scene.own.ok(&["save", "--output", &archive, IMAGE])?;
    let reference = format!("docker-archive:{archive}");
    let (_, report) = imported(&scene, "from-archive", &[&reference])?;

    let loader = Podman::new(
        &scene.machine,
        &scene.disk.path().join("loader"),
        &Engine::default(),
    )?;
    loader.ok(&["load", "--input", &archive])?;
    let loaded = loader
        .ok(&["inspect", "--format", "{{.Digest}} {{.Id}}", IMAGE])?
        .text();
    let id = format!("{} {}", text(&report["manifest"])?, text(&report["image"])?);
    assert_eq!(loaded, id);

    // What podman loaded is the same repository again, and so is what came through a pipe.
    let root = loader.graphroot().display().to_string();
    let expected = contents_of(&scene, "loaded", &["--storage-root", &root, IMAGE])?;
    contents_of(&scene, "again", &[&reference])?.must_equal("archive", &expected, "loaded")?;
    let piped = Store::init(&scene.machine, &scene.disk.path().join("piped"))?;
    let mut save = scene.own.command("podman");
    let mut save = save.args(["save", IMAGE]).stdout(Stdio::piped()).spawn()?;
    let pipe = save.stdout.take().context("the archive")?;
    let imported = piped
        .command(&["import", "docker-archive:/dev/stdin"])?
        .stdin(Stdio::from(pipe))
        .output()?;
    ensure!(save.wait()?.success());
    let messages = String::from_utf8_lossy(&imported.stderr);
    ensure!(imported.status.success(), "{messages}");
    Contents::of(piped.repo())?.must_equal("pipe", &expected, "loaded")
}

#[test]
fn an_image_that_podman_built_is_the_same_from_every_source() -> Result<()> {
    let scene = Scene::hard(Release::Sid, Kind::Btrfs)?;
    let built = "localhost/built:1";
    scene.own.build(
        built,
        &format!(
            "FROM {IMAGE}\nRUN echo built >/built && rm -rf /data && ln /built /again\n\
             COPY Containerfile /usr/share/file\nENV A=1\n"
        ),
    )?;
    let root = scene.own.graphroot().display().to_string();
    let storage = ["--storage-root", &root, built];
    let (expected, report) = imported(&scene, "storage", &storage)?;
    let expected = Contents::of(expected.repo())?;
    let stored = format!("containers-storage:{built}");
    for (name, reference) in [
        ("oci", format!("oci:{}:x", path(&scene, "copied-oci"))),
        (
            "oci-archive",
            format!("oci-archive:{}:x", path(&scene, "copied.tar")),
        ),
        ("dir", format!("dir:{}", path(&scene, "copied-dir"))),
    ] {
        copy(&scene.own, &stored, &reference)?;
        contents_of(&scene, name, &[&reference])?.must_equal(name, &expected, "storage")?;
    }

    // podman save compresses layers, or has none of their digests: the config and all that is made of it
    // is the same.
    for (format, transport) in [
        ("oci-archive", "oci-archive"),
        ("docker-archive", "docker-archive"),
        ("oci-dir", "oci"),
        ("docker-dir", "dir"),
    ] {
        let saved = path(&scene, &format!("saved-{format}"));
        scene
            .own
            .ok(&["save", "--format", format, "--output", &saved, built])?;
        let reference = format!("{transport}:{saved}");
        let (store, other) = imported(&scene, &format!("from-{format}"), &[&reference])?;
        let actual = Contents::of(store.repo())?;
        assert_eq!(actual.names("images"), expected.names("images"), "{format}");
        assert_eq!(other["config"], report["config"], "{format}");
        assert_eq!(other["rootfs"], report["rootfs"], "{format}");
        let links = |contents: &Contents| -> Vec<(PathBuf, PathBuf)> {
            let names = contents.names("streams/").into_iter();
            names
                .filter(|name| !name.to_string_lossy().contains("oci-manifest-"))
                .filter(|name| !name.starts_with("streams/refs"))
                .map(|name| (name.to_owned(), contents.links[name].clone()))
                .collect()
        };
        assert_eq!(links(&actual), links(&expected), "{format}");
    }
    Ok(())
}

/// What a repository holds, however its streams are compressed.
struct Meaning {
    /// The content of every stream.
    streams: BTreeMap<String, Vec<u8>>,
    /// The objects that are no streams.
    objects: BTreeSet<VerityDigest>,
}

fn meaning(repo: &Path) -> Result<Meaning> {
    let repository = Repository::open(repo)?;
    let mut streams = BTreeMap::new();
    for link in repository.streams()?.entries {
        let mut content = Vec::new();
        copy_stream(&repository, &link.object, &mut content)?;
        streams.insert(link.name.to_string(), content);
    }
    let mut objects = BTreeSet::new();
    for shard in 0..=255 {
        for digest in repository.objects_in(shard)?.entries {
            let mut head = vec![0; SNIFF_LENGTH];
            let path = repo.join("objects").join(digest.object_path());
            let file = std::fs::File::open(path)?;
            let count = std::os::unix::fs::FileExt::read_at(&file, &mut head, 0)?;
            head.truncate(count);
            if !is_splitstream(&head) {
                objects.insert(digest);
            }
        }
    }
    Ok(Meaning { streams, objects })
}

#[test]
fn every_source_makes_what_cfsctl_makes_of_the_layout() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Btrfs)?;
    let theirs = scene.disk.path().join("cfsctl");
    cfsctl_ok(
        &theirs,
        &["init", "--insecure", "--algorithm", "fsverity-sha512-12"],
    )?;
    let layout = format!("oci:{}:latest", scene.fixture.layout().display());
    cfsctl_ok(&theirs, &["oci", "pull", &layout, IMAGE])?;
    let (ours, _) = imported(&scene, "oci", &[&layout])?;

    let (expected, actual) = (Contents::of(&theirs)?, Contents::of(ours.repo())?);
    assert_eq!(actual.names("images"), expected.names("images"));
    assert_eq!(actual.names("streams"), expected.names("streams"));
    let tags = |contents: &Contents| -> Vec<PathBuf> {
        let names = contents.names("streams/refs").into_iter();
        names.map(|name| contents.links[name].clone()).collect()
    };
    assert_eq!(tags(&actual), tags(&expected));
    let (ours_mean, theirs_mean) = (meaning(ours.repo())?, meaning(&theirs)?);
    ensure!(
        ours_mean.streams == theirs_mean.streams,
        "streams have other contents"
    );
    assert_eq!(ours_mean.objects, theirs_mean.objects);

    for args in [&["fsck", "--json"][..], &["oci", "fsck", "--json"]] {
        let found = cfsctl_json(ours.repo(), args)?;
        ensure!(found["ok"] == true, "{found}");
    }
    Ok(())
}

#[test]
fn composefs_rs_accepts_images_with_manifests_of_docker() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Xfs)?;
    let layout = format!("oci:{}:latest", scene.fixture.layout().display());
    let docker = format!("docker-archive:{}:{IMAGE}", path(&scene, "docker.tar"));
    // Its layers are compressed, so that their digests are no diff IDs.
    let directory = format!("dir:{}", path(&scene, "docker-dir"));
    for (format, to) in [(None, &docker), (Some("v2s2"), &directory)] {
        let mut command = scene.own.command("skopeo");
        command.args(["copy", "--quiet"]);
        if let Some(format) = format {
            command.args(["--format", format]);
        }
        ok(command.args([&layout, to]))?;
        scene.store.ok(&["import", "--tag", to, to])?;
        for args in [&["fsck", "--json"][..], &["oci", "fsck", "--json"]] {
            let found = cfsctl_json(scene.store.repo(), args)?;
            ensure!(found["ok"] == true, "{found}");
        }
    }
    let before = scene.store.objects()?;
    cfsctl_ok(scene.store.repo(), &["gc"])?;
    assert_eq!(scene.store.objects()?, before);
    Ok(())
}

#[test]
fn names_in_layouts_and_archives_become_tags_where_they_are_full() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Xfs)?;
    let store = &scene.store;
    let layout = format!("oci:{}:latest", scene.fixture.layout().display());
    store
        .finish(&["import", &layout])?
        .refused_with(&["--tag NAME"])?;
    let archive = path(&scene, "named.tar");
    scene.own.ok(&["save", "--output", &archive, IMAGE])?;
    let found = store.ok(&["import", &format!("docker-archive:{archive}")])?;
    ensure!(found.text().contains(IMAGE), "{found}");
    // What is there already is not read again, whatever it comes from.
    let again = store.ok(&["--json", "import", "--tag", "two", &layout])?;
    let again: Value = serde_json::from_slice(&again.stdout)?;
    for layer in again["imported"][0]["layers"]
        .as_array()
        .context("layers")?
    {
        ensure!(layer["outcome"] != "imported", "{again}");
    }
    let missing = format!("docker-archive:{archive}:other");
    store
        .finish(&["import", &missing])?
        .refused_with(&["no such image", IMAGE])?;
    Ok(())
}

#[test]
fn a_size_limit_keeps_bombs_out() -> Result<()> {
    let scene = Scene::hard(Release::Host, Kind::Xfs)?;
    let layout = format!("oci:{}:latest", scene.fixture.layout().display());
    scene
        .store
        .finish(&["import", "--tag", "x", "--max-size", "1M", &layout])?
        .refused_with(&["1048576 bytes", "--max-size"])?;
    assert_eq!(scene.store.objects()?, Vec::<PathBuf>::new());
    scene.store.ok(&["fsck"])?;
    scene
        .store
        .ok(&["import", "--tag", "x", "--max-size", "1G", &layout])?;
    Ok(())
}
