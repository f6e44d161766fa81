//! Makes a corpus for the fuzz targets to start from: random trees as dumpfiles and images, and what
//! the other formats look like.

use std::fs;
use std::io;
use std::path::Path;

use composefs_image::dumpfile::write_dump;
use composefs_image::generator::{Limits, Recipe};
use composefs_image::{Algorithm, Dialect, Format, WriteOptions, write_image};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in [
        "image",
        "dumpfile",
        "splitstream",
        "layer",
        "storage",
        "archive",
    ] {
        fs::create_dir_all(corpus.join(target))?;
    }
    for seed in 0..200 {
        let limits = Limits {
            dialect: [Dialect::C, Dialect::ComposefsRs][seed as usize % 2],
            algorithm: [Algorithm::Sha256, Algorithm::Sha512][seed as usize / 2 % 2],
        };
        let tree = Recipe::random(seed, limits).build();
        let mut dump = Vec::new();
        write_dump(&tree, &mut dump)?;
        fs::write(corpus.join("dumpfile").join(seed.to_string()), dump)?;
        for format in Format::ALL {
            let options = WriteOptions {
                format,
                dialect: limits.dialect,
            };
            let mut image = Vec::new();
            // The C formats have at least 24 KiB: a few will do.
            let wanted = format == Format::V2 || seed < 10;
            if wanted && write_image(&tree, &options, &mut image).is_ok() {
                fs::write(corpus.join("image").join(format!("{seed}.{format}")), image)?;
            }
        }
    }
    fs::write(corpus.join("splitstream/chunks"), chunks())?;
    for (name, text) in STORAGE {
        fs::write(corpus.join("storage").join(name), text)?;
    }
    fs::write(corpus.join("archive/docker"), docker_archive())?;
    fs::write(corpus.join("layer/members"), tar())
}

/// The first byte says what the rest is.
const STORAGE: [(&str, &[u8]); 5] = [
    (
        "conf",
        b"\0[storage]\ndriver = \"overlay\"\ngraphroot = \"/var/lib/containers/storage\"\n\
          runroot = \"$HOME/run\"\nimagestore = \"/images\"\ntransient_store = true\n\
          [storage.options]\nadditionalimagestores = [\"/usr/lib/containers/storage\"]\n\
          size = \"10G\"\n[storage.options.overlay]\nmountopt = \"nodev,metacopy=on\"\n\
          force_mask = \"shared\"\nmount_program = \"/usr/bin/fuse-overlayfs\"\n",
    ),
    (
        "images",
        b"\x02[{\"id\":\"0000000000000000000000000000000000000000000000000000000000000000\",\
          \"digest\":\"sha256:0000000000000000000000000000000000000000000000000000000000000000\",\
          \"names\":[\"localhost/a:latest\"],\"layer\":\
          \"0000000000000000000000000000000000000000000000000000000000000000\",\"metadata\":\"{}\",\
          \"big-data-names\":[\"manifest\"],\"big-data-sizes\":{\"manifest\":1},\
          \"big-data-digests\":{\"manifest\":\
          \"sha256:0000000000000000000000000000000000000000000000000000000000000000\"},\
          \"created\":\"2020-09-13T12:26:40Z\"}]",
    ),
    (
        "layers",
        b"\x03[{\"id\":\"0000000000000000000000000000000000000000000000000000000000000000\",\
          \"parent\":\"0000000000000000000000000000000000000000000000000000000000000000\",\
          \"created\":\"2020-09-13T12:26:40Z\",\"diff-size\":-1,\"compression\":2,\
          \"diff-digest\":\"sha256:0000000000000000000000000000000000000000000000000000000000000000\",\
          \"flags\":{\"incomplete\":true},\"uidset\":[0],\
          \"uidmap\":[{\"container_id\":0,\"host_id\":1,\"size\":2}]}]",
    ),
    (
        "tar-split",
        b"\x05{\"type\":2,\"payload\":\"AAAA\",\"position\":0}\n\
          {\"type\":1,\"name\":\"a/../b\",\"size\":3,\"payload\":\"AAAAAAAAAAA=\",\"position\":1}\n\
          {\"type\":1,\"name_raw\":\"L/8=\",\"payload\":null,\"position\":2}\n",
    ),
    ("gzip", b"\x04\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0"),
];

/// What the target `splitstream` makes a splitstream of: two references, names for them, and chunks.
fn chunks() -> Vec<u8> {
    let named = b"0:first\x001:second\0";
    let mut data = vec![2, named.len() as u8];
    data.extend([1; 32]);
    data.extend([2; 32]);
    data.extend(named);
    data.extend((-5_i64).to_le_bytes());
    data.extend(b"bytes");
    data.extend(0_i64.to_le_bytes());
    data.extend(1_i64.to_le_bytes());
    data
}

/// A docker-archive of one empty layer, behind a byte that says so.
fn docker_archive() -> Vec<u8> {
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"]}}"#;
    let index = br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}]"#;
    let mut tar = Vec::new();
    member(&mut tar, b'0', "c.json", "", config);
    member(&mut tar, b'0', "real.tar", "", &[0; 1024]);
    member(&mut tar, b'2', "l.tar", "real.tar", b"");
    member(&mut tar, b'0', "manifest.json", "", index);
    tar.resize(tar.len() + 1024, 0);
    [&[0][..], &tar].concat()
}

fn member(tar: &mut Vec<u8>, kind: u8, name: &str, link: &str, content: &[u8]) {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| {
        header[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000644\x000000000\x000000000\0");
    put(
        124,
        &format!("{:011o}\0{:011o}\0", content.len(), 1_600_000_000),
    );
    put(157, link);
    put(257, "ustar\x0000");
    put(329, "0000001\x000000003\0");
    header[156] = kind;
    tar.extend(header);
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// A tar with a member of each type; the target mends the checksums.
fn tar() -> Vec<u8> {
    let mut tar = Vec::new();
    let mut member =
        |kind, name: &str, link: &str, content: &[u8]| member(&mut tar, kind, name, link, content);
    member(b'5', "d/", "", b"");
    member(b'0', "d/small", "", b"small");
    member(b'0', "d/large", "", &[7; 100]);
    member(b'1', "d/hard", "d/large", b"");
    member(b'2', "d/link", "large", b"");
    member(b'3', "d/null", "", b"");
    member(b'4', "d/block", "", b"");
    member(b'6', "d/pipe", "", b"");
    member(b'0', "d/.wh.small", "", b"");
    member(b'0', "d/.wh..wh..opq", "", b"");
    member(
        b'x',
        "pax",
        "",
        b"13 path=longp\n30 mtime=1600000000.123456789\n27 SCHILY.xattr.user.k=value\n",
    );
    member(b'0', "replaced", "", b"by the name above");
    member(b'L', "././@LongLink", "", b"a/long/name\0");
    member(b'K', "././@LongLink", "", b"a/long/target\0");
    member(b'2', "short", "short", b"");
    tar.resize(tar.len() + 1024, 0);
    tar
}
