//! A few compressed bytes that become any number of others: an import stops at its limit, whatever the
//! compression and the source, in little memory, and leaves nothing.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use integration::oci::{Blob, digest, write_blobs};
use integration::tar::Raw;
use integration::{Filesystem, Finished, Kind, Machine, Peers, Release, Store, finish, ok};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Command;
use std::sync::Arc;

/// What `--max-size` allows, and how the messages have it.
const LIMIT: [&str; 2] = ["--max-size", "64M"];
const LIMIT_BYTES: &str = "67108864 bytes";

/// Kilobytes that the program may have for its data and stacks: some megabytes for each thread, and far
/// from what a bomb would take.
const MEMORY: u32 = 200_000;

/// The size of the file in each bomb, of which not even the limit is ever written.
const SIZE: u64 = 4 << 30;

/// Bytes of zeros behind one another that a piece of a bomb becomes.
const PIECE: usize = 16 << 20;

/// The header of a file of [`SIZE`] bytes.
fn header() -> Vec<u8> {
    Raw::new("data/bomb", b'0')
        .set(124, 12, format!("{SIZE:011o}"))
        .bytes()
}

/// As many members of gzip as the file needs.
fn gzip() -> Result<Vec<u8>> {
    let member = |bytes: &[u8]| -> Result<Vec<u8>> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(bytes)?;
        Ok(gzip.finish()?)
    };
    let zeros = member(&vec![0; PIECE])?;
    let mut bomb = member(&header())?;
    for _ in 0..SIZE / PIECE as u64 {
        bomb.extend_from_slice(&zeros);
    }
    Ok(bomb)
}

/// One frame of zstd with a window of 2 to the `window_log` bytes: the header, and then blocks of which
/// four bytes are 128 KiB (RFC 8878, section 3.1.1).
fn zstd(window_log: u8) -> Vec<u8> {
    const BLOCK: u32 = 128 << 10;
    let block = |length: u32, kind: u32, last: u32| -> [u8; 3] {
        let [a, b, c, _] = (length << 3 | kind << 1 | last).to_le_bytes();
        [a, b, c]
    };
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
    let header = header();
    bomb.extend(block(header.len() as u32, 0, 0));
    bomb.extend(header);
    for _ in 0..SIZE / u64::from(BLOCK) {
        bomb.extend(block(BLOCK, 1, 0));
        bomb.push(0);
    }
    bomb.extend(block(0, 0, 1));
    bomb
}

struct Bench {
    _machine: Arc<Machine>,
    store: Store,
    disk: Filesystem,
}

impl Bench {
    fn new() -> Result<Self> {
        let peers = Peers::from_env()?;
        let disk = Filesystem::new(&peers, Kind::Ext4, 256)?;
        let machine = Machine::start(&peers, Release::Host)?;
        let store = Store::init(&machine, &disk.path().join("repository"))?;
        Ok(Self {
            _machine: machine,
            store,
            disk,
        })
    }

    /// A layout with this blob as its layer, and how it is called.
    fn layout(&self, name: &str, bytes: &[u8]) -> Result<(PathBuf, String)> {
        let dir = self.disk.path().join(name);
        let blob = Blob {
            bytes: bytes.to_vec(),
            media_type: "application/vnd.oci.image.layer.v1.tar+zstd",
            diff_id: digest(b"never reached"),
        };
        write_blobs(&dir, &[blob], &json!({}))?;
        let reference = format!("oci:{}:latest", dir.display());
        Ok((dir, reference))
    }

    /// Imports with little memory.
    fn import(&self, arguments: &[&str], reference: &str) -> Result<Finished> {
        let script = format!("ulimit -d {MEMORY}; exec \"$@\"");
        let words = ["import", "--tag", "localhost/bomb:1"];
        let words = [&words[..], arguments, &[reference]].concat();
        finish(
            &mut self
                .store
                .command_under(&["sh", "-euc", &script, "sh"], &words)?,
        )
    }

    /// The import is refused with these words, and leaves nothing.
    fn refuses(&self, arguments: &[&str], reference: &str, words: &[&str]) -> Result<()> {
        self.import(arguments, reference)?.refused_with(words)?;
        assert_eq!(self.store.objects()?, Vec::<PathBuf>::new());
        assert_eq!(crate::crashes::staged(&self.store), 0);
        let images = self.store.ok(&["--json", "images"])?;
        let images: Value = serde_json::from_slice(&images.stdout)?;
        ensure!(images["images"] == json!([]), "{images}");
        self.store.ok(&["fsck"])?;
        Ok(())
    }
}

#[test]
fn layers_that_are_bombs_are_refused_at_the_limit() -> Result<()> {
    let bench = Bench::new()?;
    for (name, bomb) in [("gzip", gzip()?), ("zstd", zstd(23)), ("window", zstd(27))] {
        let (dir, reference) = bench.layout(name, &bomb)?;
        let layer = digest(&bomb);
        let words = [&layer[..20], "data/bomb", LIMIT_BYTES, "--max-size"];
        bench.refuses(&LIMIT, &reference, &words).context(name)?;
        // The same in a directory of containers-image, and from a tar.
        let copy = bench.disk.path().join(format!("{name}-dir"));
        std::fs::create_dir(&copy)?;
        for blob in std::fs::read_dir(dir.join("blobs/sha256"))? {
            let blob = blob?;
            std::fs::hard_link(blob.path(), copy.join(blob.file_name()))?;
        }
        let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
        let manifest = index["manifests"][0]["digest"].as_str().context("digest")?;
        let manifest = manifest.trim_start_matches("sha256:");
        std::fs::rename(copy.join(manifest), copy.join("manifest.json"))?;
        let reference = format!("dir:{}", copy.display());
        bench
            .refuses(&LIMIT, &reference, &[&layer[..20], LIMIT_BYTES])
            .context(name)?;
    }
    Ok(())
}

#[test]
fn without_a_limit_the_free_space_is_one() -> Result<()> {
    let bench = Bench::new()?;
    let (_, reference) = bench.layout("gzip", &gzip()?)?;
    bench.refuses(&[], &reference, &["data/bomb"])
}

#[test]
fn archives_that_are_bombs_are_refused_at_the_limit() -> Result<()> {
    let bench = Bench::new()?;
    for (name, bomb) in [("bomb.gz", gzip()?), ("bomb.zst", zstd(27))] {
        let file = bench.disk.path().join(name);
        std::fs::write(&file, &bomb)?;
        for transport in ["oci-archive", "docker-archive"] {
            let reference = format!("{transport}:{}", file.display());
            bench
                .refuses(&LIMIT, &reference, &[name, LIMIT_BYTES, "--max-size"])
                .context(name)?;
        }
        // A layer that is one, in an archive that is none.
        let dir = bench.disk.path().join(format!("{name}-archive"));
        std::fs::create_dir(&dir)?;
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(b"")] },
        });
        let list = json!([{ "Config": "config.json", "RepoTags": [], "Layers": ["layer.tar"] }]);
        std::fs::write(dir.join("config.json"), config.to_string())?;
        std::fs::write(dir.join("manifest.json"), list.to_string())?;
        std::fs::write(dir.join("layer.tar"), &bomb)?;
        let archive = dir.with_extension("tar");
        ok(Command::new("tar")
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(&dir)
            .args(["manifest.json", "config.json", "layer.tar"]))?;
        let reference = format!("docker-archive:{}", archive.display());
        bench
            .refuses(&LIMIT, &reference, &[LIMIT_BYTES, "--max-size"])
            .context(name)?;
    }
    Ok(())
}

#[test]
fn windows_of_zstd_that_need_much_memory_are_refused() -> Result<()> {
    let bench = Bench::new()?;
    for window_log in [28, 31, 41] {
        let bomb = zstd(window_log);
        let (_, reference) = bench.layout(&format!("window{window_log}"), &bomb)?;
        let layer = digest(&bomb);
        bench.refuses(&[], &reference, &[&layer[..20], "memory"])?;
    }
    Ok(())
}
