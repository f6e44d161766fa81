//! Dumpfile on standard input, V2 image as composefs-rs writes it on standard output.
//!
//! `cargo xtask bench image` measures this against composefs-rs.
#![forbid(unsafe_code)]

use composefs_image::dumpfile::read_dump;
use composefs_image::{Dialect, Format, WriteOptions, write_image};
use std::error::Error;
use std::io::{BufReader, BufWriter, Write, stdin, stdout};

const BUFFER: usize = 128 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let dialect = Dialect::ComposefsRs;
    let tree = read_dump(BufReader::with_capacity(BUFFER, stdin().lock()), dialect)?;
    let options = WriteOptions {
        format: Format::V2,
        dialect,
    };
    let mut out = BufWriter::with_capacity(BUFFER, stdout().lock());
    write_image(&tree, &options, &mut out)?;
    Ok(out.flush()?)
}
