//! What is on one boot filesystem: artifacts, entries and menus, without drawing conclusions.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use composefs_image::VerityDigest;
use rustix::fs::FileType;

use super::artifact::{self, PREFIX, UkiName};
use super::bls::{self, BlsEntry};
use super::grub::{self, Menu};
use super::tree::{ReadFault, UntrustedDir};
use super::{Doubt, Fault, Problem, uki};

/// Where entries of type 1 are.
const ENTRIES: &str = "loader/entries";
/// Where those are that become active at shutdown.
const STAGED_ENTRIES: &str = "loader/entries.staged";
/// Where boot loaders look for unified kernel images.
const EFI_LINUX: &str = "EFI/Linux";
/// Where bootc has them, named by entries.
const BOOTC_UKIS: &str = "EFI/Linux/bootc";
/// The directories of GRUB.
const GRUB_DIRECTORIES: [&str; 2] = ["grub2", "grub"];
/// The menus in them.
const MENUS: [&str; 3] = ["grub.cfg", USER_CFG, "custom.cfg"];
/// The menu that bootc writes.
const USER_CFG: &str = "user.cfg";
/// The one that takes its place at shutdown.
const STAGED_MENU: &str = "user.cfg.staged";

/// The largest entry of type 1, in bytes.
const MAX_ENTRY: u64 = 64 << 10;
/// The largest menu, in bytes.
const MAX_MENU: u64 = 1 << 20;

/// Whether an entry is active already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Active,
    Staged,
}

/// What is on one boot filesystem.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) entries: Vec<(PathBuf, Stage, BlsEntry)>,
    pub(super) menus: Vec<(PathBuf, Stage, Menu)>,
    pub(super) ukis: Vec<Uki>,
    /// Directories with bootc's prefix, or the digest of old hosts, as a name.
    pub(super) kernels: Vec<PathBuf>,
    /// Directories with add-ons of unified kernel images.
    pub(super) addons: Vec<PathBuf>,
    /// It has an `EFI/Linux`: unified kernel images would be here.
    pub(super) has_efi: bool,
    pub(super) problems: Vec<Problem>,
}

/// A unified kernel image, or another EFI program among them.
#[derive(Debug)]
pub(super) struct Uki {
    pub(super) path: PathBuf,
    /// The images that its kernel arguments and those of its add-ons name.
    pub(super) images: Vec<VerityDigest>,
    /// Boot loaders find it by themselves.
    pub(super) discovered: bool,
}

impl Uki {
    pub(super) fn name(&self) -> &str {
        name_of(&self.path)
    }
}

/// The name of a path that [`scan`] has made of text.
pub(super) fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// Looks at a boot filesystem. Paths in the result are relative to it, those in problems are not.
pub(super) fn scan(place: &UntrustedDir) -> Scan {
    let mut scan = Scan::default();
    let files = |scan: &mut Scan, directory: &str| -> Vec<(PathBuf, FileType)> {
        match place.list(directory) {
            Ok(names) => names
                .into_iter()
                .map(|(name, kind)| (Path::new(directory).join(name), kind))
                .collect(),
            Err(fault) => {
                scan.unreadable(place, Path::new(directory), fault);
                Vec::new()
            }
        }
    };
    for (path, kind) in files(&mut scan, "") {
        if kind == FileType::Directory && name_of(&path).starts_with(PREFIX) {
            scan.kernels.push(path);
        }
    }
    for directory in [EFI_LINUX, BOOTC_UKIS] {
        let found = files(&mut scan, directory);
        scan.has_efi |= !found.is_empty();
        for (path, kind) in found {
            let name = name_of(&path);
            if kind == FileType::Directory {
                if artifact::addons_of(name).is_some() {
                    scan.addons.push(path);
                } else if name.starts_with(PREFIX) {
                    scan.kernels.push(path);
                }
            } else if artifact::is_efi(name) {
                scan.uki(place, path, directory == EFI_LINUX);
            }
        }
    }
    for (directory, stage) in [(ENTRIES, Stage::Active), (STAGED_ENTRIES, Stage::Staged)] {
        for (path, _) in files(&mut scan, directory) {
            if path.extension() != Some(OsStr::new("conf")) {
                continue;
            }
            match place.read(&path, MAX_ENTRY) {
                Ok(Some(text)) => scan.entries.push((path, stage, bls::parse(&text))),
                // It has just gone.
                Ok(None) => {}
                Err(fault) => scan.unreadable(place, &path, fault),
            }
        }
    }
    for directory in GRUB_DIRECTORIES {
        let menus = MENUS.map(|menu| (menu, Stage::Active));
        for (menu, stage) in menus.into_iter().chain([(STAGED_MENU, Stage::Staged)]) {
            scan.menu(place, Path::new(directory).join(menu), stage);
        }
    }
    scan
}

impl Scan {
    fn unreadable(&mut self, place: &UntrustedDir, path: &Path, fault: ReadFault) {
        self.problem(place, path, fault.into(), Doubt::Everything);
    }

    fn problem(&mut self, place: &UntrustedDir, path: &Path, fault: Fault, doubt: Doubt) {
        let path = place.join(path);
        self.problems.push(Problem { path, fault, doubt });
    }

    fn menu(&mut self, place: &UntrustedDir, path: PathBuf, stage: Stage) {
        let menu = match place.read(&path, MAX_MENU) {
            Ok(Some(text)) => grub::parse(&text),
            Ok(None) => return,
            Err(fault) => return self.unreadable(place, &path, fault),
        };
        // The distribution's own menu may include all its entries from elsewhere.
        let bootcs = matches!(name_of(&path), USER_CFG | STAGED_MENU);
        if bootcs && menu.entries == 0 && menu.faults.is_empty() {
            self.problem(place, &path, Fault::EmptyMenu, Doubt::Everything);
        }
        // Each of its entries starts something.
        if bootcs && menu.statements.len() < menu.entries {
            self.problem(place, &path, Fault::NoKernel, Doubt::Everything);
        }
        for fault in &menu.faults {
            let fault = match fault.clone() {
                grub::MenuFault::Argument(error) => error.into(),
                grub::MenuFault::Name(name) => Fault::Name(name),
                grub::MenuFault::Truncated => Fault::CutMenu,
            };
            self.problem(place, &path, fault, Doubt::Everything);
        }
        self.menus.push((path, stage, menu));
    }

    fn uki(&mut self, place: &UntrustedDir, path: PathBuf, discovered: bool) {
        let named = artifact::uki_name(name_of(&path));
        // A name that says what it boots leaves no doubt.
        let doubt = match named {
            UkiName::Image(_) => Doubt::Kept,
            UkiName::Malformed | UkiName::Foreign => Doubt::Everything,
        };
        let mut images = Vec::new();
        let directory = PathBuf::from(format!("{}.extra.d", path.display()));
        let addons = place.list(&directory).unwrap_or_default();
        let addons = addons
            .into_iter()
            .map(|(name, _)| directory.join(name))
            .filter(|path| artifact::is_efi(name_of(path)));
        for file in std::iter::once(path.clone()).chain(addons) {
            match images_of(place, &file) {
                Ok(found) => images.extend(found),
                Err(fault) => self.problem(place, &file, fault, doubt),
            }
        }
        if let UkiName::Image(name) = named
            && let Some(argument) = images.first()
            && !images.contains(&name)
        {
            let argument = *argument;
            let fault = Fault::Disagree { name, argument };
            self.problem(place, &path, fault, Doubt::Kept);
        }
        self.ukis.push(Uki {
            path,
            images,
            discovered,
        });
    }
}

/// The images that the kernel arguments in an EFI program name.
pub(super) fn images_of(place: &UntrustedDir, path: &Path) -> Result<Vec<VerityDigest>, Fault> {
    let Some(file) = place.file(path)? else {
        return Ok(Vec::new());
    };
    let lines = uki::command_lines(&file).map_err(|error| Fault::Unreadable(error.to_string()))?;
    let mut images = Vec::new();
    for line in lines {
        images.extend(bls::images(&line)?);
    }
    Ok(images)
}
