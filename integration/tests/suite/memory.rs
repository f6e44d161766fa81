//! How much memory an import takes, whatever is in the image: storages are generated, since podman would take
//! minutes to make them.

use crate::importing::Running;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use containers_storage::{ConfigDigest, ContentCrc, DiffId, ManifestDigest, chain_id};
use flate2::{Compression, write::GzEncoder};
use integration::{Filesystem, Kind, Peers, ok};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The most memory that an import may have resident at once, in bytes.
const LIMIT: u64 = 64 << 20;

const IMAGE: &str = "localhost/generated:1";

/// A filesystem in memory of its own, unmounted when dropped: with hundreds of thousands of files on a disk it
/// would be the disk that takes the time.
struct InMemory(PathBuf);

impl InMemory {
    fn mount(peers: &Peers) -> Result<Self> {
        let path = peers.scratch_dir("tmpfs")?;
        ok(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4g", "tmpfs"])
            .arg(&path))?;
        Ok(Self(path))
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let unmounted = ok(Command::new("umount").arg(&self.0));
        assert!(
            unmounted.is_ok() || std::thread::panicking(),
            "{unmounted:?}"
        );
    }
}

/// A layer in the making: its tar, of which only the digest is kept, its tar-split and its files.
struct Layer {
    diff: PathBuf,
    tar: Sha256,
    tar_len: u64,
    lines: GzEncoder<BufWriter<File>>,
    position: u64,
    segment: Vec<u8>,
}

impl Layer {
    fn new(root: &Path) -> Result<Self> {
        let diff = root.join("diff");
        fs::create_dir_all(&diff)?;
        let tar_split = BufWriter::new(File::create(root.join("tar-split"))?);
        Ok(Self {
            diff,
            tar: Sha256::new(),
            tar_len: 0,
            lines: GzEncoder::new(tar_split, Compression::fast()),
            position: 0,
            segment: Vec::new(),
        })
    }

    fn inline(&mut self, bytes: &[u8]) {
        self.segment.extend(bytes);
        self.tar(bytes);
    }

    fn tar(&mut self, bytes: &[u8]) {
        self.tar.update(bytes);
        self.tar_len += bytes.len() as u64;
    }

    fn line(&mut self, mut line: Value) -> Result<()> {
        line["position"] = self.position.into();
        self.position += 1;
        Ok(writeln!(self.lines, "{line}")?)
    }

    fn flush(&mut self) -> Result<()> {
        let payload = STANDARD.encode(std::mem::take(&mut self.segment));
        self.line(json!({"type": 2, "payload": payload}))
    }

    fn header(&mut self, name: &str, kind: u8, size: u64) {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(
            100,
            if kind == b'5' {
                b"0000755\0"
            } else {
                b"0000644\0"
            },
        );
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"14371573200\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.inline(&header);
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        self.header(name, b'5', 0);
        Ok(fs::create_dir(self.diff.join(name))?)
    }

    /// A file of `piece` again and again.
    fn file(&mut self, name: &str, piece: &[u8], times: u64) -> Result<()> {
        let size = piece.len() as u64 * times;
        self.header(name, b'0', size);
        let file = File::create(self.diff.join(name))?;
        let mut crc = ContentCrc::new();
        let is_hole = piece.iter().all(|byte| *byte == 0);
        for _ in 0..times {
            crc.update(piece);
            self.tar(piece);
            if !is_hole {
                (&file).write_all(piece)?;
            }
        }
        file.set_len(size)?;
        self.flush()?;
        let crc = STANDARD.encode(crc.finish());
        self.line(json!({"type": 1, "name": name, "size": size, "payload": crc}))?;
        self.inline(&vec![0; size.wrapping_neg() as usize % 512]);
        Ok(())
    }

    /// Makes a storage root at `root`, where the layer was made, with an image of this layer alone.
    fn finish(mut self, root: &Path) -> Result<()> {
        self.inline(&[0; 1024]);
        self.flush()?;
        self.lines.finish()?.flush()?;
        let diff_id = DiffId::from_bytes(self.tar.finalize().into());
        let id = chain_id(None, &diff_id);
        for dir in ["overlay-layers", "overlay-images"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::write(root.join("overlay-layers/layers.lock"), b"")?;
        fs::write(root.join("overlay-images/images.lock"), b"")?;
        let layer = root.join("overlay").join(id.as_str());
        fs::create_dir_all(&layer)?;
        fs::rename(self.diff, layer.join("diff"))?;
        let tar_split = root.join(format!("overlay-layers/{id}.tar-split.gz"));
        fs::rename(root.join("tar-split"), tar_split)?;
        let records = json!([{
            "id": id.as_str(),
            "created": "2024-05-01T12:00:00Z",
            "diff-digest": diff_id.to_string(),
            "diff-size": self.tar_len,
        }]);
        fs::write(root.join("overlay-layers/layers.json"), records.to_string())?;

        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id.to_string()]},
        })
        .to_string();
        let config_digest = ConfigDigest::of(config.as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.to_string(),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": diff_id.to_string(),
                "size": self.tar_len,
            }],
        })
        .to_string();
        let manifest_digest = ManifestDigest::of(manifest.as_bytes());
        let records = json!([{
            "id": config_digest.to_hex(),
            "digest": manifest_digest.to_string(),
            "names": [IMAGE],
            "layer": id.as_str(),
            "created": "2024-05-01T12:00:00Z",
            "big-data-names": [config_digest.to_string(), "manifest"],
            "big-data-digests": {
                config_digest.to_string(): config_digest.to_string(),
                "manifest": manifest_digest.to_string(),
            },
        }]);
        fs::write(root.join("overlay-images/images.json"), records.to_string())?;
        let data = root.join("overlay-images").join(config_digest.to_hex());
        fs::create_dir(&data)?;
        let key = STANDARD.encode(config_digest.to_string());
        fs::write(data.join(format!("={key}")), config)?;
        Ok(fs::write(data.join("manifest"), manifest)?)
    }
}

/// A repository beside a generated storage root.
struct Scene {
    program: PathBuf,
    storage: PathBuf,
    repo: PathBuf,
}

impl Scene {
    fn new(
        peers: &Peers,
        disk: &Path,
        fill: impl FnOnce(&mut Layer) -> Result<()>,
    ) -> Result<Self> {
        let scene = Self {
            program: peers.composefs_store()?,
            storage: disk.join("storage"),
            repo: disk.join("repository"),
        };
        let mut layer = Layer::new(&scene.storage)?;
        fill(&mut layer)?;
        layer.finish(&scene.storage)?;
        ok(scene.command().args(["init", "--insecure"]))?;
        Ok(scene)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--repo").arg(&self.repo);
        command
    }

    /// Imports the image; the most memory that the program had, in bytes.
    fn peak_of_import(&self) -> Result<u64> {
        // Whoever has this lock keeps others from entering images: the import has done all else then.
        let staging = self.repo.join("composefs-store/staging");
        fs::create_dir_all(&staging)?;
        let staging = File::open(staging)?;
        rustix::fs::flock(&staging, rustix::fs::FlockOperation::LockExclusive)?;
        let mut import = Running::start(
            self.command()
                .args(["--progress", "json", "import", "--storage-root"])
                .arg(&self.storage)
                .arg(IMAGE),
        )?;
        let stage = |name: &'static str| {
            move |event: &Value| event["event"] == "stage" && event["stage"] == name
        };
        import.until(stage("rootfs"))?;
        import.until(stage("publish"))?;
        let status = fs::read_to_string(format!("/proc/{}/status", import.pid()))?;
        drop(staging);
        let (end, status_of_end) = import.end()?;
        ensure!(status_of_end.success(), "{end}");
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context("no peak")?;
        Ok(peak.parse::<u64>()? << 10)
    }
}

#[track_caller]
fn assert_small(peak: u64) {
    assert!(peak < LIMIT, "{:.1} MiB", peak as f64 / f64::from(1 << 20));
}

#[test]
fn import_of_300_000_files_stays_below_64_mebibytes() -> Result<()> {
    let peers = Peers::from_env()?;
    let disk = InMemory::mount(&peers)?;
    let scene = Scene::new(&peers, &disk.0, |layer| {
        layer.directory("usr")?;
        for number in 0..300_000_u32 {
            let directory = format!("usr/directory-{:03}", number / 1000);
            if number % 1000 == 0 {
                layer.directory(&directory)?;
            }
            let content = [&number.to_le_bytes()[..], &[7; 96]].concat();
            let name = format!("{directory}/a-file-of-many-{number:06}");
            layer.file(&name, &content, 1)?;
        }
        Ok(())
    })?;
    assert_small(scene.peak_of_import()?);

    // Once more, with all objects there.
    for names in ["streams", "images"] {
        fs::remove_dir_all(scene.repo.join(names))?;
    }
    assert_small(scene.peak_of_import()?);
    Ok(())
}

#[test]
fn import_of_a_file_of_5_gibibytes_stays_below_64_mebibytes() -> Result<()> {
    let peers = Peers::from_env()?;
    let disk = Filesystem::new(&peers, Kind::Xfs, 1024)?;
    let scene = Scene::new(&peers, disk.path(), |layer| {
        layer.directory("usr")?;
        layer.file("usr/large", &vec![0; 1 << 20], 5 << 10)
    })?;
    assert_small(scene.peak_of_import()?);
    Ok(())
}
