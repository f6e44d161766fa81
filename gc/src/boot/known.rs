//! What the boot state keeps in a repository: roots, tags of bootc's, and what is in doubt.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use composefs_image::VerityDigest;
use repository::oci::{self, Image, ManifestDigest, NamesStream};
use repository::{Category, Repository, StreamName, Tag};

use super::{BootState, Doubt, Fault, Problem, Source, Sources};
use crate::host::{GivenUp, Known, MissingTag};
use crate::plan::RemoveReason;
use crate::roots::{self, Need, Owner, OwnerKind, RefId, Root};

/// What the tags of bootc begin with; the digest of the manifest follows.
const TAG_PREFIX: &str = "localhost/bootc-";

/// What becomes of what no entry names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Orphans {
    /// It stays, with everything that it needs, and is a problem.
    #[default]
    Keep,
    /// It is removed before anything else, unless anything else about the boot state is a problem.
    Prune,
}

/// The tag by which bootc keeps a manifest.
pub fn bootc_tag(manifest: &ManifestDigest) -> Tag {
    Tag::new(format!("{TAG_PREFIX}{manifest}")).expect("a digest makes a valid tag")
}

/// The manifest that a tag of bootc's keeps; `None` if it is somebody else's tag, whatever its beginning.
fn manifest_of(tag: &Tag, target: &str) -> Option<ManifestDigest> {
    let digest: ManifestDigest = tag.as_str().strip_prefix(TAG_PREFIX)?.parse().ok()?;
    (digest.stream_name().as_str() == target).then_some(digest)
}

/// Looks what a host boots, and what that keeps in a repository: [`super::find()`] and [`known()`]. Writes nothing; what
/// can't be read is a problem.
pub fn look(repository: &Repository, sources: &Sources, orphans: Orphans) -> Known {
    let state = super::find(sources);
    known(repository, &state, orphans).unwrap_or_else(|error| Known {
        problems: vec![roots::Problem::Source {
            path: repository.path().to_owned(),
            error: error.to_string(),
            doubt: Doubt::Everything,
        }],
        ..Known::default()
    })
}

/// What a host's boot state keeps in a repository. Writes nothing.
///
/// Each deployment is a root: its boot image, and the manifest that it was made from, with the tag by which
/// bootc keeps it. That tag is made if it is missing, and tags of bootc's that no deployment needs are given
/// up.
pub fn known(
    repository: &Repository,
    state: &BootState,
    orphans: Orphans,
) -> repository::Result<Known> {
    let (mut known, problems) = resolve(repository, state, orphans)?;
    let problem = |problem: Problem| roots::Problem::Source {
        error: problem.fault.to_string(),
        path: problem.path,
        doubt: problem.doubt,
    };
    known.problems = problems.into_iter().map(problem).collect();
    Ok(known)
}

/// What boot entries and the repository don't agree on, and what is wrong with the entries: empty if each
/// of them can be resolved to a boot image and a manifest that the repository has.
pub fn check(repository: &Repository, state: &BootState) -> repository::Result<Vec<Problem>> {
    let (_, problems) = resolve(repository, state, Orphans::Keep)?;
    Ok(problems)
}

/// Of what [`check`] finds, what is about deployments of one image: those made from this manifest, or that boot
/// an image on its record.
pub fn check_image(
    repository: &Repository,
    state: &BootState,
    manifest: &ManifestDigest,
) -> repository::Result<Vec<Problem>> {
    let mut problems = check(repository, state)?;
    // An image that cannot be read has none on record, which fsck tells.
    let images = oci::images(repository).unwrap_or_default().images;
    let image = images
        .iter()
        .find(|image| image.manifest().digest() == *manifest);
    let boots = |id: &VerityDigest| {
        image.is_some_and(|image| image.erofs().values().any(|digest| digest == id))
    };
    let mut paths = Vec::new();
    for deployment in &state.deployments {
        let state = deployment.state.as_ref();
        let is_made_from = |source: &Source| *source == Source::Manifest { digest: *manifest };
        if boots(&deployment.id) || state.is_some_and(|state| is_made_from(&state.source)) {
            paths.extend(deployment.named_by.iter().map(PathBuf::as_path));
            paths.extend(state.map(|state| state.path.as_path()));
        }
    }
    problems.retain(|problem| paths.iter().any(|path| problem.path.starts_with(path)));
    Ok(problems)
}

fn resolve(
    repository: &Repository,
    state: &BootState,
    orphans: Orphans,
) -> repository::Result<(Known, Vec<Problem>)> {
    let mut builder = Builder {
        repository,
        state,
        images: OnceCell::new(),
        tags: BTreeMap::new(),
        live: BTreeSet::new(),
        missing_tags: BTreeMap::new(),
        known: Known::default(),
        problems: Vec::new(),
    };
    builder.find_tags()?;
    for deployment in &state.deployments {
        let source = deployment.state.as_ref().map(|state| &state.source);
        let named_by = deployment.named_by.first();
        let named_by = named_by.map_or(Path::new(""), PathBuf::as_path);
        let reason = format!("{}, named by {}", deployment.slot, named_by.display());
        let needs = builder.needs(&deployment.id, source, named_by)?;
        builder.root(deployment.id.to_hex(), reason, needs);
    }
    builder.check_images()?;
    builder.orphans(orphans)?;
    Ok(builder.finish())
}

struct Builder<'a> {
    repository: &'a Repository,
    state: &'a BootState,
    /// The images of the repository, and whether there are damaged ones beside them.
    images: OnceCell<(Vec<Image>, bool)>,
    /// The tags of bootc's that exist.
    tags: BTreeMap<ManifestDigest, RefId>,
    /// The manifests that are needed.
    live: BTreeSet<ManifestDigest>,
    missing_tags: BTreeMap<ManifestDigest, String>,
    known: Known,
    problems: Vec<Problem>,
}

impl Builder<'_> {
    fn find_tags(&mut self) -> repository::Result<()> {
        for reference in self.repository.refs(Category::Streams)?.entries {
            let tag = reference.path.tag();
            if let Some(manifest) = tag.and_then(|tag| manifest_of(&tag, &reference.target)) {
                let id = RefId {
                    category: Category::Streams,
                    path: reference.path,
                };
                self.tags.insert(manifest, id);
            }
        }
        Ok(())
    }

    fn problem(&mut self, path: &Path, fault: Fault, doubt: Doubt) {
        let path = path.to_owned();
        let problem = Problem { path, fault, doubt };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn root(&mut self, name: String, reason: String, needs: Vec<Need>) {
        let kind = OwnerKind::Boot;
        let owner = Owner { kind, name };
        self.known.roots.push(Root {
            owner,
            reason,
            needs,
        });
    }

    fn has_stream(&self, name: &StreamName) -> repository::Result<bool> {
        Ok(self.repository.stream(name)?.is_some())
    }

    /// The boot image, if the repository has it.
    fn image(&self, id: &VerityDigest) -> repository::Result<Option<Need>> {
        if id.algorithm() != self.repository.algorithm() {
            return Ok(None);
        }
        Ok(if self.repository.has_image(id)? {
            Some(Need::Image(*id))
        } else if self.repository.object_size(id)?.is_some() {
            Some(Need::Object(*id))
        } else {
            None
        })
    }

    /// All images of the repository; read only if something has no manifest on record.
    fn images(&self) -> &(Vec<Image>, bool) {
        self.images
            .get_or_init(|| match oci::images(self.repository) {
                Ok(images) => (images.images, !images.damaged.is_empty()),
                Err(_) => (Vec::new(), true),
            })
    }

    /// What a deployment needs; what can't be told is a problem of `path`.
    fn needs(
        &mut self,
        id: &VerityDigest,
        source: Option<&Source>,
        path: &Path,
    ) -> repository::Result<Vec<Need>> {
        let mut needs: Vec<Need> = self.image(id)?.into_iter().collect();
        let mut manifests = BTreeSet::new();
        match source {
            Some(Source::Manifest { digest }) => {
                if self.has_stream(&digest.stream_name())? {
                    manifests.insert(*digest);
                } else {
                    manifests = self.made(id);
                    // One that has the same boot image has the same layers.
                    let doubt = if manifests.is_empty() {
                        Doubt::Everything
                    } else {
                        Doubt::Kept
                    };
                    self.problem(path, Fault::NoManifest(*digest), doubt);
                }
                // A tag whose manifest is gone still isn't one to give up.
                self.live.insert(*digest);
            }
            Some(Source::Legacy { config, layers }) => {
                let names = std::iter::once(config.stream_name())
                    .chain(layers.iter().map(NamesStream::stream_name));
                for name in names {
                    if self.has_stream(&name)? {
                        needs.push(Need::Stream(name));
                    }
                }
                let images = self.images().0.iter();
                manifests = images
                    .filter(|image| image.config().digest() == *config)
                    .map(|image| image.manifest().digest())
                    .collect();
                if manifests.is_empty() {
                    manifests = self.made(id);
                }
            }
            Some(Source::Unrecorded | Source::Unreadable) | None => {
                manifests = self.made(id);
                let alternative = source.is_none() && self.has_alternative(id);
                if manifests.is_empty() && !alternative {
                    self.problem(path, Fault::Untraceable(*id), Doubt::Everything);
                }
            }
        }
        if let [manifest] = Vec::from_iter(&manifests)[..]
            && !self.tags.contains_key(manifest)
        {
            let reason = format!("deployment {id} has none");
            self.missing_tags.entry(*manifest).or_insert(reason);
        }
        for manifest in &manifests {
            needs.push(match self.tags.get(manifest) {
                Some(tag) => Need::Ref(tag.clone()),
                None => Need::Stream(manifest.stream_name()),
            });
        }
        self.live.extend(manifests);
        Ok(needs)
    }

    /// The manifests with this boot image on record.
    fn made(&self, id: &VerityDigest) -> BTreeSet<ManifestDigest> {
        let images = self.images().0.iter();
        images
            .filter(|image| image.erofs().values().any(|digest| digest == id))
            .map(|image| image.manifest().digest())
            .collect()
    }

    /// Whether each entry that names the image names another one that has a state directory.
    fn has_alternative(&self, id: &VerityDigest) -> bool {
        let with_state: BTreeSet<_> = self
            .state
            .deployments
            .iter()
            .filter(|deployment| deployment.state.is_some())
            .map(|deployment| deployment.id)
            .collect();
        let mut entries = self.state.entries.iter();
        entries.all(|entry| {
            let mut images = entry.images.iter();
            !entry.images.contains(id) || images.any(|image| with_state.contains(image))
        })
    }

    /// Each entry must be able to boot.
    fn check_images(&mut self) -> repository::Result<()> {
        for entry in &self.state.entries {
            let mut present = false;
            for id in &entry.images {
                present |= self.image(id)?.is_some();
            }
            if let (false, Some(id)) = (present, entry.images.first()) {
                self.problem(&entry.path, Fault::NoBootImage(*id), Doubt::Kept);
            }
        }
        Ok(())
    }

    fn orphans(&mut self, orphans: Orphans) -> repository::Result<()> {
        let state = self.state;
        let of_orphan = |problem: &Problem| {
            let mut orphans = state.orphans.iter();
            orphans.any(|orphan| problem.path.starts_with(&orphan.path))
        };
        let mut others = state.problems.iter().filter(|problem| !of_orphan(problem));
        // An entry that isn't what it was may be the one that names them.
        let sure = others.next().is_none();
        if orphans == Orphans::Prune && sure {
            self.known.orphans.clone_from(&state.orphans);
            return Ok(());
        }
        self.problems.extend(state.problems.iter().cloned());
        for orphan in &state.orphans {
            self.problem(&orphan.path, Fault::Orphan(orphan.kind), Doubt::Kept);
            let mut needs = Vec::new();
            for id in &orphan.images {
                let source = orphan.source.as_ref().or_else(|| source_of(state, id));
                needs.extend(self.needs(id, source, &orphan.path)?);
            }
            if !needs.is_empty() {
                let reason = format!("{} that no boot entry names", orphan.kind);
                self.root(orphan.path.display().to_string(), reason, needs);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> (Known, Vec<Problem>) {
        let mut problems = self.problems.iter();
        if self.state.deployments.is_empty()
            && !self.tags.is_empty()
            && !problems.any(|problem| problem.doubt == Doubt::Everything)
        {
            self.problem(&self.state.sysroot, Fault::NoDeployments, Doubt::Everything);
        }
        let unneeded = self.tags.iter();
        let unneeded = unneeded.filter(|(manifest, _)| !self.live.contains(manifest));
        self.known.given_up = unneeded
            .map(|(_, id)| GivenUp {
                id: id.clone(),
                reason: RemoveReason::NotDeployed,
            })
            .collect();
        self.known.missing_tags = self
            .missing_tags
            .into_iter()
            .map(|(manifest, reason)| MissingTag {
                tag: bootc_tag(&manifest),
                target: manifest.stream_name(),
                reason,
            })
            .collect();
        (self.known, self.problems)
    }
}

/// What the state directory of a deployment says, whether an entry names it or not.
fn source_of<'a>(state: &'a BootState, id: &VerityDigest) -> Option<&'a Source> {
    let mut deployments = state.deployments.iter();
    let deployment = deployments.find(|deployment| deployment.id == *id);
    if let Some(state) = deployment.and_then(|deployment| deployment.state.as_ref()) {
        return Some(&state.source);
    }
    let mut orphans = state.orphans.iter();
    orphans
        .find(|orphan| orphan.source.is_some() && orphan.images.contains(id))
        .and_then(|orphan| orphan.source.as_ref())
}
