//! Origin files: `state/deploy/<id>/<id>.origin`.
//!
//! INI text as bootc writes it: sections in brackets, keys with or without blanks around `=`, comments
//! after `;` or `#`. Of everything in it only the manifest digest matters here.

use repository::oci::ManifestDigest;

/// What an origin file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The manifest of the image that was deployed.
    Manifest(ManifestDigest),
    /// No manifest: it is from before bootc wrote these.
    Legacy,
}

/// Why an origin file can't be taken at its word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OriginError {
    #[error("it is not text")]
    NotText,
    #[error("line {0} is neither a section nor a key with a value")]
    Line(usize),
    #[error("it does not say which image was deployed")]
    NoOrigin,
    #[error("{0:?} is not the digest of a manifest")]
    Digest(String),
    #[error("it names two manifests, {0} and {1}")]
    Two(ManifestDigest, ManifestDigest),
}

/// Reads an origin file.
pub(crate) fn parse(text: &[u8]) -> Result<Origin, OriginError> {
    let text = str::from_utf8(text).map_err(|_| OriginError::NotText)?;
    let mut section = "";
    let mut reference = false;
    let mut image = false;
    let mut manifest = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            section = rest
                .strip_suffix(']')
                .ok_or(OriginError::Line(number + 1))?
                .trim();
            image |= section == "image";
            continue;
        }
        let (key, value) = line.split_once('=').ok_or(OriginError::Line(number + 1))?;
        // bootc's parser ends a value at a comment.
        let value = value
            .split_once(';')
            .map_or(value, |(value, _)| value)
            .trim();
        match (section, key.trim()) {
            ("origin", "container-image-reference") => reference = true,
            ("image", "manifest_digest") => {
                let digest = value
                    .parse::<ManifestDigest>()
                    .map_err(|_| OriginError::Digest(value.to_owned()))?;
                if let Some(other) = manifest.replace(digest)
                    && other != digest
                {
                    return Err(OriginError::Two(other, digest));
                }
            }
            _ => {}
        }
    }
    match manifest {
        Some(manifest) => Ok(Origin::Manifest(manifest)),
        None if reference && !image => Ok(Origin::Legacy),
        None => Err(OriginError::NoOrigin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_manifest_of_an_origin_file_is_found_with_and_without_blanks() {
        for assignment in [
            format!("manifest_digest = {DIGEST}"),
            format!("manifest_digest={DIGEST}"),
            format!("  manifest_digest\t=  {DIGEST} ; a comment"),
        ] {
            let text = format!(
                "; comment\n[origin]\ncontainer-image-reference = ostree-unverified-image:docker://x\n\n\
                 [boot]\nboot_type = bls\ndigest = 00\n\n[image]\r\n{assignment}\r\nunknown = 1\n"
            );
            assert_eq!(
                parse(text.as_bytes()),
                Ok(Origin::Manifest(DIGEST.parse().unwrap()))
            );
        }
    }

    #[test]
    fn an_old_origin_has_no_manifest_and_that_is_no_error() {
        let text = b"[origin]\ncontainer-image-reference=x\n[boot]\nmanifest_digest = elsewhere\n";
        assert_eq!(parse(text), Ok(Origin::Legacy));
    }

    #[test]
    fn an_origin_that_is_cut_off_is_an_error_or_an_old_one() {
        let text = format!(
            "[origin]\ncontainer-image-reference = x\n\n[image]\nmanifest_digest = {DIGEST}\n"
        );
        let before = text.find("[image]").unwrap();
        for end in 0..text.len() - 1 {
            match parse(&text.as_bytes()[..end]) {
                Ok(Origin::Manifest(_)) => panic!("{end}"),
                Ok(Origin::Legacy) => assert!(end <= before),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let two = format!(
            "[image]\nmanifest_digest={DIGEST}\nmanifest_digest={}\n",
            DIGEST.replace('e', "a")
        );
        for text in [
            &b""[..],
            b"\xff",
            b"[origin",
            b"word\n",
            b"[image]\nmanifest_digest=sha512:00\n",
            two.as_bytes(),
        ] {
            assert!(parse(text).is_err(), "{}", text.escape_ascii());
        }
    }
}
