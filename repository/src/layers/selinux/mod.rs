//! SELinux labels from the policy in the image itself, as a relabelled system would have them.
//!
//! Labels are part of what a boot image's digest covers, so the rules here are exact, odd ones
//! included. The policy comes with the image and can be made to do harm: its files are bounded in
//! size and read through the tree, never through the host's filesystem; matching is bounded in memory
//! and time. Follows the composefs repository format, "SELinux labels".

mod contexts;
mod matcher;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use composefs_image::{InodeId, Kind, Tree};

use super::boot::{BootError, BootProblem, directory, existing_directory, join, read_file};
use crate::ReadObjects;
use contexts::{Aliases, Rules};
use matcher::Matcher;

const XATTR: &[u8] = b"security.selinux";
const DIRECTORY: &[u8] = b"/etc/selinux";

/// Most bytes of all files of a policy: that of Fedora has half a megabyte.
const POLICY_LIMIT: u64 = 4 << 20;

/// A context of the policy, or none.
type Label = Option<contexts::ContextId>;

/// Gives every inode the label that the policy of the tree has for it, and takes other labels away.
/// Without a policy all labels go.
pub(super) fn label(
    tree: &mut Tree,
    objects: &(impl ReadObjects + ?Sized),
) -> Result<(), BootError> {
    let Some(mut policy) = Policy::read(tree, objects)? else {
        tree.retain_all_xattrs(|name, _| name != XATTR);
        return Ok(());
    };
    let labels = Labels::find(tree, &mut policy)?;
    labels.apply(tree, &policy.rules);
    Ok(())
}

struct Policy {
    /// Where it is, for messages.
    path: Vec<u8>,
    rules: Rules,
    matcher: Matcher,
    aliases: Aliases,
}

impl Policy {
    /// Reads the policy that the configuration of the tree names; `None` if it names none.
    fn read(tree: &Tree, objects: &(impl ReadObjects + ?Sized)) -> Result<Option<Self>, BootError> {
        let Some(selinux) = directory(tree, DIRECTORY)? else {
            return Ok(None);
        };
        let Some(config) = tree.lookup(selinux, b"config") else {
            return Ok(None);
        };
        let path = join(DIRECTORY, b"config");
        let config = read_file(tree, objects, config, &path, POLICY_LIMIT)?;
        let Some(name) = contexts::policy_type(&config).map_err(|problem| problem.at(&path))?
        else {
            return Ok(None);
        };

        let path = join(&join(DIRECTORY, name.as_bytes()), b"contexts/files");
        let files = Files {
            tree,
            objects,
            directory: existing_directory(tree, &path)?,
            path: &path,
        };
        let mut budget = POLICY_LIMIT;
        let mut rules = Rules::default();
        for (name, need) in [
            ("file_contexts", Need::Mandatory),
            ("file_contexts.local", Need::Optional),
            ("file_contexts.homedirs", Need::Optional),
        ] {
            files.read(name, need, &mut budget, |text| rules.parse(text))?;
        }
        let mut aliases = HashMap::new();
        for name in ["file_contexts.subs", "file_contexts.subs_dist"] {
            files.read(name, Need::Optional, &mut budget, |text| {
                contexts::parse_aliases(text, &mut aliases)
            })?;
        }
        let matcher = Matcher::new(rules.patterns()).map_err(|problem| problem.at(&path))?;
        Ok(Some(Self {
            path,
            rules,
            matcher,
            aliases,
        }))
    }

    /// The label of a file with this path and type.
    fn label(&mut self, path: &Path, file_type: u8, key: &mut Vec<u8>) -> Result<Label, BootError> {
        key.clear();
        key.extend_from_slice(path.as_os_str().as_bytes());
        key.push(file_type);
        let rule = self.matcher.find(key);
        let rule = rule.map_err(|problem| problem.at(&self.path))?;
        Ok(rule.and_then(|rule| self.rules.context_of(rule)))
    }
}

#[derive(Clone, Copy)]
enum Need {
    Mandatory,
    Optional,
}

/// The policy's files.
struct Files<'a, O: ?Sized> {
    tree: &'a Tree,
    objects: &'a O,
    directory: InodeId,
    path: &'a [u8],
}

impl<O: ReadObjects + ?Sized> Files<'_, O> {
    /// Reads a file, of which at most `budget` bytes are taken, and hands it to `parse`.
    fn read(
        &self,
        name: &str,
        need: Need,
        budget: &mut u64,
        parse: impl FnOnce(&str) -> Result<(), BootProblem>,
    ) -> Result<(), BootError> {
        let path = join(self.path, name.as_bytes());
        let Some(id) = self.tree.lookup(self.directory, name.as_bytes()) else {
            return match need {
                Need::Optional => Ok(()),
                Need::Mandatory => Err(BootProblem::Missing.at(&path)),
            };
        };
        let content = read_file(self.tree, self.objects, id, &path, *budget)?;
        *budget = budget.saturating_sub(content.len() as u64);
        str::from_utf8(&content)
            .map_err(|_| BootProblem::NotUtf8)
            .and_then(parse)
            .map_err(|problem| problem.at(&path))
    }
}

/// The type character of a file in a pattern's subject.
fn file_type(kind: Kind<'_>) -> u8 {
    match kind {
        Kind::Directory => b'd',
        Kind::Regular(_) => b'-',
        Kind::Symlink(_) => b'l',
        Kind::CharDevice(_) => b'c',
        Kind::BlockDevice(_) => b'b',
        Kind::Fifo => b'p',
        Kind::Socket => b's',
    }
}

/// What is to be done to a tree.
#[derive(Default)]
struct Labels {
    /// Each inode once.
    inodes: Vec<(InodeId, Label)>,
    /// Names of hard links that have another label than the first name of the inode.
    splits: Vec<Split>,
}

struct Split {
    directory: InodeId,
    name: Box<[u8]>,
    id: InodeId,
    label: Label,
}

impl Labels {
    fn find(tree: &Tree, policy: &mut Policy) -> Result<Self, BootError> {
        let mut labels = Self::default();
        let mut first: Vec<Option<Label>> = vec![None; tree.inode_count()];
        let mut key = Vec::new();
        // The path that counts for matching; aliases replace it on the way down.
        let mut path = PathBuf::from("/");
        // For each directory above, the path to go back to if an alias has replaced it.
        let mut replaced: Vec<Option<PathBuf>> = Vec::new();

        for visit in tree.walk() {
            let mut alias = None;
            if visit.depth > 0 {
                while replaced.len() >= visit.depth {
                    if let Some(original) = replaced.pop().flatten() {
                        path = original;
                    }
                    path.pop();
                }
                path.push(OsStr::from_bytes(visit.name));
                alias = policy.aliases.get(path.as_os_str().as_bytes()).cloned();
            }
            let subject = alias.as_deref().unwrap_or(&path);
            let label = policy.label(subject, file_type(tree.kind(visit.id)), &mut key)?;

            match first.get_mut(visit.id.index()) {
                Some(Some(before)) if *before == label => {}
                Some(Some(_)) => labels.splits.push(Split {
                    directory: visit.parent,
                    name: visit.name.into(),
                    id: visit.id,
                    label,
                }),
                Some(unknown) => {
                    *unknown = Some(label);
                    labels.inodes.push((visit.id, label));
                }
                None => {}
            }
            if visit.depth == 0 {
                continue;
            }
            if tree.is_directory(visit.id) {
                replaced.push(alias.map(|alias| std::mem::replace(&mut path, alias)));
            } else {
                path.pop();
            }
        }
        Ok(labels)
    }

    fn apply(self, tree: &mut Tree, rules: &Rules) {
        let set = |tree: &mut Tree, id, label: Label| match label {
            Some(context) => tree.set_xattr(id, XATTR, rules.context(context).as_bytes()),
            None => {
                tree.remove_xattr(id, XATTR);
            }
        };
        for (id, label) in self.inodes {
            set(tree, id, label);
        }
        for split in self.splits {
            let copy = tree.duplicate(split.id);
            set(tree, copy, split.label);
            tree.link(split.directory, &split.name, copy)
                .expect("the name is in the directory already");
        }
    }
}

#[cfg(test)]
mod tests;
