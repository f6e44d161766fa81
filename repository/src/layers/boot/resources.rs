//! What an image has to boot from: loader entries, unified kernel images, kernels, aboot payloads.
//!
//! The digest does not depend on any of it, so this only refuses what a boot would stumble over, as
//! composefs-rs does: names, types, and files that a loader entry names. The content of kernels is not
//! looked at.

use composefs_image::{InodeId, Kind, Tree};

use super::{BootError, BootProblem, directory, join, read_file};
use crate::ReadObjects;

/// Most bytes of a loader entry.
const ENTRY_LIMIT: u64 = 1 << 20;

/// The keys of a loader entry that name files.
const FILE_KEYS: [&str; 3] = ["linux", "initrd", "efi"];

pub(super) fn check(tree: &Tree, objects: &(impl ReadObjects + ?Sized)) -> Result<(), BootError> {
    let mut others = loader_entries(tree, objects)?;
    for path in [&b"/boot/EFI/Linux"[..], b"/boot/loader/addons"] {
        if let Some(directory) = directory(tree, path)? {
            others |= unified_kernels(tree, directory, path)?;
        }
    }
    others |= kernels(tree)?;
    aboot(tree, others)
}

fn is_regular(tree: &Tree, id: InodeId) -> bool {
    matches!(tree.kind(id), Kind::Regular(_))
}

fn regular(tree: &Tree, id: InodeId, path: &[u8]) -> Result<(), BootError> {
    if is_regular(tree, id) {
        Ok(())
    } else {
        Err(BootProblem::NotAFile.at(path))
    }
}

fn utf8<'a>(bytes: &'a [u8], path: &[u8]) -> Result<&'a str, BootError> {
    str::from_utf8(bytes).map_err(|_| BootProblem::NotUtf8.at(path))
}

/// Entries of the Boot Loader Specification, type 1; whether there are any.
fn loader_entries(tree: &Tree, objects: &(impl ReadObjects + ?Sized)) -> Result<bool, BootError> {
    const PATH: &[u8] = b"/boot/loader/entries";
    let Some(entries) = directory(tree, PATH)? else {
        return Ok(false);
    };
    let mut any = false;
    for (name, id) in tree.children(entries) {
        if !name.ends_with(b".conf") {
            continue;
        }
        any = true;
        let path = join(PATH, name);
        let content = read_file(tree, objects, id, &path, ENTRY_LIMIT)?;
        for (key, value) in named_files(utf8(&content, &path)?) {
            if !names_a_file(tree, value) {
                let value = value.to_owned();
                return Err(BootProblem::LoaderEntry { key, value }.at(&path));
            }
        }
    }
    Ok(any)
}

/// Keys and values of the lines of a loader entry that name files.
fn named_files(entry: &str) -> impl Iterator<Item = (&'static str, &str)> {
    entry.split('\n').filter_map(|line| {
        let key = FILE_KEYS.into_iter().find(|key| line.starts_with(key))?;
        let rest = &line[key.len()..];
        rest.starts_with(|first: char| first.is_ascii_whitespace())
            .then(|| (key, rest.trim_start()))
    })
}

/// Whether the path is that of a regular file, counted from the root of the tree.
fn names_a_file(tree: &Tree, path: &str) -> bool {
    let path = path.as_bytes();
    !super::super::path::components(path).any(|name| name == b"..")
        && tree
            .lookup_path(path)
            .is_some_and(|id| is_regular(tree, id))
}

/// Unified kernel images and their addons, at any depth; whether there is one that is no addon.
fn unified_kernels(tree: &Tree, directory: InodeId, path: &[u8]) -> Result<bool, BootError> {
    let mut any = false;
    let mut open = vec![(directory, path.to_vec())];
    while let Some((directory, path)) = open.pop() {
        for (name, id) in tree.children(directory) {
            if tree.is_directory(id) {
                open.push((id, join(&path, name)));
            } else if name.ends_with(b".efi") {
                regular(tree, id, &join(&path, name))?;
                any |= !name.ends_with(b".addon.efi");
            }
        }
    }
    Ok(any)
}

/// Kernels with their modules; whether there are any, unified ones included.
fn kernels(tree: &Tree) -> Result<bool, BootError> {
    const PATH: &[u8] = b"/usr/lib/modules";
    let Some(modules) = directory(tree, PATH)? else {
        return Ok(false);
    };
    let mut any = false;
    for (version, id) in tree.children(modules) {
        if !tree.is_directory(id) {
            continue;
        }
        let path = join(PATH, version);
        any |= unified_kernels(tree, id, &path)?;
        let kernel = tree.lookup(id, b"vmlinuz");
        if kernel.is_some_and(|kernel| is_regular(tree, kernel)) {
            utf8(version, &path)?;
            any = true;
        }
    }
    Ok(any)
}

/// Payloads of Android boot partitions, and their vbmeta images.
fn aboot(tree: &Tree, others: bool) -> Result<(), BootError> {
    const PATH: &[u8] = b"/boot";
    let Some(boot) = directory(tree, PATH)? else {
        return Ok(());
    };
    let version = |name: &'_ [u8], prefix: &[u8]| {
        name.strip_prefix(prefix)
            .and_then(|rest| rest.strip_suffix(b".img"))
            .map(<[u8]>::to_vec)
    };
    let beside = |prefix: &str, version: &[u8]| {
        tree.lookup(boot, &[prefix.as_bytes(), version, b".img"].concat())
    };
    let mut any = false;
    for (name, id) in tree.children(boot) {
        let path = join(PATH, name);
        if let Some(version) = version(name, b"aboot-") {
            if any || others || version.is_empty() {
                return Err(BootProblem::NotOnlyAboot.at(&path));
            }
            any = true;
            utf8(&version, &path)?;
            regular(tree, id, &path)?;
            if let Some(vbmeta) = beside("vbmeta-", &version) {
                regular(tree, vbmeta, &join(PATH, b"vbmeta"))?;
            }
        } else if let Some(version) = version(name, b"vbmeta-") {
            let payload = beside("aboot-", &version);
            if !payload.is_some_and(|payload| is_regular(tree, payload)) {
                return Err(BootProblem::LoneVbmeta.at(&path));
            }
        }
    }
    Ok(())
}
