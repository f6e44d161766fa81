//! Makes a corpus for the fuzz targets to start from: random trees as dumpfiles and images, and what
//! the other formats look like.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;

use composefs_image::dumpfile::write_dump;
use composefs_image::generator::{Limits, Recipe};
use composefs_image::{Algorithm, Dialect, Format, WriteOptions, verity_digest, write_image};
use gc::simulate::{Host, Loader, ManifestDigest, Mounts, Record, uki};
use repository::oci::{ConfigDigest, DiffId};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in [
        "image",
        "dumpfile",
        "splitstream",
        "layer",
        "storage",
        "archive",
        "boot",
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
    let archive = corpus.join("archive");
    fs::write(archive.join("docker"), docker_archive())?;
    fs::write(archive.join("oci"), oci_archive())?;
    let documents = [manifest().as_bytes(), CONFIG].join(&b'\n');
    fs::write(
        archive.join("documents"),
        [b"\x02", &documents[..]].concat(),
    )?;
    fs::write(archive.join("reference"), b"\x03oci-archive:/a.tar:b:1")?;
    fs::write(corpus.join("layer/members"), tar())?;
    for loader in Loader::ALL {
        for mounts in [Mounts::Inside, Mounts::Separate] {
            hosts(&corpus.join("boot"), loader, mounts)?;
        }
    }
    let hex = "0a".repeat(64);
    let program = uki(&[&format!("rw composefs={hex}"), "second"]);
    let program = [b"sysroot/boot/efi/EFI/Linux/a.efi\n", &program[..]].concat();
    fs::write(corpus.join("boot/uki"), program)?;
    for (name, text) in BOOT {
        let text = text.replace("HEX", &hex);
        fs::write(corpus.join("boot").join(name), text)?;
    }
    Ok(())
}

/// What the target `boot` reads: parts between file separators, each with its name in the first line.
const BOOT: [(&str, &str); 6] = [
    (
        "links",
        "sysroot/boot/loader/entries/a.conf -> ../../../../outside/loader/entries/a.conf\x1c\
         sysroot/boot/grub2/user.cfg -> /../../outside/user.cfg\x1c\
         esp/EFI/Linux/b.efi -> ../../../outside/EFI/Linux/a.efi\x1c\
         esp/loader -> ../outside/loader\x1csysroot/efi -> ../outside\x1c\
         bootfs/loader/entries/b.conf\nefi ../outside/EFI/Linux/a.efi\n",
    ),
    (
        "menu",
        "bootfs/grub2/grub.cfg\nset kernelopts=\"composefs=?HEX rw\"\n\
         if [ -s $prefix/user.cfg ]; then # comment\nsource ${prefix}/user.cfg; fi\n\
         menuentry 'a' --id \"b\\\"c\" { linux ($root)/bootc_composefs-HEX/vmlinuz rw \\\n composefs=HEX; }\n\
         menuentry b {\nchainloader (hd0,gpt1)\\\\EFI\\\\Linux\\\\bootc_composefs-HEX+3-1.efi\n}\n",
    ),
    (
        "entry",
        "esp/loader/entries/bootc_a.conf\ntitle a\nversion 1\nsort-key b\nuki \\EFI\\Linux\\a.efi\n\
         options rw\noptions \"composefs.digest=v1-sha512-12:HEX\"\n# comment\n\x1cesp/HEX/",
    ),
    (
        "running",
        "cmdline\nroot=UUID=0 rw composefs.digest=?v2-sha512-12:HEX x=\"composefs= y\" composefs=?HEX\n\x1c\
         mount\ntransient:composefs=HEX\x1csysroot/state/deploy/HEX/",
    ),
    (
        "origin",
        "sysroot/state/deploy/HEX/HEX.origin\n[origin]\ncontainer-image-reference=a\n; comment\n\
         [image]\nmanifest_digest = sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 ;\n",
    ),
    (
        "staged",
        "run/composefs/staged-deployment\n{\"depl_id\":\"HEX\",\"finalization_locked\":false}\x1c\
         sysroot/boot/grub/user.cfg.staged\nmenuentry a {\nchainloader /EFI/Linux/HEX.efi\n}\n",
    ),
];

/// Hosts with one kind of boot loader: with a deployment, with another that is staged, and after that one
/// was started.
fn hosts(corpus: &Path, loader: Loader, mounts: Mounts) -> io::Result<()> {
    let scratch = tempfile::tempdir()?;
    let mut host = Host::new(scratch.path(), loader, mounts)?;
    let keep = |host: &Host, name: &str| {
        let mut parts = Vec::new();
        if let Some(id) = host.booted {
            parts.push(format!("cmdline\nrw composefs={id}").into_bytes());
        }
        for place in ["sysroot", "bootfs", "esp", "run"] {
            collect(scratch.path(), &scratch.path().join(place), &mut parts)?;
        }
        let name = format!("{loader:?}-{mounts:?}-{name}").to_lowercase();
        fs::write(corpus.join(name), parts.join(&0x1c))
    };
    let records = [
        Record::Legacy(ConfigDigest::of(b"config"), vec![DiffId::of(b"layer")]),
        Record::Manifest(ManifestDigest::of(b"manifest")),
    ];
    for (number, record) in records.into_iter().enumerate() {
        let id = verity_digest(Algorithm::Sha512, &[number as u8]);
        let deployed = host.deploy(id, record, number as u32)?;
        deployed.expect("nothing interrupts it");
        keep(&host, ["one", "staged"][number])?;
    }
    host.finalize()?.expect("nothing interrupts it");
    host.reboot()?;
    keep(&host, "two")
}

/// Adds the files, the links and the empty directories in a directory, if there is one.
fn collect(base: &Path, directory: &Path, parts: &mut Vec<Vec<u8>>) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.sort();
    let name = |path: &Path| {
        let below = path.strip_prefix(base).expect("it is below");
        below.display().to_string()
    };
    if paths.is_empty() {
        parts.push(format!("{}/", name(directory)).into_bytes());
    }
    for path in paths {
        if path.is_symlink() {
            let target = fs::read_link(&path)?;
            parts.push(format!("{} -> {}", name(&path), target.display()).into_bytes());
        } else if path.is_dir() {
            collect(base, &path, parts)?;
        } else {
            let header = format!("{}\n", name(&path)).into_bytes();
            parts.push([header, fs::read(&path)?].concat());
        }
    }
    Ok(())
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

/// The config of an image of one layer, [`LAYER`].
const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"]}}"#;
/// A layer without members.
const LAYER: &[u8] = &[0; 1024];

fn manifest() -> String {
    let config = descriptor("config.v1+json", ConfigDigest::of(CONFIG), CONFIG.len());
    let layer = descriptor("layer.v1.tar", DiffId::of(LAYER), LAYER.len());
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{layer}]}}"#
    )
}

fn descriptor(media_type: &str, digest: impl Display, size: usize) -> String {
    format!(
        r#"{{"mediaType":"application/vnd.oci.image.{media_type}","digest":"{digest}","size":{size}}}"#
    )
}

/// A docker-archive of one empty layer, behind a byte that says so.
fn docker_archive() -> Vec<u8> {
    let index = br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}]"#;
    let mut tar = Vec::new();
    member(&mut tar, b'0', "c.json", "", CONFIG);
    member(&mut tar, b'0', "real.tar", "", LAYER);
    member(&mut tar, b'2', "l.tar", "real.tar", b"");
    member(&mut tar, b'0', "manifest.json", "", index);
    tar.resize(tar.len() + 1024, 0);
    [&[0][..], &tar].concat()
}

/// The same image as an oci-archive.
fn oci_archive() -> Vec<u8> {
    let manifest = manifest();
    let digest = ManifestDigest::of(manifest.as_bytes());
    let listed = descriptor("manifest.v1+json", digest, manifest.len());
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{listed}]}}"#);
    let mut tar = Vec::new();
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    member(&mut tar, b'0', "oci-layout", "", layout);
    member(&mut tar, b'0', "index.json", "", index.as_bytes());
    for (digest, content) in [
        (digest.to_string(), manifest.as_bytes()),
        (ConfigDigest::of(CONFIG).to_string(), CONFIG),
        (DiffId::of(LAYER).to_string(), LAYER),
    ] {
        let name = format!("blobs/{}", digest.replace(':', "/"));
        member(&mut tar, b'0', &name, "", content);
    }
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
