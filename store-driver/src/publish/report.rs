//! What [`super::publish`] tells its caller.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use containers_storage::{ImageId, LayerId, StorageConf};
use serde::Serialize;

use crate::{
    Layout,
    in_use::own_images,
    names::{names_hidden_by, tag_command},
    podman_conf::{names_store, stores_line},
    view::ViewState,
};

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerOutcome {
    /// It was published by this call.
    New,
    /// It was there.
    Present,
}

/// A layer of a published image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishedLayer {
    /// The chain ID, which is podman's layer ID.
    pub id: LayerId,
    /// Whether it was there.
    pub outcome: LayerOutcome,
}

/// Something the user should know, although publishing succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Note {
    /// podman is not configured with the store.
    NotConfigured {
        /// The configuration that podman uses.
        conf: String,
        /// The line to add.
        line: String,
    },
    /// podman has the image itself, and finds it under the names there only.
    HiddenNames {
        /// The image.
        image: ImageId,
        /// The names that podman does not find.
        names: Vec<String>,
    },
    /// A tag that is no image reference gives the image no name.
    UnusableTag {
        /// The tag.
        tag: String,
    },
    /// In the layout `blob`, a container's `/` has the mode and owner of the objects' directory.
    RootMetadata {
        /// The mode that the image gives to `/`.
        mode: u16,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// The mode that containers show.
        shown: u32,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConfigured { conf, line } => write!(
                f,
                "podman does not see the image yet: {conf} does not name the store; add the line\n    {line}\n\
                 below [storage.options] there"
            ),
            Self::HiddenNames { image, names } => write!(
                f,
                "podman has a copy of the image itself, and podman 5 does not find ours as {} then; `podman rmi` of its \
                 copy has it use ours, and\n    {}\ngives its copy the name",
                names.join(", "),
                tag_command(image, names)
            ),
            Self::UnusableTag { tag } => write!(
                f,
                "the tag {tag:?} is no image reference, so podman does not list the image under it"
            ),
            Self::RootMetadata {
                mode,
                uid,
                gid,
                shown,
            } => write!(
                f,
                "`/` has mode {mode:04o} and owner {uid}:{gid} in the image, and {shown:04o} and 0:0 in \
                 containers of the layout `blob`"
            ),
        }
    }
}

/// What [`super::publish`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishReport {
    /// The image's ID, the same as everywhere.
    pub image: ImageId,
    /// The layout of its layers.
    pub layout: Layout,
    /// Whether this call was asked to have all that containers read verified.
    pub verified: bool,
    /// The names under which podman lists it.
    pub names: Vec<String>,
    /// Its layers, from the base up.
    pub layers: Vec<PublishedLayer>,
    /// The path for podman's `additionalimagestores`.
    pub view: PathBuf,
    /// Whether the view had to be mounted.
    pub view_state: ViewState,
    /// What the user should know.
    pub notes: Vec<Note>,
}

/// The note that podman's configuration does not name the view, with the line that does.
pub(super) fn configuration_note(conf: &StorageConf, view: &Path) -> Option<Note> {
    if names_store(conf, view) {
        return None;
    }
    Some(Note::NotConfigured {
        conf: conf.source.to_string(),
        line: stores_line(conf, view),
    })
}

/// The note that podman has the image itself, under other names.
pub(super) fn hidden_names_note(
    conf: &StorageConf,
    image: &ImageId,
    names: &[String],
) -> Option<Note> {
    let hidden = names_hidden_by(&own_images(conf), image, names);
    (!hidden.is_empty()).then(|| Note::HiddenNames {
        image: image.clone(),
        names: hidden.into_iter().map(str::to_owned).collect(),
    })
}
