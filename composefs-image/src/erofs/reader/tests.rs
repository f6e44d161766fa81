use std::collections::BTreeSet;

use super::*;
use crate::dumpfile::write_dump;
use crate::erofs::{Dialect, WriteOptions, write_image};
use crate::fsverity::{Algorithm, VerityDigest};
use crate::generator::{Limits, Random, Recipe};
use crate::tree::{Content, Kind, Metadata, Tree};

fn image_of(tree: &Tree, format: Format, dialect: Dialect) -> Vec<u8> {
    let mut image = Vec::new();
    write_image(tree, &WriteOptions { format, dialect }, &mut image).unwrap();
    image
}

fn limits(seed: u64) -> Limits {
    Limits {
        dialect: [Dialect::C, Dialect::ComposefsRs][seed as usize % 2],
        algorithm: [Algorithm::Sha256, Algorithm::Sha512][seed as usize / 2 % 2],
    }
}

/// Takes away what a format cannot keep.
fn reduce(tree: &mut Tree, format: Format, dialect: Dialect) {
    let ids: BTreeSet<_> = tree.walk().map(|visit| (visit.id, visit.parent)).collect();
    for (id, parent) in ids {
        if format == Format::V2 {
            tree.change_metadata(id, |metadata| metadata.mtime.nsec = 0);
        } else if tree.kind(id) == Kind::CharDevice(0) {
            for name in ["opaque", "whiteouts", "whiteout"] {
                for prefix in ["user.overlay.", "trusted.overlay."] {
                    let name = [prefix, name].concat();
                    tree.remove_xattr(id, name.as_bytes());
                    tree.remove_xattr(parent, name.as_bytes());
                }
            }
            // composefs-rs takes this for one of the whiteouts that the format adds.
            if dialect == Dialect::ComposefsRs && parent == tree.root() {
                tree.change_metadata(id, |metadata| metadata.mode = 0o600);
            }
        } else if tree.xattr(id, b"user.overlay.whiteout") == Some(b"") {
            // Looks like an escaped whiteout.
            tree.remove_xattr(id, b"user.overlay.whiteout");
        }
    }
}

/// What reading gives instead of the tree that was written, if it does.
fn read_differently(tree: &Tree, format: Format, dialect: Dialect) -> Option<String> {
    let mut image = Vec::new();
    write_image(tree, &WriteOptions { format, dialect }, &mut image).ok()?;
    let text = |tree: &Tree| {
        let mut dump = Vec::new();
        write_dump(tree, &mut dump).unwrap();
        String::from_utf8(dump).unwrap()
    };
    match read_image(&image) {
        Ok(read) if read == *tree => None,
        Ok(read) => Some(format!("wrote\n{}read\n{}", text(tree), text(&read))),
        Err(error) => Some(format!("wrote\n{}read: {error}", text(tree))),
    }
}

#[test]
fn reading_an_image_gives_the_tree_that_was_written() {
    for seed in 0..600 {
        let limits = limits(seed);
        for format in Format::ALL {
            if format == Format::V2 && limits.dialect == Dialect::C {
                continue;
            }
            let check = |tree: &Tree| {
                let mut tree = tree.clone();
                reduce(&mut tree, format, limits.dialect);
                read_differently(&tree, format, limits.dialect)
            };
            let recipe = Recipe::random(seed, limits);
            if check(&recipe.build()).is_some() {
                let small = recipe.shrink(|tree| check(tree).is_some());
                panic!("{format}, seed {seed}:\n{}", check(&small.build()).unwrap());
            }
        }
    }
}

#[test]
fn the_objects_of_an_image_are_those_of_its_tree() {
    for seed in 0..200 {
        let limits = limits(seed);
        let tree = Recipe::random(seed, limits).build();
        let expected: BTreeSet<VerityDigest> = tree
            .walk()
            .filter_map(|visit| match tree.kind(visit.id) {
                Kind::Regular(Content::External { digest, path, .. }) => Some((digest, path)),
                _ => None,
            })
            .flat_map(|(digest, path)| {
                let named = path.and_then(VerityDigest::from_object_path);
                digest.into_iter().chain(named)
            })
            .collect();
        let image = image_of(&tree, Format::V1, limits.dialect);
        let found: Result<BTreeSet<_>, _> = image_objects(&image).unwrap().collect();
        assert_eq!(found.unwrap(), expected, "seed {seed}");
    }
}

#[test]
fn damaged_images_give_errors_and_end() {
    let mut random = Random::new(1);
    for seed in 0..150 {
        let limits = limits(seed);
        let tree = Recipe::random(seed, limits).build();
        let image = image_of(
            &tree,
            *random.pick(&[Format::V0, Format::V1]),
            limits.dialect,
        );
        for _ in 0..20 {
            let mut damaged = image.clone();
            for _ in 0..=random.below(8) {
                // Mostly where the metadata is.
                let len = damaged.len() as u64;
                let limit = if random.once_in(2) {
                    len
                } else {
                    len.min(12_000)
                };
                let place = random.below(limit) as usize;
                damaged[place] = random.next() as u8;
            }
            if random.once_in(4) {
                damaged.truncate(random.below(damaged.len() as u64) as usize);
            }
            let _ = read_image(&damaged);
            if let Ok(objects) = image_objects(&damaged) {
                let _: Result<Vec<_>, _> = objects.collect();
            }
        }
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let image = image_of(
        &Tree::new(Metadata::default()),
        Format::V1,
        Dialect::ComposefsRs,
    );
    assert!(matches!(
        read_image(b"").unwrap_err(),
        ReadError::NotComposefs(_)
    ));
    let with = |offset: usize, byte: u8| {
        let mut image = image.clone();
        image[offset] = byte;
        read_image(&image).unwrap_err()
    };
    assert!(matches!(with(0, 0), ReadError::NotComposefs(_)));
    assert!(matches!(with(4, 2), ReadError::NotComposefs(_)));
    assert_eq!(with(12, 3), ReadError::Version(3));
    assert!(matches!(with(1024, 0), ReadError::NotComposefs(_)));
    // Block size, features, metadata block.
    for offset in [1024 + 12, 1024 + 8, 1024 + 80, 1024 + 40, 1024 + 100] {
        assert!(matches!(with(offset, 0xf0), ReadError::Unsupported(_)));
    }
}

#[test]
fn an_image_that_refers_to_its_data_again_and_again_is_refused() {
    // A directory whose inode is found under two names.
    let mut tree = Tree::new(Metadata::default());
    for name in [b"a", b"b"] {
        let id = tree.add(Metadata::default(), Kind::Directory);
        tree.link(tree.root(), name, id).unwrap();
    }
    let mut image = image_of(&tree, Format::V2, Dialect::ComposefsRs);
    // Of the four entries in the root's tail (., .., a, b) the last one gets the nid of the third.
    let entries = 1152 + 64;
    let third = image[entries + 24..entries + 32].to_vec();
    image[entries + 36..entries + 44].copy_from_slice(&third);
    assert!(matches!(
        read_image(&image).unwrap_err(),
        ReadError::Inode {
            problem: InodeError::DirectoryTwice,
            ..
        }
    ));
}
