//! What setting a POSIX ACL does to a file's mode.
//!
//! Format of `system.posix_acl_*`: a version, then entries of tag, permissions and ID, all little
//! endian (Linux `posix_acl_xattr.h`).

/// The effect of an access ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acl {
    /// It says no more than these permission bits, and is not kept.
    Mode(u16),
    /// It is kept, and the permission bits become these.
    Extended(u16),
}

const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// `None` for what the kernel refuses or takes as no ACL.
pub(super) fn parse(value: &[u8]) -> Option<Acl> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || entries.is_empty() || entries.len() % 8 != 0 {
        return None;
    }
    let (mut mode, mut group, mut mask) = (0, 0, None);
    let mut extended = false;
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let permissions = u16::from_le_bytes([entry[2], entry[3]]) & 7;
        match tag {
            USER_OBJ => mode |= permissions << 6,
            GROUP_OBJ => group = permissions,
            OTHER => mode |= permissions,
            MASK => mask = Some(permissions),
            _ => {}
        }
        extended |= !matches!(tag, USER_OBJ | GROUP_OBJ | OTHER);
    }
    mode |= mask.unwrap_or(group) << 3;
    Some(if extended {
        Acl::Extended(mode)
    } else {
        Acl::Mode(mode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend([0xff; 4]);
        }
        value
    }

    #[test]
    fn the_mask_of_an_acl_becomes_the_group_bits() {
        let minimal = acl(&[(USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 0)]);
        assert_eq!(parse(&minimal), Some(Acl::Mode(0o640)));
        let extended = acl(&[(USER_OBJ, 7), (2, 7), (GROUP_OBJ, 4), (MASK, 5), (OTHER, 1)]);
        assert_eq!(parse(&extended), Some(Acl::Extended(0o751)));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(&[2, 0, 0, 0]), None);
        assert_eq!(parse(&minimal[..minimal.len() - 1]), None);
    }
}
