//! Who needs what in a composefs repository: roots, the plan, the sweep, fsck.
#![forbid(unsafe_code)]
