//! The EROFS image formats by number. A format decides an image's bytes, and so its digest.

use std::fmt;

/// An EROFS image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// The first format of the C tools.
    V0,
    /// The format of the C tools and of composefs-rs by default: V0, but directories with whiteouts
    /// are also marked opaque, as newer kernels want it.
    V1,
    /// The format of composefs-rs before 0.8.
    V2,
}

impl Format {
    /// All formats, oldest first.
    pub const ALL: [Self; 3] = [Self::V0, Self::V1, Self::V2];

    /// The number in `meta.json` and on command lines.
    pub const fn number(self) -> u8 {
        match self {
            Self::V0 => 0,
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    /// Whether this is one of the two C formats, which escape whiteouts and hide object directories.
    pub(crate) const fn is_c(self) -> bool {
        matches!(self, Self::V0 | Self::V1)
    }

    /// The format with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::V0),
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.number())
    }
}
