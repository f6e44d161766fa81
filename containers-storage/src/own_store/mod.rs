//! Writing a store of our own: the additional image store that podman reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The name of the file that holds the big data item `key`: the key itself if it has only the
/// characters `0-9a-z.`, else `=` and the base64 of the key.
pub fn big_data_file_name(key: &str) -> String {
    let plain = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'.');
    if !key.is_empty() && key.bytes().all(plain) && key != "." && key != ".." {
        key.to_owned()
    } else {
        format!("={}", STANDARD.encode(key))
    }
}
