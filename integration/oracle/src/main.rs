//! Images of dumpfiles as composefs-rs writes them.
//!
//! Requests come on standard input: format number, digest length in bytes, length of the dumpfile
//! (u32, little-endian), dumpfile. Each is answered on standard output: 0 for an image or 1 for a
//! message, length (u32), and that.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use composefs::dumpfile::dumpfile_to_filesystem;
use composefs::erofs::format::FormatVersion;
use composefs::erofs::writer::{ValidatedFileSystem, mkfs_erofs_versioned};
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue};
use std::io::{ErrorKind, Read, Write};

fn image<H: FsVerityHashValue>(dump: &str, format: FormatVersion) -> Result<Vec<u8>> {
    let tree = ValidatedFileSystem::new(dumpfile_to_filesystem::<H>(dump)?)?;
    Ok(mkfs_erofs_versioned(&tree, format).into_vec())
}

fn answer(format: u8, digest_len: u8, dump: Vec<u8>) -> Result<Vec<u8>> {
    let dump = String::from_utf8(dump).context("the dumpfile is not UTF-8")?;
    let format = match format {
        0 => FormatVersion::V0,
        1 => FormatVersion::V1,
        2 => FormatVersion::V2,
        _ => bail!("format {format} is not known"),
    };
    match digest_len {
        32 => image::<Sha256HashValue>(&dump, format),
        64 => image::<Sha512HashValue>(&dump, format),
        _ => bail!("no digest has {digest_len} bytes"),
    }
}

fn main() -> Result<()> {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    loop {
        let mut header = [0; 6];
        match input.read_exact(&mut header) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let [format, digest_len, len @ ..] = header;
        let mut dump = vec![0; u32::from_le_bytes(len) as usize];
        input.read_exact(&mut dump)?;
        let (failed, bytes) = match answer(format, digest_len, dump) {
            Ok(image) => (0, image),
            Err(error) => (1, format!("{error:#}").into_bytes()),
        };
        output.write_all(&[failed])?;
        output.write_all(&u32::try_from(bytes.len())?.to_le_bytes())?;
        output.write_all(&bytes)?;
        output.flush()?;
    }
}
