//! Names by which a layer takes something away: `.wh.NAME` and `.wh..wh..opq`.

/// What a whiteout takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whiteout<'a> {
    /// Everything that lower layers have in the directory.
    Opaque,
    /// This name; can be empty or `.` in hostile layers.
    Name(&'a [u8]),
}

pub(super) fn parse(name: &[u8]) -> Option<Whiteout<'_>> {
    match name.strip_prefix(b".wh.")? {
        b".wh..opq" => Some(Whiteout::Opaque),
        name => Some(Whiteout::Name(name)),
    }
}
