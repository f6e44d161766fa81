//! Streams and images: are they sound, and does everything exist that they name?

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use composefs_image::VerityDigest;
use repository::list::{ImageLink, StreamLink};
use repository::splitstream::{self, SplitstreamError};
use repository::{Error, Repository, Result};

use super::report::{Defect, Finding, Report};
use crate::image;
use crate::progress::Progress;

/// Runs `work` in `jobs` threads; the first error, if any.
pub(super) fn in_parallel(jobs: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..jobs.max(1)).map(|_| scope.spawn(&work)).collect();
        let mine = work();
        others
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .fold(mine, Result::and)
    })
}

/// A link to be checked.
enum Link<'a> {
    Stream(&'a StreamLink),
    Image(&'a ImageLink),
}

pub(super) struct Checker<'a> {
    repository: &'a Repository,
    /// All objects, sorted.
    present: &'a [VerityDigest],
    /// Streams that no link names but other streams do: each is checked once.
    seen: Mutex<HashSet<VerityDigest>>,
    /// Everything that was named and exists, if that is asked for.
    named: Option<Mutex<BTreeSet<VerityDigest>>>,
    findings: Mutex<Vec<Finding>>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(repository: &'a Repository, present: &'a [VerityDigest]) -> Self {
        Self {
            repository,
            present,
            seen: Mutex::default(),
            named: None,
            findings: Mutex::default(),
        }
    }

    /// Checks a stream and all that it leads to; returns the objects of which all this consists.
    pub(super) fn check_one(
        repository: &'a Repository,
        link: &StreamLink,
        report: &mut Report,
    ) -> BTreeSet<VerityDigest> {
        let mut checker = Self::new(repository, &[]);
        checker.named = Some(Mutex::default());
        checker.see(&link.object);
        let path = Path::new("streams").join(link.name.as_str());
        checker.check_stream(&path, &link.object);
        let Self {
            named, findings, ..
        } = checker;
        report.findings.extend(
            findings
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        named
            .unwrap_or_default()
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn check(
        self,
        streams: &[StreamLink],
        images: &[ImageLink],
        jobs: usize,
        progress: &dyn Progress,
        report: &mut Report,
    ) {
        let links: Vec<_> = streams
            .iter()
            .map(Link::Stream)
            .chain(images.iter().map(Link::Image))
            .collect();
        for link in streams {
            self.see(&link.object);
        }
        for link in images {
            self.see(&link.object);
        }
        let next = AtomicUsize::new(0);
        let result = in_parallel(jobs, || {
            while let Some(link) = links.get(next.fetch_add(1, Ordering::Relaxed)) {
                match link {
                    Link::Stream(link) => {
                        let path = Path::new("streams").join(link.name.as_str());
                        self.check_stream(&path, &link.object);
                    }
                    Link::Image(link) => {
                        let path = Path::new("images").join(link.name.to_hex());
                        if link.name != link.object {
                            let object = link.object;
                            self.add(&path, Defect::MisnamedImage { object });
                        }
                        self.check_image(&path, &link.object);
                    }
                }
                progress.advance(1);
            }
            Ok(())
        });
        debug_assert!(result.is_ok(), "the closure has no errors");
        let findings = self
            .findings
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        report.findings.extend(findings);
    }

    fn add(&self, path: &Path, defect: Defect) {
        self.findings
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(Finding::new(path, defect));
    }

    /// Whether this is the first time that the object comes up.
    fn see(&self, object: &VerityDigest) -> bool {
        self.seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(*object)
    }

    /// Others may have stored it since the objects were listed.
    fn exists(&self, object: &VerityDigest) -> bool {
        let exists = self.present.binary_search(object).is_ok()
            || matches!(self.repository.object_size(object), Ok(Some(_)));
        if exists && let Some(named) = &self.named {
            named
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .insert(*object);
        }
        exists
    }

    /// Checks a stream, and those that it needs and nothing links.
    fn check_stream(&self, path: &Path, object: &VerityDigest) {
        let mut pending: Vec<(PathBuf, VerityDigest)> = vec![(path.to_owned(), *object)];
        while let Some((path, object)) = pending.pop() {
            if !self.exists(&object) {
                self.add(&path, Defect::MissingObject { object });
                continue;
            }
            let mut needed = Vec::new();
            match self.read_stream(&object, &mut needed) {
                Ok(missing) => self.add_missing(&path, &missing),
                Err(error) => {
                    let error = error.to_string();
                    self.add(&path, Defect::InvalidStream { error });
                }
            }
            for object in needed {
                if self.exists(&object) && self.see(&object) {
                    let path = Path::new("objects").join(object.object_path());
                    match self.sniff(&object) {
                        Ok(image::Contents::Splitstream) => pending.push((path, object)),
                        Ok(image::Contents::Image) => self.check_image(&path, &object),
                        // What it is otherwise, and whether it is intact, the pass over all objects says.
                        Ok(image::Contents::Other) | Err(_) => {}
                    }
                }
            }
        }
    }

    /// Reads a stream to its end; returns what it names that doesn't exist.
    fn read_stream(
        &self,
        object: &VerityDigest,
        needed: &mut Vec<VerityDigest>,
    ) -> Result<Missing> {
        let mut reader = splitstream::open(self.repository, object, None)?;
        let mut missing = Missing::default();
        let mut read = || -> Result<(), SplitstreamError> {
            reader.named_refs()?;
            for reference in reader.stream_refs() {
                let reference = reference?;
                missing.note(reference, self.exists(&reference));
                needed.push(reference);
            }
            for reference in reader.object_refs() {
                let reference = reference?;
                missing.note(reference, self.exists(&reference));
            }
            while reader.next_piece()?.is_some() {}
            Ok(())
        };
        read().map_err(|source| Error::Splitstream {
            digest: *object,
            source,
        })?;
        Ok(missing)
    }

    fn check_image(&self, path: &Path, object: &VerityDigest) {
        if !self.exists(object) {
            let object = *object;
            self.add(path, Defect::MissingObject { object });
            return;
        }
        let mut missing = Missing::default();
        let result = image::check(self.repository, object, |needed| {
            missing.note(needed, self.exists(&needed));
        });
        match result {
            Ok(()) => self.add_missing(path, &missing),
            Err(error) => {
                let error = error.to_string();
                self.add(path, Defect::InvalidImage { error });
            }
        }
    }

    fn sniff(&self, object: &VerityDigest) -> std::io::Result<image::Contents> {
        let mut file = self
            .repository
            .open_unchecked(object)
            .map_err(std::io::Error::other)?;
        image::sniff(&mut file)
    }

    fn add_missing(&self, path: &Path, missing: &Missing) {
        if let Some(first) = missing.first {
            let count = missing.all.len() as u64;
            let mut all: Vec<_> = missing.all.iter().copied().collect();
            all.sort_unstable();
            self.add(path, Defect::MissingObjects { count, first, all });
        }
    }
}

/// The objects that something names and that don't exist.
#[derive(Default)]
struct Missing {
    first: Option<VerityDigest>,
    all: HashSet<VerityDigest>,
}

impl Missing {
    fn note(&mut self, object: VerityDigest, exists: bool) {
        if !exists && self.all.insert(object) {
            self.first.get_or_insert(object);
        }
    }
}
