//! Marking: what can be reached from the roots. Pure; knows nothing of disks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// Finds everything that can be reached from `roots` by following `references`.
///
/// A root is a node and a label; each reached node gets the label of the first root, in their order,
/// that leads to it. `references` is called once for each reached node, and hands every node that this
/// one needs to its second argument; what a node needs must not change meanwhile. Memory grows with the
/// number of reached nodes, not with the number of references.
pub(crate) fn mark<N: Clone + Eq + Hash, L: Copy>(
    roots: impl IntoIterator<Item = (N, L)>,
    mut references: impl FnMut(&N, L, &mut dyn FnMut(N)),
) -> HashMap<N, L> {
    let mut reached = HashMap::new();
    let mut pending = Vec::new();
    for (root, label) in roots {
        visit(&mut reached, &mut pending, root, label);
        while let Some(node) = pending.pop() {
            references(&node, label, &mut |needed| {
                visit(&mut reached, &mut pending, needed, label);
            });
        }
    }
    reached
}

fn visit<N: Clone + Eq + Hash, L>(
    reached: &mut HashMap<N, L>,
    pending: &mut Vec<N>,
    node: N,
    label: L,
) {
    if let Entry::Vacant(entry) = reached.entry(node) {
        pending.push(entry.key().clone());
        entry.insert(label);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks from `roots`, labelled by their position, over edges between characters.
    fn marked(roots: &str, edges: &[&str]) -> Vec<(char, usize)> {
        let mut calls = Vec::new();
        let roots = roots.chars().enumerate().map(|(n, root)| (root, n));
        let reached = mark(roots, |node, _, needs| {
            calls.push(*node);
            for edge in edges {
                let mut ends = edge.chars();
                if ends.next() == Some(*node) {
                    ends.for_each(&mut *needs);
                }
            }
        });
        let mut sorted: Vec<_> = reached.into_iter().collect();
        sorted.sort_unstable();
        calls.sort_unstable();
        let nodes: Vec<_> = sorted.iter().map(|(node, _)| *node).collect();
        assert_eq!(calls, nodes, "each node is asked once");
        sorted
    }

    #[test]
    fn only_what_a_root_leads_to_is_marked_and_the_first_root_gets_it() {
        let edges = ["abc", "cd", "xd", "xy", "uv"];
        assert_eq!(
            marked("ax", &edges),
            [('a', 0), ('b', 0), ('c', 0), ('d', 0), ('x', 1), ('y', 1)]
        );
        assert_eq!(marked("", &edges), []);
    }

    #[test]
    fn circles_end() {
        assert_eq!(
            marked("a", &["ab", "bc", "ca", "cc"]),
            [('a', 0), ('b', 0), ('c', 0)]
        );
    }
}
