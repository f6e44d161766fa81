//! Images as one file: docker-archive and oci-archive, plain or compressed, and the documents in them.
#![no_main]

use std::io::Write as _;
use std::path::Path;

use importer::source::{
    ArchiveImage, LayerContent, LayoutImage, Reference, SourceImage, SourceOptions,
    from_docker_archive, from_oci_archive,
};
use libfuzzer_sys::fuzz_target;
use repository::oci::{Config, Manifest, check_pair};

/// Most bytes that a compressed archive may become.
const LIMIT: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => {
            let mut tar = data.to_vec();
            mend_checksums(&mut tar);
            archive(&tar);
        }
        1 => archive(data),
        2 => {
            let mut documents = data.splitn(2, |&byte| byte == b'\n');
            let manifest = Manifest::parse(documents.next().unwrap_or_default().to_vec());
            let config = Config::parse(documents.next().unwrap_or_default().to_vec());
            if let (Ok(manifest), Ok(config)) = (manifest, config) {
                let _ = check_pair(&manifest, &config);
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(data) {
                let _ = Reference::parse(text);
            }
        }
    }
});

fn archive(bytes: &[u8]) {
    let path = format!("/dev/shm/composefs-store-fuzz-{}", std::process::id());
    let path = Path::new(&path);
    std::fs::File::create(path)
        .and_then(|mut file| file.write_all(bytes))
        .unwrap();
    let options = SourceOptions {
        max_size: Some(LIMIT),
        ..SourceOptions::default()
    };
    let images = [
        from_docker_archive(path, &ArchiveImage::Only, &options),
        from_docker_archive(path, &ArchiveImage::Position(1), &options),
        from_oci_archive(path, &LayoutImage::Only, &options),
    ];
    for image in images.into_iter().flatten() {
        read(&image);
    }
    std::fs::remove_file(path).unwrap();
}

/// A layer lies within the file, and a manifest that was made up can be read again.
fn read(image: &SourceImage<'_>) {
    let _ = Manifest::parse(image.manifest.clone());
    let _ = Config::parse(image.config.clone());
    for layer in &image.layers {
        let LayerContent::Blob { blob, .. } = &layer.content else {
            panic!("an archive has no stored layers");
        };
        if let Ok(mut reader) = blob.open() {
            let count = std::io::copy(&mut reader, &mut std::io::sink());
            assert!(count.unwrap_or_default() <= LIMIT);
        }
    }
}

/// Makes the checksum of whatever looks like a header right: a fuzzer does not.
fn mend_checksums(tar: &mut [u8]) {
    for block in tar.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
