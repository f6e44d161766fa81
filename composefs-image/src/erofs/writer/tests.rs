use super::*;
use crate::dumpfile::read_dump;
use crate::erofs::read_image;
use crate::fsverity::{Algorithm, verity_digest};
use crate::tree::Metadata;

const BIG_256: &str = "21a8507def1d5fad6393e6d722a0421d9f9f674461beb4ac74983bef9535b5d4";
const BIG_512: &str = "ba27dfe8c576feaac1c95ceb6efed5523e28e6d0a9fd115f0bd7cd605da75b04\
                       f7715889a53b4f17bfaa998f08a668c654d5c578fe7e1d595c018e2802f8d234";

/// The published test tree: every type, a hard link, shared and unshared xattrs, a whiteout.
fn vector_dump(digest: &str) -> String {
    let (first, rest) = digest.split_at(2);
    format!(
        "/ 0 40755 3 0 0 0 1700000000.0 - - -\n\
         /dir 0 40750 2 1000 1000 0 1700000001.500000000 - - - user.test=1\n\
         /dir/big 5000 100644 2 0 0 0 1600000000.0 {first}/{rest} - {digest}\n\
         /dir/hard 0 @100644 2 0 0 0 0.0 /dir/big - -\n\
         /dir/link 3 120777 1 0 0 0 1700000000.0 big - -\n\
         /empty 0 100600 1 0 0 0 1700000000.0 - - -\n\
         /null 0 20666 1 0 0 259 1700000000.0 - - -\n\
         /small 3 100644 1 0 0 0 1700000000.0 - hi\\n - user.only=a\\x20b user.test=1\n\
         /wh 0 20000 1 0 0 0 1700000000.0 - - -\n"
    )
}

pub(super) fn image(dump: &str, format: Format, dialect: Dialect) -> Vec<u8> {
    let tree = read_dump(dump.as_bytes(), dialect).unwrap();
    let mut image = Vec::new();
    write_image(&tree, &WriteOptions { format, dialect }, &mut image).unwrap();
    image
}

#[test]
fn images_equal_the_published_vectors() {
    let vectors = [
        (
            Format::V0,
            Algorithm::Sha256,
            "719057dce089874c343117fb95da153e5c912978a155794a503356eb8f48ec5f",
        ),
        (
            Format::V1,
            Algorithm::Sha256,
            "5fe85633670f26964b87271a76a7d6df1c322aacd70d966f44b868c3b4874352",
        ),
        (
            Format::V2,
            Algorithm::Sha256,
            "27f17c6ca2cda50409696236e741b2956d8f9f841bf7252bfa89848c64d738e4",
        ),
        (
            Format::V1,
            Algorithm::Sha512,
            "30e338d74394f3b1d1e20f91826ff41698341abac8b4f141b21bea4eae5c84fd\
             22551375523dffd8a12d1e4260284ce5ea3208d8bcd94caacced56764a867f10",
        ),
        (
            Format::V2,
            Algorithm::Sha512,
            "972b58b8a538726587b37ffaa8a75d57aaa350c2cf4f81be4b374a65e458dba7\
             8ce1e383993e3e0374a96151034e4b59795c016f46cd07129c7eff177662d714",
        ),
    ];
    for (format, algorithm, expected) in vectors {
        let dump = vector_dump(match algorithm {
            Algorithm::Sha256 => BIG_256,
            Algorithm::Sha512 => BIG_512,
        });
        for dialect in [Dialect::C, Dialect::ComposefsRs] {
            let image = image(&dump, format, dialect);
            assert_eq!(image.len(), if format == Format::V2 { 4096 } else { 24576 });
            let digest = verity_digest(algorithm, &image).to_hex();
            assert_eq!(digest, expected, "{format} {algorithm} {dialect:?}");
        }
    }
}

fn written(tree: &Tree, format: Format, dialect: Dialect) -> Result<Vec<u8>, WriteError> {
    let mut image = Vec::new();
    write_image(tree, &WriteOptions { format, dialect }, &mut image)?;
    Ok(image)
}

fn misfit(tree: &Tree, format: Format, dialect: Dialect) -> (String, Misfit) {
    match written(tree, format, dialect).unwrap_err() {
        WriteError::Inode { path, problem } => (String::from_utf8(path.into()).unwrap(), problem),
        error => panic!("{error}"),
    }
}

fn tree_with(kind: Kind<'_>) -> (Tree, InodeId) {
    let mut tree = Tree::new(Metadata::default());
    let directory = tree.add(Metadata::default(), Kind::Directory);
    let id = tree.add(Metadata::default(), kind);
    tree.link(tree.root(), b"dir", directory).unwrap();
    tree.link(directory, b"odd", id).unwrap();
    (tree, id)
}

#[test]
fn what_does_not_fit_the_format_is_refused_by_its_path() {
    let external = |size| {
        Kind::Regular(Content::External {
            size,
            digest: None,
            path: None,
        })
    };
    let large = vec![0; 5001];
    let cases = [
        (Kind::Symlink(b""), Misfit::Symlink),
        (Kind::Symlink(&large[..4096]), Misfit::Symlink),
        (Kind::Symlink(b"a\0b"), Misfit::Symlink),
        (
            Kind::Regular(Content::Inline(&large)),
            Misfit::InlineContent {
                size: 5001,
                limit: 5000,
            },
        ),
        (external((1 << 53) + 1), Misfit::FileSize((1 << 53) + 1)),
    ];
    for (kind, problem) in cases {
        let (tree, _) = tree_with(kind);
        let found = misfit(&tree, Format::V1, Dialect::C);
        assert_eq!(found, ("/dir/odd".to_owned(), problem));
    }
    let (tree, _) = tree_with(Kind::Regular(Content::Inline(&large[..513])));
    let (size, limit) = (513, 512);
    let (_, problem) = misfit(&tree, Format::V2, Dialect::ComposefsRs);
    assert_eq!(problem, Misfit::InlineContent { size, limit });
}

#[test]
fn xattrs_that_no_entry_can_hold_are_refused() {
    let long = [b"user.".as_slice(), &[b'x'; 256]].concat();
    let huge = vec![b'x'; 65_536];
    let cases = [
        (b"".as_slice(), b"".as_slice(), Misfit::XattrName),
        (&long, b"", Misfit::XattrName),
        (b"user.huge", &huge, Misfit::XattrValue),
    ];
    for (name, value, problem) in cases {
        let (mut tree, id) = tree_with(Kind::Fifo);
        tree.set_xattr(id, name, value);
        for format in Format::ALL {
            assert_eq!(misfit(&tree, format, Dialect::ComposefsRs).1, problem);
        }
    }
    let (mut tree, id) = tree_with(Kind::Fifo);
    for number in 0..5 {
        tree.set_xattr(id, format!("user.{number}").as_bytes(), &huge[1..]);
    }
    assert_eq!(misfit(&tree, Format::V1, Dialect::C).1, Misfit::Xattrs);
}

#[test]
fn more_shared_xattrs_than_can_be_counted_are_kept_local_or_refused() {
    let (mut tree, id) = tree_with(Kind::Fifo);
    let again = tree.add(Metadata::default(), Kind::Fifo);
    tree.link(tree.root(), b"again", again).unwrap();
    for number in 0..300 {
        tree.set_xattr(id, format!("user.{number}").as_bytes(), b"");
    }
    tree.copy_xattrs(id, again);
    assert!(written(&tree, Format::V1, Dialect::C).is_ok());
    let (_, problem) = misfit(&tree, Format::V1, Dialect::ComposefsRs);
    assert_eq!(problem, Misfit::Xattrs);
}

#[test]
fn whiteouts_with_two_names_are_for_the_c_tools_alone() {
    let (mut tree, id) = tree_with(Kind::CharDevice(0));
    tree.link(tree.root(), b"again", id).unwrap();
    assert!(written(&tree, Format::V1, Dialect::C).is_ok());
    for format in Format::ALL {
        let (_, problem) = misfit(&tree, format, Dialect::ComposefsRs);
        assert_eq!(problem, Misfit::LinkedWhiteout);
    }
}

#[test]
fn names_above_hidden_directories_do_not_get_in_their_way() {
    // All 256 names taken: no whiteout is added.
    let mut tree = Tree::new(Metadata::default());
    for number in 0..=255_u8 {
        let id = tree.add(Metadata::default(), Kind::Fifo);
        tree.link(tree.root(), format!("{number:02x}").as_bytes(), id)
            .unwrap();
    }
    let image = written(&tree, Format::V1, Dialect::C).unwrap();
    let inodes = u64::from_le_bytes(image[1024 + 16..1024 + 24].try_into().unwrap());
    assert_eq!(inodes, 257);
    assert!(read_image(&image).unwrap() == tree);
}

#[test]
fn a_failing_output_is_an_error() {
    struct Full(usize);
    impl io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(bytes.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let options = WriteOptions {
        format: Format::V1,
        dialect: Dialect::C,
    };
    let tree = Tree::new(Metadata::default());
    for room in [0, 1000, 10_000] {
        assert!(matches!(
            write_image(&tree, &options, &mut Full(room)),
            Err(WriteError::Io(_))
        ));
    }
}

#[test]
fn the_order_in_which_a_tree_was_built_does_not_matter() {
    let build = |order: &[u32]| {
        let mut tree = Tree::new(Metadata::default());
        for number in order {
            let id = tree.add(Metadata::default(), Kind::CharDevice(*number));
            tree.set_xattr(id, b"user.number", &number.to_le_bytes());
            tree.set_xattr(id, b"user.all", b"same");
            tree.link(tree.root(), number.to_string().as_bytes(), id)
                .unwrap();
        }
        tree
    };
    let up: Vec<u32> = (0..2000).collect();
    let down: Vec<u32> = up.iter().rev().copied().collect();
    for format in Format::ALL {
        let image = |order| written(&build(order), format, Dialect::ComposefsRs).unwrap();
        assert!(image(&up) == image(&down), "{format}");
    }
}
