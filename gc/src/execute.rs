//! The sweep: doing what a plan says, under the exclusive lock.
//!
//! Names go first, that is made durable, and then content goes: a crash at any instant leaves at worst
//! garbage, never a name without its content. Doing it again finishes the work.

use repository::{Error, Exclusive, Repository, Result, Wait};
use serde::Serialize;

use crate::plan::{Plan, PlanOptions, plan};
use crate::progress::{Phase, Progress};

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
    /// Links in `streams/`.
    pub streams: u64,
    /// Links in `images/`.
    pub images: u64,
    /// Objects.
    pub objects: u64,
    /// The sizes of those objects in bytes. Less is freed where blocks are shared with other files.
    pub object_bytes: u64,
    /// Staging directories.
    pub staging: u64,
    /// The sizes of the files in them in bytes.
    pub staging_bytes: u64,
}

/// Takes the exclusive lock and plans.
///
/// With [`Wait::Fail`], [`repository::Error::Busy`] says that others use the repository; with
/// [`Wait::Block`] `progress` hears of [`Phase::Waiting`] before they are waited for.
pub fn prepare<'r>(
    repository: &'r mut Repository,
    wait: Wait,
    progress: &dyn Progress,
) -> Result<Prepared<'r>> {
    if wait == Wait::Block {
        match repository.exclusive(Wait::Fail) {
            Err(Error::Busy(_)) => progress.begin(Phase::Waiting, None),
            Err(error) => return Err(error),
            // Taken again below, at once: a borrow that is returned in one arm would last in all.
            Ok(exclusive) => drop(exclusive),
        }
    }
    let exclusive = repository.exclusive(wait)?;
    let plan = plan(&exclusive, &PlanOptions::default(), progress)?;
    Ok(Prepared { exclusive, plan })
}

impl Prepared<'_> {
    /// What will be done.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it, and returns to the shared lock.
    pub fn execute(self, progress: &dyn Progress) -> Result<(Plan, Swept)> {
        let mut swept = Swept::default();
        let repository = &self.exclusive;

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
        let names = streams.clone().count() + images.clone().count();
        progress.begin(Phase::RemovingNames, Some(names as u64));
        for item in streams {
            swept.streams += u64::from(repository.remove_stream(&item.name)?);
            progress.advance(1);
        }
        for item in images {
            swept.images += u64::from(repository.remove_image(&item.name)?);
            progress.advance(1);
        }
        repository.sync_names()?;

        let objects = self
            .plan
            .objects
            .iter()
            .filter(|item| item.decision.is_removal());
        progress.begin(Phase::RemovingObjects, Some(objects.clone().count() as u64));
        for item in objects {
            if repository.remove_object(&item.digest)? {
                swept.objects += 1;
                swept.object_bytes += item.bytes.unwrap_or(0);
            }
            progress.advance(1);
        }
        for item in &self.plan.staging {
            if item.decision.is_removal() && repository.remove_staging(&item.name)? {
                swept.staging += 1;
                swept.staging_bytes += item.bytes;
            }
        }
        Ok((self.plan, swept))
    }
}
