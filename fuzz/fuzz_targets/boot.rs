//! What a host boots: entries, menus, unified kernel images, state directories, kernel arguments.
//!
//! The input is a sysroot, the filesystems beside it and what the running system says, as one text: parts
//! between file separators (0x1c), each with a line that names it before its content. A name is `cmdline`,
//! `mount` or a path, which ends with a slash if it is a directory, and with ` -> ` and a target if it is a
//! symbolic link.
#![no_main]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};

use composefs_image::karg::{ImageArgument, candidates, for_loader};
use composefs_image::{Algorithm, VerityDigest, verity_digest};
use gc::OwnerKind;
use gc::boot::{BootState, EntryKind, Fault, OrphanKind, Orphans, Sources, find, known};
use gc::simulate::uki;
use libfuzzer_sys::fuzz_target;
use repository::{Format, Formats, InitOptions, Repository, Security};

/// The directories that an input may have.
const PLACES: [&str; 4] = ["sysroot", "bootfs", "esp", "run"];
/// Most parts of an input.
const PARTS: usize = 64;

fuzz_target!(|data: &[u8]| {
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let directory = scratch.path();
    let outside = outside(directory);
    let sources = host(data, directory);
    if let Some(line) = &sources.command_line {
        arguments(line);
    }
    let state = find(&sources);
    assert_eq!(text(&find(&sources)), text(&state), "found something else");
    within(&state, directory);
    agreed(&state, outside);
    if let Some(line) = &sources.command_line {
        found(&state, line);
    }
    kept(&state, directory);
});

fn text(state: &BootState) -> String {
    serde_json::to_string(state).unwrap()
}

/// Makes what no symbolic link may lead to, and returns the image that all of it names.
fn outside(directory: &Path) -> VerityDigest {
    let image = verity_digest(Algorithm::Sha512, b"outside");
    let argument = format!("composefs={image}");
    let outside = directory.join("outside");
    fs::create_dir_all(outside.join("loader/entries")).unwrap();
    fs::create_dir_all(outside.join("EFI/Linux")).unwrap();
    for (name, content) in [
        (
            "loader/entries/a.conf",
            format!("linux /vmlinuz\noptions {argument}\n").as_bytes(),
        ),
        (
            "user.cfg",
            format!("menuentry a {{\nlinux /vmlinuz {argument}\n}}\n").as_bytes(),
        ),
        ("EFI/Linux/a.efi", &uki(&[&argument])),
    ] {
        fs::write(outside.join(name), content).unwrap();
    }
    image
}

/// Makes what the input says.
fn host(data: &[u8], directory: &Path) -> Sources {
    let mut sources = Sources {
        sysroot: directory.join("sysroot"),
        boot: ["bootfs", "esp"].map(|name| directory.join(name)).to_vec(),
        ..Sources::default()
    };
    let mut links = Vec::new();
    for part in data.split(|&byte| byte == 0x1c).take(PARTS) {
        let end = part.iter().position(|&byte| byte == b'\n');
        let (name, content) = part.split_at(end.unwrap_or(part.len()));
        let content = content.strip_prefix(b"\n").unwrap_or(content);
        match name {
            b"cmdline" => sources.command_line = Some(content.to_vec()),
            b"mount" => {
                sources.root_source = Some(String::from_utf8_lossy(content).into_owned());
            }
            _ => {
                let arrow = name.windows(4).position(|window| window == b" -> ");
                let (name, target) = name.split_at(arrow.unwrap_or(name.len()));
                let Some(path) = path(name) else { continue };
                let path = directory.join(path);
                // There may be a file already where a directory should be, and the like.
                let _ = fs::create_dir_all(path.parent().unwrap());
                if arrow.is_some() {
                    links.push((path, OsStr::from_bytes(&target[4..])));
                } else if name.ends_with(b"/") {
                    let _ = fs::create_dir_all(path);
                } else {
                    let _ = fs::write(path, content);
                }
            }
        }
    }
    // Links come last, so that nothing was written through one; their directories exist or cannot.
    for (path, target) in links {
        let _ = symlink(target, path);
    }
    let run = directory.join("run");
    sources.run = run.exists().then_some(run);
    sources
}

/// A path below one of the places.
fn path(name: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(name));
    let mut components = path.components();
    let Some(Component::Normal(place)) = components.next() else {
        return None;
    };
    let is_place = PLACES.iter().any(|name| place == *name);
    let below: Vec<_> = components.collect();
    let plain = |component: &Component<'_>| matches!(component, Component::Normal(_));
    (is_place && !below.is_empty() && below.iter().all(plain)).then(|| path.to_owned())
}

/// An argument comes back as it was printed, and a boot loader takes none that an initramfs doesn't know.
fn arguments(line: &[u8]) {
    let known: Vec<ImageArgument> = candidates(line).flatten().collect();
    for argument in &known {
        let again: Result<Vec<_>, _> = candidates(argument.to_string().as_bytes()).collect();
        assert_eq!(again, Ok(vec![*argument]));
    }
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        if let Ok(Some(argument)) = for_loader(line, algorithm) {
            assert_eq!(argument.digest.algorithm(), algorithm);
            assert!(known.contains(&argument));
        }
    }
}

/// All paths are plain ones below the directory, or say what the running system does.
fn within(state: &BootState, directory: &Path) {
    let deployments = state.deployments.iter();
    let of_deployments = deployments.flat_map(|deployment| {
        let state = deployment.state.iter().map(|state| &state.path);
        deployment.named_by.iter().chain(state)
    });
    let paths = of_deployments
        .chain(state.entries.iter().map(|entry| &entry.path))
        .chain(state.orphans.iter().map(|orphan| &orphan.path))
        .chain(state.problems.iter().map(|problem| &problem.path));
    for path in paths {
        if path.starts_with("/proc") {
            continue;
        }
        let below = path.strip_prefix(directory).expect("it is below");
        assert!(!below.starts_with("outside"), "{}", path.display());
        let mut components = below.components();
        assert!(components.all(|component| matches!(component, Component::Normal(_))));
    }
}

/// Deployments are what entries name, each once; orphans are not; and nothing has led outside.
fn agreed(state: &BootState, outside: VerityDigest) {
    let images = state.entries.iter().flat_map(|entry| &entry.images);
    let named: BTreeSet<_> = images.collect();
    let deployed: BTreeSet<_> = state.deployments.iter().map(|one| &one.id).collect();
    assert_eq!(named, deployed);
    assert_eq!(deployed.len(), state.deployments.len());
    for orphan in &state.orphans {
        assert!(!orphan.images.contains(&outside));
        if orphan.kind == OrphanKind::State {
            assert!(!orphan.images.iter().any(|image| named.contains(image)));
        }
    }
    assert!(!named.contains(&outside));
}

/// What an initramfs would try is found, or there is a problem with it, or nothing to look at.
fn found(state: &BootState, line: &[u8]) {
    let mut problems = state.problems.iter();
    if problems.any(|problem| matches!(problem.fault, Fault::Argument(_) | Fault::NoSysroot)) {
        return;
    }
    let entries = state.entries.iter();
    let running = entries.filter(|entry| entry.kind == EntryKind::CommandLine);
    let images: BTreeSet<_> = running.flat_map(|entry| &entry.images).collect();
    for argument in candidates(line).flatten() {
        assert!(images.contains(&argument.digest));
    }
}

/// Each deployment is a root. No problem is passed over, and nothing goes if there is one elsewhere.
fn kept(state: &BootState, directory: &Path) {
    let options = InitOptions {
        algorithm: Algorithm::Sha512,
        formats: Formats::single(Format::V2),
        security: Security::Insecure,
    };
    let path = directory.join("repository");
    Repository::init(&path, &options).unwrap();
    let repository = Repository::open(&path).unwrap();
    for orphans in [Orphans::Keep, Orphans::Prune] {
        let known = known(&repository, state, orphans).unwrap();
        let roots = known.roots.iter().map(|root| &root.owner);
        let roots: BTreeSet<_> = roots
            .filter(|owner| owner.kind == OwnerKind::Boot)
            .map(|owner| owner.name.as_str())
            .collect();
        for deployment in &state.deployments {
            assert!(roots.contains(deployment.id.to_hex().as_str()));
        }
        if known.orphans.is_empty() {
            assert!(known.problems.len() >= state.problems.len());
        } else {
            let mut problems = state.problems.iter();
            assert_eq!(known.orphans, state.orphans);
            assert!(problems.all(|problem| {
                let mut orphans = state.orphans.iter();
                orphans.any(|orphan| problem.path.starts_with(&orphan.path))
            }));
        }
    }
}
