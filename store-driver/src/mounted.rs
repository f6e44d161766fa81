//! What is mounted of a repository, in every mount namespace that can be seen.
//!
//! A running container needs the objects of its image however its records look: they are opened when a
//! file is. Mounts tell by their source and options what they are made of: the digest of an image
//! (`composefs:<digest>`, as ours and those of composefs-rs say), the path of an object, a backing file of
//! a loop device, the directory or short name of a published layer. Any mention counts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use containers_storage::{LayerId, LinkId};
use repository::{Repository, VerityDigest};

use crate::{
    error::{Error, Result},
    mount::{MountEntry, MountTable},
    paths::StorePaths,
};

const PROC: &str = "/proc";

/// A mount that needs something of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountUse {
    /// Where it is mounted, in its namespace.
    pub target: PathBuf,
    /// A process of the namespace.
    pub pid: u32,
    /// The images that it shows; they exist in the repository.
    pub images: BTreeSet<VerityDigest>,
    /// The published layers that it shows.
    pub(crate) layers: BTreeSet<LayerId>,
}

/// The mount tables of all namespaces that can be seen.
#[derive(Debug, Default)]
pub(crate) struct AllMounts(Vec<(u32, MountTable)>);

impl AllMounts {
    /// Reads the table of one process of each namespace. A process that ends meanwhile, or may not be looked
    /// at, is left out; another one of its namespace counts.
    pub(crate) fn read() -> Result<Self> {
        let mut seen = BTreeSet::new();
        let mut tables = Vec::new();
        for entry in fs::read_dir(PROC).map_err(Error::io("list", PROC))? {
            let entry = entry.map_err(Error::io("list", PROC))?;
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt")) else {
                continue;
            };
            if seen.contains(&namespace) {
                continue;
            }
            if let Ok(text) = fs::read(entry.path().join("mountinfo")) {
                tables.push((pid, MountTable::parse(&text)));
                seen.insert(namespace);
            }
        }
        Ok(Self(tables))
    }

    /// Who needs the images of this repository, or the layers of its store.
    pub(crate) fn uses(
        &self,
        repository: &Repository,
        layers: &[(LayerId, Option<LinkId>)],
    ) -> Vec<MountUse> {
        let run = StorePaths::all_runs();
        let mut names: HashMap<&str, &LayerId> = HashMap::new();
        for (layer, link) in layers {
            names.insert(layer.as_str(), layer);
            if let Some(link) = link {
                names.insert(link.as_str(), layer);
            }
        }
        // The same mount is in many namespaces.
        let mut uses: BTreeMap<(PathBuf, BTreeSet<VerityDigest>, BTreeSet<LayerId>), u32> =
            BTreeMap::new();
        for (pid, table) in &self.0 {
            for mount in table.all() {
                // What we mount for podman is there for as long as its layer is; with another repository of
                // the host it has the objects of that one.
                if !is_interesting(mount) || mount.target.starts_with(run) {
                    continue;
                }
                let mut images = BTreeSet::new();
                let mut found = BTreeSet::new();
                for text in mentions(mount) {
                    let mut before = "";
                    for word in words(&text) {
                        if let Some(layer) = names.get(word) {
                            found.insert((*layer).clone());
                        }
                        let whole = VerityDigest::from_hex(word);
                        let parted = || VerityDigest::from_hex(&format!("{before}{word}"));
                        if let Ok(digest) = whole.or_else(|_| parted())
                            && digest.algorithm() == repository.algorithm()
                            && matches!(repository.object_size(&digest), Ok(Some(_)))
                        {
                            images.insert(digest);
                        }
                        before = word;
                    }
                }
                if !images.is_empty() || !found.is_empty() {
                    uses.entry((mount.target.clone(), images, found))
                        .or_insert(*pid);
                }
            }
        }
        uses.into_iter()
            .map(|((target, images, layers), pid)| MountUse {
                target,
                pid,
                images,
                layers,
            })
            .collect()
    }
}

fn is_interesting(mount: &MountEntry) -> bool {
    matches!(mount.filesystem.as_str(), "overlay" | "erofs")
}

/// The texts of a mount that may mention something: its source and options, and the file behind a loop
/// device.
fn mentions(mount: &MountEntry) -> Vec<String> {
    let source = String::from_utf8_lossy(&mount.source).into_owned();
    let mut texts = vec![String::from_utf8_lossy(&mount.super_options).into_owned()];
    if let Some(device) = source.strip_prefix("/dev/") {
        let path = Path::new("/sys/block")
            .join(device)
            .join("loop/backing_file");
        match fs::read_to_string(&path) {
            Ok(text) => texts.push(text.trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!("cannot read {}: {error}", path.display()),
        }
    }
    texts.push(source);
    texts
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::{Algorithm, InitOptions, Security};

    #[test]
    fn mounts_that_mention_an_image_or_a_layer_use_it() {
        let directory = tempfile::tempdir().unwrap();
        let options = InitOptions {
            algorithm: Algorithm::Sha256,
            security: Security::Insecure,
            ..InitOptions::default()
        };
        Repository::init(directory.path(), &options).unwrap();
        let repository = Repository::open(directory.path()).unwrap();
        let batch = repository.batch().unwrap();
        let (image, _) = batch.store_bytes(b"an image").unwrap();
        batch.commit().unwrap();
        let layer: LayerId = "a".repeat(64).parse().unwrap();
        let link: LinkId = "ABCDEFGHIJKLMNOPQRSTUVWXYZ".parse().unwrap();
        let run = StorePaths::of(&repository).run();
        let (image_path, run) = (image.object_path(), run.display());
        let table = format!(
            "1 0 0:1 / /plain ro - overlay composefs:{image} ro\n\
             2 0 0:1 / /root ro - overlay transient:composefs={image} ro\n\
             3 0 0:1 / /file ro - erofs /repo/objects/{image_path} ro\n\
             4 0 0:1 / /container rw - overlay overlay rw,lowerdir=/s/overlay/l/{link}:/x,upperdir=/u\n\
             5 0 0:1 / /blob ro - erofs /s/overlay/{layer}/composefs-data/composefs.blob ro\n\
             6 0 0:1 / {run}/layers/{layer} ro - overlay composefs:{image} ro\n\
             7 0 0:1 / /other ro - overlay composefs:{} ro\n\
             8 0 0:1 / /text ro - ext4 /repo/objects/{image_path} ro\n",
            "b".repeat(64)
        );
        let mounts = AllMounts(vec![
            (1, MountTable::parse(table.as_bytes())),
            (2, MountTable::parse(table.as_bytes())),
        ]);
        let uses = mounts.uses(&repository, &[(layer.clone(), Some(link))]);
        let found: Vec<_> = uses
            .iter()
            .map(|found| {
                (
                    found.target.to_str().unwrap(),
                    found.images.len(),
                    found.layers.len(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("/blob", 0, 1),
                ("/container", 0, 1),
                ("/file", 1, 0),
                ("/plain", 1, 0),
                ("/root", 1, 0)
            ]
        );
    }
}
