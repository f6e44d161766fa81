//! Images, as anyone can have written them.
#![no_main]

use composefs_image::erofs::{hard_linked, walk_image};
use composefs_image::{
    Content, Dialect, Format, Kind, Tree, WriteOptions, image_objects, read_image, write_image,
};
use libfuzzer_sys::fuzz_target;

/// What V2 keeps of a tree: no nanoseconds, and neither link counts nor object paths but the true ones.
fn kept(tree: &Tree) -> Tree {
    let mut kept = tree.clone();
    for id in tree.walk().map(|visit| visit.id) {
        kept.change_metadata(id, |metadata| metadata.mtime.nsec = 0);
        kept.set_nlink(id, None);
        if let Kind::Regular(Content::External {
            size,
            digest: Some(digest),
            path: Some(_),
        }) = tree.kind(id)
        {
            let content = Content::External {
                size,
                digest: Some(digest),
                path: None,
            };
            kept.set_content(id, content);
        }
    }
    kept
}

fuzz_target!(|image: &[u8]| {
    if let Ok(objects) = image_objects(image) {
        objects.take_while(Result::is_ok).for_each(drop);
    }
    if let Ok(walk) = walk_image(image) {
        walk.take_while(Result::is_ok).for_each(drop);
    }
    let _ = hard_linked(image);
    let Ok(tree) = read_image(image) else {
        return;
    };
    let options = WriteOptions {
        format: Format::V2,
        dialect: Dialect::ComposefsRs,
    };
    let mut written = Vec::new();
    if write_image(&tree, &options, &mut written).is_err() {
        return;
    }
    let read = read_image(&written).expect("what was written can be read");
    assert!(read == kept(&tree), "read another tree than was written");
    for dialect in [Dialect::C, Dialect::ComposefsRs] {
        for format in [Format::V0, Format::V1] {
            let mut written = Vec::new();
            if write_image(&tree, &WriteOptions { format, dialect }, &mut written).is_ok() {
                read_image(&written).expect("what was written can be read");
            }
        }
    }
});
