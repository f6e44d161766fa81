//! The end-to-end tests, by topic. They run in the namespaces of `cargo xtask test`.
#![forbid(unsafe_code)]

mod harness;
