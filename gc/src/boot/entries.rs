//! What entries, menus and unified kernel images name.

use std::path::Path;

use composefs_image::VerityDigest;

use super::artifact::{self, UkiName};
use super::bls::{self, BlsEntry, Program, ProgramKind};
use super::find::{Candidate, Finder};
use super::scan::{self, Stage, Uki, name_of};
use super::{Doubt, Entry, EntryKind, Fault};

impl Finder {
    pub(super) fn bls_entries(&mut self) {
        let mut entries = Vec::new();
        for (place, scan) in &mut self.scans {
            for (path, stage, entry) in scan.entries.drain(..) {
                entries.push((*place, path, stage, entry));
            }
        }
        for (place, relative, stage, entry) in entries {
            let path = self.places[place].join(&relative);
            let images = self.bls_images(&path, stage, &entry);
            // What is staged belongs to bootc, whatever it is.
            if images.is_empty() && stage == Stage::Active {
                continue;
            }
            self.candidates.push(Candidate {
                entry: Entry {
                    path,
                    kind: match stage {
                        Stage::Active => EntryKind::Bls,
                        Stage::Staged => EntryKind::Staged,
                    },
                    images,
                },
                stage,
                place,
                relative,
                sort_key: entry.sort_key,
                version: entry.version,
            });
        }
    }

    /// The images that an entry of type 1 names; none if it is not one of ours, or a problem.
    fn bls_images(&mut self, path: &Path, stage: Stage, entry: &BlsEntry) -> Vec<VerityDigest> {
        let mut images = match bls::images(&entry.options) {
            Ok(images) => images,
            Err(error) => {
                self.problem(path, error.into(), Doubt::Everything);
                return Vec::new();
            }
        };
        let kernel = entry.linux.as_deref();
        // Some write a unified kernel image for a kernel.
        let program = entry.program.clone().or_else(|| {
            kernel
                .filter(|kernel| artifact::is_efi(kernel))
                .map(|kernel| Program {
                    path: kernel.to_owned(),
                    kind: ProgramKind::Any,
                })
        });
        if let Some(directory) = kernel.and_then(artifact::kernel_directory) {
            self.uses(directory, stage);
            let exists = self.scans.iter().any(|(_, scan)| {
                let mut kernels = scan.kernels.iter();
                kernels.any(|kernel| name_of(kernel) == directory)
            });
            // Old names without prefix aren't listed.
            if !exists && directory.starts_with(artifact::PREFIX) {
                let fault = Fault::NoArtifact(kernel.unwrap_or_default().to_owned());
                self.problem(path, fault, Doubt::Kept);
            }
        }
        if let Some(program) = program {
            for image in self.program_images(path, stage, &program) {
                if !images.contains(&image) {
                    images.push(image);
                }
            }
        } else if kernel.is_none() {
            self.problem(path, Fault::NoKernel, Doubt::Everything);
            return images;
        }
        if images.is_empty() && entry.is_bootcs(name_of(path)) {
            self.problem(path, Fault::NoImage, Doubt::Everything);
        }
        images
    }

    fn uses(&mut self, artifact: &str, stage: Stage) {
        match stage {
            Stage::Active => self.used.insert(artifact.to_owned()),
            Stage::Staged => self.used_staged.insert(artifact.to_owned()),
        };
    }

    /// The images that a program names, by its name or in it.
    fn program_images(
        &mut self,
        entry: &Path,
        stage: Stage,
        program: &Program,
    ) -> Vec<VerityDigest> {
        let name = artifact::file_name(&program.path).to_owned();
        self.uses(&name, stage);
        if name.starts_with(artifact::PREFIX) && !artifact::is_efi(&name) {
            self.problem(entry, Fault::Name(name.clone()), Doubt::Everything);
        }
        let mut images = Vec::new();
        let mut found = false;
        for (_, scan) in &self.scans {
            for uki in scan.ukis.iter().filter(|uki| uki.name() == name) {
                found = true;
                images.extend(&uki.images);
            }
        }
        match artifact::uki_name(&name) {
            UkiName::Image(image) => {
                if !images.contains(&image) {
                    images.insert(0, image);
                }
                // Where no EFI system partition is mounted, nothing can be said.
                if !found && self.scans.iter().any(|(_, scan)| scan.has_efi) {
                    let fault = Fault::NoArtifact(program.path.clone());
                    self.problem(entry, fault, Doubt::Kept);
                }
            }
            UkiName::Malformed if images.is_empty() => {
                self.problem(entry, Fault::Name(name), Doubt::Everything);
            }
            UkiName::Malformed => {}
            UkiName::Foreign if found => {}
            UkiName::Foreign => images.extend(self.foreign_program(entry, program)),
        }
        images
    }

    /// The images that a program outside bootc's directories names.
    fn foreign_program(&mut self, entry: &Path, program: &Program) -> Vec<VerityDigest> {
        let path = program.path.replace('\\', "/");
        let mut exists = false;
        let mut faults = Vec::new();
        let mut images = Vec::new();
        for (place, _) in &self.scans {
            let place = &self.places[*place];
            match place.file(&path) {
                Ok(None) => continue,
                Ok(Some(_)) => exists = true,
                Err(fault) => faults.push(Fault::from(fault)),
            }
            match scan::images_of(place, Path::new(&path)) {
                Ok(found) => images.extend(found),
                Err(fault) => faults.push(fault),
            }
        }
        // Outside of where unified kernel images are, it is most likely another boot loader, perhaps of
        // another system.
        let in_efi_linux = path.to_ascii_lowercase().starts_with("/efi/linux/");
        if program.kind == ProgramKind::Uki || in_efi_linux {
            if !exists {
                let fault = Fault::NoProgram(program.path.clone());
                self.problem(entry, fault, Doubt::Everything);
            }
            for fault in faults {
                self.problem(entry, fault, Doubt::Everything);
            }
        }
        images
    }

    pub(super) fn menus(&mut self) {
        let mut menus = Vec::new();
        for (place, scan) in &mut self.scans {
            for (path, stage, menu) in scan.menus.drain(..) {
                menus.push((*place, path, stage, menu));
            }
        }
        for (place, relative, stage, menu) in menus {
            let path = self.places[place].join(&relative);
            let candidate = |images| Candidate {
                entry: Entry {
                    path: path.clone(),
                    kind: match stage {
                        Stage::Active => EntryKind::Grub,
                        Stage::Staged => EntryKind::Staged,
                    },
                    images,
                },
                stage,
                place,
                relative: relative.clone(),
                sort_key: None,
                version: None,
            };
            if stage == Stage::Staged {
                self.candidates.push(candidate(Vec::new()));
            }
            for statement in menu.statements {
                let mut images = statement.images;
                for kernel in &statement.kernels {
                    self.uses(kernel, stage);
                }
                for program in statement.programs {
                    let kind = ProgramKind::Any;
                    let program = Program {
                        path: program,
                        kind,
                    };
                    for image in self.program_images(&path, stage, &program) {
                        if !images.contains(&image) {
                            images.push(image);
                        }
                    }
                }
                if !images.is_empty() {
                    self.candidates.push(candidate(images));
                }
            }
        }
    }

    /// Unified kernel images that boot without an entry, and those of which nobody can say.
    pub(super) fn discovered_ukis(&mut self) {
        for (place, scan) in &self.scans {
            for uki in &scan.ukis {
                let images = uki_images(uki);
                let foreign = artifact::uki_name(uki.name()) == UkiName::Foreign;
                if images.is_empty() || !(uki.discovered || foreign) {
                    continue;
                }
                self.candidates.push(Candidate {
                    entry: Entry {
                        path: self.places[*place].join(&uki.path),
                        kind: EntryKind::Uki,
                        images,
                    },
                    stage: Stage::Active,
                    place: *place,
                    relative: uki.path.clone(),
                    sort_key: None,
                    version: None,
                });
                self.used.insert(uki.name().to_owned());
            }
        }
    }
}

/// The images that a unified kernel image names, by its name and in it.
pub(super) fn uki_images(uki: &Uki) -> Vec<VerityDigest> {
    let mut images = uki.images.clone();
    if let UkiName::Image(image) = artifact::uki_name(uki.name())
        && !images.contains(&image)
    {
        images.insert(0, image);
    }
    images
}
