//! The sweep: doing what a plan says, under the exclusive lock.
//!
//! Names go first, that is made durable, and then content goes: a crash at any instant leaves at worst
//! garbage, never a name without its content. Doing it again finishes the work.

use repository::{Category, Exclusive, Repository, Wait};
use serde::Serialize;

use crate::boot;
use crate::error::{Error, Result};
use crate::host::{Host, PublishedKind, Unpublished};
use crate::leases;
use crate::objects::each_shard;
use crate::plan::{Plan, jobs, plan_with};
use crate::progress::{Phase, Progress};
use crate::roots::RefId;

/// A plan that still holds, because nobody else can use the repository until it is dropped or
/// executed.
#[derive(Debug)]
pub struct Prepared<'r> {
    exclusive: Exclusive<'r>,
    plan: Plan,
}

/// What a sweep has removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Files and directories of interrupted deployments.
    pub orphans: u64,
    /// Published layers.
    pub layers: u64,
    /// Records of images that were unpublished.
    pub image_records: u64,
    /// Refs, tags among them.
    pub refs: u64,
    /// Links in `streams/`.
    pub streams: u64,
    /// Links in `images/`.
    pub images: u64,
    /// Objects.
    pub objects: u64,
    /// The sizes of those objects in bytes. Less is freed where blocks are shared with other files.
    pub object_bytes: u64,
    /// Leases.
    pub leases: u64,
    /// Staging directories.
    pub staging: u64,
    /// The sizes of the files in them in bytes.
    pub staging_bytes: u64,
}

/// Takes the exclusive lock and looks whether a plan still holds; if it doesn't, plans again.
///
/// With [`Wait::Fail`], [`repository::Error::Busy`] says that others use the repository; with
/// [`Wait::Block`] `progress` hears of [`Phase::Waiting`] before they are waited for.
pub fn prepare<'r>(
    repository: &'r mut Repository,
    plan: Plan,
    wait: Wait,
    host: &mut dyn Host,
    progress: &dyn Progress,
) -> Result<Prepared<'r>> {
    if plan.unpublished.iter().any(Unpublished::is_image_record) {
        progress.begin(Phase::Waiting, None);
    }
    host.withdraw(repository, &plan.unpublished)
        .map_err(Error::Published)?;
    if wait == Wait::Block {
        match repository.exclusive(Wait::Fail) {
            Err(repository::Error::Busy(_)) => progress.begin(Phase::Waiting, None),
            Err(error) => return Err(error.into()),
            // Taken again below, at once: a borrow that is returned in one arm would last in all.
            Ok(exclusive) => drop(exclusive),
        }
    }
    let exclusive = repository.exclusive(wait)?;
    let known = host.known(&exclusive);
    let plan = if plan.holds(&exclusive, &known)? {
        plan
    } else {
        plan_with(&exclusive, known, progress)?
    };
    Ok(Prepared { exclusive, plan })
}

impl Prepared<'_> {
    /// What will be done.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it, and returns to the shared lock. The plan that is returned is what was done: another one
    /// than before only if a published layer turned out to be in use.
    pub fn execute(
        mut self,
        host: &mut dyn Host,
        progress: &dyn Progress,
    ) -> Result<(Plan, Swept)> {
        let mut swept = Swept::default();
        if !self.plan.unpublished.is_empty() {
            let gone = host
                .remove_published(&self.exclusive, &self.plan.unpublished)
                .map_err(Error::Published)?;
            let known = host.known(&self.exclusive);
            if !self.plan.holds(&self.exclusive, &known)? {
                let unpublished = std::mem::take(&mut self.plan.unpublished);
                self.plan = plan_with(&self.exclusive, known, progress)?;
                self.plan.unpublished = unpublished;
            }
            self.plan.unpublished.retain(|item| gone.contains(item));
            for item in &self.plan.unpublished {
                match item.kind {
                    PublishedKind::Layer => swept.layers += 1,
                    PublishedKind::ImageRecord => swept.image_records += 1,
                }
            }
        }
        self.make_tags()?;
        swept.orphans = boot::prune(&self.plan.orphans)?;
        self.remove_names(&mut swept, progress)?;
        self.remove_contents(&mut swept, progress)?;
        Ok((self.plan, swept))
    }

    fn make_tags(&self) -> Result<()> {
        if self.plan.missing_tags.is_empty() {
            return Ok(());
        }
        let batch = self.exclusive.batch()?;
        for missing in &self.plan.missing_tags {
            let id = RefId::of_tag(&missing.tag);
            batch.set_ref(Category::Streams, &id.path, missing.target.as_str());
        }
        batch.commit()?;
        Ok(())
    }

    /// Names, refs before what they point at; durable when it returns.
    fn remove_names(&self, swept: &mut Swept, progress: &dyn Progress) -> Result<()> {
        let repository = &self.exclusive;
        let refs = self
            .plan
            .refs
            .iter()
            .filter(|item| item.decision.is_removal());
        let streams = self
            .plan
            .streams
            .iter()
            .filter(|item| item.decision.is_removal());
        let images = self
            .plan
            .images
            .iter()
            .filter(|item| item.decision.is_removal());
        let names = refs.clone().count() + streams.clone().count() + images.clone().count();
        progress.begin(Phase::RemovingNames, Some(names as u64));
        for item in refs {
            // Those of published layers are gone by now.
            repository.remove_ref(item.id.category, &item.id.path)?;
            swept.refs += 1;
            progress.advance(1);
        }
        for item in streams {
            swept.streams += u64::from(repository.remove_stream(&item.name)?);
            progress.advance(1);
        }
        for item in images {
            swept.images += u64::from(repository.remove_image(&item.name)?);
            progress.advance(1);
        }
        repository.sync_names()?;
        Ok(())
    }

    fn remove_contents(&self, swept: &mut Swept, progress: &dyn Progress) -> Result<()> {
        let repository = &self.exclusive;
        let removed = self.plan.objects.removed().count() as u64;
        progress.begin(Phase::RemovingObjects, Some(removed));
        // Most of the time goes into waiting for the filesystem's journal: several threads wait less.
        let shards = each_shard(jobs(), |shard| {
            let (mut objects, mut bytes) = (0, 0);
            let going = self.plan.objects.removed_in(shard);
            repository.remove_objects(shard, going.map(|item| item.digest), |_| {
                objects += 1;
                progress.advance(1);
            })?;
            for item in self.plan.objects.removed_in(shard) {
                bytes += item.bytes.unwrap_or(0);
            }
            Ok((objects, bytes))
        })?;
        for (objects, bytes) in shards {
            swept.objects += objects;
            swept.object_bytes += bytes;
        }
        for item in &self.plan.leases {
            if item.decision.is_removal() {
                swept.leases += u64::from(leases::remove(repository, &item.name)?);
            }
        }
        for item in &self.plan.staging {
            if item.decision.is_removal() && repository.remove_staging(&item.name)? {
                swept.staging += 1;
                swept.staging_bytes += item.bytes;
            }
        }
        Ok(())
    }
}
