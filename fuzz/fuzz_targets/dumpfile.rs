//! Dumpfiles, as anyone can have written them.
#![no_main]

use composefs_image::dumpfile::{read_dump, write_dump};
use composefs_image::{Dialect, Format, WriteOptions, read_image, write_image};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|dump: &[u8]| {
    for dialect in [Dialect::C, Dialect::ComposefsRs] {
        let Ok(tree) = read_dump(dump, dialect) else {
            continue;
        };
        // composefs-rs reads seconds above 2^63 and wraps them, but refuses what they then are.
        let wrapped = |id| tree.metadata(id).mtime.sec < 0;
        if dialect == Dialect::ComposefsRs && tree.walk().any(|visit| wrapped(visit.id)) {
            continue;
        }
        let mut written = Vec::new();
        write_dump(&tree, &mut written).expect("memory takes everything");
        let read = read_dump(written.as_slice(), dialect).expect("what was written can be read");
        assert!(read == tree, "read another tree than was written");
        for format in Format::ALL {
            let mut image = Vec::new();
            if write_image(&tree, &WriteOptions { format, dialect }, &mut image).is_ok() {
                read_image(&image).expect("what was written can be read");
            }
        }
    }
});
