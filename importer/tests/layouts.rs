//! Images in OCI layouts, docker archives and `dir:` directories: found by every kind of name, and the
//! same in a directory as in an archive.

mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use importer::source::{Platform, Reference, SourceError, SourceImage, SourceOptions};
use importer::{ImportOptions, LayerError};
use repository::oci::{BlobDigest, ConfigDigest, DiffId, ManifestDigest};
use serde_json::{Value, json};
use support::repo::{self, Repo};
use support::{Entry, LayerData, dir, entry, file, link, noise};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const NAME: &str = "org.opencontainers.image.ref.name";

/// Files by their names, to be put into a directory or a tar.
#[derive(Clone, Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn add(&mut self, name: &str, content: impl Into<Vec<u8>>) {
        self.0.insert(name.into(), content.into());
    }

    /// Adds a blob of an OCI layout; its descriptor.
    fn blob(&mut self, media_type: &str, content: impl Into<Vec<u8>>) -> Value {
        let content = content.into();
        let digest = BlobDigest::of(&content);
        let descriptor = json!({
            "mediaType": media_type, "digest": digest.to_string(), "size": content.len(),
        });
        self.add(&format!("blobs/sha256/{}", digest.to_hex()), content);
        descriptor
    }

    /// Adds an image of one layer to an OCI layout; its descriptor.
    fn image(&mut self, tar: &[u8], architecture: &str) -> Value {
        let config = config(&[DiffId::of(tar)], architecture);
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip(tar));
        let config = self.blob("application/vnd.oci.image.config.v1+json", config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        });
        self.blob(MANIFEST, manifest.to_string())
    }

    fn index(&mut self, manifests: &[Value]) {
        self.add("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.add("index.json", index.to_string());
    }

    fn directory(&self, at: &Path) -> PathBuf {
        let at = at.join("directory");
        for (name, content) in &self.0 {
            let path = at.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        at
    }

    fn tar(&self) -> Vec<u8> {
        let files = self.0.iter();
        let members = files.map(|(name, content)| file(name.clone().leak(), &content[..]));
        tar_of(&members.collect::<Vec<_>>())
    }

    fn archive(&self, at: &Path) -> PathBuf {
        let path = at.join("archive.tar");
        fs::write(&path, self.tar()).unwrap();
        path
    }
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    LayerData::new(entries).tar
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn config(diff_ids: &[DiffId], architecture: &str) -> Vec<u8> {
    let diff_ids: Vec<_> = diff_ids.iter().map(ToString::to_string).collect();
    json!({
        "architecture": architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

fn layer(seed: u64) -> Vec<u8> {
    tar_of(&[dir("usr"), file("usr/f", noise(seed, 70_000))])
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

fn named(descriptor: Value, name: &str) -> Value {
    with(descriptor, "annotations", json!({NAME: name}))
}

fn for_platform(descriptor: Value, architecture: &str, variant: &str) -> Value {
    let mut platform = json!({"os": "linux", "architecture": architecture});
    if !variant.is_empty() {
        platform["variant"] = variant.into();
    }
    with(descriptor, "platform", platform)
}

fn open(reference: &str) -> Result<SourceImage<'static>, SourceError> {
    open_with(reference, &SourceOptions::default())
}

fn open_with(
    reference: &str,
    options: &SourceOptions,
) -> Result<SourceImage<'static>, SourceError> {
    let storage = || unreachable!("the reference is to no storage");
    Reference::parse(reference).unwrap().open(storage, options)
}

fn platform(text: &str) -> SourceOptions {
    SourceOptions {
        platform: Some(text.parse::<Platform>().unwrap()),
        ..SourceOptions::default()
    }
}

fn digest_of(descriptor: &Value) -> ManifestDigest {
    descriptor["digest"].as_str().unwrap().parse().unwrap()
}

fn manifest_of(image: &SourceImage<'_>) -> ManifestDigest {
    ManifestDigest::of(&image.manifest)
}

/// The error with everything behind it.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

#[test]
fn an_image_is_the_same_from_a_directory_and_from_archives() {
    let at = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    let image = files.image(&layer(1), "amd64");
    files.index(&[named(image.clone(), "localhost/app:1")]);
    let directory = files.directory(at.path());
    let archive = files.archive(at.path());
    let compressed = at.path().join("archive.tar.gz");
    fs::write(&compressed, gzip(&files.tar())).unwrap();

    let mut contents = Vec::new();
    for reference in [
        format!("oci:{}", directory.display()),
        format!("oci-archive:{}", archive.display()),
        format!("oci-archive:{}", compressed.display()),
    ] {
        let repo = Repo::new();
        let opened = open(&reference).unwrap();
        assert_eq!(opened.names, ["localhost/app:1"]);
        let report = repo.import(&opened).unwrap();
        assert_eq!(report.source, reference);
        assert_eq!(report.manifest, digest_of(&image));
        assert_eq!(repo.layer_tar(&DiffId::of(&layer(1))), layer(1));
        contents.push((repo.objects(), repo.streams(), report.rootfs));
    }
    contents.dedup();
    assert_eq!(contents.len(), 1);
}

#[test]
fn an_image_is_found_by_name_digest_and_position() {
    let at = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    let (one, two) = (
        files.image(&layer(1), "amd64"),
        files.image(&layer(2), "amd64"),
    );
    files.index(&[
        named(one.clone(), "one"),
        named(two.clone(), "reg.io/two:2"),
    ]);
    let directory = files.directory(at.path());
    let found = |suffix: &str| {
        let image = open(&format!("oci:{}{suffix}", directory.display()));
        image.map(|image| manifest_of(&image))
    };
    assert_eq!(found(":one").unwrap(), digest_of(&one));
    assert_eq!(found(":reg.io/two:2").unwrap(), digest_of(&two));
    assert_eq!(found(":@1").unwrap(), digest_of(&two));
    let suffix = format!("@{}", digest_of(&two));
    assert_eq!(found(&suffix).unwrap(), digest_of(&two));

    let several = found("").unwrap_err();
    assert!(matches!(several, SourceError::SeveralImages { .. }));
    for text in [
        several.to_string(),
        found(":three").unwrap_err().to_string(),
    ] {
        assert!(text.contains(":one, :reg.io/two:2"), "{text}");
    }
    assert!(matches!(found(":@2"), Err(SourceError::NotFound { .. })));
}

#[test]
fn an_index_is_resolved_by_platform_also_within_an_index() {
    let at = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    let (amd, arm6, arm7) = (
        files.image(&layer(1), "amd64"),
        files.image(&layer(2), "arm"),
        files.image(&layer(3), "arm"),
    );
    let inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        for_platform(amd.clone(), "amd64", ""),
        for_platform(arm6.clone(), "arm", "v6"),
        for_platform(arm7.clone(), "arm", "v7"),
    ]});
    let inner = files.blob(INDEX, inner.to_string());
    let outer = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]});
    let outer = files.blob(INDEX, outer.to_string());
    files.index(&[named(outer.clone(), "app")]);
    let directory = files.directory(at.path());
    let reference = format!("oci:{}:app", directory.display());
    let found = |text| {
        let image = open_with(&reference, &platform(text))?;
        let indexes: Vec<_> = image
            .indexes
            .iter()
            .map(|it| ManifestDigest::of(it))
            .collect();
        assert_eq!(indexes, [digest_of(&outer), digest_of(&inner)]);
        Ok::<_, SourceError>(manifest_of(&image))
    };
    assert_eq!(found("linux/amd64").unwrap(), digest_of(&amd));
    assert_eq!(found("linux/arm").unwrap(), digest_of(&arm7));
    assert_eq!(found("linux/arm/v7").unwrap(), digest_of(&arm7));
    assert_eq!(found("linux/arm/v6").unwrap(), digest_of(&arm6));
    let text = found("linux/s390x").unwrap_err().to_string();
    assert!(
        text.contains("linux/amd64, linux/arm/v6, linux/arm/v7"),
        "{text}"
    );
    // The index is an image of its own name, too.
    let by_digest = format!("oci:{}@{}", directory.display(), digest_of(&outer));
    let image = open_with(&by_digest, &platform("linux/amd64")).unwrap();
    assert_eq!(manifest_of(&image), digest_of(&amd));

    // And so is what only an index in an index names, whatever its platform.
    for wanted in [&arm6, &inner] {
        let by_digest = format!("oci:{}@{}", directory.display(), digest_of(wanted));
        let image = open_with(&by_digest, &platform("linux/arm/v6")).unwrap();
        assert_eq!(manifest_of(&image), digest_of(&arm6));
    }
    let absent = format!(
        "oci:{}@{}",
        directory.display(),
        ManifestDigest::of(b"absent")
    );
    assert!(matches!(open(&absent), Err(SourceError::NotFound { .. })));

    // In the repository the image is found by both of them.
    let repo = Repo::new();
    repo.import(&image).unwrap();
    for index in [&outer, &inner] {
        let index = digest_of(index).to_string();
        let found = repository::oci::find(&repo.repository, &index).unwrap();
        assert_eq!(found.manifest().digest(), digest_of(&amd));
    }
}

#[test]
fn a_platform_that_is_asked_for_must_be_that_of_a_single_image_too() {
    let at = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    let image = files.image(&layer(1), "arm64");
    files.index(&[image]);
    let reference = format!("oci:{}", files.directory(at.path()).display());
    open(&reference).unwrap();
    open_with(&reference, &platform("linux/arm64")).unwrap();
    let error = open_with(&reference, &platform("linux/amd64")).unwrap_err();
    assert!(error.to_string().contains("linux/arm64"), "{error}");
}

#[test]
fn an_index_that_contains_itself_ends() {
    // It cannot with digests that are checked, but a long chain can be made.
    let at = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    let mut inner = files.image(&layer(1), "amd64");
    for _ in 0..6 {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]});
        inner = files.blob(INDEX, index.to_string());
    }
    files.index(&[inner]);
    let error = open(&format!("oci:{}", files.directory(at.path()).display())).unwrap_err();
    assert!(
        chain(&error).contains("indexes within each other"),
        "{error:?}"
    );
}

#[test]
fn documents_that_were_altered_are_refused() {
    let tar = layer(1);
    let mut files = Files::default();
    let image = files.image(&tar, "amd64");
    files.index(std::slice::from_ref(&image));
    let blob = |hex: String| format!("blobs/sha256/{hex}");
    let manifest = blob(digest_of(&image).to_hex());
    let config = blob(ConfigDigest::of(&config(&[DiffId::of(&tar)], "amd64")).to_hex());
    for name in [manifest, config] {
        let at = tempfile::tempdir().unwrap();
        let mut files = files.clone();
        files.0.get_mut(&name).unwrap().push(b' ');
        let opened = open(&format!("oci:{}", files.directory(at.path()).display()));
        let error = opened.unwrap_err();
        let expected = matches!(
            error,
            SourceError::Altered { .. } | SourceError::Image { .. }
        );
        assert!(expected, "{name}: {error:?}");
    }
}

#[test]
fn documents_that_do_not_parse_are_named_by_kind_and_digest() {
    let bad = "{\"schemaVersion\": 2, \"layers\": 7}";
    let digest = BlobDigest::of(bad.as_bytes());
    let config_type = "application/vnd.oci.image.config.v1+json";
    for (kind, media_type) in [
        ("config", config_type),
        ("manifest", MANIFEST),
        ("index", INDEX),
    ] {
        let at = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        let mut described = files.blob(media_type, bad);
        if kind == "config" {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [],
            });
            described = files.blob(MANIFEST, manifest.to_string());
        }
        files.index(&[described]);
        let error = open(&format!("oci:{}", files.directory(at.path()).display())).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("{kind} {digest} in /")), "{text}");
    }
}

#[test]
fn files_of_a_layout_are_looked_for_inside_it_only() {
    let at = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    let image = files.image(&layer(1), "amd64");
    files.index(std::slice::from_ref(&image));
    let directory = files.directory(at.path());
    let reference = format!("oci:{}", directory.display());
    let blob = directory
        .join("blobs/sha256")
        .join(digest_of(&image).to_hex());
    fs::rename(&blob, at.path().join("outside")).unwrap();
    std::os::unix::fs::symlink("../../../outside", &blob).unwrap();
    let error = open(&reference).unwrap_err();
    assert!(matches!(error, SourceError::Io { .. }), "{error:?}");
    // A fifo would be waited for.
    fs::remove_file(&blob).unwrap();
    let fifo = rustix_fifo(&blob);
    let error = open(&reference).unwrap_err();
    assert!(matches!(error, SourceError::NotAFile { .. }), "{error:?}");
    fs::remove_file(fifo).unwrap();
    let error = open(&reference).unwrap_err();
    assert!(matches!(error, SourceError::Missing { .. }), "{error:?}");
}

fn rustix_fifo(path: &Path) -> &Path {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path
}

#[test]
fn a_blob_that_was_cut_off_in_a_layout_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let mut files = Files::default();
    let image = files.image(&layer(1), "amd64");
    files.index(&[image]);
    let directory = files.directory(at.path());
    let opened = open(&format!("oci:{}", directory.display())).unwrap();
    let blob = BlobDigest::of(&gzip(&layer(1))).to_hex();
    let blob = directory.join("blobs/sha256").join(blob);
    let error = {
        let whole = fs::read(&blob).unwrap();
        fs::write(&blob, &whole[..whole.len() - 1]).unwrap();
        let cut = open(&format!("oci:{}", directory.display())).unwrap();
        repo::refused(&cut, ImportOptions::default())
    };
    assert!(matches!(error, LayerError::BlobSize { .. }), "{error:?}");
    // The one that was opened before notices the end of the file.
    let error = repo::refused(&opened, ImportOptions::default());
    assert!(matches!(error, LayerError::Read(_)), "{error:?}");
}

/// A docker archive of one image with these layers, and its config.
fn docker(layers: &[(&str, Vec<u8>)], tags: &Value) -> (Files, Vec<u8>) {
    let diff_ids: Vec<_> = layers.iter().map(|(_, tar)| DiffId::of(tar)).collect();
    let config = config(&diff_ids, "amd64");
    let mut files = Files::default();
    for (name, tar) in layers {
        files.add(name, &tar[..]);
    }
    files.add("config.json", &config[..]);
    let names: Vec<_> = layers.iter().map(|(name, _)| name).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]);
    files.add("manifest.json", manifest.to_string());
    (files, config)
}

#[test]
fn the_manifest_of_a_docker_archive_is_the_one_that_podman_makes_up() {
    let at = tempfile::tempdir().unwrap();
    let layers = [("a/layer.tar", layer(1)), ("b/layer.tar", layer(2))];
    let (files, config) = docker(&layers, &json!(["localhost/app:1", "app"]));
    let archive = files.archive(at.path());
    let image = open(&format!("docker-archive:{}", archive.display())).unwrap();
    assert_eq!(image.names.len(), 2);
    assert_eq!(image.names[0], "localhost/app:1");
    assert!(
        image.names[1].ends_with("/library/app:latest"),
        "{:?}",
        image.names
    );
    let layer = |tar: &[u8]| {
        format!(
            r#"{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":{},"digest":"{}"}}"#,
            tar.len(),
            DiffId::of(tar)
        )
    };
    let expected = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":{},"digest":"{}"}},"layers":[{},{}]}}"#,
        config.len(),
        ConfigDigest::of(&config),
        layer(&layers[0].1),
        layer(&layers[1].1)
    );
    assert_eq!(String::from_utf8(image.manifest.clone()).unwrap(), expected);
    let repo = Repo::new();
    repo.import(&image).unwrap();
    for (_, tar) in &layers {
        assert_eq!(repo.layer_tar(&DiffId::of(tar)), *tar);
    }
}

#[test]
fn layers_of_a_docker_archive_may_be_compressed_and_links() {
    let at = tempfile::tempdir().unwrap();
    let layers = [("a.tar", layer(1)), ("b/layer.tar", layer(2))];
    let (plain, _) = docker(&layers, &json!(null));
    let expected = open(&format!(
        "docker-archive:{}",
        plain.archive(at.path()).display()
    ))
    .unwrap();

    let entries = [
        file("./a.tar", gzip(&layers[0].1)),
        file("./c/layer.tar", &layers[1].1[..]),
        link("./b/layer.tar", "../c/layer.tar"),
        file("./config.json", &plain.0["config.json"][..]),
        file("./manifest.json", &plain.0["manifest.json"][..]),
    ];
    let other = at.path().join("other.tar.zst");
    fs::write(&other, zstd::encode_all(&tar_of(&entries)[..], 1).unwrap()).unwrap();
    let image = open(&format!("docker-archive:{}", other.display())).unwrap();
    assert_eq!(image.manifest, expected.manifest);
    let (one, two) = (Repo::new(), Repo::new());
    one.import(&expected).unwrap();
    two.import(&image).unwrap();
    assert_eq!(one.objects(), two.objects());
    assert_eq!(one.streams(), two.streams());
}

#[test]
fn images_of_a_docker_archive_are_found_by_name_and_position() {
    let at = tempfile::tempdir().unwrap();
    let (mut files, _) = docker(&[("a.tar", layer(1))], &json!(["app:1"]));
    let (second, _) = docker(&[("b.tar", layer(2))], &json!(null));
    files.add("b.tar", &second.0["b.tar"][..]);
    files.add("second.json", &second.0["config.json"][..]);
    let mut items: Value = serde_json::from_slice(&files.0["manifest.json"]).unwrap();
    items.as_array_mut().unwrap().push(json!({
        "Config": "second.json", "RepoTags": null, "Layers": ["b.tar"],
    }));
    files.add("manifest.json", items.to_string());
    let archive = files.archive(at.path());
    let found = |suffix: &str| {
        let image = open(&format!("docker-archive:{}{suffix}", archive.display()))?;
        Ok::<_, SourceError>(image.layers[0].diff_id)
    };
    let by_tag = open(&format!("docker-archive:{}:app:1", archive.display())).unwrap();
    let full = format!(":{}", by_tag.names[0]);
    for suffix in [":app:1", &full, ":@0"] {
        assert_eq!(found(suffix).unwrap(), DiffId::of(&layer(1)));
    }
    assert_eq!(found(":@1").unwrap(), DiffId::of(&layer(2)));
    let text = found("").unwrap_err().to_string();
    assert!(text.contains(":app:1, :@1"), "{text}");
    assert!(matches!(found(":app"), Err(SourceError::NotFound { .. })));
}

#[test]
fn archives_that_are_none_are_refused_with_their_path() {
    let at = tempfile::tempdir().unwrap();
    let mut old = Files::default();
    old.add("repositories", r#"{"app":{"latest":"a"}}"#);
    old.add("a/json", "{}");
    let mut layers_missing = docker(&[("a.tar", layer(1))], &json!(null)).0;
    layers_missing.0.remove("a.tar");
    let whole = docker(&[("a.tar", layer(1))], &json!(null)).0.tar();
    for (content, expected) in [
        (b"something else".repeat(100), "is no tar archive"),
        (whole[..whole.len() / 2].to_vec(), "cannot read"),
        (old.tar(), "before 1.10"),
        (Files::default().tar(), "has no manifest.json"),
        (layers_missing.tar(), "has no a.tar"),
        (b"BZh91AY&SY".to_vec(), "compressed with bzip2"),
    ] {
        let path = at.path().join("x.tar");
        fs::write(&path, content).unwrap();
        let error = open(&format!("docker-archive:{}", path.display())).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(text.contains("x.tar"), "{text}");
    }
}

#[test]
fn a_member_that_is_no_file_is_not_read() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("x.tar");
    for member in [
        link("manifest.json", "manifest.json"),
        link("manifest.json", "../../etc/passwd"),
        entry("manifest.json", b'3', "", Vec::new()),
    ] {
        fs::write(&path, tar_of(&[member])).unwrap();
        let error = open(&format!("docker-archive:{}", path.display())).unwrap_err();
        let expected = matches!(
            error,
            SourceError::NotAFile { .. } | SourceError::Missing { .. }
        );
        assert!(expected, "{error:?}");
    }
}

#[test]
fn an_archive_that_becomes_larger_than_allowed_is_refused() {
    let at = tempfile::tempdir().unwrap();
    let path = at.path().join("x.tar.gz");
    fs::write(&path, gzip(&vec![0; 10 << 20])).unwrap();
    let options = SourceOptions {
        max_size: Some(1 << 20),
        ..SourceOptions::default()
    };
    let error = open_with(&format!("oci-archive:{}", path.display()), &options).unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { .. }), "{error:?}");
}

#[test]
fn a_directory_of_skopeo_is_read() {
    let at = tempfile::tempdir().unwrap();
    let mut oci = Files::default();
    let image = oci.image(&layer(1), "amd64");
    let hex = |name: &String| name.rsplit('/').next().unwrap().to_owned();
    let manifest = digest_of(&image).to_hex();
    let mut files = Files::default();
    for (name, content) in &oci.0 {
        if hex(name) == manifest {
            files.add("manifest.json", &content[..]);
            files.add(&format!("{manifest}.manifest.json"), &content[..]);
        } else {
            files.add(&hex(name), &content[..]);
        }
    }
    files.add("version", "Directory Transport Version: 1.1\n");
    let reference = format!("dir:{}", files.directory(at.path()).display());
    let opened = open(&reference).unwrap();
    assert_eq!(manifest_of(&opened), digest_of(&image));
    Repo::new().import(&opened).unwrap();

    // One with an index, as `skopeo copy --all` makes it.
    let index =
        json!({"schemaVersion": 2, "manifests": [for_platform(image.clone(), "amd64", "")]});
    files.add("manifest.json", index.to_string());
    files.directory(at.path());
    let opened = open_with(&reference, &platform("linux/amd64")).unwrap();
    assert_eq!(manifest_of(&opened), digest_of(&image));
    assert_eq!(opened.indexes.len(), 1);

    files.add("version", "Directory Transport Version: 2.0\n");
    files.directory(at.path());
    let error = open(&reference).unwrap_err();
    assert!(matches!(error, SourceError::Version { .. }), "{error:?}");
}
