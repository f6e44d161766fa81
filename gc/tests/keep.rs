//! Pins and leases keep what nothing else does, and planning changes nothing.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::*;
use gc::{Decision, Lease, OwnerKind, Plan, RemoveReason, Swept};
use repository::oci::{self, ManifestDigest, NamesStream as _};
use repository::{Category, Repository, Wait};

fn plan(repository: &Repository) -> Plan {
    gc::plan(repository, &mut (), &()).unwrap()
}

fn collect(repository: &mut Repository) -> (Plan, Swept) {
    let plan = plan(repository);
    let prepared = gc::prepare(repository, plan, Wait::Fail, &mut (), &()).unwrap();
    prepared.execute(&mut (), &()).unwrap()
}

/// Stores an image without a tag.
fn store_untagged(repository: &Repository, file: &str) -> ManifestDigest {
    store_image(repository, &[file]);
    let target = repository.reference(Category::Streams, &tag(file)).unwrap();
    let manifest = ManifestDigest::from_stream_name(&name(&target.unwrap())).unwrap();
    repository
        .remove_ref(Category::Streams, &tag(file))
        .unwrap();
    manifest
}

/// Every file and directory with all that changes when it is written to.
fn state(directory: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64, i64, i64)> {
    let mut state = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let found = path.symlink_metadata().unwrap();
        if found.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            pending.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let times = (
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec(),
        );
        let value = (
            found.ino(),
            found.size(),
            times.0,
            times.1,
            times.2,
            times.3,
        );
        state.insert(path, value);
    }
    state
}

#[test]
fn a_pinned_image_stays_until_it_is_unpinned() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let manifest = store_untagged(&repository, "pinned");
    store_untagged(&repository, "other");
    gc::pin(&repository, &manifest, "known to work").unwrap();
    let (plan, _) = collect(&mut repository);
    let [root] = plan.roots.as_slice() else {
        panic!("{:?}", plan.roots);
    };
    assert_eq!(root.owner.kind, OwnerKind::Pin);
    assert_eq!(root.owner.name, manifest.to_string());
    assert_eq!(root.reason, "known to work");
    assert!(has_file(&repository, "pinned") && !has_file(&repository, "other"));

    gc::pin(&repository, &manifest, "another reason").unwrap();
    let [pin] = gc::pins(&repository).unwrap().try_into().unwrap();
    assert_eq!(pin.reason.as_deref(), Some("another reason"));
    assert!(pin.since.is_some());

    // The reason is for people; without it the pin still holds.
    let private = directory.path().join("composefs-store/pins");
    std::fs::remove_dir_all(&private).unwrap();
    collect(&mut repository);
    assert!(has_file(&repository, "pinned"));

    assert!(gc::unpin(&repository, &manifest).unwrap());
    assert!(!gc::unpin(&repository, &manifest).unwrap());
    collect(&mut repository);
    assert!(!has_file(&repository, "pinned"));
    assert_eq!(objects(&repository), [].into());
}

#[test]
fn what_does_not_exist_cannot_be_pinned() {
    let directory = Directory::new();
    let repository = directory.open();
    let manifest = ManifestDigest::of(b"nothing");
    assert!(gc::pin(&repository, &manifest, "why").is_err());
    assert_eq!(gc::pins(&repository).unwrap(), []);
}

#[test]
fn a_lease_keeps_what_has_a_name_and_goes_with_its_holder() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let lease = Lease::take(&repository, "an upgrade").unwrap();
    // A group of layers that an import has committed before it has an image to tag.
    let batch = repository.batch().unwrap();
    store_layer(&batch, &["layer"]);
    batch.commit().unwrap();
    store_image(&repository, &["tagged"]);
    let (plan, swept) = collect(&mut repository);
    assert_eq!(swept, Swept::default());
    assert!(has_file(&repository, "layer"));
    let lease_root = plan
        .roots
        .iter()
        .position(|root| root.owner.kind == OwnerKind::Lease);
    assert_eq!(plan.roots[lease_root.unwrap()].reason, "an upgrade");
    // What somebody needs for sure is still said to be needed by them.
    let of_lease = plan
        .streams
        .iter()
        .filter(|item| item.decision == Decision::Keep(gc::KeepReason::Root(lease_root.unwrap())));
    assert_eq!(of_lease.count(), 1);

    drop(lease);
    let (plan, _) = collect(&mut repository);
    assert!(plan.leases.is_empty());
    assert!(!has_file(&repository, "layer") && has_file(&repository, "tagged"));
}

#[test]
fn a_shared_lease_lasts_as_long_as_any_holder_lives() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let mut lease = Lease::take(&repository, "shared").unwrap();
    lease.share().unwrap();
    store_untagged(&repository, "file");
    let mut holder = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(lease);
    collect(&mut repository);
    assert!(has_file(&repository, "file"));

    holder.kill().unwrap();
    holder.wait().unwrap();
    let before = plan(&repository);
    let [item] = before.leases.as_slice() else {
        panic!("{:?}", before.leases);
    };
    assert_eq!(item.decision, Decision::Remove(RemoveReason::Abandoned));
    let (_, swept) = collect(&mut repository);
    assert_eq!(swept.leases, 1);
    assert!(!has_file(&repository, "file"));
    assert!(plan(&repository).leases.is_empty());
}

#[test]
fn a_plan_writes_nothing_and_is_what_is_done_then() {
    let directory = Directory::new();
    let mut repository = directory.open();
    for image in ["a", "b", "c"] {
        store_image(&repository, &[image, "shared"]);
    }
    let untagged = store_untagged(&repository, "d");
    store_untagged(&repository, "e");
    gc::pin(&repository, &untagged, "pinned").unwrap();
    repository.remove_ref(Category::Streams, &tag("b")).unwrap();
    let abandoned = directory
        .path()
        .join("composefs-store/staging/0123456789abcdef");
    std::fs::create_dir(&abandoned).unwrap();

    let before = state(&directory.path());
    let planned = plan(&repository);
    gc::roots(&repository, gc::Known::default()).unwrap();
    assert_eq!(state(&directory.path()), before);

    let text = |plan: &Plan| serde_json::to_string(plan).unwrap();
    let (done, swept) = collect(&mut repository);
    assert_eq!(text(&planned), text(&done));
    let after = state(&directory.path());
    let gone: Vec<_> = before
        .keys()
        .filter(|path| !after.contains_key(*path))
        .collect();
    let mut expected: Vec<PathBuf> = planned
        .objects
        .removed()
        .map(|item| repository.object_file(&item.digest))
        .collect();
    let removed = |decision: Decision| decision.is_removal();
    for item in planned.streams.iter().filter(|item| removed(item.decision)) {
        expected.push(directory.path().join("streams").join(item.name.as_str()));
        // What is kept of a layer's files goes with its name.
        if let Some(layer) = item.name.as_str().strip_prefix("oci-layer-sha256:") {
            let kept = directory.path().join("composefs-store/checksums");
            expected.push(kept.join(layer));
        }
    }
    for item in planned.images.iter().filter(|item| removed(item.decision)) {
        expected.push(directory.path().join("images").join(item.name.to_hex()));
    }
    expected.push(abandoned);
    expected.sort();
    assert_eq!(gone, expected.iter().collect::<Vec<_>>());
    let bytes: u64 = planned
        .objects
        .removed()
        .filter_map(|item| item.bytes)
        .sum();
    assert_eq!(swept.object_bytes, bytes);
    assert_eq!(swept.objects, planned.objects.removed().count() as u64);
    assert_clean(&repository);
}

#[test]
fn what_refers_to_an_image_stays_as_long_as_the_image() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let [subject, artifact, other] =
        ["subject", "artifact", "other"].map(|file| store_untagged(&repository, file));
    let batch = repository.batch().unwrap();
    oci::add_referrer(&batch, &subject, &artifact).unwrap();
    // What refers to it may have something that refers to it in turn.
    oci::add_referrer(&batch, &artifact, &other).unwrap();
    batch.commit().unwrap();
    gc::pin(&repository, &subject, "in use").unwrap();
    let files = |repository: &Repository| {
        ["subject", "artifact", "other"].map(|file| has_file(repository, file))
    };
    collect(&mut repository);
    assert_eq!(files(&repository), [true; 3]);

    gc::unpin(&repository, &subject).unwrap();
    let (plan, _) = collect(&mut repository);
    assert_eq!(plan.roots.len(), 2);
    assert_eq!(files(&repository), [false, true, true]);
    let (plan, swept) = collect(&mut repository);
    let removed = plan.refs.iter().filter(|item| item.decision.is_removal());
    let reasons: Vec<_> = removed.map(|item| item.decision).collect();
    assert_eq!(reasons, [Decision::Remove(RemoveReason::SubjectGone)]);
    assert_eq!(swept.refs, 1);
    assert_eq!(files(&repository), [false, false, true]);
    collect(&mut repository);
    assert_eq!(objects(&repository), [].into());
    assert_clean(&repository);
}
