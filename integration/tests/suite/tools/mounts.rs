//! `mount.composefs`.

use super::{Tools, directory};
use anyhow::{Context, Result, ensure};
use integration::tree::Scope;
use integration::{Finished, Tree, finish};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An image with its digest store.
struct Mountable {
    tools: Tools,
    source: PathBuf,
    image: PathBuf,
    base: String,
}

impl Mountable {
    fn new() -> Result<Self> {
        let tools = Tools::new()?;
        let source = tools.path("source");
        directory::make(&source)?;
        let store = tools.path("store");
        let option = format!("--digest-store={}", store.display());
        let image = tools
            .image(&[option.as_ref(), source.as_os_str()])?
            .context("an image")?;
        Ok(Self {
            base: format!("basedir={}", store.display()),
            tools,
            source,
            image,
        })
    }

    fn target(&self, name: &str) -> Result<PathBuf> {
        let target = self.tools.path(name);
        fs::create_dir(&target)?;
        Ok(target)
    }

    fn mount(&self, mut tool: Command, options: &str, target: &Path) -> Result<Finished> {
        finish(tool.args(["-o", options]).arg(&self.image).arg(target))
    }

    fn ours(&self, options: &str, target: &Path) -> Result<Finished> {
        self.mount(self.tools.ours("mount.composefs"), options, target)
    }

    fn c(&self, options: &str, target: &Path) -> Result<Finished> {
        self.mount(self.tools.c("mount.composefs"), options, target)
    }
}

#[test]
fn a_mount_shows_what_c_shows() -> Result<()> {
    let m = Mountable::new()?;
    let [ours, c] = [m.target("ours")?, m.target("c")?];
    m.ours(&m.base, &ours)?.success()?;
    m.c(&m.base, &c)?.success()?;
    let shown = Tree::read(&ours, Scope::Mount)?;
    shown.must_equal("ours", &Tree::read(&c, Scope::Mount)?, "C")?;
    // Hard links are separate files in the image.
    ensure!(shown.entries.len() == Tree::read(&m.source, Scope::Mount)?.entries.len());
    ensure!(fs::write(ours.join("new"), "x").is_err());
    Ok(())
}

#[test]
fn a_mount_with_an_upper_directory_is_writable_unless_it_says_ro() -> Result<()> {
    let m = Mountable::new()?;
    let upper = m.target("upper")?;
    let work = m.target("work")?;
    let options = format!(
        "{},upperdir={},workdir={}",
        m.base,
        upper.display(),
        work.display()
    );
    let target = m.target("target")?;
    m.ours(&options, &target)?.success()?;
    fs::write(target.join("files/4096"), "changed")?;
    ensure!(fs::read(upper.join("files/4096"))? == b"changed");
    m.tools
        .machine
        .sh(&format!("umount {}", target.display()))?;

    m.ours(&format!("ro,{options}"), &target)?.success()?;
    ensure!(fs::read(target.join("files/4096"))? == b"changed");
    ensure!(fs::write(target.join("files/4096"), "again").is_err());
    Ok(())
}

#[test]
fn odd_characters_in_paths_are_escaped_in_options() -> Result<()> {
    let m = Mountable::new()?;
    let odd = m.tools.path("odd, back\\slash=");
    fs::rename(m.tools.path("store"), &odd)?;
    let escaped = odd
        .display()
        .to_string()
        .replace('\\', "\\\\")
        .replace(',', "\\,");
    let target = m.target("target")?;
    m.ours(&format!("basedir={escaped}"), &target)?.success()?;
    ensure!(fs::read(target.join("files/8192"))? == fs::read(m.source.join("files/8192"))?);
    Ok(())
}

#[test]
fn with_verity_the_kernel_refuses_content_that_has_none() -> Result<()> {
    let m = Mountable::new()?;
    // No filesystem of these tests has fs-verity, but the kernel's overlay knows the option.
    for option in ["verity", "tryverity"] {
        let options = format!("{},{option}", m.base);
        let [ours, c] = [
            m.target(&format!("ours-{option}"))?,
            m.target(&format!("c-{option}"))?,
        ];
        m.ours(&options, &ours)?.success()?;
        m.c(&options, &c)?.success()?;
        for target in [ours, c] {
            ensure!(fs::read(target.join("files/64")).is_ok());
            let error = fs::read(target.join("files/65")).err();
            ensure!(error.and_then(|error| error.raw_os_error()) == Some(EIO));
        }
    }
    Ok(())
}

const EIO: i32 = 5;

#[test]
fn owners_are_shifted_by_a_user_namespace() -> Result<()> {
    let m = Mountable::new()?;
    let target = m.target("target")?;
    let script = format!(
        "unshare --user sleep infinity & \
         while [ /proc/$!/ns/user -ef /proc/self/ns/user ]; do :; done; \
         echo '0 100000 65536' >/proc/$!/uid_map; echo '0 100000 65536' >/proc/$!/gid_map; \
         {}/mount.composefs -o {},idmap=/proc/$!/ns/user {} {}; status=$?; kill $!; exit $status",
        m.tools.ours.display(),
        m.base,
        m.image.display(),
        target.display(),
    );
    m.tools.machine.sh(&script)?;
    let tree = Tree::read(&target, Scope::Mount)?;
    ensure!(tree.get("files/4096")?.owner == (100_000, 100_000));
    ensure!(tree.get("files/owner-1")?.owner == (100_001, 100_000));
    Ok(())
}

#[test]
fn an_image_without_the_digest_asked_for_is_refused() -> Result<()> {
    let m = Mountable::new()?;
    let target = m.target("target")?;
    // No filesystem of these tests has fs-verity.
    for options in [
        format!("{},digest={}", m.base, "4c".repeat(32)),
        format!("{},digest=12", m.base),
        format!("{},noatime", m.base),
        "verity".to_owned(),
        "basedir=/no/such/directory".to_owned(),
        format!("{},upperdir=/tmp", m.base),
        format!("{},idmap=/no/such/file", m.base),
    ] {
        let done = m.ours(&options, &target)?;
        ensure!(done.status.code() == Some(1), "{done}");
        ensure!(
            m.c(&options, &target)?.status.code() == Some(1),
            "C: {options}"
        );
    }
    let done = m.ours(&format!("{},digest={}", m.base, "4c".repeat(32)), &target)?;
    ensure!(done.stderr.contains("no fs-verity"), "{done}");
    ensure!(fs::read_dir(&target)?.next().is_none());
    Ok(())
}

#[test]
fn mount_finds_the_helper_by_its_name() -> Result<()> {
    let m = Mountable::new()?;
    let target = m.target("target")?;
    m.tools.machine.sh(&format!(
        "mount --bind {}/mount.composefs /usr/sbin/mount.composefs && \
         mount -t composefs -o ro,{} {} {}",
        m.tools.ours.display(),
        m.base,
        m.image.display(),
        target.display()
    ))?;
    ensure!(fs::read(target.join("files/65"))? == fs::read(m.source.join("files/65"))?);
    Ok(())
}
