//! The composefs format: file trees, fs-verity digests, EROFS images, dumpfiles.
#![forbid(unsafe_code)]
