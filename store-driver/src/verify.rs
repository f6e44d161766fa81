//! Published images whose content is verified: what was promised, and measuring that it still holds.
//!
//! The kernel checks every block of an object when it is read, and the overlay, with `verity=require`, that
//! the object is the one that the EROFS image names. Nobody does that for the EROFS image itself: it is
//! measured here, before it is mounted or handed to podman. `docs/security.md` says what is trusted all the
//! same.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt, fs,
    path::{Path, PathBuf},
};

use composefs_image::{Content, Kind, VerityDigest, image_objects, read_image};
use containers_storage::{ImageId, ImageRecord, LayerId, LayerRecord, StorageConf};
use repository::{Repository, sys, sys::Measured};
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    Layout,
    check::blob_of,
    error::{Error, Result},
    host::check_verified_host,
    paths::StorePaths,
    store::{image_of, link_of, open_existing},
};

/// Whether an image may be shown without the kernel checking what containers read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// Verified where the repository is secure and we mount the image ourselves.
    #[default]
    WhereSecure,
    /// Verified, or not at all.
    Required,
}

/// The flag of an image's record, beside c/storage's own, which podman leaves alone.
const FLAG: &str = "composefs-store.verified";

/// The largest EROFS image that is read, in bytes: room for some ten million files.
const MAX_IMAGE: u64 = 4 << 30;

/// Whether an image was published as verified.
pub(crate) fn is_promised(record: &ImageRecord) -> bool {
    record.flags.get(FLAG) == Some(&Value::Bool(true))
}

/// Notes in an image's record that it is verified or not at all.
pub(crate) fn promise(record: &mut ImageRecord) {
    record.flags.insert(FLAG.to_owned(), Value::Bool(true));
}

/// Refuses a repository in which nothing can be verified.
pub(crate) fn check_secure(repository: &Repository) -> Result<()> {
    if repository.is_secure() {
        Ok(())
    } else {
        Err(Error::NoVerity {
            repository: repository.path().to_owned(),
        })
    }
}

/// What [`verify_published`] looked at, and what it found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The published images.
    pub images: Vec<VerifiedImage>,
    /// How many layers were looked at.
    pub layers: u64,
    /// How many objects were measured, EROFS images among them.
    pub objects: u64,
    /// What is not as it was published, sorted by path.
    pub findings: Vec<Unsound>,
}

/// A published image that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedImage {
    /// Its ID.
    pub id: ImageId,
    /// The names under which podman lists it.
    pub names: Vec<String>,
    /// Whether it was published as verified.
    pub verified: bool,
}

/// Something of a published image that is not as it was published.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unsound {
    /// The file on this host.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
    /// The published images that need it, by their names, or IDs where they have none. None for what only
    /// containers and images of podman's own stand on.
    pub images: Vec<String>,
    /// The file in the images whose content it is, or one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl fmt::Display for Unsound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.problem)?;
        if let Some(file) = &self.file {
            write!(f, "; it has the content of {file}")?;
        }
        match self.images.as_slice() {
            [] => f.write_str("; no published image has it, but a container or image of podman's"),
            images => write!(f, "; needed by {}", images.join(", ")),
        }
    }
}

/// Measures all that podman is shown: the EROFS image of every published layer, the file that podman mounts
/// in the layout [`Layout::Blob`], and every object that the images name; and looks where the links of the
/// layers lead. No content is read but that of the images: the kernel checks it when somebody does. Where
/// images of that layout were published as verified, `conf` must still have podman ask for it. Writes nothing.
///
/// In a repository without fs-verity there is nothing to measure: [`Error::NoVerity`].
pub fn verify_published(repository: &Repository, conf: &StorageConf) -> Result<VerifyReport> {
    check_secure(repository)?;
    let paths = StorePaths::of(repository);
    let Some(own) = open_existing(&paths)? else {
        return Ok(VerifyReport::default());
    };
    let images = own.root().image_records()?;
    let layers = own.root().layer_records()?;
    let owners = Owners::new(&images, &layers);
    let mut look = Look {
        repository,
        paths: &paths,
        owners: &owners,
        measured: HashSet::new(),
        broken: HashMap::new(),
        findings: Vec::new(),
    };
    for image in &images {
        if !owners.is_whole(image) {
            look.add(
                paths.store(),
                "a layer of the image has no record".into(),
                vec![name_of(image)],
            );
        }
    }
    for layer in &layers {
        look.layer(&layer.id)?;
    }
    look.name_broken(&layers)?;
    look.options(&images, conf);
    look.findings.sort_unstable();
    Ok(VerifyReport {
        images: images
            .iter()
            .map(|record| VerifiedImage {
                id: record.id.clone(),
                names: record.names.clone(),
                verified: is_promised(record),
            })
            .collect(),
        layers: layers.len() as u64,
        objects: look.measured.len() as u64,
        findings: look.findings,
    })
}

/// Which images have a layer.
pub(crate) struct Owners {
    by_layer: HashMap<LayerId, Vec<String>>,
    promised: HashSet<LayerId>,
    torn: HashSet<ImageId>,
}

impl Owners {
    pub(crate) fn new(images: &[ImageRecord], layers: &[LayerRecord]) -> Self {
        let parents: HashMap<&LayerId, Option<&LayerId>> = layers
            .iter()
            .map(|record| (&record.id, record.parent.as_ref()))
            .collect();
        let mut owners = Self {
            by_layer: HashMap::new(),
            promised: HashSet::new(),
            torn: HashSet::new(),
        };
        for image in images {
            let mut next = image.layer.as_ref();
            let mut seen = HashSet::new();
            while let Some(layer) = next
                && seen.insert(layer)
            {
                let Some(parent) = parents.get(layer) else {
                    owners.torn.insert(image.id.clone());
                    break;
                };
                let names = owners.by_layer.entry(layer.clone()).or_default();
                names.push(name_of(image));
                if is_promised(image) {
                    owners.promised.insert(layer.clone());
                }
                next = *parent;
            }
        }
        owners
    }

    /// Whether every layer of an image has a record.
    fn is_whole(&self, image: &ImageRecord) -> bool {
        !self.torn.contains(&image.id)
    }

    /// The names of the images that have a layer; none for one that only stays because it is in use.
    pub(crate) fn of(&self, layer: &LayerId) -> Vec<String> {
        self.by_layer.get(layer).cloned().unwrap_or_default()
    }

    /// Whether an image that has the layer was published as verified.
    pub(crate) fn enforcement(&self, layer: &LayerId) -> Enforcement {
        if self.promised.contains(layer) {
            Enforcement::Required
        } else {
            Enforcement::WhereSecure
        }
    }
}

fn name_of(image: &ImageRecord) -> String {
    match image.names.first() {
        Some(name) => name.clone(),
        None => image.id.to_string(),
    }
}

struct Look<'a> {
    repository: &'a Repository,
    paths: &'a StorePaths,
    owners: &'a Owners,
    measured: HashSet<VerityDigest>,
    /// Objects of files, with what is wrong with them.
    broken: HashMap<VerityDigest, String>,
    findings: Vec<Unsound>,
}

impl Look<'_> {
    fn add(&mut self, path: PathBuf, problem: String, images: Vec<String>) {
        self.findings.push(Unsound {
            path,
            problem,
            images,
            file: None,
        });
    }

    fn layer(&mut self, layer: &LayerId) -> Result<()> {
        let images = self.owners.of(layer);
        let directory = self.paths.layer_directory(layer);
        let layout = match Layout::of(self.paths, layer) {
            Ok(layout) => layout,
            Err(error) => {
                self.add(directory, error.to_string(), images);
                return Ok(());
            }
        };
        let Some(image) = image_of(self.repository, layer)? else {
            let problem = "the repository has no image for this layer".to_owned();
            self.add(directory, problem, images);
            return Ok(());
        };
        self.links(layer, layout, &images)?;
        if layout == Layout::Blob {
            let blob = blob_of(self.paths, layer);
            if let Err(problem) = measure(&blob, &image) {
                self.add(blob, problem, images.clone());
            }
        }
        let object = self.repository.object_file(&image);
        if let Err(problem) = measure(&object, &image) {
            self.add(object, problem, images);
            return Ok(());
        }
        self.measured.insert(image);
        let content = self.repository.read_object(&image, MAX_IMAGE)?;
        let named = match image_objects(&content) {
            Ok(named) => named,
            Err(error) => {
                self.add(object, error.to_string(), images);
                return Ok(());
            }
        };
        for named in named {
            match named {
                Ok(named) => {
                    if self.measured.insert(named)
                        && let Err(problem) = measure(&self.repository.object_file(&named), &named)
                    {
                        self.broken.insert(named, problem);
                    }
                }
                Err(error) => {
                    self.add(object, error.to_string(), images);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Looks where podman is led: by the layer's links, and by a file that makes it stack further layers, which
    /// none of ours has.
    fn links(&mut self, layer: &LayerId, layout: Layout, images: &[String]) -> Result<()> {
        let directory = self.paths.layer_directory(layer);
        let lower = directory.join("lower");
        if lower.symlink_metadata().is_ok() {
            let problem = "it is not ours, and has podman use other layers".to_owned();
            self.add(lower, problem, images.to_vec());
        }
        let mut links = Vec::new();
        if let Some(link) = link_of(self.paths, layer)? {
            links.push((
                self.paths.store().join("overlay/l").join(link.as_str()),
                Path::new("..").join(layer.as_str()).join("diff"),
            ));
        } else {
            let problem = "it does not have the layer's short name".to_owned();
            self.add(directory.join("link"), problem, images.to_vec());
        }
        match layout {
            Layout::Blob => {
                links.push((directory.join("diff"), self.paths.shown_objects(layer)));
                links.push((directory.join("objs"), self.paths.objects()));
            }
            Layout::Mounted => {
                links.push((directory.join("diff"), self.paths.layer_mount(layer)));
            }
        }
        for (path, leads_to) in links {
            let problem = match fs::read_link(&path) {
                Ok(found) if found == leads_to => continue,
                Ok(found) => {
                    let (found, leads_to) = (found.display(), leads_to.display());
                    format!("it leads to {found} instead of {leads_to}")
                }
                Err(error) => error.to_string(),
            };
            self.add(path, problem, images.to_vec());
        }
        Ok(())
    }

    /// podman mounts the layout `blob`, with the options that it is configured with now.
    fn options(&mut self, images: &[ImageRecord], conf: &StorageConf) {
        let Err(Error::NoVerityOption { conf, line }) = check_verified_host(conf, Layout::Blob)
        else {
            return;
        };
        let is_blob = |image: &&ImageRecord| {
            let layout = image.layer.as_ref().map(|top| Layout::of(self.paths, top));
            is_promised(image) && matches!(layout, Some(Ok(Layout::Blob)))
        };
        let concerned: Vec<String> = images.iter().filter(is_blob).map(name_of).collect();
        if !concerned.is_empty() {
            let problem = format!("podman does not have the kernel verify images; it needs {line}");
            self.add(conf.into(), problem, concerned);
        }
    }

    /// Says of each broken object which images need it, and as what.
    fn name_broken(&mut self, layers: &[LayerRecord]) -> Result<()> {
        if self.broken.is_empty() {
            return Ok(());
        }
        let mut needed: BTreeMap<VerityDigest, (BTreeSet<String>, String)> = BTreeMap::new();
        for layer in layers {
            let Some(image) = image_of(self.repository, &layer.id)? else {
                continue;
            };
            let Ok(content) = self.repository.read_object(&image, MAX_IMAGE) else {
                continue;
            };
            let Ok(tree) = read_image(&content) else {
                continue;
            };
            let mut directories: Vec<&[u8]> = Vec::new();
            for visit in tree.walk() {
                directories.truncate(visit.depth.saturating_sub(1));
                directories.push(visit.name);
                let Kind::Regular(Content::External {
                    digest: Some(digest),
                    ..
                }) = tree.kind(visit.id)
                else {
                    continue;
                };
                if self.broken.contains_key(&digest) {
                    let path = [b"/", directories.join(&b'/').as_slice()].concat();
                    let path = String::from_utf8_lossy(&path).into_owned();
                    let entry = needed.entry(digest);
                    let (images, _) = entry.or_insert_with(|| (BTreeSet::new(), path));
                    images.extend(self.owners.of(&layer.id));
                }
            }
        }
        for (object, (images, file)) in needed {
            if let Some(problem) = self.broken.remove(&object) {
                self.findings.push(Unsound {
                    path: self.repository.object_file(&object),
                    problem,
                    images: images.into_iter().collect(),
                    file: Some(file),
                });
            }
        }
        // Named by an image in a way that its tree does not show.
        for (object, problem) in std::mem::take(&mut self.broken) {
            self.add(self.repository.object_file(&object), problem, Vec::new());
        }
        Ok(())
    }
}

/// Asks the kernel for the fs-verity digest of a file; what is wrong with it, in words.
pub(crate) fn measure(path: &Path, expected: &VerityDigest) -> Result<(), String> {
    // Not waiting for a writer, should it be a fifo.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => "it is missing".to_owned(),
        Errno::LOOP => "it is not a regular file".to_owned(),
        error => error.to_string(),
    })?;
    match sys::measure_verity(&file).map_err(|error| error.to_string())? {
        Measured::Digest(found) if found == *expected => Ok(()),
        Measured::Digest(found) => Err(format!(
            "its fs-verity digest is {found} instead of {expected}"
        )),
        Measured::Disabled => Err("fs-verity is not enabled on it".to_owned()),
        Measured::Unsupported => Err("its filesystem has no fs-verity".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use repository::{InitOptions, Security};

    use super::*;

    fn layer(digit: char) -> LayerId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn image(digit: char, name: &str, top: char) -> ImageRecord {
        let mut record = ImageRecord::new(digit.to_string().repeat(64).parse().unwrap());
        record.names = vec![name.to_owned()];
        record.layer = Some(layer(top));
        record
    }

    fn chain(text: &str) -> Vec<LayerRecord> {
        let mut parent = None;
        let records = text.chars().map(|digit| {
            let mut record = LayerRecord::new(layer(digit));
            record.parent = parent.replace(layer(digit));
            record
        });
        records.collect()
    }

    #[test]
    fn layers_below_a_verified_image_must_be_verified_and_others_need_not() {
        let mut verified = image('1', "verified", 'b');
        promise(&mut verified);
        let owners = Owners::new(&[verified, image('2', "plain", 'c')], &chain("abcd"));
        assert_eq!(owners.of(&layer('a')), ["verified", "plain"]);
        assert_eq!(owners.of(&layer('c')), ["plain"]);
        assert!(owners.of(&layer('d')).is_empty());
        for (digit, enforcement) in [
            ('a', Enforcement::Required),
            ('b', Enforcement::Required),
            ('c', Enforcement::WhereSecure),
            ('d', Enforcement::WhereSecure),
        ] {
            assert_eq!(owners.enforcement(&layer(digit)), enforcement, "{digit}");
        }
    }

    #[test]
    fn a_layer_whose_directory_leads_podman_elsewhere_is_found() {
        let temporary = tempfile::tempdir().unwrap();
        let options = InitOptions {
            security: Security::Insecure,
            ..InitOptions::default()
        };
        Repository::init(temporary.path(), &options).unwrap();
        let repository = Repository::open(temporary.path()).unwrap();
        let paths = StorePaths::of(&repository);
        let owners = Owners::new(&[], &[]);
        let layer = layer('a');
        let directory = paths.layer_directory(&layer);
        let link = paths.store().join("overlay/l/ABCDEFGHIJKLMNOPQRSTUVWXYZ");
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(format!("../{layer}/diff"), &link).unwrap();
        fs::write(directory.join("link"), "ABCDEFGHIJKLMNOPQRSTUVWXYZ").unwrap();
        symlink(paths.shown_objects(&layer), directory.join("diff")).unwrap();
        symlink(paths.objects(), directory.join("objs")).unwrap();
        let found = || {
            let mut look = Look {
                repository: &repository,
                paths: &paths,
                owners: &owners,
                measured: HashSet::new(),
                broken: HashMap::new(),
                findings: Vec::new(),
            };
            look.links(&layer, Layout::Blob, &[]).unwrap();
            let paths = look.findings.into_iter().map(|finding| finding.path);
            paths.collect::<Vec<_>>()
        };
        assert!(found().is_empty(), "{:?}", found());
        for path in [directory.join("diff"), directory.join("objs"), link.clone()] {
            let was = fs::read_link(&path).unwrap();
            for other in [Some("/tmp"), None] {
                fs::remove_file(&path).unwrap();
                if let Some(other) = other {
                    symlink(other, &path).unwrap();
                }
                assert_eq!(found(), [path.as_path()]);
                let _ = fs::remove_file(&path);
                symlink(&was, &path).unwrap();
            }
        }
        fs::write(directory.join("lower"), "l/ABCDEFGHIJKLMNOPQRSTUVWXYZ").unwrap();
        assert_eq!(found(), [directory.join("lower")]);
        fs::remove_file(directory.join("lower")).unwrap();
        fs::remove_file(directory.join("link")).unwrap();
        assert_eq!(found(), [directory.join("link")]);
    }

    #[test]
    fn an_image_with_a_layer_without_record_is_not_whole() {
        let (whole, torn) = (image('1', "whole", 'b'), image('2', "torn", 'f'));
        let owners = Owners::new(&[whole.clone(), torn.clone()], &chain("ab"));
        assert!(owners.is_whole(&whole));
        assert!(!owners.is_whole(&torn));
    }

    #[test]
    fn the_promise_survives_a_rewrite_of_the_record() {
        let mut record = image('1', "app", 'a');
        assert!(!is_promised(&record));
        promise(&mut record);
        let text = serde_json::to_string(&record).unwrap();
        assert!(is_promised(&serde_json::from_str(&text).unwrap()));
    }

    #[test]
    fn a_finding_names_the_file_the_image_and_what_it_is_there() {
        let mut found = Unsound {
            path: "/repo/objects/ab/cd".into(),
            problem: "it is missing".into(),
            images: vec!["localhost/a:1".into(), "localhost/b:1".into()],
            file: Some("/usr/lib/large.bin".into()),
        };
        assert_eq!(
            found.to_string(),
            "/repo/objects/ab/cd: it is missing; it has the content of /usr/lib/large.bin; needed by localhost/a:1, localhost/b:1"
        );
        found.images.clear();
        assert!(found.to_string().contains("no published image"));
    }
}
