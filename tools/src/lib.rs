//! What the C tools of composefs do, as a library: a tree from a directory ([`scan`]), the flat digest
//! store ([`store`]), an image from either or from a dumpfile ([`mkcomposefs`]), mounting by options
//! ([`mount`]), questions to images ([`info`]).
//!
//! Follows the C tools 1.0.8: the same bytes come out. Knows no repository and no command line.
#![forbid(unsafe_code)]

pub mod info;
pub mod mkcomposefs;
pub mod mount;
pub mod output;
pub mod scan;
pub mod store;
