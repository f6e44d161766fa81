//! The escapes of dumpfile fields, and of what the tools list.

use std::borrow::Cow;

/// What is escaped beside backslashes and bytes that do not print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A field of a dumpfile: spaces and `-` alone are escaped, nothing is `-`.
    Field,
    /// Name or value of an xattr in a dumpfile: spaces and `=`.
    Xattr,
    /// A word in a listing: spaces.
    Word,
    /// A line in a listing: nothing more.
    Line,
}

/// Appends `bytes`, escaped.
pub fn escape(line: &mut Vec<u8>, bytes: &[u8], style: Style) {
    if style == Style::Field {
        match bytes {
            b"" => return line.push(b'-'),
            b"-" => return line.extend_from_slice(b"\\x2d"),
            _ => {}
        }
    }
    let plain = |byte: &u8| match byte {
        b'\\' => false,
        b'=' => style != Style::Xattr,
        b' ' => style == Style::Line,
        byte => byte.is_ascii_graphic(),
    };
    if bytes.iter().all(plain) {
        return line.extend_from_slice(bytes);
    }
    for byte in bytes {
        match byte {
            b'\\' => line.extend_from_slice(b"\\\\"),
            b'\n' => line.extend_from_slice(b"\\n"),
            b'\r' => line.extend_from_slice(b"\\r"),
            b'\t' => line.extend_from_slice(b"\\t"),
            byte if plain(byte) => line.push(*byte),
            byte => line.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
}

/// The bytes that an escaped text stands for; `None` for a wrong escape.
pub(super) fn unescape(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = text.iter().position(|&byte| byte == b'\\') else {
        return Some(Cow::Borrowed(text));
    };
    let (plain, mut rest) = text.split_at(first);
    let mut bytes = plain.to_vec();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&kind, after) = rest.split_first()?;
        rest = after;
        bytes.push(match kind {
            b'\\' => b'\\',
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let value = |digit: u8| char::from(digit).to_digit(16);
                (value(digits[0])? << 4 | value(digits[1])?) as u8
            }
            _ => return None,
        });
    }
    Some(Cow::Owned(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(bytes: &[u8], style: Style) -> String {
        let mut line = Vec::new();
        escape(&mut line, bytes, style);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn every_byte_comes_back_from_its_escape() {
        let all: Vec<u8> = (0..=255).collect();
        for style in [Style::Field, Style::Xattr, Style::Word, Style::Line] {
            let text = escaped(&all, style);
            let space = style == Style::Line;
            assert!(
                text.bytes()
                    .all(|byte| byte.is_ascii_graphic() || space && byte == b' ')
            );
            assert_eq!(unescape(text.as_bytes()).as_deref(), Some(&*all));
        }
    }

    #[test]
    fn absent_fields_and_equal_signs_are_told_apart() {
        assert_eq!(escaped(b"", Style::Field), "-");
        assert_eq!(escaped(b"-", Style::Field), "\\x2d");
        assert_eq!(escaped(b"--=", Style::Field), "--=");
        assert_eq!(escaped(b"", Style::Xattr), "");
        assert_eq!(escaped(b"-", Style::Xattr), "-");
        assert_eq!(escaped(b"=", Style::Xattr), "\\x3d");
        assert_eq!(escaped(b"a b\n\x7f", Style::Field), "a\\x20b\\n\\x7f");
    }

    #[test]
    fn listings_keep_dashes_and_lines_of_them_spaces() {
        assert_eq!(escaped(b"", Style::Word), "");
        assert_eq!(escaped(b"-", Style::Word), "-");
        assert_eq!(escaped(b"a =\t", Style::Word), "a\\x20=\\t");
        assert_eq!(escaped(b"a =\t", Style::Line), "a =\\t");
    }

    #[test]
    fn wrong_escapes_are_refused() {
        for text in ["\\", "\\x", "\\x1", "\\xg0", "\\a", "\\X41"] {
            assert_eq!(unescape(text.as_bytes()), None, "{text}");
        }
    }
}
