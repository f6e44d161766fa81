//! Puts every layer's tar together and compares its SHA-256 with the image's config:
//! `cargo run -p containers-storage --example reassemble [STORAGE-ROOT]`.

use std::error::Error;
use std::io::Read;

use containers_storage::{ContentCrc, DiffId, Layer, OpenOptions, Storage, TarSplitEntry};
use sha2::{Digest, Sha256};

fn main() -> Result<(), Box<dyn Error>> {
    let storage = Storage::open(&OpenOptions {
        root: std::env::args_os().nth(1).map(Into::into),
        conf: None,
    })?;
    for image in storage.images()? {
        println!("{} {}", image.id(), image.names().join(" "));
        for layer in image.layers()? {
            let found = reassemble(&layer)?;
            let verdict = if found == layer.diff_id() {
                "ok"
            } else {
                "MISMATCH"
            };
            println!("  {} {found} {verdict}", layer.id());
        }
    }
    Ok(())
}

fn reassemble(layer: &Layer) -> Result<DiffId, Box<dyn Error>> {
    let open = layer.open()?;
    let mut tar = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    for entry in open.tar_split()? {
        match entry? {
            TarSplitEntry::Segment(bytes) => tar.update(&bytes),
            TarSplitEntry::File { size: 0, .. } => {}
            TarSplitEntry::File { name, crc64, .. } => {
                let mut file = open.open_file(&name)?;
                let mut crc = ContentCrc::new();
                loop {
                    let read = file.read(&mut buffer)?;
                    if read == 0 {
                        break;
                    }
                    crc.update(&buffer[..read]);
                    tar.update(&buffer[..read]);
                }
                if crc.finish() != crc64 {
                    return Err(format!("{}: {name} has another content", layer.id()).into());
                }
            }
        }
    }
    Ok(DiffId::from_bytes(tar.finalize().into()))
}
