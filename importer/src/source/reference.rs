//! What a user calls an image: a transport and what it takes, in the words of podman and skopeo.

use std::fmt;
use std::path::PathBuf;

use containers_storage::Storage;
use repository::oci::ManifestDigest;
use thiserror::Error;

use super::archive::{Archive, Duplicates};
use super::artifact::{SourceArtifact, referrers_in_layout};
use super::docker_archive::{self, ArchiveImage};
use super::files::Files;
use super::layout::{self, LayoutImage};
use super::skopeo::{self, artifact_from_skopeo, from_skopeo, referrers_from_skopeo};
use super::{
    SourceError, SourceImage, SourceOptions, SyntheticLayers, from_directory, from_docker_archive,
    from_oci_archive, from_oci_layout, from_storage, synthetic_from_storage,
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
    /// `docker://NAME`, and the other transports that are skopeo's, as they are.
    Skopeo(String),
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
            "docker" if rest.trim_start_matches('/').is_empty() || !rest.starts_with("//") => {
                Err(invalid("docker://NAME[:TAG|@DIGEST]"))
            }
            _ if skopeo::TRANSPORTS.contains(&transport) => Ok(Self::Skopeo(text.into())),
            _ => Ok(Self::Storage(text.into())),
        }
    }

    /// Finds the image. `storage` is opened only if the reference is to podman's storage.
    pub fn open<E: From<SourceError>>(
        &self,
        storage: impl FnOnce() -> Result<Storage, E>,
        options: &SourceOptions,
    ) -> Result<SourceImage<'static>, E> {
        let found = self.find(storage, options);
        options
            .cancel
            .explain(found, || SourceError::Cancelled.into())
    }

    fn find<E: From<SourceError>>(
        &self,
        storage: impl FnOnce() -> Result<Storage, E>,
        options: &SourceOptions,
    ) -> Result<SourceImage<'static>, E> {
        Ok(match self {
            Self::Storage(name) => {
                let image = storage()?.find_image(name).map_err(SourceError::from)?;
                match options.synthetic {
                    SyntheticLayers::Refuse => from_storage(&image)?,
                    SyntheticLayers::Allow => synthetic_from_storage(&image)?,
                }
            }
            Self::OciLayout(path, image) => from_oci_layout(path, image, options)?,
            Self::OciArchive(path, image) => from_oci_archive(path, image, options)?,
            Self::DockerArchive(path, image) => from_docker_archive(path, image, options)?,
            Self::Directory(path) => from_directory(path, options)?,
            Self::Skopeo(reference) => from_skopeo(reference, options)?,
        })
    }
}

impl Reference {
    /// Finds what is no image there ([`SourceError::is_artifact`]).
    pub fn open_artifact(
        &self,
        options: &SourceOptions,
    ) -> Result<SourceArtifact<'static>, SourceError> {
        let name = self.to_string();
        match self {
            Self::OciLayout(path, image) => {
                layout::artifact(Files::directory(path)?, &name, image, options)
            }
            Self::OciArchive(path, image) => {
                let archive = Archive::open(path, Duplicates::Last, options)?;
                layout::artifact(Files::Archive(archive), &name, image, options)
            }
            Self::Skopeo(reference) => artifact_from_skopeo(reference, options),
            _ => Err(SourceError::NoArtifacts { image: name }),
        }
    }

    /// The artifacts there that refer to the image with the manifest `subject`.
    pub fn referrers(
        &self,
        subject: &ManifestDigest,
        options: &SourceOptions,
    ) -> Result<Vec<SourceArtifact<'static>>, SourceError> {
        let name = self.to_string();
        match self {
            Self::OciLayout(path, _) => {
                let name = format!("oci:{}", path.display());
                referrers_in_layout(Files::directory(path)?, &name, subject, options)
            }
            Self::OciArchive(path, _) => {
                let name = format!("oci-archive:{}", path.display());
                let archive = Archive::open(path, Duplicates::Last, options)?;
                referrers_in_layout(Files::Archive(archive), &name, subject, options)
            }
            Self::Skopeo(reference) if reference.starts_with("docker://") => {
                referrers_from_skopeo(reference, subject, options)
            }
            _ => Err(SourceError::NoArtifacts { image: name }),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Storage(name) => write!(f, "containers-storage:{name}"),
            Self::OciLayout(path, image) => {
                write!(f, "oci:{}{}", path.display(), layout::suffix(image))
            }
            Self::OciArchive(path, image) => {
                write!(f, "oci-archive:{}{}", path.display(), layout::suffix(image))
            }
            Self::DockerArchive(path, _) => write!(f, "docker-archive:{}", path.display()),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::Skopeo(reference) => f.write_str(reference),
        }
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
