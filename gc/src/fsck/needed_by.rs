//! Who needs what is damaged, or anything else: every root that leads to it.

use std::collections::{BTreeSet, HashMap, HashSet};

use composefs_image::VerityDigest;
use repository::Repository;

use super::report::Report;
use crate::digests::Digests;
use crate::error::Result;
use crate::graph::{Graph, Node};
use crate::host::Known;
use crate::leases;
use crate::roots::{self, Owner, Root};

/// Enters into each finding about objects who needs these objects: tags and other refs, and whom the
/// caller knows: published images, containers, boot entries. What only a damaged stream or image could
/// tell stays unknown.
pub fn add_owners(repository: &Repository, known: Known, report: &mut Report) -> Result<()> {
    let broken = report.broken();
    if broken.is_empty() {
        return Ok(());
    }
    let owners = leading_to(repository, known, &broken)?;
    for finding in &mut report.findings {
        let all: BTreeSet<&Owner> = finding
            .defect
            .objects()
            .iter()
            .filter_map(|object| owners.of.get(object))
            .flatten()
            .filter_map(|root| Some(&owners.roots.get(*root)?.owner))
            .collect();
        finding.needed_by = all.into_iter().cloned().collect();
    }
    Ok(())
}

/// The roots that lead to any of these objects, which keep it that way.
pub fn keepers(
    repository: &Repository,
    known: Known,
    objects: &BTreeSet<VerityDigest>,
) -> Result<Vec<Root>> {
    let owners = leading_to(repository, known, objects)?;
    let keeping: BTreeSet<usize> = owners.of.into_values().flatten().collect();
    let roots = owners.roots.into_iter().enumerate();
    Ok(roots
        .filter(|(index, _)| keeping.contains(index))
        .map(|(_, root)| root)
        .collect())
}

/// Roots, and which of them lead to an object.
struct Owners {
    roots: Vec<Root>,
    /// Indexes of roots.
    of: HashMap<VerityDigest, BTreeSet<usize>>,
}

fn leading_to(
    repository: &Repository,
    known: Known,
    wanted: &BTreeSet<VerityDigest>,
) -> Result<Owners> {
    let streams = repository.streams()?;
    let images = repository.images()?;
    let odd = [streams.foreign, images.foreign].concat();
    let staging = repository.staging()?;
    let leases = leases::leases(repository)?;
    let found = roots::find(repository, odd, known, &staging, &leases)?;

    // Missing objects take part as well.
    let mut objects = Vec::with_capacity(256);
    for shard in 0..=255 {
        let mut digests: BTreeSet<VerityDigest> =
            repository.objects_in(shard)?.entries.into_iter().collect();
        digests.extend(
            wanted
                .iter()
                .filter(|digest| digest.as_bytes().first() == Some(&shard)),
        );
        let bytes = digests.iter().flat_map(VerityDigest::as_bytes);
        objects.push(bytes.copied().collect());
    }
    let digests = Digests::new(repository.algorithm(), objects);
    let graph = Graph::new(repository, &streams.entries, &images.entries, &digests);
    let wanted_at = |node: Node| {
        let (Node::Container(index) | Node::Object(index) | Node::Payload(index)) = node else {
            return None;
        };
        digests.get(index).filter(|digest| wanted.contains(digest))
    };

    let mut roots = Vec::new();
    for (target, root) in &found.targets {
        for node in graph.resolve(target).unwrap_or_default() {
            roots.push((node, *root));
        }
    }
    // Each stream and image is read once, and only what matters of it is kept.
    let mut edges: HashMap<Node, Vec<Node>> = HashMap::new();
    let mut holds: HashMap<Node, Vec<VerityDigest>> = HashMap::new();
    let mut pending: Vec<Node> = roots.iter().map(|(node, _)| *node).collect();
    while let Some(node) = pending.pop() {
        if edges.contains_key(&node) {
            continue;
        }
        let mut needed = Vec::new();
        let mut held: Vec<VerityDigest> = wanted_at(node).into_iter().collect();
        let mut needs = |other: Node| match other {
            Node::Payload(_) => held.extend(wanted_at(other)),
            _ => needed.push(other),
        };
        graph.references(node, &mut needs, &mut |_| {});
        pending.extend(&needed);
        edges.insert(node, needed);
        if !held.is_empty() {
            holds.insert(node, held);
        }
    }
    let mut of: HashMap<VerityDigest, BTreeSet<usize>> = HashMap::new();
    for (start, root) in roots {
        let mut seen = HashSet::new();
        let mut pending = vec![start];
        while let Some(node) = pending.pop() {
            if !seen.insert(node) {
                continue;
            }
            for object in holds.get(&node).into_iter().flatten() {
                of.entry(*object).or_default().insert(root);
            }
            pending.extend(edges.get(&node).into_iter().flatten());
        }
    }
    Ok(Owners {
        roots: found.roots,
        of,
    })
}
