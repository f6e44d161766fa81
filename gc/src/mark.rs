//! Marking: what can be reached from the roots. Pure; knows nothing of disks.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How near to a root a node is, and which root: of two, the smaller one counts. Roots may have a
/// distance of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// How many references lead from the root to the node.
    pub(crate) distance: u32,
    /// The index of the root.
    pub(crate) root: u32,
}

/// What has been reached so far. Shared by threads.
pub(crate) trait Reached<N>: Sync {
    /// Notes that a node was reached; the smallest rank stays. Whether the node is to be followed, which
    /// is said once for each node that has references.
    fn reach(&self, node: N, rank: Rank) -> bool;

    /// The smallest rank so far.
    fn rank(&self, node: N) -> Rank;
}

/// Finds everything that can be reached from `roots` by following `references`.
///
/// Each node is reached with the root nearest to it, and of several the first, however many threads (`jobs`)
/// work. `references` is called once for each node that is to be followed, and hands every node that
/// this one needs to its second argument; what a node needs must not change meanwhile. Memory grows with
/// the number of nodes that are followed.
pub(crate) fn mark<N: Copy + Send + Sync>(
    roots: impl IntoIterator<Item = (N, Rank)>,
    reached: &impl Reached<N>,
    jobs: usize,
    references: impl Fn(N, Rank, &mut dyn FnMut(N)) + Sync,
) {
    let mut frontier: Vec<N> = roots
        .into_iter()
        .filter(|(node, rank)| reached.reach(*node, *rank))
        .map(|(node, _)| node)
        .collect();
    while !frontier.is_empty() {
        let next = Mutex::new(Vec::new());
        let position = AtomicUsize::new(0);
        let work = || {
            let mut mine = Vec::new();
            while let Some(node) = frontier.get(position.fetch_add(1, Ordering::Relaxed)) {
                // All that can reach it from nearer or as near have done so.
                let rank = reached.rank(*node);
                let further = Rank {
                    distance: rank.distance.saturating_add(1),
                    root: rank.root,
                };
                references(*node, rank, &mut |needed| {
                    if reached.reach(needed, further) {
                        mine.push(needed);
                    }
                });
            }
            next.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .append(&mut mine);
        };
        let threads = jobs.min(frontier.len());
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        frontier = next
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Nodes are characters, those in upper case have no references.
    #[derive(Default)]
    struct Seen(Mutex<BTreeMap<char, Rank>>);

    impl Reached<char> for Seen {
        fn reach(&self, node: char, rank: Rank) -> bool {
            let mut ranks = self.0.lock().unwrap();
            let is_new = !ranks.contains_key(&node);
            let least = ranks.entry(node).or_insert(rank);
            *least = rank.min(*least);
            is_new && node.is_lowercase()
        }

        fn rank(&self, node: char) -> Rank {
            self.0.lock().unwrap()[&node]
        }
    }

    /// Marks from `roots`, numbered by their position, over edges between characters.
    fn marked(roots: &str, edges: &[&str]) -> String {
        let calls = Mutex::new(Vec::new());
        let reached = Seen::default();
        let rank = |root| Rank { distance: 0, root };
        let roots = roots.chars().zip((0..).map(rank));
        mark(roots, &reached, 3, |node, _, needs| {
            calls.lock().unwrap().push(node);
            for edge in edges {
                let mut ends = edge.chars();
                if ends.next() == Some(node) {
                    ends.for_each(&mut *needs);
                }
            }
        });
        let mut calls = calls.into_inner().unwrap();
        calls.sort_unstable();
        let ranks = reached.0.into_inner().unwrap();
        let followed: Vec<_> = ranks.keys().filter(|node| node.is_lowercase()).collect();
        assert!(followed.into_iter().eq(&calls), "each node is asked once");
        ranks.iter().fold(String::new(), |text, (node, rank)| {
            format!("{text}{node}{}", rank.root)
        })
    }

    #[test]
    fn only_what_a_root_leads_to_is_marked_and_the_nearest_root_gets_it() {
        let edges = ["abc", "cd", "xd", "xY", "bY", "uv"];
        assert_eq!(marked("ax", &edges), "Y1a0b0c0d1x1");
        assert_eq!(marked("xa", &edges), "Y0a1b1c1d0x0");
        assert_eq!(marked("", &edges), "");
        assert_eq!(marked("aa", &["aB"]), "B0a0", "of several roots the first");
    }

    #[test]
    fn circles_end() {
        assert_eq!(marked("a", &["ab", "bc", "ca", "cc"]), "a0b0c0");
    }
}
