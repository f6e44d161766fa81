use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::digest::{ConfigDigest, DiffId, ManifestDigest, chain_id};
use crate::ids::{ImageId, LayerId, LinkId};
use crate::lock::{ReadLock, WriteLock};

struct Fixture {
    dir: TempDir,
    store: OwnStore,
}

fn fixture() -> Fixture {
    let dir = TempDir::new().unwrap();
    let store = OwnStore::create(&dir.path().join("store")).unwrap();
    Fixture { dir, store }
}

impl Fixture {
    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join("store").join(path)
    }

    fn staged(&self, content: &str, parent: Option<&LayerId>) -> StagedLayer {
        let diff_id = DiffId::of(content.as_bytes());
        let mut record = LayerRecord::new(chain_id(parent, &diff_id));
        record.parent = parent.cloned();
        record.diff_digest = Some(diff_id.into());
        record.diff_size = Some(1024);
        let directory = self.dir.path().join(format!("staged-{content}"));
        fs::create_dir_all(directory.join("diff")).unwrap();
        fs::write(directory.join("diff/file"), content).unwrap();
        let tar_split = self.dir.path().join(format!("staged-{content}.gz"));
        fs::write(&tar_split, content).unwrap();
        StagedLayer {
            record,
            link: LinkId::random().unwrap(),
            directory,
            tar_split: Some(tar_split),
        }
    }

    /// Adds one layer on `parent`.
    fn add(&mut self, content: &str, parent: Option<&LayerId>) -> (LayerId, LinkId) {
        let staged = self.staged(content, parent);
        let found = (staged.record.id.clone(), staged.link);
        let mut txn = self.store.layers().unwrap();
        txn.add(staged);
        txn.commit().unwrap();
        found
    }

    /// The file of a layer, through the short name, as podman opens it.
    fn through_link(&self, link: LinkId) -> Option<String> {
        fs::read_to_string(self.path(&format!("overlay/l/{link}/file"))).ok()
    }
}

fn image(name: &str) -> (ImageRecord, Vec<BigData>) {
    let manifest = format!("manifest of {name}").into_bytes();
    let digest = ManifestDigest::of(&manifest);
    let config = ConfigDigest::of(name.as_bytes());
    let mut record = ImageRecord::new(config.to_hex().parse().unwrap());
    record.digest = Some(digest.into());
    record.names = vec![format!("localhost/{name}:latest")];
    record.metadata = "{}".to_owned();
    let data = [
        (config.to_string(), name.as_bytes().to_vec()),
        (format!("manifest-{digest}"), manifest.clone()),
        ("manifest".to_owned(), manifest),
    ];
    (
        record,
        data.map(|(key, bytes)| BigData { key, bytes }).into(),
    )
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn big_data_names_are_plain_or_base64() {
    for (key, name) in [
        ("manifest", "manifest"),
        ("sha256:00", "=c2hhMjU2OjAw"),
        (
            "zstd-chunked-layer-data",
            "=enN0ZC1jaHVua2VkLWxheWVyLWRhdGE=",
        ),
        ("..", "=Li4="),
        ("", "="),
    ] {
        assert_eq!(big_data_file_name(key), name);
    }
}

#[test]
fn a_new_store_has_what_podman_needs_with_modes_for_everybody() {
    let fixture = fixture();
    for dir in [
        "",
        "overlay",
        "overlay/l",
        "overlay-layers",
        "overlay-images",
    ] {
        assert_eq!(mode(&fixture.path(dir)), 0o755, "{dir}");
    }
    for kind in ["layers", "images"] {
        for file in [format!("{kind}.lock"), format!("{kind}.json")] {
            assert_eq!(
                mode(&fixture.path(&format!("overlay-{kind}/{file}"))),
                0o644,
                "{file}"
            );
        }
    }
    assert!(fixture.store.root().layer_records().unwrap().is_empty());
    // Creating it again keeps what is there.
    fs::write(
        fixture.path("overlay-images/images.json"),
        "[{\"id\":\"a\"}]",
    )
    .unwrap();
    let again = OwnStore::create(&fixture.path("")).unwrap();
    assert_eq!(again.root().image_records().unwrap().len(), 1);
    assert!(matches!(
        OwnStore::open(fixture.dir.path()),
        Err(Error::NoStore { .. })
    ));
}

#[test]
fn a_layer_appears_with_directory_link_tar_split_and_record() {
    let mut fixture = fixture();
    let (base, link) = fixture.add("base", None);
    let (top, _) = fixture.add("top", Some(&base));
    assert_eq!(fixture.through_link(link).as_deref(), Some("base"));
    let target = fs::read_link(fixture.path(&format!("overlay/l/{link}"))).unwrap();
    assert_eq!(target, PathBuf::from(format!("../{base}/diff")));
    let written = fs::read_to_string(fixture.path(&format!("overlay/{base}/link"))).unwrap();
    assert_eq!(written, link.as_str());
    assert!(
        fixture
            .path(&format!("overlay-layers/{base}.tar-split.gz"))
            .exists()
    );
    let records = fixture.store.root().layer_records().unwrap();
    assert_eq!(
        records.iter().map(|r| &r.id).collect::<Vec<_>>(),
        [&base, &top]
    );
}

#[test]
fn a_transaction_holds_the_write_lock_and_changes_nothing_when_dropped() {
    let mut fixture = fixture();
    let staged = fixture.staged("base", None);
    let lock = fixture.path("overlay-layers/layers.lock");
    let before = fs::read(fixture.path("overlay-layers/layers.json")).unwrap();
    let mut txn = fixture.store.layers().unwrap();
    txn.add(staged);
    assert!(ReadLock::try_acquire(&lock).unwrap().is_none());
    drop(txn);
    assert!(WriteLock::try_acquire(&lock).unwrap().is_some());
    assert_eq!(
        fs::read(fixture.path("overlay-layers/layers.json")).unwrap(),
        before
    );
    assert_eq!(fs::read(&lock).unwrap(), b"");
}

#[test]
fn a_commit_renews_the_last_write_mark_and_replaces_the_file() {
    let mut fixture = fixture();
    let lock = fixture.path("overlay-layers/layers.lock");
    let mark = ReadLock::acquire(&lock).unwrap().last_write().unwrap();
    let old = fs::File::open(fixture.path("overlay-layers/layers.json")).unwrap();
    fixture.add("base", None);
    assert!(
        ReadLock::acquire(&lock)
            .unwrap()
            .changed_since(&mark)
            .unwrap()
    );
    // Who had the old file open still reads the old records.
    assert_eq!(std::io::read_to_string(old).unwrap(), "[]");
}

#[test]
fn records_that_podman_would_refuse_are_not_written() {
    let mut fixture = fixture();
    let before = fs::read(fixture.path("overlay-layers/layers.json")).unwrap();
    let stranger: LayerId = "e".repeat(64).parse().unwrap();
    let mut no_digest = fixture.staged("no-digest", None);
    no_digest.record.diff_digest = None;
    let mut no_size = fixture.staged("no-size", None);
    no_size.record.diff_size = Some(-1);
    let mut odd_id = fixture.staged("odd-id", None);
    odd_id.record.id = "short".parse().unwrap();
    let orphan = fixture.staged("orphan", Some(&stranger));
    for staged in [no_digest, no_size, odd_id, orphan] {
        let mut txn = fixture.store.layers().unwrap();
        txn.add(staged.clone());
        let error = txn.commit().unwrap_err();
        assert!(matches!(error, Error::InvalidRecords { .. }), "{error}");
        assert!(staged.directory.exists());
    }
    let twice = fixture.staged("twice", None);
    let mut txn = fixture.store.layers().unwrap();
    txn.add(twice.clone());
    txn.add(twice);
    assert!(txn.commit().unwrap_err().to_string().contains("twice"));
    assert_eq!(
        fs::read(fixture.path("overlay-layers/layers.json")).unwrap(),
        before
    );
}

#[test]
fn a_removed_layer_can_be_restored_with_its_link_and_purged() {
    let mut fixture = fixture();
    let (id, link) = fixture.add("base", None);
    let record = fixture.store.root().layer_records().unwrap().remove(0);

    let mut txn = fixture.store.layers().unwrap();
    assert!(txn.remove(&id) && !txn.remove(&id));
    txn.commit().unwrap();
    assert!(!fixture.path(&format!("overlay/{id}")).exists());
    assert!(
        !fixture
            .path(&format!("overlay-layers/{id}.tar-split.gz"))
            .exists()
    );
    assert_eq!(fs::read_dir(fixture.path("overlay/l")).unwrap().count(), 0);

    let removed = fixture.store.removed().unwrap();
    assert_eq!((removed.len(), removed[0].link), (1, Some(link)));
    let mut txn = fixture.store.layers().unwrap();
    assert!(txn.restore(&removed[0]) && !txn.restore(&removed[0]));
    txn.commit().unwrap();
    assert_eq!(fixture.through_link(link).as_deref(), Some("base"));
    assert!(
        fixture
            .path(&format!("overlay-layers/{id}.tar-split.gz"))
            .exists()
    );
    assert_eq!(fixture.store.root().layer_records().unwrap(), [record]);
    assert!(fixture.store.removed().unwrap().is_empty());

    let mut txn = fixture.store.layers().unwrap();
    txn.remove(&id);
    txn.commit().unwrap();
    for layer in fixture.store.removed().unwrap() {
        fixture.store.purge(&layer).unwrap();
    }
    assert_eq!(fs::read_dir(fixture.path("removed")).unwrap().count(), 0);
}

#[test]
fn a_layer_with_children_is_not_removed_without_them() {
    let mut fixture = fixture();
    let (base, _) = fixture.add("base", None);
    let (top, _) = fixture.add("top", Some(&base));
    let mut txn = fixture.store.layers().unwrap();
    txn.remove(&base);
    assert!(matches!(txn.commit(), Err(Error::InvalidRecords { .. })));
    assert!(fixture.path(&format!("overlay/{base}")).exists());
    let mut txn = fixture.store.layers().unwrap();
    txn.remove(&base);
    txn.remove(&top);
    txn.commit().unwrap();
}

#[test]
fn repair_sets_right_what_a_crash_or_podman_left() {
    let mut fixture = fixture();
    let (kept, _) = fixture.add("kept", None);
    let (lost, _) = fixture.add("lost", None);
    fs::remove_dir_all(fixture.path(&format!("overlay/{lost}"))).unwrap();
    let debris: LayerId = "d".repeat(64).parse().unwrap();
    fs::create_dir_all(fixture.path(&format!("overlay/{debris}/diff"))).unwrap();

    let mut txn = fixture.store.layers().unwrap();
    let repairs = txn.repair().unwrap();
    assert_eq!(
        repairs,
        [
            Repair::DirectoryWithoutRecord(debris.clone()),
            Repair::RecordWithoutDirectory(lost)
        ]
    );
    txn.commit().unwrap();
    assert!(!fixture.path(&format!("overlay/{debris}")).exists());
    let records = fixture.store.root().layer_records().unwrap();
    assert_eq!(records.iter().map(|r| &r.id).collect::<Vec<_>>(), [&kept]);
    assert!(fixture.store.layers().unwrap().repair().unwrap().is_empty());
    // What podman may have put there is not lost.
    assert_eq!(fixture.store.removed().unwrap()[0].id, debris);
}

#[test]
fn an_interrupted_addition_or_restoration_can_be_repeated() {
    let mut fixture = fixture();
    let staged = fixture.staged("base", None);
    let id = staged.record.id.clone();
    // Stopped after the rename, before the record: directory, link and tar-split are there.
    move_everything_but_the_record(&fixture, &staged);
    let again = fixture.staged("base", None);
    let link = again.link;
    let mut txn = fixture.store.layers().unwrap();
    txn.add(again);
    txn.commit().unwrap();
    assert_eq!(fixture.through_link(link).as_deref(), Some("base"));
    for layer in fixture.store.removed().unwrap() {
        fixture.store.purge(&layer).unwrap();
    }

    let mut txn = fixture.store.layers().unwrap();
    txn.remove(&id);
    txn.commit().unwrap();
    // Stopped in the middle of bringing it back: the directory is in place, the saved record is not used.
    let removed = fixture.path(&format!("removed/{id}"));
    fs::rename(
        removed.join("layer"),
        fixture.path(&format!("overlay/{id}")),
    )
    .unwrap();
    let mut txn = fixture.store.layers().unwrap();
    assert_eq!(
        txn.repair().unwrap(),
        [Repair::DirectoryWithoutRecord(id.clone())]
    );
    txn.commit().unwrap();
    let removed = fixture.store.removed().unwrap();
    let mut txn = fixture.store.layers().unwrap();
    assert!(txn.restore(&removed[0]));
    txn.commit().unwrap();
    assert_eq!(fixture.through_link(link).as_deref(), Some("base"));
}

fn move_everything_but_the_record(fixture: &Fixture, staged: &StagedLayer) {
    let id = &staged.record.id;
    fs::write(staged.directory.join("link"), staged.link.as_str()).unwrap();
    fs::rename(&staged.directory, fixture.path(&format!("overlay/{id}"))).unwrap();
    let link = fixture.path(&format!("overlay/l/{}", staged.link));
    symlink(format!("../{id}/diff"), link).unwrap();
}

#[test]
fn an_image_appears_with_its_big_data_and_goes_with_it() {
    let mut fixture = fixture();
    let (record, data) = image("app");
    let id = record.id.clone();
    let mut txn = fixture.store.images().unwrap();
    txn.put(record, data.clone());
    txn.commit().unwrap();

    let records = fixture.store.root().image_records().unwrap();
    let record = &records[0];
    assert_eq!(record.big_data_names.len(), 3);
    for item in &data {
        let path = fixture.path(&format!(
            "overlay-images/{id}/{}",
            big_data_file_name(&item.key)
        ));
        assert_eq!(fs::read(&path).unwrap(), item.bytes);
        assert_eq!(mode(&path), 0o644);
        assert_eq!(record.big_data_sizes[&item.key], item.bytes.len() as i64);
    }
    assert_eq!(
        Some(&record.big_data_digests["manifest"]),
        record.digest.as_ref()
    );

    let mut txn = fixture.store.images().unwrap();
    assert_eq!(txn.remove(&id).map(|record| record.id), Some(id.clone()));
    txn.commit().unwrap();
    assert!(fixture.store.root().image_records().unwrap().is_empty());
    assert!(!fixture.path(&format!("overlay-images/{id}")).exists());
}

#[test]
fn an_image_that_is_withdrawn_stays_for_engines_that_have_it_in_their_list() {
    let mut fixture = fixture();
    let (gone, data) = image("gone");
    let (kept, kept_data) = image("kept");
    let (id, kept_id) = (gone.id.clone(), kept.id.clone());
    let mut txn = fixture.store.images().unwrap();
    txn.put(gone, data.clone());
    txn.put(kept, kept_data);
    txn.commit().unwrap();
    let lock = fixture.path("overlay-images/images.lock");
    let changed = |mark| {
        ReadLock::acquire(&lock)
            .unwrap()
            .changed_since(&mark)
            .unwrap()
    };
    let mark = || ReadLock::acquire(&lock).unwrap().last_write().unwrap();
    let before = mark();

    let mut txn = fixture.store.images().unwrap();
    txn.remove(&id).unwrap();
    txn.commit_unmarked().unwrap();
    let records = fixture.store.root().image_records().unwrap();
    assert_eq!(
        records.iter().map(|r| &r.id).collect::<Vec<_>>(),
        [&kept_id]
    );
    assert!(!changed(before), "a list that was read stays in force");
    for item in &data {
        let name = big_data_file_name(&item.key);
        assert!(
            fixture
                .path(&format!("overlay-images/{id}/{name}"))
                .exists()
        );
    }
    assert_eq!(
        fixture.store.withdrawn().unwrap(),
        std::slice::from_ref(&id)
    );

    let before = mark();
    fixture.store.images().unwrap().commit().unwrap();
    assert!(changed(before));
    assert!(!fixture.path(&format!("overlay-images/{id}")).exists());
    assert!(fixture.path(&format!("overlay-images/{kept_id}")).exists());
    assert_eq!(fixture.store.withdrawn().unwrap(), []);
}

#[test]
fn a_name_that_two_images_have_is_refused() {
    let mut fixture = fixture();
    let (one, data_one) = image("one");
    let (mut two, data_two) = image("two");
    two.names.clone_from(&one.names);
    let (one_id, two_id) = (one.id.clone(), two.id.clone());
    let mut txn = fixture.store.images().unwrap();
    txn.put(one, data_one);
    txn.put(two, data_two);
    txn.get_mut(&one_id).unwrap().names.clear();
    txn.commit().unwrap();
    let mut txn = fixture.store.images().unwrap();
    txn.get_mut(&one_id).unwrap().names = txn.get(&two_id).unwrap().names.clone();
    assert!(matches!(txn.commit(), Err(Error::InvalidRecords { .. })));
}

#[test]
fn keys_of_a_newer_version_are_kept() {
    let mut fixture = fixture();
    let id: ImageId = "a".repeat(64).parse().unwrap();
    let digest = "sha256:".to_owned() + &"b".repeat(64);
    let json = format!(r#"[{{"id":"{id}","digest":"{digest}","new-key":{{"a":[1]}}}}]"#);
    fs::write(fixture.path("overlay-images/images.json"), json).unwrap();
    let (record, data) = image("app");
    let mut txn = fixture.store.images().unwrap();
    txn.put(record, data);
    txn.commit().unwrap();
    let text = fs::read_to_string(fixture.path("overlay-images/images.json")).unwrap();
    assert!(text.contains(r#""new-key":{"a":[1]}"#), "{text}");
}

const KILLED_STORE: &str = "KILL_TEST_STORE";

/// Removes all layers, each before what stands on it.
fn remove_all(store: &mut OwnStore) {
    let mut txn = store.layers().unwrap();
    let ids: Vec<_> = txn
        .records()
        .iter()
        .map(|record| record.id.clone())
        .collect();
    for id in ids {
        assert!(txn.remove(&id));
    }
    txn.commit().unwrap();
}

#[test]
#[ignore = "the process that another test kills"]
fn a_process_that_removes_all_layers() {
    let path = PathBuf::from(std::env::var_os(KILLED_STORE).unwrap());
    remove_all(&mut OwnStore::open(&path).unwrap());
}

#[test]
fn a_removal_that_is_killed_anywhere_is_repaired_and_can_be_finished() {
    let child = "own_store::tests::a_process_that_removes_all_layers";
    let mut tried = 0;
    for step in 1.. {
        let mut fixture = fixture();
        let mut parent = None;
        for content in ["base", "middle", "top"] {
            parent = Some(fixture.add(content, parent.as_ref()).0);
        }
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", child, "--ignored", "--quiet"])
            .env(KILLED_STORE, fixture.path(""))
            .env("COMPOSEFS_STORE_FAILPOINT", format!("own-store:{step}"))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        if status.success() {
            break;
        }
        tried += 1;
        let mut txn = fixture.store.layers().unwrap();
        if txn.repair().unwrap().is_empty() {
            drop(txn);
        } else {
            txn.commit().unwrap();
        }
        let mut txn = fixture.store.layers().unwrap();
        assert_eq!(txn.repair().unwrap(), [], "after step {step}");
        drop(txn);
        remove_all(&mut fixture.store);
        assert_eq!(fixture.store.root().layer_records().unwrap(), []);
        for layer in fixture.store.removed().unwrap() {
            fixture.store.purge(&layer).unwrap();
        }
        let left = fs::read_dir(fixture.path("overlay")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["l"], "after step {step}");
    }
    assert!(tried > 15, "only {tried} steps");
}
