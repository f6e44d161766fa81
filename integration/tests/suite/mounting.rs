//! Mounting in every way that some kernel needs: from a file or a loop device, and layers handed over as
//! older kernels take them. Each must show the same image.

use anyhow::Result;
use composefs_image::{
    Algorithm, Content, Dialect, Format, Kind, Metadata, Timestamp, Tree, WriteOptions,
    verity_digest, write_image,
};
use integration::Peers;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use store_driver::mount::{Backing, Busy, Composefs, LayerForm, MountError, unmount};

const FORMS: [LayerForm; 4] = [
    LayerForm::Descriptors,
    LayerForm::Appended,
    LayerForm::DataOnlyString,
    LayerForm::PlainString,
];

/// An image with a file behind an object, the objects, and a place to mount it.
struct Scene {
    image: File,
    objects: File,
    target: PathBuf,
}

impl Scene {
    fn new(dir: &Path, format: Format) -> Result<Self> {
        let content = b"behind an object\n".repeat(100);
        let digest = verity_digest(Algorithm::Sha256, &content);
        let object = dir.join("objects").join(digest.object_path());
        fs::create_dir_all(object.parent().unwrap_or(dir))?;
        fs::write(&object, &content)?;

        let metadata = |mode| Metadata {
            mode,
            uid: 0,
            gid: 0,
            mtime: Timestamp {
                sec: 1_700_000_000,
                nsec: 0,
            },
        };
        let mut tree = Tree::new(metadata(0o755));
        let file = tree.add(
            metadata(0o644),
            Kind::Regular(Content::External {
                size: content.len() as u64,
                digest: Some(digest),
                path: None,
            }),
        );
        tree.link(tree.root(), b"file", file)?;
        let mut bytes = Vec::new();
        let dialect = Dialect::ComposefsRs;
        write_image(&tree, &WriteOptions { format, dialect }, &mut bytes)?;
        let path = dir.join("image");
        fs::write(&path, bytes)?;
        let target = dir.join("mounted");
        fs::create_dir_all(&target)?;
        Ok(Self {
            image: File::open(path)?,
            objects: File::open(dir.join("objects"))?,
            target,
        })
    }

    fn mount(&self, form: LayerForm, backing: Backing) -> Result<(), MountError> {
        Composefs::new(self.image.as_fd(), "composefs:test")
            .data(self.objects.as_fd())
            .backing(backing)
            .newest_form(form)
            .mount()?
            .attach(&self.target)
    }
}

#[test]
fn every_way_to_mount_shows_the_same_image() -> Result<()> {
    let dir = Peers::from_env()?.scratch_dir("mounting")?;
    let scene = Scene::new(&dir, Format::V1)?;
    for backing in [Backing::Auto, Backing::File, Backing::LoopDevice] {
        for form in FORMS {
            scene.mount(form, backing)?;
            let names: Vec<_> = fs::read_dir(&scene.target)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<_, _>>()?;
            let content = fs::read(scene.target.join("file"))?;
            // Detached: a process that another test is starting may hold what was open just now.
            unmount(&scene.target, Busy::Detach)?;
            assert_eq!(names, ["file"], "{form:?} {backing:?}");
            assert_eq!(content, b"behind an object\n".repeat(100));
        }
    }
    Ok(())
}

#[test]
fn image_without_stubs_is_not_mounted_without_data_only_layers() -> Result<()> {
    let dir = Peers::from_env()?.scratch_dir("mounting-v2")?;
    let scene = Scene::new(&dir, Format::V2)?;
    scene.mount(LayerForm::DataOnlyString, Backing::Auto)?;
    unmount(&scene.target, Busy::Detach)?;
    let refused = scene.mount(LayerForm::PlainString, Backing::Auto);
    assert!(matches!(refused, Err(MountError::NoStubs { .. })));
    Ok(())
}
