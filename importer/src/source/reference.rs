//! What a user calls an image: a transport and what it takes, in the words of podman and skopeo.

use std::path::PathBuf;

use containers_storage::Storage;
use thiserror::Error;

use super::docker_archive::{self, ArchiveImage};
use super::layout::{self, LayoutImage};
use super::{
    SourceError, SourceImage, SourceOptions, from_directory, from_docker_archive, from_oci_archive,
    from_oci_layout, from_storage,
};

/// Where an image is, as a user says it: `TRANSPORT:…`, or a name, ID or digest in podman's storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `containers-storage:NAME`, or `NAME` alone.
    Storage(String),
    /// `oci:DIR[:NAME|@DIGEST]`
    OciLayout(PathBuf, LayoutImage),
    /// `oci-archive:FILE[:NAME|@DIGEST]`
    OciArchive(PathBuf, LayoutImage),
    /// `docker-archive:FILE[:NAME|:@POSITION]`
    DockerArchive(PathBuf, ArchiveImage),
    /// `dir:DIR`
    Directory(PathBuf),
}

/// Text that is no reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not of the form {form}")]
pub struct InvalidReference {
    text: String,
    form: &'static str,
}

impl Reference {
    /// Takes apart what a user wrote. An image of podman's storage whose name looks like a transport
    /// needs `containers-storage:` in front.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |form| InvalidReference {
            text: text.into(),
            form,
        };
        let Some((transport, rest)) = text.split_once(':') else {
            return Ok(Self::Storage(text.into()));
        };
        match transport {
            "containers-storage" => Ok(Self::Storage(rest.into())),
            "oci" => layout::parse(rest)
                .map(|(path, image)| Self::OciLayout(path, image))
                .ok_or_else(|| invalid("oci:DIR[:NAME|@DIGEST]")),
            "oci-archive" => layout::parse(rest)
                .map(|(path, image)| Self::OciArchive(path, image))
                .ok_or_else(|| invalid("oci-archive:FILE[:NAME|@DIGEST]")),
            "docker-archive" => docker_archive::parse(rest)
                .map(|(path, image)| Self::DockerArchive(path, image))
                .ok_or_else(|| invalid("docker-archive:FILE[:NAME|:@POSITION]")),
            "dir" if rest.is_empty() => Err(invalid("dir:DIR")),
            "dir" => Ok(Self::Directory(rest.into())),
            _ => Ok(Self::Storage(text.into())),
        }
    }

    /// Finds the image. `storage` is opened only if the reference is to podman's storage.
    pub fn open<E: From<SourceError>>(
        &self,
        storage: impl FnOnce() -> Result<Storage, E>,
        options: &SourceOptions,
    ) -> Result<SourceImage<'static>, E> {
        Ok(match self {
            Self::Storage(name) => {
                let image = storage()?.find_image(name).map_err(SourceError::from)?;
                from_storage(&image)?
            }
            Self::OciLayout(path, image) => from_oci_layout(path, image, options)?,
            Self::OciArchive(path, image) => from_oci_archive(path, image, options)?,
            Self::DockerArchive(path, image) => from_docker_archive(path, image, options)?,
            Self::Directory(path) => from_directory(path, options)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_reference_without_a_transport_is_one_to_storage() {
        for text in ["app", "localhost/app:1", "host:5000/app", DIGEST] {
            assert_eq!(Reference::parse(text), Ok(Reference::Storage(text.into())));
        }
        let reference = Reference::parse("containers-storage:oci:latest");
        assert_eq!(reference, Ok(Reference::Storage("oci:latest".into())));
    }

    #[test]
    fn an_image_of_a_layout_is_meant_by_name_digest_or_position() {
        let oci = |text: &str| Reference::parse(&format!("oci:{text}")).unwrap();
        let expect = |image| Reference::OciLayout("d/e".into(), image);
        assert_eq!(oci("d/e"), expect(LayoutImage::Only));
        assert_eq!(oci("d/e:"), expect(LayoutImage::Only));
        let name = LayoutImage::Name("localhost/a:1".into());
        assert_eq!(oci("d/e:localhost/a:1"), expect(name));
        assert_eq!(oci("d/e:@2"), expect(LayoutImage::Position(2)));
        let digest = LayoutImage::Digest(DIGEST.parse().unwrap());
        assert_eq!(oci(&format!("d/e@{DIGEST}")), expect(digest.clone()));
        assert_eq!(oci(&format!("d/e:@{DIGEST}")), expect(digest));
    }

    #[test]
    fn references_that_lack_something_are_refused_with_their_form() {
        for text in ["oci:", "oci::name", "oci:d:@x", "docker-archive:", "dir:"] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains("is not of the form"), "{error}");
        }
    }
}
