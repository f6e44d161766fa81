//! Images that are not published any more, and whose records stay for the containers made from them.
//!
//! A container refers to its image by ID when it is committed or inspected, and a build at its end. podman
//! therefore does not remove an image of its own while it has containers; neither do we. Such a record has
//! no names, so that no new container finds it, and a flag, which podman carries along unread.

use containers_storage::{ImageId, ImageRecord};

use crate::in_use::{User, Users};

const FLAG: &str = "composefs-store-unpublished";

/// Takes the image from those that are published.
pub(crate) fn hide(record: &mut ImageRecord) {
    record.names.clear();
    record.flags.insert(FLAG.to_owned(), true.into());
}

/// Whether the record is there for containers alone.
pub(crate) fn is_hidden(record: &ImageRecord) -> bool {
    record.flags.contains_key(FLAG)
}

/// Those of the images that are hidden and that no container was made from, by the users of their layers.
pub(crate) fn without_containers(images: &[ImageRecord], users: &Users) -> Vec<ImageId> {
    let needs_image =
        |user: &User| matches!(user, User::Container { .. } | User::Unreadable { .. });
    let is_needed = |record: &ImageRecord| {
        let layer = record.layer.as_ref();
        layer.is_some_and(|layer| users.of(layer).iter().any(needs_image))
    };
    images
        .iter()
        .filter(|record| is_hidden(record) && !is_needed(record))
        .map(|record| record.id.clone())
        .collect()
}
