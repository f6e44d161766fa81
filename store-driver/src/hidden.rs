//! Images that are not published any more, and whose records stay for the containers made from them.
//!
//! A container refers to its image by ID when it is committed or inspected, and a build at its end. podman
//! therefore does not remove an image of its own while it has containers; neither do we. Such a record has
//! no names, so that no new container finds it, and a flag, which podman carries along unread.

use containers_storage::ImageRecord;

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
