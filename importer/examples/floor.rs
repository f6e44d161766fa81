//! The least that an import can do with the files below some directories: read each once, hash it once
//! as fs-verity and once as part of a tar, and clone it once. `cargo xtask bench` compares.
//!
//! Arguments: `clone`, `hash` (which does not clone) or `verity` (which hashes as fs-verity alone), a new
//! directory, the directories to read.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use composefs_image::{Algorithm, VerityHasher, verity_digests};
use sha2::{Digest as _, Sha256};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [what, target, directories @ ..] = arguments.as_slice() else {
        return Err("clone|hash|verity NEW-DIRECTORY DIRECTORY…".into());
    };
    let mut files = Vec::new();
    for directory in directories {
        list(Path::new(directory), &mut files)?;
    }
    let target = Path::new(target);
    std::fs::create_dir(target)?;
    let groups = groups(&files);
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut sha256 = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(group) = groups.get(number) else {
                std::hint::black_box(sha256.finalize());
                return Ok(());
            };
            let mut open = Vec::with_capacity(group.len());
            match *group {
                [(path, size)] if *size > BUFFER => {
                    let mut file = File::open(path)?;
                    let mut verity = VerityHasher::new(Algorithm::Sha512);
                    loop {
                        let count = file.read(&mut buffer)?;
                        if count == 0 {
                            break;
                        }
                        verity.update(&buffer[..count]);
                        if what != "verity" {
                            sha256.update(&buffer[..count]);
                        }
                    }
                    std::hint::black_box(verity.finish());
                    open.push(file);
                }
                small => {
                    let mut rest = &mut buffer[..];
                    let mut contents: Vec<&[u8]> = Vec::with_capacity(small.len());
                    for (path, size) in small {
                        let (content, next) = rest.split_at_mut(*size);
                        let mut file = File::open(path)?;
                        file.read_exact(content)?;
                        if what != "verity" {
                            sha256.update(&content);
                        }
                        contents.push(content);
                        rest = next;
                        open.push(file);
                    }
                    std::hint::black_box(verity_digests(Algorithm::Sha512, &contents));
                }
            }
            if what == "clone" {
                for (place, file) in open.iter().enumerate() {
                    let clone = File::create(target.join(format!("{number}-{place}")))?;
                    rustix::fs::ioctl_ficlone(clone, file)?;
                }
            }
        }
    };
    let threads = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a thread panicked")?)
    })?;
    rustix::fs::syncfs(File::open(target)?)?;
    Ok(())
}

/// How much is read at a time, in bytes.
const BUFFER: usize = 128 * 1024;

/// Files of a group at most: as many as the vectors of any processor have lanes.
const FILES: usize = 32;

/// A file and its size in bytes.
type Found = (PathBuf, usize);

/// Files that fit into a buffer together are hashed side by side.
fn groups(mut files: &[Found]) -> Vec<&[Found]> {
    let mut groups = Vec::new();
    while !files.is_empty() {
        let mut bytes = 0;
        let fit = files.iter().take(FILES).take_while(|(_, size)| {
            bytes += size;
            bytes <= BUFFER
        });
        let (group, rest) = files.split_at(fit.count().max(1));
        groups.push(group);
        files = rest;
    }
    groups
}

fn list(directory: &Path, files: &mut Vec<Found>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push((entry.path(), entry.metadata()?.len() as usize));
        }
    }
    Ok(())
}
