//! What refers to an image, and what is no image.

use super::{Scene, names};
use crate::peers::{cfsctl, cfsctl_ok};
use anyhow::{Context, Result, ensure};
use integration::docker_registry::describe;
use integration::tar::Member;
use integration::{Access, Fixture, Release, Store, ok};
use serde_json::{Value, json};
use std::path::PathBuf;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const SIGNATURE: &str = "application/vnd.example.signature.v1";

/// The manifest of something that refers to `subject`.
fn signature(subject: &Value, config: &Value, payload: &Value) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": SIGNATURE,
        "config": config,
        "layers": [payload],
        "subject": subject,
    })
}

/// Uploads two signatures of `app:1`: one that an index names, and one as cosign keeps them. Gives their
/// digests and that of the image, and the descriptors of the first one.
fn sign(scene: &Scene) -> Result<(Value, [Value; 2])> {
    let registry = &scene.registry;
    let image = format!("docker://{}", registry.image("app:1"));
    let raw = ok(scene.machine.command("skopeo").args([
        "inspect",
        "--raw",
        "--tls-verify=false",
        &image,
    ]))?;
    let subject = describe(&raw.stdout, MANIFEST);
    let config = registry.put_blob("app", b"{}", EMPTY)?;
    let payload = registry.put_blob("app", b"signed", SIGNATURE)?;
    let first = registry.put_manifest("app", None, &signature(&subject, &config, &payload))?;
    let tag = subject["digest"]
        .as_str()
        .context("digest")?
        .replace(':', "-");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [first] });
    registry.put_manifest("app", Some(&tag), &index)?;

    let payload = registry.put_blob(
        "app",
        b"{\"critical\":{}}",
        "application/vnd.dev.cosign.simplesigning.v1+json",
    )?;
    let config = json!({
        "architecture": "", "os": "", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [payload["digest"]] },
    });
    let config = registry.put_blob(
        "app",
        &serde_json::to_vec(&config)?,
        "application/vnd.oci.image.config.v1+json",
    )?;
    let second = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [payload],
    });
    let second = registry.put_manifest("app", Some(&format!("{tag}.sig")), &second)?;
    Ok((subject, [first, second]))
}

#[test]
fn what_refers_to_an_image_is_stored_as_composefs_rs_stores_it() -> Result<()> {
    for release in [Release::Host, Release::Sid] {
        let scene = Scene::with_large_layers(release, 1)?;
        let (subject, signatures) = sign(&scene)?;
        let image = scene.registry.image("app:1");
        let by_name = format!("docker://{image}");
        let import = ["import", "--tls-verify=false", "--with-referrers", &by_name];
        let imported = scene.json(&import)?;
        let artifacts = imported["artifacts"].as_array().context("artifacts")?;
        assert_eq!(artifacts.len(), 2);
        let repo = scene.store.repo();
        let dir = repo
            .join("streams/refs/oci-referrers")
            .join(subject["digest"].as_str().context("digest")?);
        for signature in &signatures {
            let digest = signature["digest"].as_str().context("digest")?;
            let target = dir.join(digest).read_link()?;
            assert_eq!(
                target,
                PathBuf::from(format!("../../../oci-manifest-{digest}"))
            );
        }
        let check = || -> Result<()> {
            scene.store.ok(&["fsck"])?;
            let found = cfsctl_ok(repo, &["oci", "fsck", "--json"])?;
            let found: Value = serde_json::from_slice(&found.stdout)?;
            ensure!(found["ok"] == true, "{found}");
            let seen = cfsctl_ok(repo, &["oci", "inspect", &image])?;
            let seen: Value = serde_json::from_slice(&seen.stdout)?;
            assert_eq!(
                seen["referrers"].as_array().map(Vec::len),
                Some(2),
                "{seen}"
            );
            Ok(())
        };
        check()?;
        cfsctl_ok(repo, &["gc"])?;
        check()?;
        scene.store.ok(&["gc"])?;
        check()?;
        // Again, and by podman, it is the same.
        scene.json(&import)?;
        let pulled = scene.disk.path().join("pulled");
        Store::init(&scene.machine, &pulled)?;
        let pull = ["pull", "--tls-verify=false", "--with-referrers", &image];
        ok(&mut scene.command_on(&pulled, &pull)?)?;
        assert_eq!(names(repo)?, names(&pulled)?);

        // They go with the image; a tag keeps one.
        let [kept, _] = &signatures;
        let kept = kept["digest"].as_str().context("digest")?;
        let by_digest = format!("docker://{}", scene.registry.image(&format!("app@{kept}")));
        scene.json(&[
            "import",
            "--tls-verify=false",
            "--tag",
            "signature",
            &by_digest,
        ])?;
        scene.store.ok(&["untag", &image])?;
        scene.store.ok(&["gc"])?;
        let second = scene.store.ok(&["gc"])?;
        ensure!(
            !dir.exists() || std::fs::read_dir(&dir)?.next().is_none(),
            "{second}"
        );
        let left = names(repo)?;
        let manifests = left
            .keys()
            .filter(|name| name.display().to_string().contains("manifest"));
        assert_eq!(manifests.count(), 1, "{left:#?}");
        scene.store.ok(&["fsck"])?;
        cfsctl_ok(repo, &["oci", "fsck"])?;
        scene.store.ok(&["untag", "signature"])?;
        scene.store.ok(&["gc"])?;
        assert_eq!(scene.store.objects()?, Vec::<PathBuf>::new());
    }
    Ok(())
}

#[test]
fn an_artifact_is_stored_as_cfsctl_stores_it() -> Result<()> {
    let scene = Scene::with_large_layers(Release::Host, 1)?;
    let (_, [signature, _]) = sign(&scene)?;
    let digest = signature["digest"].as_str().context("digest")?;
    let artifact = format!(
        "docker://{}",
        scene.registry.image(&format!("app@{digest}"))
    );
    let import = [
        "import",
        "--tls-verify=false",
        "--tag",
        "artifact",
        &artifact,
    ];
    let imported = scene.json(&import)?;
    ensure!(imported["artifacts"][0]["manifest"] == digest, "{imported}");
    scene.store.ok(&["fsck"])?;

    let theirs = scene.disk.path().join("theirs");
    cfsctl_ok(&theirs, &["init", "--insecure"])?;
    let insecure = format!(
        "[[registry]]\nlocation = {:?}\ninsecure = true\n",
        scene.registry.address()
    );
    scene
        .machine
        .write("/etc/containers/registries.conf", &insecure)?;
    let mut command = scene.machine.command(cfsctl(&theirs, &[])?.get_program());
    command.arg("--repo").arg(&theirs);
    ok(command.args(["oci", "pull", &artifact, "artifact"]))?;
    let both = [scene.store.repo(), &theirs].map(|repo| -> Result<_> {
        let mut names = names(repo)?;
        // No image was made in either.
        names.retain(|name, _| !name.starts_with("images"));
        Ok(names)
    });
    let [ours, theirs] = both;
    assert_eq!(ours?, theirs?);
    Ok(())
}

#[test]
fn an_artifact_of_a_layout_is_found_by_its_subject() -> Result<()> {
    let scene = Scene::new(Release::Host, Access::Open)?;
    let dir = scene.disk.path().join("layout");
    let fixture = Fixture::with_layers(&dir, vec![vec![Member::file("one", "1")]])?;
    let index_file = fixture.layout().join("index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&index_file)?)?;
    let add = |content: &[u8], media_type: &str| -> Result<Value> {
        let descriptor = describe(content, media_type);
        let digest = descriptor["digest"].as_str().context("digest")?;
        let file = fixture
            .layout()
            .join("blobs")
            .join(digest.replace(':', "/"));
        std::fs::write(file, content)?;
        Ok(descriptor)
    };
    let (config, payload) = (add(b"{}", EMPTY)?, add(b"signed", SIGNATURE)?);
    let manifest = signature(&index["manifests"][0], &config, &payload);
    let mut entry = add(&serde_json::to_vec(&manifest)?, MANIFEST)?;
    entry["artifactType"] = json!(SIGNATURE);
    index["manifests"]
        .as_array_mut()
        .context("manifests")?
        .push(entry.clone());
    std::fs::write(&index_file, serde_json::to_vec(&index)?)?;
    let from = format!("oci:{}", fixture.layout().display());
    let imported = scene.json(&["import", "--with-referrers", "--tag", "app", &from])?;
    ensure!(
        imported["artifacts"][0]["manifest"] == entry["digest"],
        "{imported}"
    );
    let digest = entry["digest"].as_str().context("digest")?;
    let by_digest = format!("{from}@{digest}");
    let artifact = scene.json(&["import", "--tag", "artifact", &by_digest])?;
    ensure!(
        artifact["artifacts"][0]["tags"][0] == "artifact",
        "{artifact}"
    );
    scene.store.ok(&["fsck"])?;
    cfsctl_ok(scene.store.repo(), &["oci", "fsck"])?;
    Ok(())
}
