//! Uniting a layer with what is below it, as overlayfs shows it.

use std::collections::HashMap;

use composefs_image::{InodeId, Kind, Tree};

use super::podman::LayerTree;

/// Puts `layer` on top of `merged`, which then holds no whiteouts and no opaque directories.
///
/// Directories of both are merged and have the layer's metadata; all else of the layer hides what
/// is below. Names that were one inode in the layer are one inode in the result.
pub(super) fn put_on_top(merged: &mut Tree, layer: &LayerTree) {
    let source = &layer.tree;
    let mut linked: HashMap<InodeId, InodeId> = HashMap::new();
    let mut open = vec![(source.root(), merged.root())];
    copy_metadata(merged, layer, source.root(), merged.root());

    while let Some((upper, lower)) = open.pop() {
        for (name, id) in source.children(upper) {
            let target = match source.kind(id) {
                Kind::CharDevice(0) => {
                    merged.unlink(lower, name);
                    continue;
                }
                Kind::Directory => {
                    let below = merged
                        .lookup(lower, name)
                        .filter(|&below| merged.is_directory(below));
                    match below {
                        Some(below) if !layer.opaque.contains(&id) => {
                            copy_metadata(merged, layer, id, below);
                            open.push((id, below));
                            continue;
                        }
                        below => {
                            let mut metadata = source.metadata(id);
                            if let Some(below) = below
                                && layer.implicit.contains(&id)
                            {
                                metadata.mtime = merged.metadata(below).mtime;
                            }
                            let new = merged.add(metadata, Kind::Directory);
                            merged.set_xattrs(new, source.xattrs(id));
                            open.push((id, new));
                            new
                        }
                    }
                }
                kind => {
                    if let Some(&known) = linked.get(&id) {
                        known
                    } else {
                        let new = merged.add(source.metadata(id), kind);
                        merged.set_xattrs(new, source.xattrs(id));
                        let names = source.name_count(id);
                        if names > 1 {
                            // The kernel shows the link count of the layer's file, also where upper
                            // layers hide some of its names.
                            merged.set_nlink(new, Some(names));
                            linked.insert(id, new);
                        }
                        new
                    }
                }
            };
            merged
                .link(lower, name, target)
                .expect("a name of one tree is a name in another");
        }
    }
}

fn copy_metadata(merged: &mut Tree, layer: &LayerTree, from: InodeId, to: InodeId) {
    let mut metadata = layer.tree.metadata(from);
    if layer.implicit.contains(&from) {
        metadata.mtime = merged.metadata(to).mtime;
    }
    merged.set_metadata(to, metadata);
    merged.set_xattrs(to, layer.tree.xattrs(from));
}
