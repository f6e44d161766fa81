//! From OCI layers to file trees.
//!
//! A layer is stored as a splitstream: a tar whose larger payloads are objects. [`TarSplitter`]
//! finds the places to cut when a tar comes in, [`EntryReader`] reads the entries back, and
//! [`Merge`] makes a tree of the entries of several layers by one of the rule sets of [`Rules`].
//! Nothing here writes to a repository, extracts a file, or keeps more of a layer in memory than
//! its tree. Follows the composefs repository format, "layer tar to splitstream" and "from OCI
//! layers to the file tree".

mod acl;
mod boot;
mod entry;
mod error;
mod header;
mod merge;
mod path;
mod pax;
mod podman;
mod rootfs;
mod selinux;
mod splitter;
mod stored;
#[cfg(test)]
mod tests;
mod union;
mod whiteout;

use composefs_image::{Content, Kind};

pub use boot::{BootError, BootProblem, ContextProblem, make_bootable};
pub use entry::{Body, Chunk, Chunks, Entry, EntryReader, Item};
pub use error::{EntryError, EntryProblem, LayerError, MergeError, TarError, TarErrorKind};
pub use header::{BLOCK, MemberKind};
pub use merge::{Merge, Rules, XattrFilter};
pub use path::components;
pub use splitter::{INLINE_LIMIT, METADATA_LIMIT, Member, Placement, Step, TarSplitter};
pub use stored::{LayerStream, entries, for_each_prefix, merged_tree};

/// Longest symlink target that Linux makes.
const SYMLINK_MAX: usize = 4095;

/// What a tree holds for an item that is no hard link.
fn kind_of(item: &Item) -> Result<Kind<'_>, EntryProblem> {
    Ok(match item {
        Item::Directory => Kind::Directory,
        Item::Regular(Body::Inline(content)) => Kind::Regular(Content::Inline(content)),
        Item::Regular(Body::External { size, digest }) => Kind::Regular(Content::External {
            size: *size,
            digest: Some(*digest),
            path: None,
        }),
        Item::Symlink(target) => match target.len() {
            0 => return Err(EntryProblem::EmptySymlink),
            len @ SYMLINK_MAX.. if len > SYMLINK_MAX => return Err(EntryProblem::LongSymlink(len)),
            _ => Kind::Symlink(target),
        },
        Item::CharDevice(number) => Kind::CharDevice(*number),
        Item::BlockDevice(number) => Kind::BlockDevice(*number),
        Item::Fifo => Kind::Fifo,
        Item::HardLink(target) => return Err(EntryProblem::NoHardLinkTarget(target.clone())),
    })
}
