//! The `composefs-store` command.
#![forbid(unsafe_code)]

fn main() {}
