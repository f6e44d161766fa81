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

use composefs_image::{Algorithm, VerityHasher};
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
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut sha256 = Sha256::new();
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = files.get(number) else {
                std::hint::black_box(sha256.finalize());
                return Ok(());
            };
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
            if what == "clone" {
                let clone = File::create(target.join(number.to_string()))?;
                rustix::fs::ioctl_ficlone(clone, &file)?;
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

fn list(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}
