//! Random histories of a host that boots from its repository, and a model that knows what must live.
//!
//! Each history imports, tags, deploys, rolls back, publishes, runs containers, is interrupted at any step,
//! damaged and repaired, and collects. After each collection everything that the model needs is readable,
//! and everything else is gone, unless the damage leaves it in doubt what is needed: then everything is
//! still there.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::images::{
    Os, TestHost, collect, erofs_objects, init, objects, os_objects, scratch, store_os,
};
use common::store_layer;
use gc::boot::{self, Orphans, bootc_tag};
use gc::simulate::{Damage, Host, Loader, Mounts, Record};
use repository::oci::{self, ManifestDigest};
use repository::{Algorithm, Category, RefPath, Repository, Tag, VerityDigest};

/// How many histories there are; `HISTORIES` asks for others, and `HISTORY` for a single one.
const HISTORIES: u64 = 2000;
/// How many things happen in each.
const LENGTH: usize = 14;

const FILES: [&str; 5] = ["kernel", "libc", "shell", "editor", "server"];

/// Numbers that are the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() {
            return None;
        }
        Some(&from[self.below(from.len())])
    }
}

struct World {
    random: Random,
    repository: Repository,
    host: Host,
    /// What the repository has.
    present: BTreeMap<ManifestDigest, Os>,
    /// Tags of people.
    tags: BTreeMap<Tag, ManifestDigest>,
    /// Tags of bootc.
    bootc_tags: BTreeSet<ManifestDigest>,
    published: BTreeMap<RefPath, VerityDigest>,
    running: Vec<VerityDigest>,
    /// What has happened, for whoever has to find out why.
    log: Vec<String>,
}

impl World {
    fn import(&mut self, tag: Option<&Tag>) -> Os {
        let mut layers: Vec<&str> = FILES.to_vec();
        let number = 1 + self.random.below(3);
        while layers.len() > number {
            layers.remove(self.random.below(layers.len()));
        }
        let name = format!("{} {}", layers.join(" "), self.random.below(4));
        let salt = ["gzip", "zstd"][self.random.below(2)];
        let os = store_os(&self.repository, &name, salt, &layers, tag);
        self.log.push(format!("import {name} {salt} as {tag:?}"));
        self.present.insert(os.manifest, os.clone());
        os
    }

    fn deploy(&mut self) {
        let os = self.import(None);
        let id = os.id;
        let taken = self.host.states.contains_key(&id)
            || self.host.named().any(|entry| entry.id == id)
            || self.host.booted == Some(id);
        let tag = bootc_tag(&os.manifest);
        let batch = self.repository.batch().unwrap();
        oci::tag(&batch, &tag, &os.manifest).unwrap();
        batch.commit().unwrap();
        self.bootc_tags.insert(os.manifest);
        if taken {
            return;
        }
        let record = match self.random.below(6) {
            0 => Record::Legacy(os.config, os.layers.clone()),
            1 => Record::Unrecorded,
            _ => Record::Manifest(os.manifest),
        };
        let steps = self.random.one_in(3).then(|| self.random.below(6));
        self.log
            .push(format!("deploy {id} {record:?} until {steps:?}"));
        self.host.interrupt_after(steps);
        let kernel = self.random.below(2) as u32;
        let _ = self.host.deploy(id, record, kernel).unwrap();
        self.host.interrupt_after(None);
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0 => {
                self.import(None);
            }
            1 => {
                let tag = Tag::new(["web", "db", "localhost/bootc-x:1"][self.random.below(3)]);
                let tag = tag.unwrap();
                let os = self.import(Some(&tag));
                self.tags.insert(tag, os.manifest);
            }
            2 => {
                let tags: Vec<_> = self.tags.keys().cloned().collect();
                if let Some(name) = self.random.pick(&tags) {
                    self.log.push(format!("untag {name}"));
                    oci::untag(&self.repository, name).unwrap();
                    self.tags.remove(name);
                }
            }
            3 => {
                // An import that was interrupted when it had one layer.
                self.log.push("interrupted import".into());
                let batch = self.repository.batch().unwrap();
                store_layer(&batch, &[FILES[self.random.below(5)]]);
                batch.commit().unwrap();
            }
            4..=7 => self.deploy(),
            8 | 9 => {
                let steps = self.random.one_in(3).then(|| self.random.below(2));
                self.log.push(format!("finalize until {steps:?}, reboot"));
                self.host.interrupt_after(steps);
                let _ = self.host.finalize().unwrap();
                self.host.reboot().unwrap();
            }
            10 => {
                self.log.push("reboot".into());
                self.host.reboot().unwrap();
            }
            11 => {
                self.log.push("roll back".into());
                self.host.roll_back().unwrap();
            }
            12 => {
                if self.host.booted.is_some() && self.host.announced.is_none() {
                    self.log.push("bootc cleans up".into());
                    self.host.clean_up().unwrap();
                }
            }
            13 => {
                let present: Vec<_> = self.present.values().map(|os| os.rootfs).collect();
                if let Some(image) = self.random.pick(&present).copied() {
                    self.log.push(format!("publish {image}"));
                    let path = format!("composefs-store/published/{}", self.random.below(2));
                    let path = RefPath::new(path).unwrap();
                    let batch = self.repository.batch().unwrap();
                    batch.set_ref(Category::Images, &path, &image.to_hex());
                    batch.commit().unwrap();
                    self.published.insert(path, image);
                }
            }
            14 => {
                if self.random.one_in(2) {
                    self.log
                        .push("unpublish, and let the containers run".into());
                    for (path, image) in std::mem::take(&mut self.published) {
                        self.repository.remove_ref(Category::Images, &path).unwrap();
                        self.running.push(image);
                    }
                } else {
                    self.log.push("stop the containers".into());
                    self.running.clear();
                }
            }
            _ => self.damaged_collection(),
        }
        if self.random.one_in(3) {
            self.collection(None);
        }
    }

    fn damaged_collection(&mut self) {
        let states: Vec<_> = self.host.states.iter().collect();
        let at = self.random.next() as usize;
        let recorded: Vec<_> = states
            .iter()
            .filter(|(_, record)| matches!(record, Some(Record::Manifest(_))))
            .map(|(id, _)| **id)
            .collect();
        let with_origin: Vec<_> = states
            .iter()
            .filter(|(_, record)| record.is_some())
            .map(|(id, _)| **id)
            .collect();
        // Without entry the state directory would be all there is: without it, too, nobody needs the image.
        let named = |id: &VerityDigest| self.host.named().any(|entry| entry.id == *id);
        let ids: Vec<_> = states.iter().map(|(id, _)| **id).filter(named).collect();
        let damage = match self.random.below(5) {
            0 => self.random.pick(&ids).copied().map(Damage::NoState),
            1 => self
                .random
                .pick(&with_origin)
                .copied()
                .map(Damage::NoOrigin),
            2 => self
                .random
                .pick(&recorded)
                .map(|id| Damage::CutOrigin(*id, at)),
            3 => (!self.host.menu.is_empty()).then_some(Damage::CutEntry(at)),
            _ => self.host.announced.map(|_| Damage::CutRun(at)),
        };
        let Some(damage) = damage else { return };
        self.log.push(format!("damage {damage:?}"));
        self.host.damage(&damage).unwrap();
        self.collection(Some(&damage));
        self.log.push("repair".into());
        self.host.repair().unwrap();
    }

    fn collection(&mut self, damage: Option<&Damage>) {
        let orphans = if self.random.one_in(2) {
            Orphans::Prune
        } else {
            Orphans::Keep
        };
        self.log.push(format!("collect, orphans {orphans:?}"));
        let mut test_host = TestHost {
            sources: self.host.sources(),
            orphans,
            running: self.running.clone(),
        };
        let before = objects(&self.repository);
        let expected = self.expected(orphans, damage);
        let (plan, _) = collect(&mut self.repository, &mut test_host);
        assert_eq!(plan.missing, []);
        let Some(expected) = expected else {
            assert!(
                !plan.problems.is_empty(),
                "a damage that nobody has noticed"
            );
            assert_eq!(objects(&self.repository), before);
            self.bootc_tags = self.found_bootc_tags();
            assert!(self.host_is_untouched());
            return;
        };
        assert_eq!(
            plan.problems.is_empty(),
            expected.problems == 0,
            "{:#?}",
            plan.problems
        );
        let mut needed = BTreeSet::new();
        for manifest in &expected.manifests {
            needed.extend(os_objects(&self.repository, *manifest));
        }
        for image in &expected.images {
            needed.extend(erofs_objects(&self.repository, image));
        }
        assert_eq!(objects(&self.repository), needed);
        assert_eq!(self.found_bootc_tags(), expected.bootc_tags);
        for (tag, manifest) in &self.tags {
            assert_eq!(
                oci::tags(&self.repository).unwrap().get(tag),
                Some(manifest)
            );
        }
        self.bootc_tags = expected.bootc_tags;
        self.present
            .retain(|manifest, _| expected.manifests.contains(manifest));
        if expected.pruned {
            self.host.pruned();
            let state = boot::find(&self.host.sources());
            assert_eq!(state.orphans, []);
            assert_eq!(state.problems, []);
        }
        assert!(self.host_is_untouched());
    }

    /// Whether the host still has what it should have.
    fn host_is_untouched(&self) -> bool {
        let host = &self.host;
        let states = std::fs::read_dir(host.sysroot().join("state/deploy")).unwrap();
        states.count() + 1 >= host.states.len()
            && host.sysroot().join("state/os/default/var").is_dir()
    }

    fn found_bootc_tags(&self) -> BTreeSet<ManifestDigest> {
        let tags = oci::tags(&self.repository).unwrap().into_iter();
        tags.filter(|(tag, manifest)| *tag == bootc_tag(manifest))
            .map(|(_, manifest)| manifest)
            .collect()
    }

    /// What must be there after a collection, and nothing else; `None` if nobody can tell.
    fn expected(&self, orphans: Orphans, damage: Option<&Damage>) -> Option<Expected> {
        if matches!(damage, Some(Damage::CutEntry(_) | Damage::CutRun(_))) {
            return None;
        }
        let host = &self.host;
        let something = !host.states.is_empty()
            || !host.artifacts.is_empty()
            || host.staged.is_some()
            || !self.bootc_tags.is_empty();
        if host.menu.is_empty() && something {
            return None;
        }
        let mut live: BTreeSet<VerityDigest> = host.menu.iter().map(|entry| entry.id).collect();
        live.extend(host.booted);
        let mut used: BTreeSet<&str> = host.menu.iter().map(|e| e.artifact.as_str()).collect();
        let mut left: BTreeSet<VerityDigest> = host.states.keys().copied().collect();
        left.extend(host.artifacts.values().flatten());
        let staged = host.staged.iter().flatten();
        let mut stale = false;
        if host.announced.is_some() {
            live.extend(host.announced);
            live.extend(staged.clone().map(|entry| entry.id));
            used.extend(staged.map(|entry| entry.artifact.as_str()));
        } else {
            stale = host.staged.is_some();
            left.extend(staged.map(|entry| entry.id));
        }
        left.retain(|id| !live.contains(id));
        let has_orphans =
            stale || !left.is_empty() || host.artifacts.keys().any(|name| !used.contains(&**name));
        let (lost, unread) = match damage {
            Some(Damage::NoState(id)) => (Some(*id), None),
            Some(Damage::NoOrigin(id) | Damage::CutOrigin(id, _)) => (None, Some(*id)),
            _ => (None, None),
        };
        let states: BTreeMap<_, _> = host
            .states
            .iter()
            .filter(|(id, _)| Some(**id) != lost)
            .map(|(id, record)| (*id, record.as_ref().filter(|_| Some(*id) != unread)))
            .collect();
        // Without state directory, without origin file, announced without an entry.
        let stateless = live
            .iter()
            .filter(|id| !matches!(states.get(id), Some(Some(_))));
        let unnamed = |id: &VerityDigest| !host.named().any(|entry| entry.id == *id);
        let wrong = stateless.count() + usize::from(host.announced.as_ref().is_some_and(unnamed));
        let pruned = orphans == Orphans::Prune && wrong == 0 && has_orphans;
        let mut expected = Expected {
            manifests: self.tags.values().copied().collect(),
            images: self
                .published
                .values()
                .chain(&self.running)
                .copied()
                .collect(),
            bootc_tags: BTreeSet::new(),
            problems: wrong + usize::from(has_orphans && !pruned),
            pruned,
        };
        if !pruned {
            live.extend(left.into_iter().filter(|id| {
                Some(*id) != lost
                    || host.artifacts.values().any(|uki| *uki == Some(*id))
                    || host.named().any(|entry| entry.id == *id)
            }));
        }
        for id in live {
            expected.images.insert(id);
            let made = || self.present.values().filter(|os| os.id == id);
            let manifests: BTreeSet<ManifestDigest> = match states.get(&id) {
                Some(Some(Record::Manifest(manifest))) => [*manifest].into(),
                _ => made().map(|os| os.manifest).collect(),
            };
            if let [manifest] = Vec::from_iter(&manifests)[..] {
                expected.bootc_tags.insert(*manifest);
            }
            let tagged = manifests.iter().filter(|one| self.bootc_tags.contains(one));
            expected.bootc_tags.extend(tagged);
            expected.manifests.extend(manifests);
        }
        Some(expected)
    }
}

struct Expected {
    manifests: BTreeSet<ManifestDigest>,
    images: BTreeSet<VerityDigest>,
    bootc_tags: BTreeSet<ManifestDigest>,
    /// How many, but for those that come together.
    problems: usize,
    pruned: bool,
}

fn history(seed: u64) {
    let scratch = scratch();
    let mut random = Random(seed);
    let loader = Loader::ALL[random.below(4)];
    let mounts = [Mounts::Inside, Mounts::Separate][random.below(2)];
    let algorithm = [Algorithm::Sha256, Algorithm::Sha512][random.below(2)];
    let host = Host::new(scratch.path(), loader, mounts).unwrap();
    let mut world = World {
        repository: init(&host.sysroot().join("composefs"), algorithm),
        random,
        host,
        present: BTreeMap::new(),
        tags: BTreeMap::new(),
        bootc_tags: BTreeSet::new(),
        published: BTreeMap::new(),
        running: Vec::new(),
        log: vec![format!("{loader:?}, {mounts:?}, {algorithm:?}")],
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.deploy();
        for _ in 0..LENGTH {
            world.step();
        }
        world.collection(None);
    }));
    if let Err(panic) = result {
        eprintln!("HISTORY={seed}:\n{}", world.log.join("\n"));
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn thousands_of_random_histories_lose_nothing_and_leave_nothing() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    if let Some(seed) = number("HISTORY") {
        return history(seed);
    }
    let histories = number("HISTORIES").unwrap_or(HISTORIES);
    let next = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= histories {
                        return;
                    }
                    history(seed);
                }
            });
        }
    });
}
