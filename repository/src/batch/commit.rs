//! The commit of a batch: the one order in which names appear.
//!
//! Each numbered step is durable before the next one begins, so that at no instant a name on the disk
//! stands for something that isn't there. A failure in the middle leaves objects without a name, and
//! complete links without refs: garbage, and harmless.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use composefs_image::VerityDigest;
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::{Batch, CommitStats, Objects, StagedChecksums, State};
use crate::checksums::CHECKSUMS;
use crate::durable;
use crate::error::{Error, Result};
use crate::names::{Category, REFS, RefPath, object_target, ref_target};
use crate::oci::{DiffId, NamesStream};
use crate::repo::{OBJECTS, Repository};
use crate::verification::Verification;
use failpoint::failpoint;

impl Batch<'_> {
    /// Makes everything durable and visible; returns what was stored.
    ///
    /// When it returns, all of it survives a crash. When it fails, or the process dies in it, no name
    /// stands for anything incomplete, and doing it all again succeeds.
    pub fn commit(self) -> Result<CommitStats> {
        self.check_stop()?;
        let empty = State::new(self.repository.algorithm());
        let state = std::mem::replace(&mut *self.state(), empty);
        self.check_targets(&state)?;
        let root = self.repository.path();

        // 1. The content of the objects.
        let has_content = state.objects.count > 0 || !state.checksums.is_empty();
        if has_content {
            failpoint("commit-staged");
            durable::sync_filesystem(&self.dir, root)?;
            failpoint("commit-content-synced");
            self.check_stop()?;
            // 2. Their names.
            self.name_objects(&state.objects)?;
        }
        for (layer, staged) in &state.checksums {
            failpoint("commit-checksums");
            self.name_checksums(layer, staged)?;
        }
        let mut marked = false;
        for (layer, verification) in &state.verifications {
            // Of what was verified once nothing less is said.
            let name = layer.stream_name();
            if *verification == Verification::Trusted
                && self.repository.stream(&name)?.as_ref() != state.streams.get(&name)
            {
                failpoint("commit-mark");
                self.repository.mark_unverified(layer)?;
                marked = true;
            }
        }
        // What other programs write to the filesystem meanwhile must not be waited for in vain.
        if has_content || marked || !self.is_in_place(&state) {
            // Also makes objects durable that another writer has only just stored.
            failpoint("commit-objects-named");
            durable::sync_filesystem(&self.dir, root)?;
            failpoint("commit-objects-synced");
        }
        self.check_stop()?;

        // 3. The links, with bridges while streams are replaced.
        let mut touched = Touched::default();
        let bridges = self.bridges(&state)?;
        if !bridges.is_empty() {
            failpoint("commit-bridges");
            for digest in &bridges {
                let name = bridge_name(digest);
                self.link(Category::Streams, &name, digest, &mut touched)?;
            }
            touched.sync(self.repository)?;
            failpoint("commit-bridged");
        }
        for (name, digest) in &state.streams {
            failpoint("commit-stream");
            self.link(Category::Streams, name.as_str(), digest, &mut touched)?;
        }
        for digest in &state.images {
            failpoint("commit-image");
            self.link(Category::Images, &digest.to_string(), digest, &mut touched)?;
        }
        failpoint("commit-linked");
        touched.sync(self.repository)?;
        for digest in &bridges {
            failpoint("commit-remove-bridge");
            let directory = Path::new(Category::Streams.directory());
            let dir = touched.enter(self.repository, directory)?;
            durable::unlink(dir, bridge_name(digest), &root.join(directory))?;
        }

        for (layer, verification) in &state.verifications {
            if *verification == Verification::Verified {
                self.repository.unmark(layer)?;
            }
        }

        // 4. The refs.
        let mut touched = Touched::default();
        for ((category, path), target) in &state.refs {
            failpoint("commit-ref");
            self.link_ref(*category, path, target, &mut touched)?;
        }
        failpoint("commit-refs-set");
        touched.sync(self.repository)?;
        failpoint("commit-done");
        Ok(state.stats)
    }

    /// Whether there is every link and ref already.
    fn is_in_place(&self, state: &State) -> bool {
        let is = |category: Category, name: &Path, target: &Path| {
            let path = Path::new(category.directory()).join(name);
            rustix::fs::readlinkat(self.repository.dir(), path, Vec::new())
                .is_ok_and(|found| found.to_bytes() == target.as_os_str().as_encoded_bytes())
        };
        let mut streams = state.streams.iter();
        let mut images = state.images.iter();
        let mut refs = state.refs.iter();
        streams.all(|(name, digest)| {
            is(
                Category::Streams,
                Path::new(name.as_str()),
                &object_target(digest),
            )
        }) && images.all(|digest| {
            is(
                Category::Images,
                Path::new(&digest.to_string()),
                &object_target(digest),
            )
        }) && refs.all(|((category, path), target)| {
            let name = Path::new(REFS).join(path.as_path());
            is(*category, &name, &ref_target(path, target))
        })
    }

    /// The objects of streams that are being replaced, old and new ones, that need another name meanwhile.
    ///
    /// The collector of composefs-rs follows a reference from stream to stream only if the object it
    /// leads to has a name. Between the replacement of a config's link and that of its manifest's, one of
    /// the two configs has none, and a collection after a crash would take what the image is made of.
    fn bridges(&self, state: &State) -> Result<BTreeSet<VerityDigest>> {
        let mut bridges = BTreeSet::new();
        for (name, new) in &state.streams {
            match self.repository.stream(name) {
                Ok(Some(old)) if old != *new => {
                    bridges.insert(*new);
                    if self.repository.object_size(&old)?.is_some() {
                        bridges.insert(old);
                    }
                }
                Ok(_) | Err(Error::MalformedLink { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bridges)
    }

    /// Before anything is changed: does everything exist that a link or ref is to point at?
    fn check_targets(&self, state: &State) -> Result<()> {
        let streams = state
            .streams
            .iter()
            .map(|(name, digest)| (Category::Streams, name.to_string(), digest));
        let images = state
            .images
            .iter()
            .map(|digest| (Category::Images, digest.to_string(), digest));
        for (category, name, digest) in streams.chain(images) {
            self.repository.check_algorithm(digest)?;
            let exists = state.objects.get(digest).is_some()
                || self.repository.object_size(digest)?.is_some();
            if !exists {
                return Err(Error::Dangling {
                    name: Path::new(category.directory()).join(name),
                    target: format!("object {digest}"),
                });
            }
        }
        for ((category, path), target) in &state.refs {
            let linked = match category {
                Category::Streams => state.streams.keys().any(|name| name.as_str() == target),
                Category::Images => state
                    .images
                    .iter()
                    .any(|image| image.to_string() == *target),
            };
            if !linked && !self.repository.has_entry(*category, target)? {
                return Err(Error::Dangling {
                    name: Path::new(category.directory())
                        .join(REFS)
                        .join(path.as_path()),
                    target: target.clone(),
                });
            }
        }
        Ok(())
    }

    /// Renames the staged objects into place. Names that exist are left as they are, because another writer
    /// was faster, but for those of distrusted objects.
    fn name_objects(&self, staged: &Objects) -> Result<()> {
        let root = self.repository.path();
        let (objects, _) = durable::make_dir(self.repository.dir(), OBJECTS, root)?;
        let objects_path = root.join(OBJECTS);
        let mut shards = [false; 256];
        for (digest, staged) in staged.iter() {
            let path = digest.object_path();
            let shard = usize::from(digest.as_bytes().first().copied().unwrap_or_default());
            if let Some(made @ false) = shards.get_mut(shard) {
                durable::make_dir(&objects, format!("{shard:02x}"), &objects_path)?;
                *made = true;
            }
            failpoint("commit-object");
            let name = staged.file.to_string();
            let renamed = if self.distrusted.contains(&digest) {
                rustix::fs::renameat(&self.dir, &name, &objects, &path)
            } else {
                rename_without_replacing(&self.dir, &name, &objects, &path)
            };
            match renamed {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    self.repository.has_sound_object(&digest, staged.size)?;
                    durable::unlink(&self.dir, &name, &self.path())?;
                }
                Err(error) => {
                    return Err(Error::io("name object", objects_path.join(path))(error));
                }
            }
        }
        Ok(())
    }

    /// Gives checksums their name, in place of others. They tell themselves which splitstream they are about.
    fn name_checksums(&self, layer: &DiffId, staged: &StagedChecksums) -> Result<()> {
        let dir = CHECKSUMS.make(self.repository)?;
        let name = layer.to_hex();
        rustix::fs::renameat(&self.dir, staged.0.to_string(), dir, &name).map_err(Error::io(
            "name",
            CHECKSUMS.path(self.repository).join(name),
        ))
    }

    fn link(
        &self,
        category: Category,
        name: &str,
        digest: &VerityDigest,
        touched: &mut Touched,
    ) -> Result<()> {
        let root = self.repository.path();
        let directory = category.directory();
        let dir = touched.enter(self.repository, Path::new(directory))?;
        self.place_link(&object_target(digest), dir, name, &root.join(directory))
    }

    fn link_ref(
        &self,
        category: Category,
        path: &RefPath,
        target: &str,
        touched: &mut Touched,
    ) -> Result<()> {
        let root = self.repository.path();
        let refs = Path::new(category.directory()).join(REFS);
        let mut components: Vec<_> = path.components().collect();
        let name = components.pop().unwrap_or_default();
        let directory = components
            .iter()
            .fold(refs, |directory, component| directory.join(component));
        let dir = touched.enter(self.repository, &directory)?;
        self.place_link(&ref_target(path, target), dir, name, &root.join(&directory))
    }

    /// Creates or replaces a symlink, in one step for whoever looks.
    fn place_link(
        &self,
        target: &Path,
        dir: &OwnedFd,
        name: impl AsRef<Path>,
        dir_path: &Path,
    ) -> Result<()> {
        let name = name.as_ref();
        let path = dir_path.join(name);
        if let Ok(existing) = rustix::fs::readlinkat(dir, name, Vec::new())
            && existing.to_bytes() == target.as_os_str().as_encoded_bytes()
        {
            return Ok(());
        }
        let temporary = format!("link-{}", durable::random_name());
        rustix::fs::symlinkat(target, &self.dir, &temporary)
            .map_err(Error::io("create", self.path().join(&temporary)))?;
        rustix::fs::renameat(&self.dir, &temporary, dir, name)
            .map_err(Error::io("create link", path))
    }
}

/// The name of a bridge. One that a crash leaves behind keeps nothing alive.
fn bridge_name(digest: &VerityDigest) -> String {
    format!("composefs-store-commit-{digest}")
}

/// Gives a file a name that must not exist yet.
fn rename_without_replacing(
    from: &OwnedFd,
    name: &str,
    to: &OwnedFd,
    path: &str,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from, name, to, path, RenameFlags::NOREPLACE) {
        // The filesystem doesn't know the flag.
        Err(Errno::INVAL) => {
            rustix::fs::linkat(from, name, to, path, AtFlags::empty())?;
            rustix::fs::unlinkat(from, name, AtFlags::empty())
        }
        result => result,
    }
}

/// The directories that may have got new names, kept open to be synced together.
#[derive(Default)]
struct Touched(BTreeMap<PathBuf, OwnedFd>);

impl Touched {
    /// Opens the directory `path`, relative to the repository, making what is missing of it.
    fn enter(&mut self, repository: &Repository, path: &Path) -> Result<&OwnedFd> {
        let root = repository.path();
        let mut so_far = PathBuf::new();
        for component in path.components() {
            let parent = so_far.clone();
            so_far.push(component);
            if self.0.contains_key(&so_far) {
                continue;
            }
            let (dir, _) = match self.0.get(&parent) {
                Some(dir) => durable::make_dir(dir, component, &root.join(parent))?,
                None => durable::make_dir(repository.dir(), component, root)?,
            };
            self.0.insert(so_far.clone(), dir);
        }
        self.0
            .get(path)
            .ok_or_else(|| Error::io("open", root.join(path))(Errno::NOENT))
    }

    fn sync(&self, repository: &Repository) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        for (path, dir) in &self.0 {
            durable::sync_dir(dir, &repository.path().join(path))?;
        }
        durable::sync_dir(repository.dir(), repository.path())
    }
}
