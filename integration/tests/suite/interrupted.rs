//! SIGKILL at every durable step of publishing and of taking an image away: podman goes on listing and
//! running what there is, and the next run finishes.

use crate::scene::{IMAGE, Scene, unique};
use anyhow::{Context, Result, ensure};
use integration::fixture::noise;
use integration::store::Layout;
use integration::tar::Member;
use integration::{Finished, Fixture, Kind, Podman, Release, finish};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

const SIGKILL: i32 = 9;
const OTHER: &str = "localhost/other:1";

/// The steps of publishing, in order.
const PUBLISHING: [&str; 12] = [
    "commit-staged",
    "commit-content-synced",
    "commit-object",
    "commit-objects-synced",
    "commit-image",
    "commit-linked",
    "commit-ref",
    "commit-done",
    "publish-images-committed",
    "publish-layers-staged",
    "publish-layers-committed",
    "publish-image-committed",
];

/// The steps of taking an image away, in order.
const TAKING_AWAY: [&str; 7] = [
    "unpublish-image-hidden",
    "unpublish-image-dropped",
    "unpublish-image-removed",
    "unpublish-layers-removed",
    "unpublish-unmounted",
    "unpublish-ref",
    "unpublish-ref:2",
];

/// Of the many steps of a change of the store's records, every so many is tried.
const STRIDE: usize = 5;

fn fixture(dir: &Path) -> Result<Fixture> {
    let seed = unique();
    let layer = |n: u64| vec![Member::file(format!("layer{n}"), noise(seed + n, 10_000))];
    Fixture::of_own_layers(dir, seed, (1..3).map(layer).collect())
}

/// A scene with a published image that nobody touches, beside the one that is.
struct Interrupted {
    scene: Scene,
    podman: Podman,
    layout: Layout,
}

impl Interrupted {
    fn new(release: Release, layout: Layout) -> Result<Self> {
        let scene = Scene::new(release, Kind::Xfs, fixture)?;
        let other = fixture(&scene.disk.path().join("other"))?;
        scene.own.load(other.layout(), OTHER)?;
        let root = scene.own.graphroot().display().to_string();
        scene
            .store
            .ok(&["import", "--storage-root", &root, OTHER])?;
        scene.import()?;
        let podman = scene.consumer(layout)?;
        let new = Self {
            scene,
            podman,
            layout,
        };
        new.run(&new.publish(OTHER))?;
        Ok(new)
    }

    /// With the storage.conf of the podman that uses the store.
    fn configured(&self, arguments: &[&str]) -> Vec<String> {
        let conf = self.podman.storage_conf().display().to_string();
        let arguments = [arguments, &["--storage-conf", &conf]].concat();
        arguments.into_iter().map(str::to_owned).collect()
    }

    fn publish(&self, image: &str) -> Vec<String> {
        self.configured(&["publish", "--layout", self.layout.word(), image])
    }

    fn unpublish(&self, image: &str) -> Vec<String> {
        self.configured(&["unpublish", image])
    }

    fn finish(&self, arguments: &[String]) -> Result<Finished> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.scene.store.finish(&arguments)
    }

    fn run(&self, arguments: &[String]) -> Result<()> {
        self.finish(arguments)?.success().map(drop)
    }

    /// Whether the command got to the step, and died there.
    fn dies(&self, step: &str, arguments: &[String]) -> Result<bool> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let done = finish(&mut self.scene.store.command_killed_at(step, &arguments)?)?;
        if done.status.signal() == Some(SIGKILL) {
            return Ok(true);
        }
        done.success()?;
        Ok(false)
    }

    /// podman lists images, can run those that it lists, and always has the other one.
    fn podman_works(&self, step: &str) -> Result<()> {
        let context = || format!("after a crash at {step}");
        let listed = self
            .podman
            .ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        let listed = listed.with_context(context)?.text();
        ensure!(listed.contains(OTHER), "after a crash at {step}: {listed}");
        // An image on its way has no name any more.
        let names = listed.lines().filter(|name| !name.starts_with("<none>"));
        for name in names {
            // The status tells: podman 4 may lose what a container prints on a busy machine.
            let read = "test $(cat /layer1 /layer2 | wc -c) = 20000";
            let read = ["run", "--rm", "--pull", "never", name, "sh", "-euc", read];
            self.podman.ok(&read).with_context(context)?;
        }
        Ok(())
    }

    fn fsck(&self, step: &str) -> Result<()> {
        self.run(&self.configured(&["fsck"]))
            .with_context(|| format!("after a crash at {step}"))
    }

    /// Kills `change` at `step`; `undo` makes what it begins with. Whether the step was there.
    fn killed(&self, step: &str, change: &[String], undo: &[String]) -> Result<bool> {
        let died = self.dies(step, change)?;
        if died {
            self.podman_works(step)?;
            // Whether the image was gone by then depends on the step.
            let again = self.finish(change)?;
            ensure!(
                again.status.success() || again.stderr.contains("no published image"),
                "after a crash at {step}: {again}"
            );
            self.podman_works(step)?;
        }
        self.run(undo)?;
        Ok(died)
    }

    /// At the end of a test: gc takes what is left of the image, and keeps the other.
    fn ends_clean(&self) -> Result<()> {
        self.podman_works("all")?;
        self.fsck("all")?;
        for image in [IMAGE, OTHER] {
            self.finish(&self.unpublish(image))?;
            self.scene.store.ok(&["untag", image])?;
        }
        self.run(&self.configured(&["gc"]))?;
        assert_eq!(self.scene.store.objects()?, [] as [PathBuf; 0]);
        Ok(())
    }
}

fn publish_killed_anywhere_is_finished_by_the_next(release: Release, layout: Layout) -> Result<()> {
    let test = Interrupted::new(release, layout)?;
    let gc = test.configured(&["gc"]);
    let publish = test.publish(IMAGE);
    for step in PUBLISHING {
        // The images of an earlier round are not made again.
        test.run(&gc)?;
        ensure!(
            test.killed(step, &publish, &test.unpublish(IMAGE))?,
            "{step} is no step of publish"
        );
    }
    test.fsck("all")?;
    for n in (1..).step_by(STRIDE) {
        test.run(&gc)?;
        if !test.killed(&format!("own-store:{n}"), &publish, &test.unpublish(IMAGE))? {
            ensure!(n > STRIDE, "publish changes no records");
            break;
        }
    }
    test.ends_clean()
}

fn unpublish_killed_anywhere_is_finished_by_the_next(
    release: Release,
    layout: Layout,
) -> Result<()> {
    let test = Interrupted::new(release, layout)?;
    let publish = test.publish(IMAGE);
    test.run(&publish)?;
    for step in TAKING_AWAY {
        ensure!(
            test.killed(step, &test.unpublish(IMAGE), &publish)?,
            "{step} is no step of unpublish"
        );
    }
    test.fsck("all")?;
    for n in (1..).step_by(STRIDE) {
        if !test.killed(&format!("own-store:{n}"), &test.unpublish(IMAGE), &publish)? {
            ensure!(n > STRIDE, "unpublish changes no records");
            break;
        }
    }
    test.ends_clean()
}

#[test]
fn publish_for_podman_4_killed_at_any_durable_step_is_finished_by_the_next() -> Result<()> {
    publish_killed_anywhere_is_finished_by_the_next(Release::Host, Layout::Mounted)
}

#[test]
fn publish_for_podman_5_8_killed_at_any_durable_step_is_finished_by_the_next() -> Result<()> {
    publish_killed_anywhere_is_finished_by_the_next(Release::Sid, Layout::Blob)
}

#[test]
fn unpublish_for_podman_4_killed_at_any_durable_step_is_finished_by_the_next() -> Result<()> {
    unpublish_killed_anywhere_is_finished_by_the_next(Release::Host, Layout::Mounted)
}

#[test]
fn unpublish_for_podman_5_8_killed_at_any_durable_step_is_finished_by_the_next() -> Result<()> {
    unpublish_killed_anywhere_is_finished_by_the_next(Release::Sid, Layout::Blob)
}
