use super::*;
use crate::dumpfile::read_dump;
use crate::fsverity::{Algorithm, verity_digest};

const BIG_256: &str = "21a8507def1d5fad6393e6d722a0421d9f9f674461beb4ac74983bef9535b5d4";
const BIG_512: &str = "ba27dfe8c576feaac1c95ceb6efed5523e28e6d0a9fd115f0bd7cd605da75b04\
                       f7715889a53b4f17bfaa998f08a668c654d5c578fe7e1d595c018e2802f8d234";

/// The published test tree: every type, a hard link, shared and unshared xattrs, a whiteout.
fn vector_dump(digest: &str) -> String {
    let (first, rest) = digest.split_at(2);
    format!(
        "/ 0 40755 3 0 0 0 1700000000.0 - - -\n\
         /dir 0 40750 2 1000 1000 0 1700000001.500000000 - - - user.test=1\n\
         /dir/big 5000 100644 2 0 0 0 1600000000.0 {first}/{rest} - {digest}\n\
         /dir/hard 0 @100644 2 0 0 0 0.0 /dir/big - -\n\
         /dir/link 3 120777 1 0 0 0 1700000000.0 big - -\n\
         /empty 0 100600 1 0 0 0 1700000000.0 - - -\n\
         /null 0 20666 1 0 0 259 1700000000.0 - - -\n\
         /small 3 100644 1 0 0 0 1700000000.0 - hi\\n - user.only=a\\x20b user.test=1\n\
         /wh 0 20000 1 0 0 0 1700000000.0 - - -\n"
    )
}

pub(super) fn image(dump: &str, format: Format, dialect: Dialect) -> Vec<u8> {
    let tree = read_dump(dump.as_bytes(), dialect).unwrap();
    let mut image = Vec::new();
    write_image(&tree, &WriteOptions { format, dialect }, &mut image).unwrap();
    image
}

#[test]
fn images_equal_the_published_vectors() {
    let vectors = [
        (
            Format::V0,
            Algorithm::Sha256,
            "719057dce089874c343117fb95da153e5c912978a155794a503356eb8f48ec5f",
        ),
        (
            Format::V1,
            Algorithm::Sha256,
            "5fe85633670f26964b87271a76a7d6df1c322aacd70d966f44b868c3b4874352",
        ),
        (
            Format::V2,
            Algorithm::Sha256,
            "27f17c6ca2cda50409696236e741b2956d8f9f841bf7252bfa89848c64d738e4",
        ),
        (
            Format::V1,
            Algorithm::Sha512,
            "30e338d74394f3b1d1e20f91826ff41698341abac8b4f141b21bea4eae5c84fd\
             22551375523dffd8a12d1e4260284ce5ea3208d8bcd94caacced56764a867f10",
        ),
        (
            Format::V2,
            Algorithm::Sha512,
            "972b58b8a538726587b37ffaa8a75d57aaa350c2cf4f81be4b374a65e458dba7\
             8ce1e383993e3e0374a96151034e4b59795c016f46cd07129c7eff177662d714",
        ),
    ];
    for (format, algorithm, expected) in vectors {
        let dump = vector_dump(match algorithm {
            Algorithm::Sha256 => BIG_256,
            Algorithm::Sha512 => BIG_512,
        });
        for dialect in [Dialect::C, Dialect::ComposefsRs] {
            let image = image(&dump, format, dialect);
            assert_eq!(image.len(), if format == Format::V2 { 4096 } else { 24576 });
            let digest = verity_digest(algorithm, &image).to_hex();
            assert_eq!(digest, expected, "{format} {algorithm} {dialect:?}");
        }
    }
}
