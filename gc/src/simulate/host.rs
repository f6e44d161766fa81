//! A host with bootc on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use composefs_image::VerityDigest;
use repository::oci::{ConfigDigest, DiffId, ManifestDigest};

use super::pe::uki;
use crate::boot::Sources;

/// What starts the host, and in which form its deployments are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// GRUB with entries of type 1 on `/boot`.
    GrubBls,
    /// GRUB with unified kernel images in its menu.
    GrubUki,
    /// systemd-boot with entries of type 1 on the EFI system partition.
    SystemdBls,
    /// systemd-boot with entries for unified kernel images.
    SystemdUki,
}

impl Loader {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::GrubBls,
        Self::GrubUki,
        Self::SystemdBls,
        Self::SystemdUki,
    ];

    fn is_uki(self) -> bool {
        matches!(self, Self::GrubUki | Self::SystemdUki)
    }
}

/// Where the boot filesystems are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// Below the sysroot.
    Inside,
    /// `/boot` and the EFI system partition are filesystems of their own, mounted elsewhere.
    Separate,
}

/// An entry of the boot menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Menu {
    /// What it boots.
    pub id: VerityDigest,
    /// The kernel directory or unified kernel image.
    pub artifact: String,
    /// For the names of files.
    pub version: u32,
}

/// What the origin file of a deployment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The manifest.
    Manifest(ManifestDigest),
    /// Nothing; a sidecar says this.
    Legacy(ConfigDigest, Vec<DiffId>),
    /// Nothing, and there is no sidecar.
    Unrecorded,
}

/// Something that isn't as bootc would leave it. Undone by [`Host::repair`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The state directory is gone.
    NoState(VerityDigest),
    /// The origin file is gone.
    NoOrigin(VerityDigest),
    /// The origin file is cut off within its last section; where depends on the number.
    CutOrigin(VerityDigest, usize),
    /// The first entry of the boot menu is cut off before it has said what it boots; where depends on the
    /// number.
    CutEntry(usize),
    /// The record of the staged deployment is cut off; where depends on the number.
    CutRun(usize),
}

/// The host was interrupted; what was done until then is on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

/// A host with bootc on it: its disk, and what is on it.
#[derive(Debug)]
pub struct Host {
    directory: PathBuf,
    loader: Loader,
    mounts: Mounts,
    /// What runs.
    pub booted: Option<VerityDigest>,
    /// The boot menu.
    pub menu: Vec<Menu>,
    /// The boot menu that takes its place at shutdown.
    pub staged: Option<Vec<Menu>>,
    /// The staged deployment that is announced.
    pub announced: Option<VerityDigest>,
    /// The state directories.
    pub states: BTreeMap<VerityDigest, Option<Record>>,
    /// The kernel directories and unified kernel images, with what the latter boot.
    pub artifacts: BTreeMap<String, Option<VerityDigest>>,
    /// The kernels in the artifacts, to share them.
    kernels: BTreeMap<String, u32>,
    versions: u32,
    /// After how many steps the host is interrupted.
    steps: Option<usize>,
}

impl Host {
    /// A host without deployments. Everything is below `directory`.
    pub fn new(directory: &Path, loader: Loader, mounts: Mounts) -> io::Result<Self> {
        let host = Self {
            directory: directory.to_owned(),
            loader,
            mounts,
            booted: None,
            menu: Vec::new(),
            staged: None,
            announced: None,
            states: BTreeMap::new(),
            artifacts: BTreeMap::new(),
            kernels: BTreeMap::new(),
            versions: 0,
            steps: None,
        };
        for path in [
            host.sysroot().join("state/deploy"),
            host.sysroot().join("state/os/default/var"),
            host.sysroot().join("boot/efi"),
            host.boot().join("grub2"),
            host.esp().join("EFI/Linux"),
            directory.join("run/composefs"),
        ] {
            fs::create_dir_all(path)?;
        }
        // Things of others that mean nothing.
        fs::write(host.boot().join("grub2/grub.cfg"), GRUB_CFG)?;
        fs::create_dir_all(host.esp().join("EFI/BOOT"))?;
        fs::write(host.esp().join("EFI/BOOT/BOOTX64.EFI"), uki(&[]))?;
        Ok(host)
    }

    /// The physical root filesystem.
    pub fn sysroot(&self) -> PathBuf {
        self.directory.join("sysroot")
    }

    /// `/boot`.
    pub fn boot(&self) -> PathBuf {
        match self.mounts {
            Mounts::Inside => self.sysroot().join("boot"),
            Mounts::Separate => self.directory.join("bootfs"),
        }
    }

    /// The EFI system partition.
    pub fn esp(&self) -> PathBuf {
        match self.mounts {
            Mounts::Inside => self.sysroot().join("boot/efi"),
            Mounts::Separate => self.directory.join("esp"),
        }
    }

    /// Where to look for what it boots.
    pub fn sources(&self) -> Sources {
        Sources {
            sysroot: self.sysroot(),
            boot: match self.mounts {
                Mounts::Inside => Vec::new(),
                Mounts::Separate => vec![self.boot(), self.esp()],
            },
            run: Some(self.directory.join("run")),
            command_line: self
                .booted
                .map(|id| format!("root=UUID=0 rw composefs={id}").into_bytes()),
            root_source: self.booted.map(|id| format!("composefs:{id}")),
        }
    }

    /// Lets the next operation be interrupted after so many steps.
    pub fn interrupt_after(&mut self, steps: Option<usize>) {
        self.steps = steps;
    }

    fn step(&mut self) -> Result<(), Interrupted> {
        match &mut self.steps {
            Some(0) => {
                self.steps = None;
                Err(Interrupted)
            }
            Some(steps) => {
                *steps -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Deploys an image: at once if nothing is deployed yet, else to be finalized at shutdown. `kernel` is
    /// its kernel; deployments with the same one share a directory.
    pub fn deploy(
        &mut self,
        id: VerityDigest,
        record: Record,
        kernel: u32,
    ) -> io::Result<Result<(), Interrupted>> {
        self.versions += 1;
        let first = self.menu.is_empty();
        macro_rules! step {
            () => {
                if self.step().is_err() {
                    return Ok(Err(Interrupted));
                }
            };
        }
        let artifact = self.write_artifact(id, kernel)?;
        step!();
        let entry = Menu {
            id,
            artifact,
            version: self.versions,
        };
        if first {
            self.menu = vec![entry];
            self.write_menu(&self.menu, Stage::Active)?;
        } else {
            self.remove_staged()?;
            step!();
            let booted = self.menu.iter().find(|entry| Some(entry.id) == self.booted);
            let mut staged = vec![entry];
            staged.extend(booted.or(self.menu.first()).cloned());
            self.write_menu(&staged, Stage::Staged)?;
            self.staged = Some(staged);
        }
        step!();
        self.states.insert(id, None);
        let state = self.state(&id);
        fs::create_dir_all(state.join("etc/systemd"))?;
        fs::write(state.join("etc/hostname"), "host\n")?;
        if !state.join("var").is_symlink() {
            symlink("../../os/default/var", state.join("var"))?;
        }
        step!();
        self.states.insert(id, Some(record));
        self.write_state(&id)?;
        step!();
        if first {
            self.booted = Some(id);
        } else {
            self.announced = Some(id);
            self.write_run()?;
        }
        Ok(Ok(()))
    }

    /// What happens at shutdown: the staged menu becomes the active one, and what it doesn't name goes.
    pub fn finalize(&mut self) -> io::Result<Result<(), Interrupted>> {
        if self.announced.is_none() {
            return Ok(Ok(()));
        }
        let Some(staged) = self.staged.take() else {
            return Ok(Ok(()));
        };
        // As RENAME_EXCHANGE does.
        let old = std::mem::replace(&mut self.menu, staged);
        self.write_menu(&self.menu, Stage::Active)?;
        self.write_menu(&old, Stage::Staged)?;
        self.staged = Some(old);
        if self.step().is_err() {
            return Ok(Err(Interrupted));
        }
        self.remove_staged()?;
        if self.step().is_err() {
            return Ok(Err(Interrupted));
        }
        self.remove_artifacts()?;
        Ok(Ok(()))
    }

    /// Starts the first entry of the menu.
    pub fn reboot(&mut self) -> io::Result<()> {
        self.steps = None;
        self.announced = None;
        self.booted = self.menu.first().map(|entry| entry.id);
        remove_file(&self.run())
    }

    /// Puts the second entry of the menu first.
    pub fn roll_back(&mut self) -> io::Result<()> {
        if self.menu.len() > 1 && self.staged.is_none() {
            self.menu.swap(0, 1);
            self.write_menu(&self.menu, Stage::Active)?;
        }
        Ok(())
    }

    /// Removes what no entry names, as bootc does before it collects the repository.
    pub fn clean_up(&mut self) -> io::Result<()> {
        self.remove_artifacts()?;
        let named: BTreeSet<_> = self.named().map(|entry| entry.id).collect();
        let gone: Vec<_> = self
            .states
            .keys()
            .filter(|id| !named.contains(id))
            .copied()
            .collect();
        for id in gone {
            fs::remove_dir_all(self.state(&id))?;
            self.states.remove(&id);
        }
        Ok(())
    }

    /// Forgets what a collection has pruned.
    pub fn pruned(&mut self) {
        if self.announced.is_none() {
            self.staged = None;
        }
        let named: BTreeSet<_> = self.named().map(|entry| entry.id).collect();
        self.states.retain(|id, _| named.contains(id));
        let used: BTreeSet<_> = self.named().map(|entry| entry.artifact.clone()).collect();
        self.artifacts.retain(|name, _| used.contains(name));
    }

    /// Damages the host.
    pub fn damage(&self, damage: &Damage) -> io::Result<()> {
        let cut = |path: PathBuf, between: &dyn Fn(&str) -> std::ops::Range<usize>, at: usize| {
            let content = fs::read_to_string(&path)?;
            let between = between(&content);
            fs::write(path, &content[..between.start + at % between.len()])
        };
        match damage {
            Damage::NoState(id) => fs::remove_dir_all(self.state(id)),
            Damage::NoOrigin(id) => fs::remove_file(self.origin(id)),
            Damage::CutOrigin(id, at) => {
                let within = |text: &str| {
                    let section = text.find("[image]").expect("the origin names a manifest");
                    section + 7..text.len() - 1
                };
                cut(self.origin(id), &within, *at)
            }
            Damage::CutEntry(at) => {
                let first = self.menu.first().expect("there is an entry");
                let path = match self.loader {
                    Loader::GrubUki => self.menu_path(Stage::Active),
                    _ => self.menu_path(Stage::Active).join(entry_name(first, true)),
                };
                let end = if self.loader.is_uki() {
                    ".efi".to_owned()
                } else {
                    // The one in the options is the last.
                    first.id.to_hex()
                };
                let within = |text: &str| {
                    let found = if self.loader.is_uki() {
                        text.find(&end)
                    } else {
                        text.rfind(&end)
                    };
                    0..found.expect("the entry names its image") + end.len()
                };
                cut(path, &within, *at)
            }
            Damage::CutRun(at) => cut(self.run(), &|text| 0..text.len(), *at),
        }
    }

    /// Makes the disk what it would be without the damage.
    pub fn repair(&self) -> io::Result<()> {
        self.write_menu(&self.menu, Stage::Active)?;
        for id in self.states.keys() {
            fs::create_dir_all(self.state(id).join("etc"))?;
            self.write_state(id)?;
        }
        if self.announced.is_some() {
            self.write_run()?;
        }
        Ok(())
    }

    /// All entries, active and staged.
    pub fn named(&self) -> impl Iterator<Item = &Menu> {
        self.menu.iter().chain(self.staged.iter().flatten())
    }

    fn state(&self, id: &VerityDigest) -> PathBuf {
        self.sysroot().join("state/deploy").join(id.to_hex())
    }

    fn origin(&self, id: &VerityDigest) -> PathBuf {
        self.state(id).join(format!("{id}.origin"))
    }

    fn run(&self) -> PathBuf {
        self.directory.join("run/composefs/staged-deployment")
    }

    fn write_run(&self) -> io::Result<()> {
        let Some(id) = self.announced else {
            return Ok(());
        };
        let json = format!(r#"{{"depl_id":"{id}","finalization_locked":false}}"#);
        fs::write(self.run(), json)
    }

    fn write_state(&self, id: &VerityDigest) -> io::Result<()> {
        let Some(Some(record)) = self.states.get(id) else {
            return Ok(());
        };
        let mut origin = format!(
            "[origin]\ncontainer-image-reference = ostree-unverified-image:docker://os.example/os:1\n\n\
             [boot]\nboot_type = {}\ndigest = {}\n",
            if self.loader.is_uki() { "uki" } else { "bls" },
            "0".repeat(64)
        );
        let sidecar = self.state(id).join(format!("{id}.imginfo"));
        match record {
            Record::Manifest(digest) => {
                let image = format!("\n[image]\nmanifest_digest = {digest}\n");
                origin.push_str(&image);
            }
            Record::Legacy(config, layers) => {
                let layers: Vec<_> = layers.iter().map(|id| format!("\"{id}\"")).collect();
                let json = format!(
                    r#"{{"config":{{"rootfs":{{"type":"layers","diff_ids":[{}]}}}},"manifest":{{"config":{{"digest":"{config}"}}}}}}"#,
                    layers.join(",")
                );
                fs::write(sidecar, json)?;
            }
            Record::Unrecorded => {}
        }
        fs::write(self.origin(id), origin)
    }

    fn write_artifact(&mut self, id: VerityDigest, kernel: u32) -> io::Result<String> {
        if self.loader.is_uki() {
            let name = format!("bootc_composefs-{id}.efi");
            let directory = self.esp().join("EFI/Linux/bootc");
            fs::create_dir_all(directory.join(format!("{name}.extra.d")))?;
            fs::write(
                directory.join(format!("{name}.extra.d/debug.addon.efi")),
                uki(&["debug"]),
            )?;
            let line = format!("rw composefs={id} kernel={kernel}");
            fs::write(directory.join(&name), uki(&[&line, &line]))?;
            self.artifacts.insert(name.clone(), Some(id));
            return Ok(name);
        }
        let shared = self
            .kernels
            .iter()
            .find(|(name, other)| **other == kernel && self.artifacts.contains_key(*name));
        if let Some((name, _)) = shared {
            return Ok(name.clone());
        }
        let name = format!("bootc_composefs-{id}");
        let directory = self.kernel_parent().join(&name);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("vmlinuz"), kernel.to_le_bytes())?;
        fs::write(directory.join("initrd"), kernel.to_le_bytes())?;
        self.artifacts.insert(name.clone(), None);
        self.kernels.insert(name.clone(), kernel);
        Ok(name)
    }

    /// Where kernel directories are.
    fn kernel_parent(&self) -> PathBuf {
        match self.loader {
            Loader::GrubBls | Loader::GrubUki => self.boot(),
            Loader::SystemdBls | Loader::SystemdUki => self.esp().join("EFI/Linux"),
        }
    }

    fn remove_artifacts(&mut self) -> io::Result<()> {
        let used: BTreeSet<_> = self.named().map(|entry| entry.artifact.clone()).collect();
        let unused: Vec<_> = self
            .artifacts
            .keys()
            .filter(|name| !used.contains(*name))
            .cloned()
            .collect();
        for name in unused {
            if self.loader.is_uki() {
                let path = self.esp().join("EFI/Linux/bootc").join(&name);
                fs::remove_file(&path)?;
                fs::remove_dir_all(format!("{}.extra.d", path.display()))?;
            } else {
                fs::remove_dir_all(self.kernel_parent().join(&name))?;
            }
            self.artifacts.remove(&name);
        }
        Ok(())
    }

    fn menu_path(&self, stage: Stage) -> PathBuf {
        let suffix = match stage {
            Stage::Active => "",
            Stage::Staged => ".staged",
        };
        match self.loader {
            Loader::GrubBls => self.boot().join(format!("loader/entries{suffix}")),
            Loader::GrubUki => self.boot().join(format!("grub2/user.cfg{suffix}")),
            Loader::SystemdBls | Loader::SystemdUki => {
                self.esp().join(format!("loader/entries{suffix}"))
            }
        }
    }

    fn remove_staged(&mut self) -> io::Result<()> {
        self.staged = None;
        let path = self.menu_path(Stage::Staged);
        if self.loader == Loader::GrubUki {
            return remove_file(&path);
        }
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write_menu(&self, menu: &[Menu], stage: Stage) -> io::Result<()> {
        let path = self.menu_path(stage);
        if self.loader == Loader::GrubUki {
            return fs::write(path, user_cfg(menu));
        }
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&path)?;
        if stage == Stage::Active {
            fs::write(path.join("memtest.conf"), "title memtest\nlinux /memtest\n")?;
        }
        for (index, entry) in menu.iter().enumerate() {
            let text = self.entry_text(entry, index == 0);
            fs::write(path.join(entry_name(entry, index == 0)), text)?;
        }
        Ok(())
    }

    fn entry_text(&self, entry: &Menu, first: bool) -> String {
        let Menu {
            id,
            artifact,
            version,
        } = entry;
        let kernels = match (self.loader, self.mounts) {
            (Loader::GrubBls, Mounts::Inside) => "/boot",
            (Loader::GrubBls, Mounts::Separate) => "",
            _ => "/EFI/Linux",
        };
        // The forms of the argument, by turns.
        let argument = match version % 3 {
            0 => format!("composefs={id}"),
            1 => format!("composefs=?{id}"),
            _ => format!("composefs.digest=v1-{}-12:{id}", id.algorithm().name()),
        };
        let start = match self.loader {
            Loader::SystemdUki if version % 2 == 0 => format!("efi /EFI/Linux/bootc/{artifact}\n"),
            Loader::SystemdUki => format!("uki /EFI/Linux/bootc/{artifact}\n"),
            _ => format!(
                "linux {kernels}/{artifact}/vmlinuz\ninitrd {kernels}/{artifact}/initrd\n\
                 options root=UUID=0 rw {argument} quiet\n"
            ),
        };
        format!(
            "title Example {version}\nversion {version}\n{start}sort-key bootc-example-{}\n",
            u8::from(!first)
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Active,
    Staged,
}

fn entry_name(entry: &Menu, first: bool) -> String {
    format!("bootc_example-{}-{}.conf", entry.version, u8::from(first))
}

fn user_cfg(menu: &[Menu]) -> String {
    let mut text = String::from(
        "\nif [ -f ${config_directory}/efiuuid.cfg ]; then\n        \
         source ${config_directory}/efiuuid.cfg\nfi\n",
    );
    for Menu { id, artifact, .. } in menu {
        let entry = format!(
            "menuentry \"Example: ({id})\" {{\ninsmod fat\ninsmod chain\n\
             search --no-floppy --set=root --fs-uuid \"${{EFI_PART_UUID}}\"\n\
             chainloader /EFI/Linux/bootc/{artifact}\n}}\n"
        );
        text.push_str(&entry);
    }
    text
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What distributions have there, shortened.
const GRUB_CFG: &str = "set timeout=5\nif [ -s $prefix/grubenv ]; then\n  load_env\nfi\n\
    function savedefault {\n  if [ -z \"${boot_once}\" ]; then\n    save_env saved_entry\n  fi\n}\n\
    insmod blscfg\nblscfg\nmenuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {\n\
    \tfwsetup\n}\nif [ -f $prefix/custom.cfg ]; then source $prefix/custom.cfg; fi\n";
