//! Layers: tars, as anyone can have written them.
#![no_main]

use composefs_image::{Algorithm, Dialect, Format, WriteOptions, verity_digest, write_image};
use libfuzzer_sys::fuzz_target;
use repository::layers::{Chunk, Chunks, Merge, Placement, Rules, Step, TarSplitter, XattrFilter};

fuzz_target!(|data: &[u8]| {
    let mut tar = data.to_vec();
    mend_checksums(&mut tar);
    let portions = split(&tar);
    for rules in [
        Rules::Podman,
        Rules::Rootfs(XattrFilter::AllowlistOnly),
        Rules::Rootfs(XattrFilter::KeepUser),
    ] {
        let mut merge = Merge::new(rules);
        // The second time everything is there already.
        let layer = || Layer(portions.iter());
        if merge.add_layer(layer()).is_err() || merge.add_layer(layer()).is_err() {
            continue;
        }
        let Ok(tree) = merge.finish() else {
            continue;
        };
        for format in Format::ALL {
            let options = WriteOptions {
                format,
                dialect: Dialect::ComposefsRs,
            };
            let _ = write_image(&tree, &options, &mut std::io::sink());
        }
    }
});

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

enum Portion<'a> {
    Inline(&'a [u8]),
    External(&'a [u8]),
}

/// Cuts a tar as an import does, up to where it is wrong or cut off.
fn split(mut tar: &[u8]) -> Vec<Portion<'_>> {
    let mut portions = Vec::new();
    let mut splitter = TarSplitter::new();
    while !tar.is_empty() {
        let Ok(step) = splitter.push(tar) else {
            break;
        };
        let (taken, external) = match step {
            Step::Inline(taken) | Step::Payload(taken) => (taken, None),
            Step::Member {
                consumed,
                placement,
            } => {
                let size = splitter.member().map(|member| member.size);
                (consumed, size.filter(|_| placement == Placement::External))
            }
        };
        let (inline, rest) = tar.split_at(taken);
        portions.push(Portion::Inline(inline));
        tar = rest;
        if let Some(size) = external {
            let size = usize::try_from(size).unwrap_or(usize::MAX).min(tar.len());
            let (content, rest) = tar.split_at(size);
            portions.push(Portion::External(content));
            tar = rest;
        }
    }
    // What could not be cut must be refused by the reader too.
    if !tar.is_empty() {
        portions.push(Portion::Inline(tar));
    }
    portions
}

struct Layer<'a, I: Iterator<Item = &'a Portion<'a>>>(I);

impl<'a, I: Iterator<Item = &'a Portion<'a>>> Chunks for Layer<'a, I> {
    fn next_chunk(&mut self) -> repository::Result<Option<Chunk<'_>>> {
        Ok(self.0.next().map(|portion| match portion {
            Portion::Inline(bytes) => Chunk::Inline(bytes),
            Portion::External(content) => {
                Chunk::External(verity_digest(Algorithm::Sha256, content))
            }
        }))
    }
}
