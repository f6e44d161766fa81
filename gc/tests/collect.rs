//! What a collection removes, and above all what it doesn't.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::*;
use gc::{Decision, KeepReason, OwnerKind, Plan, Problem, RemoveReason, Swept};
use repository::oci::NamesStream as _;
use repository::splitstream::{ContentType, Writer};
use repository::{Category, Error, RefPath, Repository, Wait};

fn collect(repository: &mut Repository) -> (Plan, Swept) {
    let plan = gc::plan(repository, &mut (), &()).unwrap();
    let prepared = gc::prepare(repository, plan, Wait::Fail, &mut (), &()).unwrap();
    prepared.execute(&mut (), &()).unwrap()
}

/// A plan that can't tell, and so removes nothing.
fn assert_keeps_everything(repository: &mut Repository) -> Vec<Problem> {
    let before = objects(repository);
    let (plan, swept) = collect(repository);
    assert!(!plan.problems.is_empty());
    assert_eq!(swept, Swept::default());
    assert_eq!(objects(repository), before);
    plan.problems
}

#[test]
fn what_is_tagged_stays_and_what_is_untagged_goes_but_for_what_they_share() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["first", "shared"]);
    let alone = objects(&repository);
    store_image(&repository, &["second", "shared"]);
    let (plan, swept) = collect(&mut repository);
    assert_eq!(plan.problems, []);
    assert_eq!(swept, Swept::default());

    repository
        .remove_ref(Category::Streams, &tag("second"))
        .unwrap();
    let (_, swept) = collect(&mut repository);
    assert_eq!(objects(&repository), alone);
    assert_eq!(swept.streams, 3);
    assert_eq!(swept.images, 1);
    assert!(has_file(&repository, "first") && has_file(&repository, "shared"));
    assert!(!has_file(&repository, "second"));
    assert_clean(&repository);

    repository
        .remove_ref(Category::Streams, &tag("first"))
        .unwrap();
    collect(&mut repository);
    assert_eq!(objects(&repository), [].into());
    assert_eq!(repository.streams().unwrap().entries, []);
    assert_eq!(repository.images().unwrap().entries, []);
}

#[test]
fn planning_writes_nothing_and_the_sweep_does_what_was_planned() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["first"]);
    store_image(&repository, &["second"]);
    repository
        .remove_ref(Category::Streams, &tag("second"))
        .unwrap();
    let before = objects(&repository);
    let plan = gc::plan(&repository, &mut (), &()).unwrap();
    assert_eq!(objects(&repository), before);
    let removed = |plan: &Plan| -> Vec<_> {
        let removal = |item: &gc::ObjectItem| item.decision.is_removal();
        let items = plan.objects.iter().filter(removal);
        items.map(|item| (item.digest, item.bytes)).collect()
    };
    let planned = removed(&plan);
    assert!(planned.iter().all(|(_, bytes)| bytes.is_some()));
    let (executed, swept) = collect(&mut repository);
    assert_eq!(removed(&executed), planned);
    assert_eq!(swept.objects, planned.len() as u64);
    let bytes: u64 = planned.iter().filter_map(|(_, bytes)| *bytes).sum();
    assert_eq!(swept.object_bytes, bytes);
    for (digest, _) in planned {
        assert_eq!(repository.object_size(&digest).unwrap(), None);
    }
}

#[test]
fn every_decision_has_its_reason() {
    let directory = Directory::new();
    let repository = directory.open();
    store_image(&repository, &["first"]);
    store_image(&repository, &["second"]);
    repository
        .remove_ref(Category::Streams, &tag("second"))
        .unwrap();
    let plan = gc::plan(&repository, &mut (), &()).unwrap();
    let [root] = plan.roots.as_slice() else {
        panic!("{:?}", plan.roots);
    };
    assert_eq!(root.owner.to_string(), "tag first");
    let target = &plan.refs[0].target;
    let manifest = plan
        .streams
        .iter()
        .find(|item| item.name.as_str() == target);
    let kept = Decision::Keep(KeepReason::Root(0));
    assert_eq!(manifest.unwrap().decision, kept);
    let removed = Decision::Remove(RemoveReason::Unreferenced);
    let count = |decision| {
        let streams = plan.streams.iter().map(|item| item.decision);
        let images = plan.images.iter().map(|item| item.decision);
        let objects = plan.objects.iter().map(|item| item.decision);
        let all = streams.chain(images).chain(objects);
        all.filter(|other| *other == decision).count()
    };
    // Each image: manifest, config and layer; an EROFS image; and these, two documents and a file as
    // objects.
    assert_eq!((count(kept), count(removed)), (3 + 1 + 7, 3 + 1 + 7));
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["roots"][0]["kind"], "tag");
    assert_eq!(json["roots"][0]["name"], "first");
    let item = &json["objects"][0];
    assert_eq!(item["digest"].as_str().unwrap().len(), 64);
    assert!(["keep", "remove"].contains(&item["decision"].as_str().unwrap()));
    assert!(json["images"][0]["name"].is_string());
}

#[test]
fn a_published_image_needs_no_tag() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let batch = repository.batch().unwrap();
    let image = store_erofs(&batch, &["published"]);
    let path = RefPath::new("composefs-store/published/layer").unwrap();
    batch.set_ref(Category::Images, &path, &image.to_hex());
    store_erofs(&batch, &["forgotten"]);
    batch.commit().unwrap();
    collect(&mut repository);
    assert!(repository.has_image(&image).unwrap());
    assert!(has_file(&repository, "published"));
    assert!(!has_file(&repository, "forgotten"));
    assert_eq!(repository.images().unwrap().entries.len(), 1);
}

#[test]
fn a_config_that_a_second_pull_replaced_keeps_what_the_first_manifest_needs() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let batch = repository.batch().unwrap();
    let layer = store_layer(&batch, &["file"]);
    let old_erofs = store_erofs(&batch, &["file"]);
    let old_config = store_config(&batch, &[layer], Some(&old_erofs));
    store_manifest(&batch, "first", "gzip", old_config, &[layer]);
    batch.commit().unwrap();
    // The same config with another EROFS image: its link now points at another object.
    let batch = repository.batch().unwrap();
    let new_erofs = store_erofs(&batch, &["file", "more"]);
    let new_config = store_config(&batch, &[layer], Some(&new_erofs));
    assert_eq!(old_config.0, new_config.0);
    assert_ne!(old_config.1, new_config.1);
    store_manifest(&batch, "second", "zstd", new_config, &[layer]);
    batch.commit().unwrap();

    repository
        .remove_ref(Category::Streams, &tag("second"))
        .unwrap();
    let (plan, _) = collect(&mut repository);
    assert_eq!(plan.missing, []);
    assert!(repository.object_size(&old_config.1).unwrap().is_some());
    assert!(repository.has_image(&old_erofs).unwrap());
    assert!(has_file(&repository, "file"));
    // The manifest's config and layer can still be found by name.
    for name in [old_config.0.stream_name(), layer.0.stream_name()] {
        assert!(repository.stream(&name).unwrap().is_some(), "{name}");
    }
    assert_clean(&repository);
}

#[test]
fn a_layer_that_only_a_ref_names_stays() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let batch = repository.batch().unwrap();
    let (diff_id, _) = store_layer(&batch, &["file"]);
    let path = RefPath::new("my/layer").unwrap();
    batch.set_ref(Category::Streams, &path, diff_id.stream_name().as_str());
    batch.commit().unwrap();
    let (plan, swept) = collect(&mut repository);
    assert_eq!(plan.roots[0].owner.kind, OwnerKind::Ref);
    assert_eq!(swept, Swept::default());
    assert!(has_file(&repository, "file"));
}

#[test]
fn a_dangling_ref_keeps_everything_and_is_reported() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["first"]);
    store_image(&repository, &["second"]);
    let target = repository
        .reference(Category::Streams, &tag("second"))
        .unwrap()
        .unwrap();
    fs::remove_file(directory.path().join("streams").join(&target)).unwrap();
    let problems = assert_keeps_everything(&mut repository);
    assert!(matches!(&problems[0], Problem::Dangling { target: t, .. } if *t == target));
    let message = problems[0].to_string();
    assert!(message.contains("tag second"), "{message}");

    // Without the ref nobody needs it any more.
    repository
        .remove_ref(Category::Streams, &tag("second"))
        .unwrap();
    collect(&mut repository);
    assert!(!has_file(&repository, "second"));
    assert_clean(&repository);
}

#[test]
fn a_stream_that_is_missing_or_damaged_keeps_everything() {
    for damage in ["missing", "garbage", "one byte"] {
        for kind in ["oci-manifest", "oci-config", "oci-layer"] {
            let directory = Directory::new();
            let mut repository = directory.open();
            store_image(&repository, &["first"]);
            let streams = repository.streams().unwrap().entries;
            let stream = streams
                .iter()
                .find(|stream| stream.name.as_str().starts_with(kind))
                .unwrap();
            store_image(&repository, &["forgotten"]);
            repository
                .remove_ref(Category::Streams, &tag("forgotten"))
                .unwrap();
            let path = repository.object_file(&stream.object);
            match damage {
                "missing" => fs::remove_file(&path).unwrap(),
                "garbage" => fs::write(&path, "not a splitstream, nor an image").unwrap(),
                _ => {
                    let mut bytes = fs::read(&path).unwrap();
                    bytes[120] ^= 1;
                    fs::write(&path, bytes).unwrap();
                }
            }
            let problems = assert_keeps_everything(&mut repository);
            assert!(
                matches!(&problems[0], Problem::Unreadable { object, .. } if *object == stream.object),
                "{damage} {kind}: {problems:?}"
            );
        }
    }
}

#[test]
fn a_damaged_image_keeps_everything() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["first"]);
    let image = repository.images().unwrap().entries[0].name;
    let path = repository.object_file(&image);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_keeps_everything(&mut repository);
}

#[test]
fn a_missing_file_of_a_layer_is_reported_and_blocks_nothing() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["first", "other"]);
    store_image(&repository, &["forgotten"]);
    repository
        .remove_ref(Category::Streams, &tag("forgotten"))
        .unwrap();
    let missing = composefs_image::verity_digest(repository.algorithm(), &content("other"));
    fs::remove_file(repository.object_file(&missing)).unwrap();
    let (plan, _) = collect(&mut repository);
    assert_eq!(plan.problems, []);
    assert_eq!(plan.missing, [missing]);
    assert!(!has_file(&repository, "forgotten"));
    assert!(has_file(&repository, "first"));
}

#[test]
fn odd_things_are_left_alone_and_odd_links_are_in_doubt() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["first"]);
    store_image(&repository, &["kept"]);
    let kept = repository.streams().unwrap().entries;
    let kept = kept
        .iter()
        .find(|link| splitstream_names(&repository, &link.object, "kept"))
        .unwrap()
        .object;
    repository
        .remove_ref(Category::Streams, &tag("kept"))
        .unwrap();
    let root = directory.path();
    fs::write(root.join("streams/file"), "").unwrap();
    fs::write(root.join("streams/refs/file"), "").unwrap();
    fs::write(root.join("objects/.tmp-object-abc"), "").unwrap();
    // A link with a name that isn't UTF-8 still keeps its object.
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"odd\xff");
    let target = format!("../objects/{}", kept.object_path());
    symlink(target, root.join("streams").join(odd)).unwrap();

    let (plan, _) = collect(&mut repository);
    assert_eq!(plan.problems, []);
    assert_eq!(plan.ignored.len(), 2);
    assert!(has_file(&repository, "kept"));
    assert!(root.join("streams/file").exists());
    assert!(root.join("objects/.tmp-object-abc").exists());

    symlink("..", root.join("streams/refs/up")).unwrap();
    let problems = assert_keeps_everything(&mut repository);
    assert!(matches!(problems[0], Problem::OddRef { .. }));
}

/// Whether the splitstream has the content of this file among its object refs.
fn splitstream_names(
    repository: &Repository,
    stream: &repository::VerityDigest,
    file: &str,
) -> bool {
    let digest = composefs_image::verity_digest(repository.algorithm(), &content(file));
    let reader = repository::splitstream::open(repository, stream, None).unwrap();
    reader.object_refs().any(|object| object.unwrap() == digest)
}

#[test]
fn dangling_links_that_nobody_needs_go() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let batch = repository.batch().unwrap();
    let (_, stream) = store_layer(&batch, &["file"]);
    let image = store_erofs(&batch, &["file"]);
    batch.commit().unwrap();
    fs::remove_file(repository.object_file(&stream)).unwrap();
    fs::remove_file(repository.object_file(&image)).unwrap();
    let (plan, swept) = collect(&mut repository);
    assert_eq!(plan.problems, []);
    assert_eq!((swept.streams, swept.images), (1, 1));
}

#[test]
fn streams_that_need_each_other_are_collected_together() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let batch = repository.batch().unwrap();
    let (inner, _) = {
        let writer = Writer::new(&batch, ContentType::OCI_BLOB).unwrap();
        writer.finish().unwrap()
    };
    let mut writer = Writer::new(&batch, ContentType::OCI_BLOB).unwrap();
    writer.named_ref("inner", &inner).unwrap();
    let (outer, _) = writer.finish().unwrap();
    batch.link_stream(&name("outer"), &outer);
    batch.set_ref(Category::Streams, &RefPath::new("keep").unwrap(), "outer");
    batch.commit().unwrap();
    collect(&mut repository);
    assert_eq!(objects(&repository), [inner, outer].into());
    repository
        .remove_ref(Category::Streams, &RefPath::new("keep").unwrap())
        .unwrap();
    collect(&mut repository);
    assert_eq!(objects(&repository), [].into());
}

#[test]
fn a_repository_in_use_is_not_collected() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let other = directory.open();
    let plan = gc::plan(&repository, &mut (), &()).unwrap();
    let busy = gc::prepare(&mut repository, plan, Wait::Fail, &mut (), &());
    assert!(matches!(busy, Err(gc::Error::Repository(Error::Busy(_)))));
    assert!(gc::plan(&other, &mut (), &()).is_ok());
}

#[test]
fn the_staging_directory_of_a_living_batch_stays() {
    let directory = Directory::new();
    let repository = directory.open();
    let batch = repository.batch().unwrap();
    batch.store_bytes(b"content").unwrap();
    let plan = gc::plan(&repository, &mut (), &()).unwrap();
    assert_eq!(plan.staging.len(), 1);
    assert_eq!(plan.staging[0].bytes, 7);
    assert_eq!(plan.staging[0].decision, Decision::Keep(KeepReason::InUse));
}

#[test]
fn an_empty_repository_has_nothing_to_collect() {
    let directory = Directory::new();
    let (plan, swept) = collect(&mut directory.open());
    assert_eq!(swept, Swept::default());
    assert!(plan.objects.is_empty());
}

/// A host that knows what it is told, and notes which layers it is to remove.
#[derive(Default)]
struct Told {
    known: gc::Known,
    removed: Vec<gc::Unpublished>,
    /// What it says instead once it was asked to remove layers and could not.
    prevented: Option<gc::Known>,
}

impl gc::Host for Told {
    fn known(&mut self, _: &Repository) -> gc::Known {
        self.known.clone()
    }

    fn remove_published(
        &mut self,
        _: &Repository,
        unpublished: &[gc::Unpublished],
    ) -> Result<Vec<gc::Unpublished>, gc::HostError> {
        if let Some(known) = self.prevented.take() {
            self.known = known;
            return Ok(Vec::new());
        }
        self.removed.extend_from_slice(unpublished);
        self.known.unpublished.clear();
        Ok(self.removed.clone())
    }
}

fn unpublished() -> gc::Unpublished {
    gc::Unpublished {
        kind: gc::PublishedKind::Layer,
        id: "layer".into(),
        reason: RemoveReason::Unpublished,
    }
}

fn collect_on(host: &mut Told, repository: &mut Repository) -> (Plan, Swept) {
    let plan = gc::plan(repository, host, &()).unwrap();
    let prepared = gc::prepare(repository, plan, Wait::Fail, host, &()).unwrap();
    prepared.execute(host, &()).unwrap()
}

#[test]
fn what_the_host_needs_stays_and_what_it_gives_up_goes() {
    let directory = Directory::new();
    let mut repository = directory.open();
    for image in ["booted", "old", "app"] {
        store_image(&repository, &[image]);
    }
    let target = repository
        .reference(Category::Streams, &tag("booted"))
        .unwrap();
    let target = name(&target.unwrap());
    repository
        .remove_ref(Category::Streams, &tag("booted"))
        .unwrap();
    let mut host = Told::default();
    host.known.roots.push(gc::Root {
        owner: gc::Owner {
            kind: OwnerKind::Boot,
            name: "loader/entries/a.conf".into(),
        },
        reason: "booted".into(),
        needs: vec![gc::Need::Stream(target.clone())],
    });
    host.known.missing_tags.push(gc::MissingTag {
        tag: repository::Tag::new("live").unwrap(),
        target,
        reason: "booted".into(),
    });
    host.known.given_up.push(gc::GivenUp {
        id: gc::RefId::of_tag(&repository::Tag::new("old").unwrap()),
        reason: RemoveReason::NotDeployed,
    });
    host.known.unpublished.push(unpublished());
    let (plan, swept) = collect_on(&mut host, &mut repository);
    assert_eq!(plan.problems, []);
    assert_eq!(host.removed, [unpublished()]);
    assert_eq!((swept.layers, swept.refs), (1, 1));
    assert!(has_file(&repository, "booted") && has_file(&repository, "app"));
    assert!(!has_file(&repository, "old"));
    let tags = repository::oci::tags(&repository).unwrap();
    let tags: Vec<_> = tags.keys().map(repository::Tag::as_str).collect();
    assert_eq!(tags, ["app", "live"]);
    assert_clean(&repository);
}

#[test]
fn layers_that_cannot_be_removed_now_stay_with_what_they_need() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["layer"]);
    let id = gc::RefId::of_tag(&repository::Tag::new("layer").unwrap());
    let mut host = Told::default();
    host.known.given_up.push(gc::GivenUp {
        id: id.clone(),
        reason: RemoveReason::Unpublished,
    });
    host.known.unpublished.push(unpublished());
    let reading = gc::Root {
        owner: gc::Owner {
            kind: OwnerKind::Podman,
            name: "store".into(),
        },
        reason: "is being read".into(),
        needs: vec![gc::Need::Ref(id)],
    };
    host.prevented = Some(gc::Known {
        roots: vec![reading],
        ..gc::Known::default()
    });
    let later = host.known.clone();
    let (plan, swept) = collect_on(&mut host, &mut repository);
    assert_eq!(
        (plan.unpublished.as_slice(), swept),
        (&[][..], Swept::default())
    );
    assert!(has_file(&repository, "layer"));

    host.known = later;
    let (_, swept) = collect_on(&mut host, &mut repository);
    assert_eq!((swept.layers, swept.refs), (1, 1));
    assert!(!has_file(&repository, "layer"));
}

#[test]
fn doubt_about_everything_keeps_everything_and_doubt_about_what_is_kept_keeps_that() {
    for (doubt, kept) in [(gc::Doubt::Everything, true), (gc::Doubt::Kept, false)] {
        let directory = Directory::new();
        let mut repository = directory.open();
        store_image(&repository, &["old"]);
        let mut host = Told::default();
        host.known.given_up.push(gc::GivenUp {
            id: gc::RefId::of_tag(&repository::Tag::new("old").unwrap()),
            reason: RemoveReason::NotDeployed,
        });
        host.known.unpublished.push(unpublished());
        host.known.problems.push(Problem::Source {
            path: "loader/entries/b.conf".into(),
            error: "it has no options".into(),
            doubt,
        });
        let (plan, _) = collect_on(&mut host, &mut repository);
        assert_eq!(plan.problems.len(), 1);
        assert_eq!(has_file(&repository, "old"), kept, "{doubt:?}");
        assert_eq!(host.removed.is_empty(), kept, "{doubt:?}");
        assert_eq!(repository::oci::tags(&repository).unwrap().len() == 1, kept);
    }
}

#[test]
fn a_plan_that_does_not_hold_any_more_is_made_again() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["image"]);
    let target = repository
        .reference(Category::Streams, &tag("image"))
        .unwrap()
        .unwrap();
    repository
        .remove_ref(Category::Streams, &tag("image"))
        .unwrap();
    let plan = gc::plan(&repository, &mut (), &()).unwrap();
    assert!(plan.objects.iter().any(|item| item.decision.is_removal()));
    // Somebody gives the image a name before the lock is ours.
    let batch = repository.batch().unwrap();
    batch.set_ref(Category::Streams, &tag("again"), &target);
    batch.commit().unwrap();
    let prepared = gc::prepare(&mut repository, plan, Wait::Fail, &mut (), &()).unwrap();
    let (_, swept) = prepared.execute(&mut (), &()).unwrap();
    assert_eq!(swept, Swept::default());
    assert_clean(&repository);
}

#[test]
fn what_images_share_stays_until_the_last_of_them_goes() {
    let directory = Directory::new();
    let mut repository = directory.open();
    let batch = repository.batch().unwrap();
    let layer = store_layer(&batch, &["shared"]);
    let images: Vec<String> = (0..10).map(|n| format!("image{n}")).collect();
    for image in &images {
        let own = store_layer(&batch, &[image]);
        let erofs = store_erofs(&batch, &["shared", image]);
        let config = store_config(&batch, &[layer, own], Some(&erofs));
        store_manifest(&batch, image, "", config, &[layer, own]);
        // The same config in another manifest.
        let again = format!("{image}-again");
        store_manifest(&batch, &again, "again", config, &[layer, own]);
    }
    batch.commit().unwrap();
    for image in &images {
        assert!(has_file(&repository, "shared"));
        for name in [image.clone(), format!("{image}-again")] {
            assert!(has_file(&repository, image));
            repository
                .remove_ref(Category::Streams, &tag(&name))
                .unwrap();
            collect(&mut repository);
            assert_clean(&repository);
        }
        assert!(!has_file(&repository, image));
    }
    assert_eq!(objects(&repository), [].into());
}

#[test]
fn objects_of_another_algorithm_are_left_alone() {
    let directory = Directory::new();
    let mut repository = directory.open();
    store_image(&repository, &["file"]);
    // What is left when a repository got new metadata: the same file under its other digest.
    let other = composefs_image::verity_digest(repository::Algorithm::Sha512, &content("file"));
    let path = directory.path().join("objects").join(other.object_path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content("file")).unwrap();
    collect(&mut repository);
    assert!(has_file(&repository, "file"));
    repository
        .remove_ref(Category::Streams, &tag("file"))
        .unwrap();
    let (plan, _) = collect(&mut repository);
    assert!(!has_file(&repository, "file"));
    assert!(path.exists());
    assert_eq!(plan.ignored.len(), 1);
}
