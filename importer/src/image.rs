//! An image into a repository: the stages in order, and what they share.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use composefs_image::VerityDigest;
use containers_storage::ImageId;
use repository::layers::{Rules, XattrFilter, merged_tree};
use repository::oci::{
    self, Config, DiffId, DocumentError, ErofsKey, ErofsRefs, Index, Manifest, NamesStream,
    NewImage, OciError, check_pair,
};
use repository::{Batch, CopyPolicy, Repository, StagedChecksums, Tag, Verification};

use crate::cancel::Cancel;
use crate::error::{ImportError, LayerError};
use crate::layer;
use crate::pool::Queue;
use crate::preflight;
use crate::present;
use crate::progress::{Event, Progress, Stage};
use crate::report::{
    Counts, ImportReport, LayerOutcome, LayerReport, Outcome, Tally, Times, Warning,
};
use crate::source::{LayerContent, Origin, SourceImage, SourceLayer, made_from};
use crate::work::{Budget, Context, Job, Stop};

/// What is committed together, in bytes of uncompressed layers: what an interrupted import has to read
/// again at most, if its layers are not larger.
const GROUP_BYTES: u64 = 1 << 30;

/// Layers in work at once, at most: more of them would only need more memory.
const READERS_MAX: usize = 8;

/// Buffers of all layers in work, if there are not so many jobs that they need more.
const BUFFERS: usize = 64;

/// Objects that a batch may know while the tree of the image is made: both need memory for each file.
const KNOWN_MAX: usize = 1 << 16;

/// How to import. Made as `ImportOptions { tags, ..ImportOptions::default() }`: options are added.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Whether files may be copied where they cannot be cloned.
    pub copy: CopyPolicy,
    /// Threads that read and hash. `None`: as many as there are processors.
    pub jobs: Option<NonZeroUsize>,
    /// Tags that the image is to have, besides those it has.
    pub tags: Vec<Tag>,
    /// Whether diff IDs are compared.
    pub diff_ids: DiffIdCheck,
    /// Stops the import when set.
    pub cancel: Cancel,
    /// Most bytes of uncompressed tars that are read from blobs, all layers together. `None`: the space
    /// that is free in the repository when the import begins ([`free_space`]), as no more can be stored.
    pub max_size: Option<u64>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            copy: CopyPolicy::Allow,
            jobs: None,
            tags: Vec::new(),
            diff_ids: DiffIdCheck::Verify,
            cancel: Cancel::new(),
            max_size: None,
        }
    }
}

impl ImportOptions {
    fn threads(&self) -> usize {
        self.jobs
            .or_else(|| std::thread::available_parallelism().ok())
            .map_or(1, NonZeroUsize::get)
    }
}

/// Whether the tar of a layer must be found to have its diff ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiffIdCheck {
    /// Always. A layer that was stored with [`Self::TrustSource`] is read again.
    Verify,
    /// Not of layers in containers-storage: the engine compared it when it stored them. Their files are
    /// compared with the checksums of the tar-split nevertheless, and the repository notes which
    /// layers were stored so ([`Repository::is_unverified`]).
    TrustSource,
}

/// The bytes that are free on the repository's filesystem for whoever runs this.
pub fn free_space(repository: &Repository) -> Result<u64, ImportError> {
    Ok(preflight::free(repository)?.bytes)
}

/// Brings an image into the repository, verified, and tags it.
///
/// When it returns, everything is durable. When it fails, the image is not in the repository; layers
/// that were committed before the failure are, verified, for the next attempt. To import an image that
/// is there already only adds tags.
pub fn import_image(
    repository: &Repository,
    image: &SourceImage<'_>,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<ImportReport, ImportError> {
    let imported = import(repository, image, options, progress);
    options.cancel.explain(imported, || ImportError::Cancelled)
}

fn import(
    repository: &Repository,
    image: &SourceImage<'_>,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<ImportReport, ImportError> {
    let started = Instant::now();
    progress.event(&Event::Stage {
        stage: Stage::Check,
    });
    let documents = Documents::read(image)?;
    let plans: Vec<_> = image.layers.iter().map(SourceLayer::plan).collect();
    progress.event(&Event::Layers { layers: &plans });

    let mut import = Import {
        repository,
        id: documents.id.clone(),
        options,
        progress,
        layers: &image.layers,
        budget: Budget::new(match options.max_size {
            Some(size) => size,
            None => free_space(repository)?,
        }),
        streams: HashMap::new(),
        reports: vec![None; image.layers.len()],
        times: Times::default(),
        warnings: Vec::new(),
    };
    if let Some((manifest, layers)) = made_from(documents.manifest.bytes()) {
        let warning = Warning::Synthetic { manifest, layers };
        import.warnings.push(warning);
    }
    let known = present::image(repository, documents.manifest.digest(), options.diff_ids)?;
    let (outcome, rootfs) = if let Some(rootfs) = known {
        import.all_present();
        import.times.check = started.elapsed();
        import.tag(&documents)?;
        (Outcome::Present, rootfs)
    } else {
        let missing = import.missing()?;
        let layers: Vec<_> = missing.iter().map(|index| &image.layers[*index]).collect();
        preflight::check(repository, &layers, options)?;
        import.times.check = started.elapsed();
        let batch = import.read(&missing)?;
        let rootfs = import.rootfs(&batch)?;
        import.publish(batch, &documents, &rootfs)?;
        (Outcome::Imported, rootfs)
    };
    Ok(import.report(&image.name, &documents, outcome, rootfs))
}

/// Manifest and config, which belong together and to the layers.
struct Documents {
    id: ImageId,
    manifest: Manifest,
    config: Config,
    indexes: Vec<Index>,
}

impl Documents {
    fn read(image: &SourceImage<'_>) -> Result<Self, ImportError> {
        let unusable = |source| ImportError::Document {
            image: image.name.clone(),
            source,
        };
        let manifest = Manifest::parse(image.manifest.clone()).map_err(unusable)?;
        let config = Config::parse(image.config.clone()).map_err(unusable)?;
        check_pair(&manifest, &config).map_err(unusable)?;
        let of_layers = image.layers.iter().map(|layer| layer.diff_id);
        if !of_layers.eq(config.diff_ids().iter().copied()) {
            return Err(unusable(DocumentError::Mismatch(
                "the layers of the source are not those that the config names".into(),
            )));
        }
        Ok(Self {
            id: image
                .id
                .clone()
                .unwrap_or_else(|| ImageId::of_config(&config.digest())),
            manifest,
            config,
            indexes: image
                .indexes
                .iter()
                .map(|index| Index::parse(index.clone()))
                .collect::<Result<_, _>>()
                .map_err(unusable)?,
        })
    }
}

/// A report on a layer that was not read.
fn unread(layer: &SourceLayer<'_>, outcome: LayerOutcome) -> LayerReport {
    let plan = layer.plan();
    LayerReport {
        id: plan.id,
        blob: plan.blob,
        diff_id: plan.diff_id,
        outcome,
        tar_bytes: 0,
        counts: Counts::default(),
        time: Duration::ZERO,
    }
}

/// One import in work.
struct Import<'a> {
    repository: &'a Repository,
    id: ImageId,
    options: &'a ImportOptions,
    progress: &'a dyn Progress,
    layers: &'a [SourceLayer<'a>],
    /// What may still be read from blobs.
    budget: Budget,
    /// The splitstreams of layers that are in the repository or staged.
    streams: HashMap<DiffId, VerityDigest>,
    reports: Vec<Option<LayerReport>>,
    times: Times,
    warnings: Vec<Warning>,
}

impl<'a> Import<'a> {
    /// The layers that have to be read. An image can have a layer twice; then the lower one counts.
    fn missing(&mut self) -> Result<Vec<usize>, ImportError> {
        let mut missing = Vec::new();
        let mut seen = HashSet::new();
        for (index, source) in self.layers.iter().enumerate() {
            self.check_cancelled()?;
            if !seen.insert(source.diff_id) {
                self.finished(index, unread(source, LayerOutcome::Repeated));
            } else if let Some(stream) =
                present::layer(self.repository, &source.diff_id, self.options.diff_ids)?
            {
                self.streams.insert(source.diff_id, stream);
                self.finished(index, unread(source, LayerOutcome::Present));
            } else {
                missing.push(index);
            }
        }
        Ok(missing)
    }

    fn all_present(&mut self) {
        for (index, source) in self.layers.iter().enumerate() {
            self.finished(index, unread(source, LayerOutcome::Present));
        }
    }

    fn finished(&mut self, index: usize, report: LayerReport) {
        self.progress.event(&Event::LayerFinished {
            layer: index,
            report: &report,
        });
        self.reports[index] = Some(report);
    }

    /// Reads layers into batches, and commits all of these but the last one, which may be empty.
    fn read(&mut self, missing: &[usize]) -> Result<Batch<'a>, ImportError> {
        let repository = self.repository;
        let groups = self.groups(missing);
        let mut batch = repository.batch_until(self.options.cancel.flag())?;
        for (number, group) in groups.iter().enumerate() {
            self.stage(Stage::Layers);
            let started = Instant::now();
            if let Err(error) = self.read_group(&batch, group) {
                // The layers that are complete need not be fetched again.
                if self.are_remote(group) && error.is_of_source() {
                    batch.commit()?;
                }
                return Err(error);
            }
            self.times.layers += started.elapsed();
            let is_last = number + 1 == groups.len();
            if !is_last || batch.known_objects() > KNOWN_MAX {
                self.stage(Stage::Publish);
                let started = Instant::now();
                let next = repository.batch_until(self.options.cancel.flag())?;
                std::mem::replace(&mut batch, next).commit()?;
                self.times.publish += started.elapsed();
            }
        }
        Ok(batch)
    }

    /// Cuts the list of layers where the next one would make a group larger than [`GROUP_BYTES`]. Of
    /// layers that come over a network only as many are in a group as are read at once, the largest
    /// first, so that an interruption costs no more than those.
    fn groups(&self, missing: &[usize]) -> Vec<Vec<usize>> {
        if self.are_remote(missing) {
            let mut order = missing.to_vec();
            order.sort_by_key(|index| std::cmp::Reverse(self.layers[*index].estimate()));
            let at_once = self.options.threads().min(READERS_MAX);
            return order.chunks(at_once).map(<[usize]>::to_vec).collect();
        }
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut bytes = 0u64;
        for index in missing {
            let size = self.layers[*index].estimate().unwrap_or(GROUP_BYTES / 4);
            bytes = bytes.saturating_add(size);
            match groups.last_mut() {
                Some(group) if bytes <= GROUP_BYTES => group.push(*index),
                _ => {
                    groups.push(vec![*index]);
                    bytes = size;
                }
            }
        }
        groups
    }

    fn are_remote(&self, layers: &[usize]) -> bool {
        let mut layers = layers.iter().map(|index| &self.layers[*index].content);
        layers.any(|content| matches!(content, LayerContent::Blob { blob, .. } if blob.origin() == Origin::Network))
    }

    /// Reads layers side by side; stops them all at the first error.
    fn read_group(&mut self, batch: &Batch<'_>, group: &[usize]) -> Result<(), ImportError> {
        let jobs = self.options.threads();
        let readers = jobs.min(group.len()).clamp(1, READERS_MAX);
        let mut order = group.to_vec();
        // The largest first: it is the one that the others would wait for at the end.
        order.sort_by_key(|index| std::cmp::Reverse(self.layers[*index].estimate()));
        let (layers, progress) = (self.layers, self.progress);
        let context = Context {
            batch,
            algorithm: self.repository.algorithm(),
            copy: self.options.copy,
            diff_ids: self.options.diff_ids,
            buffers: (BUFFERS.max(2 * jobs) / readers).max(2),
            budget: &self.budget,
            stop: Stop::new(&self.options.cancel),
        };
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let queue = Queue::new();
        let read_layers = || {
            while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = read_layer(&layers[index], index, &context, &queue, progress);
                if result.is_err() {
                    context.stop.fail();
                }
                done.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((index, result));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| queue.serve(|job: Job| job.run(&context)));
            }
            // When the last layer is done the workers may go; the scope waits for them.
            let _close = queue.close_on_drop();
            let others: Vec<_> = (1..readers).map(|_| scope.spawn(read_layers)).collect();
            read_layers();
            for other in others {
                if let Err(panic) = other.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });

        let mut failure = None;
        for (index, result) in done.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match result {
                Ok((stream, checksums, report)) => {
                    batch.link_stream(&report.diff_id.stream_name(), &stream);
                    batch.keep_checksums(&report.diff_id, checksums);
                    let verification = match report.outcome {
                        LayerOutcome::Trusted => Verification::Trusted,
                        _ => Verification::Verified,
                    };
                    batch.set_verification(&report.diff_id, verification);
                    self.streams.insert(report.diff_id, stream);
                    self.reports[index] = Some(report);
                }
                // What the others stopped for tells more.
                Err(ImportError::Cancelled) => {
                    failure.get_or_insert(ImportError::Cancelled);
                }
                Err(error) if matches!(failure, None | Some(ImportError::Cancelled)) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Makes the image of the whole file tree, in each of the repository's formats.
    fn rootfs(&mut self, batch: &Batch<'_>) -> Result<ErofsRefs, ImportError> {
        self.check_cancelled()?;
        self.stage(Stage::Rootfs);
        let started = Instant::now();
        let streams: Vec<_> = self
            .streams()
            .into_iter()
            .map(|(_, stream)| stream)
            .collect();
        let mut images = ErofsRefs::new();
        let tree = match merged_tree(batch, &streams, Rules::Rootfs(XattrFilter::AllowlistOnly)) {
            Ok(tree) => tree,
            // podman runs images that composefs-rs makes no image of.
            Err(error) if error.is_unfit() => {
                let reason = error.to_string();
                self.warnings.push(Warning::NoRootfs { reason });
                self.times.rootfs = started.elapsed();
                return Ok(images);
            }
            Err(source) => {
                let image = self.id.clone();
                return Err(ImportError::Tree { image, source });
            }
        };
        for format in self.repository.formats().all() {
            let Some(key) = ErofsKey::rootfs(format) else {
                continue;
            };
            let digest = batch.store_tree(&tree, format)?;
            images.insert(key, digest);
        }
        self.times.rootfs = started.elapsed();
        Ok(images)
    }

    fn publish(
        &mut self,
        batch: Batch<'_>,
        documents: &Documents,
        rootfs: &ErofsRefs,
    ) -> Result<(), ImportError> {
        self.check_cancelled()?;
        self.stage(Stage::Publish);
        let started = Instant::now();
        let layers = self.streams();
        let new = NewImage {
            manifest: &documents.manifest,
            config: &documents.config,
            layers: &layers,
            erofs: rootfs,
            indexes: &documents.indexes,
        };
        oci::store_image(&batch, &new).map_err(|source| self.record_error(source))?;
        self.set_tags(&batch, documents)?;
        batch.commit()?;
        self.times.publish += started.elapsed();
        Ok(())
    }

    /// Gives an image that is there its tags and indexes.
    fn tag(&mut self, documents: &Documents) -> Result<(), ImportError> {
        if self.options.tags.is_empty() && documents.indexes.is_empty() {
            return Ok(());
        }
        self.stage(Stage::Publish);
        let started = Instant::now();
        let batch = self.repository.batch_until(self.options.cancel.flag())?;
        oci::add_indexes(&batch, documents.manifest.digest(), &documents.indexes)
            .map_err(|source| self.record_error(source))?;
        self.set_tags(&batch, documents)?;
        batch.commit()?;
        self.times.publish = started.elapsed();
        Ok(())
    }

    fn set_tags(&self, batch: &Batch<'_>, documents: &Documents) -> Result<(), ImportError> {
        for tag in &self.options.tags {
            oci::tag(batch, tag, &documents.manifest.digest())
                .map_err(|source| self.record_error(source))?;
        }
        Ok(())
    }

    fn record_error(&self, source: OciError) -> ImportError {
        ImportError::Record {
            image: self.id.clone(),
            source,
        }
    }

    /// Every layer of the image with its splitstream.
    fn streams(&self) -> Vec<(DiffId, VerityDigest)> {
        let stream = |source: &SourceLayer<'_>| {
            let stream = self.streams.get(&source.diff_id)?;
            Some((source.diff_id, *stream))
        };
        self.layers.iter().filter_map(stream).collect()
    }

    fn report(
        mut self,
        source: &str,
        documents: &Documents,
        outcome: Outcome,
        rootfs: ErofsRefs,
    ) -> ImportReport {
        let layers: Vec<_> = self.reports.into_iter().flatten().collect();
        let mut total = Counts::default();
        for layer in &layers {
            total += layer.counts;
        }
        // What comes as a blob has to be written in any case.
        let mut copied = Tally::default();
        for layer in layers.iter().filter(|layer| layer.blob.is_none()) {
            copied += layer.counts.copied;
        }
        if copied != Tally::default() {
            self.warnings.push(Warning::Copied(copied));
        }
        ImportReport {
            source: source.to_owned(),
            image: self.id,
            manifest: documents.manifest.digest(),
            config: documents.config.digest(),
            outcome,
            rootfs: rootfs.into_values().collect(),
            tags: self.options.tags.iter().map(ToString::to_string).collect(),
            layers,
            total,
            times: self.times,
            warnings: self.warnings,
        }
    }

    fn stage(&self, stage: Stage) {
        self.progress.event(&Event::Stage { stage });
    }

    fn check_cancelled(&self) -> Result<(), ImportError> {
        if self.options.cancel.is_cancelled() {
            return Err(ImportError::Cancelled);
        }
        Ok(())
    }
}

/// Imports one layer, and tells when it begins and when it is done.
fn read_layer(
    source: &SourceLayer<'_>,
    index: usize,
    context: &Context<'_>,
    queue: &Queue<Job>,
    progress: &dyn Progress,
) -> Result<(VerityDigest, StagedChecksums, LayerReport), ImportError> {
    let started = Instant::now();
    progress.event(&Event::LayerStarted { layer: index });
    let result = layer::import(source, index, context, queue, progress);
    let imported = result.map_err(|source_error| match source_error {
        LayerError::Stopped
        | LayerError::Storage(containers_storage::Error::Interrupted { .. }) => {
            ImportError::Cancelled
        }
        // What is read over a network ends so when it is stopped.
        LayerError::Read(_) | LayerError::Source(_) if context.stop.is_set() => {
            ImportError::Cancelled
        }
        error => ImportError::Layer {
            layer: Box::new(source.plan()),
            source: error,
        },
    })?;
    let report = LayerReport {
        tar_bytes: imported.tar_bytes,
        counts: imported.counts,
        time: started.elapsed(),
        ..unread(source, imported.outcome())
    };
    progress.event(&Event::LayerFinished {
        layer: index,
        report: &report,
    });
    Ok((imported.stream, imported.checksums, report))
}
