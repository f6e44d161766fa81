//! Drawing the conclusions: which deployments there are, and what no entry names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use composefs_image::VerityDigest;
use rustix::fs::FileType;

use super::artifact::{self, UkiName};
use super::bls;
use super::entries::uki_images;
use super::origin::{self, Origin};
use super::scan::{self, Scan, Stage, name_of};
use super::tree::UntrustedDir;
use super::{
    BootState, Deployment, Doubt, Entry, EntryKind, Fault, Orphan, OrphanKind, Problem, Slot,
    Source, Sources, State, records,
};

/// Where boot filesystems are mounted below a sysroot.
const BOOT_DIRECTORIES: [&str; 3] = ["boot", "boot/efi", "efi"];
/// Where the state directories are.
const STATE: &str = "state/deploy";
/// The record of the staged deployment, below `/run`.
const STAGED_RECORD: &str = "composefs/staged-deployment";

/// The largest origin file or staged record, in bytes.
const MAX_ORIGIN: u64 = 1 << 20;
/// The largest sidecar, in bytes: a manifest and a config.
const MAX_IMG_INFO: u64 = 32 << 20;

/// Finds out what a host boots. Writes nothing, and doesn't fail: what can't be read is in
/// [`BootState::problems`].
pub fn find(sources: &Sources) -> BootState {
    let mut finder = Finder::default();
    finder.state.sysroot.clone_from(&sources.sysroot);
    match UntrustedDir::open(&sources.sysroot) {
        Ok(Some(sysroot)) => finder.look(sysroot, sources),
        Ok(None) => finder.problem(&sources.sysroot, Fault::NoSysroot, Doubt::Everything),
        Err(fault) => finder.problem(&sources.sysroot, fault.into(), Doubt::Everything),
    }
    finder.state
}

/// An entry before it is known in which slot it is.
pub(super) struct Candidate {
    pub(super) entry: Entry,
    pub(super) stage: Stage,
    pub(super) place: usize,
    pub(super) relative: PathBuf,
    /// For sorting.
    pub(super) sort_key: Option<String>,
    pub(super) version: Option<String>,
}

#[derive(Default)]
pub(super) struct Finder {
    pub(super) state: BootState,
    /// The sysroot, and the boot filesystems.
    pub(super) places: Vec<UntrustedDir>,
    /// Of each boot filesystem, with the index of its place.
    pub(super) scans: Vec<(usize, Scan)>,
    pub(super) candidates: Vec<Candidate>,
    /// The names of artifacts that entries start.
    pub(super) used: BTreeSet<String>,
    /// The same for entries that are staged.
    pub(super) used_staged: BTreeSet<String>,
    pub(super) states: BTreeMap<VerityDigest, (PathBuf, State)>,
}

impl Finder {
    pub(super) fn problem(&mut self, path: &Path, fault: Fault, doubt: Doubt) {
        let path = path.to_owned();
        self.state.problems.push(Problem { path, fault, doubt });
    }

    fn look(&mut self, sysroot: UntrustedDir, sources: &Sources) {
        self.boot_filesystems(&sysroot, sources);
        self.places.insert(0, sysroot);
        let indices: Vec<usize> = (1..self.places.len()).collect();
        for index in indices {
            let mut scan = scan::scan(&self.places[index]);
            self.state.problems.append(&mut scan.problems);
            self.scans.push((index, scan));
        }
        self.bls_entries();
        self.menus();
        self.discovered_ukis();
        self.state_directories();
        let staged = self.staged(sources);
        self.running(sources);
        self.conclude(staged);
    }

    /// Opens the boot filesystems, each once.
    fn boot_filesystems(&mut self, sysroot: &UntrustedDir, sources: &Sources) {
        let inside = BOOT_DIRECTORIES
            .iter()
            .map(|directory| (sysroot.join(directory), sysroot.sub(directory)));
        let outside = sources
            .boot
            .iter()
            .map(|path| (path.clone(), UntrustedDir::open(path)));
        let mut seen = BTreeSet::new();
        let mut problems = Vec::new();
        for (path, opened) in inside.chain(outside) {
            let identified = opened.and_then(|place| {
                let Some(place) = place else { return Ok(None) };
                Ok(Some((place.identity()?, place)))
            });
            match identified {
                Ok(Some((identity, place))) if seen.insert(identity) => {
                    self.places.push(place);
                }
                Ok(_) => {}
                Err(fault) => problems.push((path, fault)),
            }
        }
        for (path, fault) in problems {
            self.problem(&path, fault.into(), Doubt::Everything);
        }
    }

    fn state_directories(&mut self) {
        let listed = self.places[0].list(STATE);
        let directory = self.places[0].join(STATE);
        let names = match listed {
            Ok(names) => names,
            Err(fault) => return self.problem(&directory, fault.into(), Doubt::Everything),
        };
        for (name, kind) in names {
            let path = directory.join(&name);
            let id = name
                .to_str()
                .and_then(|name| VerityDigest::from_hex(name).ok());
            match id {
                Some(id) if kind == FileType::Directory => {
                    let source = self.source(&path, &id);
                    let relative = Path::new(STATE).join(&name);
                    self.states.insert(id, (relative, State { path, source }));
                }
                _ if kind == FileType::Directory => {
                    self.problem(&path, Fault::NoId, Doubt::Kept);
                }
                Some(_) => self.problem(&path, Fault::NoOrigin, Doubt::Kept),
                None => {}
            }
        }
    }

    /// What a state directory says of its image.
    fn source(&mut self, directory: &Path, id: &VerityDigest) -> Source {
        let relative = Path::new(STATE).join(id.to_hex());
        let file = |suffix: &str| format!("{id}.{suffix}");
        let origin_path = directory.join(file("origin"));
        let sysroot = &self.places[0];
        let origin = match sysroot.read(relative.join(file("origin")), MAX_ORIGIN) {
            Ok(Some(text)) => origin::parse(&text).map_err(|e| Fault::Unreadable(e.to_string())),
            Ok(None) => Err(Fault::NoOrigin),
            Err(fault) => Err(fault.into()),
        };
        if let Ok(Origin::Manifest(digest)) = origin {
            return Source::Manifest { digest };
        }
        let info = match sysroot.read(relative.join(file("imginfo")), MAX_IMG_INFO) {
            Ok(Some(json)) => records::img_info(&json)
                .map(Some)
                .map_err(|e| Fault::Unreadable(e.to_string())),
            Ok(None) => Ok(None),
            Err(fault) => Err(fault.into()),
        };
        let legacy = origin.is_ok();
        if let Err(fault) = origin {
            self.problem(&origin_path, fault, Doubt::Kept);
        }
        match info {
            Ok(Some(info)) => Source::Legacy {
                config: info.config,
                layers: info.layers,
            },
            Ok(None) if legacy => Source::Unrecorded,
            Ok(None) => Source::Unreadable,
            Err(fault) => {
                let path = directory.join(file("imginfo"));
                self.problem(&path, fault, Doubt::Kept);
                Source::Unreadable
            }
        }
    }

    /// Reads the record of the staged deployment; whether staged entries will become active.
    fn staged(&mut self, sources: &Sources) -> bool {
        let Some(run) = &sources.run else {
            return true;
        };
        let path = run.join(STAGED_RECORD);
        let read = match UntrustedDir::open(run) {
            Ok(Some(run)) => run.read(STAGED_RECORD, MAX_ORIGIN),
            Ok(None) => Ok(None),
            Err(fault) => Err(fault),
        };
        let fault = match read {
            Ok(None) => return false,
            Ok(Some(json)) => match records::staged(&json) {
                Ok(id) => {
                    self.record(EntryKind::StagedRecord, path, vec![id]);
                    return true;
                }
                Err(error) => Fault::Unreadable(error.to_string()),
            },
            Err(fault) => fault.into(),
        };
        self.problem(&path, fault, Doubt::Everything);
        true
    }

    /// The images that are running.
    fn running(&mut self, sources: &Sources) {
        if let Some(line) = &sources.command_line {
            let path = PathBuf::from("/proc/cmdline");
            match bls::images(line) {
                Ok(images) if images.is_empty() => {}
                Ok(images) => self.record(EntryKind::CommandLine, path, images),
                Err(error) => self.problem(&path, error.into(), Doubt::Everything),
            }
        }
        let mounted = sources.root_source.as_deref().and_then(|source| {
            let id = source
                .strip_prefix("composefs:")
                .or_else(|| source.strip_prefix("transient:composefs="))?;
            VerityDigest::from_hex(id).ok()
        });
        if let Some(id) = mounted {
            let path = PathBuf::from("/proc/self/mountinfo");
            self.record(EntryKind::RootMount, path, vec![id]);
        }
    }

    fn record(&mut self, kind: EntryKind, path: PathBuf, images: Vec<VerityDigest>) {
        self.state.entries.push(Entry { path, kind, images });
    }

    fn conclude(&mut self, staged: bool) {
        self.candidates.sort_by(menu_order);
        let (live, stale): (Vec<_>, Vec<_>) = std::mem::take(&mut self.candidates)
            .into_iter()
            .partition(|candidate| staged || candidate.stage == Stage::Active);
        if staged {
            let used = std::mem::take(&mut self.used_staged);
            self.used.extend(used);
        }
        let entries = live.into_iter().map(|candidate| candidate.entry);
        let entries = entries.filter(|entry| !entry.images.is_empty());
        self.state.entries.extend(entries);
        self.deployments();
        self.check_entries();
        self.orphans(stale);
        let mut entries = self.state.entries.iter();
        let nothing = self.states.is_empty() && self.state.orphans.is_empty();
        if !nothing && !entries.any(|entry| entry.kind.is_active()) {
            let path = self.state.sysroot.clone();
            self.problem(&path, Fault::NoEntries, Doubt::Everything);
        }
    }

    fn deployments(&mut self) {
        let entries = &self.state.entries;
        let named = |kinds: &[EntryKind]| -> BTreeSet<VerityDigest> {
            let entries = entries.iter().filter(|entry| kinds.contains(&entry.kind));
            entries.flat_map(|entry| &entry.images).copied().collect()
        };
        let booted = match named(&[EntryKind::RootMount]) {
            mounted if mounted.is_empty() => named(&[EntryKind::CommandLine]),
            mounted => mounted,
        };
        let mut active = entries.iter().filter(|entry| entry.kind.is_active());
        let in_menu = named(&[EntryKind::Bls, EntryKind::Grub, EntryKind::Uki]);
        let mut staged = named(&[EntryKind::StagedRecord, EntryKind::Staged]);
        staged.retain(|id| !in_menu.contains(id) && !booted.contains(id));
        let next: BTreeSet<_> = active
            .clone()
            .next()
            .into_iter()
            .flat_map(|entry| entry.images.clone())
            .collect();
        let rollback: BTreeSet<_> = active
            .find(|entry| {
                let mut images = entry.images.iter();
                !images.any(|id| {
                    booted.contains(id)
                        || staged.contains(id)
                        || booted.is_empty() && next.contains(id)
                })
            })
            .into_iter()
            .flat_map(|entry| entry.images.clone())
            .collect();
        let mut deployments: BTreeMap<VerityDigest, Deployment> = BTreeMap::new();
        for entry in entries {
            for id in &entry.images {
                let deployment = deployments.entry(*id).or_insert_with(|| Deployment {
                    id: *id,
                    slot: if booted.contains(id) {
                        Slot::Booted
                    } else if staged.contains(id) {
                        Slot::Staged
                    } else if rollback.contains(id) {
                        Slot::Rollback
                    } else if next.contains(id) {
                        Slot::Next
                    } else {
                        Slot::Other
                    },
                    named_by: Vec::new(),
                    state: self.states.get(id).map(|(_, state)| state.clone()),
                });
                if !deployment.named_by.contains(&entry.path) {
                    deployment.named_by.push(entry.path.clone());
                }
            }
        }
        self.state.deployments = deployments.into_values().collect();
        self.state
            .deployments
            .sort_by_key(|deployment| deployment.slot);
    }

    /// Entries and state directories that don't fit each other.
    fn check_entries(&mut self) {
        let mut problems = Vec::new();
        let active: BTreeSet<VerityDigest> = self
            .state
            .entries
            .iter()
            .filter(|entry| entry.kind.is_active())
            .flat_map(|entry| entry.images.iter().copied())
            .collect();
        for entry in &self.state.entries {
            let Some(first) = entry.images.first() else {
                continue;
            };
            let known = |ids: &dyn Fn(&VerityDigest) -> bool| entry.images.iter().any(ids);
            if !known(&|id| self.states.contains_key(id)) {
                problems.push((entry.path.clone(), Fault::NoState(*first), Doubt::Kept));
            }
            match entry.kind {
                EntryKind::CommandLine | EntryKind::RootMount
                    if !known(&|id| active.contains(id)) =>
                {
                    let fault = Fault::BootedWithoutEntry(*first);
                    problems.push((entry.path.clone(), fault, Doubt::Everything));
                }
                EntryKind::StagedRecord => {
                    let entries = self.state.entries.iter();
                    let named = entries
                        .filter(|other| other.kind == EntryKind::Staged || other.kind.is_active())
                        .any(|other| other.images.contains(first));
                    if !named {
                        let fault = Fault::StagedWithoutEntry(*first);
                        problems.push((entry.path.clone(), fault, Doubt::Kept));
                    }
                }
                _ => {}
            }
        }
        for (path, fault, doubt) in problems {
            self.problem(&path, fault, doubt);
        }
    }

    /// What no entry names.
    fn orphans(&mut self, stale: Vec<Candidate>) {
        let places = &self.places;
        let sysroot = &self.state.sysroot;
        let mut orphans: Vec<Orphan> = Vec::new();
        let mut orphan = |kind, place: usize, relative: &Path, images: Vec<VerityDigest>| {
            let path = places[place].join(relative);
            match orphans.iter_mut().find(|orphan| orphan.path == path) {
                // A menu is one file with several entries.
                Some(orphan) => orphan.images.extend(images),
                None => orphans.push(Orphan {
                    kind,
                    path,
                    images,
                    source: None,
                    sysroot: sysroot.clone(),
                    place: places[place].place().clone(),
                    relative: relative.to_owned(),
                }),
            }
        };
        for candidate in stale {
            let Candidate {
                entry,
                place,
                relative,
                ..
            } = candidate;
            orphan(OrphanKind::StagedEntry, place, &relative, entry.images);
        }
        for (place, scan) in &self.scans {
            let unused = |path: &&PathBuf| !self.used.contains(name_of(path));
            for kernel in scan.kernels.iter().filter(unused) {
                orphan(OrphanKind::Kernel, *place, kernel, Vec::new());
            }
            for uki in &scan.ukis {
                if unused(&&uki.path) && artifact::uki_name(uki.name()) != UkiName::Foreign {
                    orphan(OrphanKind::Uki, *place, &uki.path, uki_images(uki));
                }
            }
            for addons in &scan.addons {
                let uki = artifact::addons_of(name_of(addons)).unwrap_or_default();
                if artifact::uki_name(&uki) != UkiName::Foreign && !self.used.contains(&uki) {
                    orphan(OrphanKind::Addons, *place, addons, Vec::new());
                }
            }
        }
        let live: BTreeSet<VerityDigest> = self
            .state
            .deployments
            .iter()
            .map(|deployment| deployment.id)
            .collect();
        for (id, (relative, state)) in &self.states {
            if live.contains(id) {
                continue;
            }
            orphans.push(Orphan {
                kind: OrphanKind::State,
                path: state.path.clone(),
                images: vec![*id],
                source: Some(state.source.clone()),
                sysroot: sysroot.clone(),
                place: places[0].place().clone(),
                relative: relative.clone(),
            });
        }
        orphans.sort_by_key(|orphan| orphan.kind);
        self.state.orphans = orphans;
    }
}

/// The order of the boot menu: by sort key, ascending, and version, descending, or by file name,
/// descending, as GRUB sorts. Menus keep their order.
fn menu_order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    if a.entry.kind != b.entry.kind || a.entry.kind == EntryKind::Grub {
        return a.entry.kind.cmp(&b.entry.kind);
    }
    match (&a.sort_key, &b.sort_key) {
        (Some(x), Some(y)) => x.cmp(y).then_with(|| b.version.cmp(&a.version)),
        _ => b.relative.cmp(&a.relative),
    }
}
