//! Retention: which tags go by themselves, by their pattern, number and age.
//!
//! The age of a tag is the time for which it has pointed at its image: that of its link, which is made
//! anew only when the tag is given to another image. When an image was made says nothing of that: builds
//! that can be repeated say 1970, and an old image may have been pulled today.

use std::time::{Duration, SystemTime};

use repository::{Category, RefPath, Repository, Tag};

use crate::host::GivenUp;
use crate::plan::RemoveReason;
use crate::roots::RefId;

/// Tags of bootc's follow its deployments, not their age.
const BOOTC: &str = "localhost/bootc-";

/// Which tags are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The tags that it is about: `*` stands for any text, `?` for any character. For each pattern by
    /// itself the newest tags are kept.
    pub patterns: Vec<String>,
    /// How many of the newest tags of a pattern stay whatever their age.
    pub keep_last: Option<usize>,
    /// Younger tags stay whatever their number.
    pub older_than: Option<Duration>,
    /// When it is decided, the same time for the plan and its execution.
    pub now: SystemTime,
}

impl Retention {
    /// The tags of the repository that go. Without a number and an age none do.
    pub fn given_up(&self, repository: &Repository) -> repository::Result<Vec<GivenUp>> {
        let mut tags = Vec::new();
        for entry in repository.refs(Category::Streams)?.entries {
            if let Some(tag) = entry.path.tag()
                && let Some(time) = repository.ref_time(Category::Streams, &entry.path)?
            {
                tags.push((tag, time));
            }
        }
        Ok(self
            .expired(tags)
            .into_iter()
            .map(|(tag, reason)| GivenUp {
                id: RefId {
                    category: Category::Streams,
                    path: RefPath::of_tag(&tag),
                },
                reason,
            })
            .collect())
    }

    /// Of tags and the times of their links, those that go.
    fn expired(&self, mut tags: Vec<(Tag, SystemTime)>) -> Vec<(Tag, RemoveReason)> {
        let mut expired: Vec<(Tag, RemoveReason)> = Vec::new();
        if self.keep_last.is_none() && self.older_than.is_none() {
            return expired;
        }
        // Newest first; of the same age by name, so that every look says the same.
        tags.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        for pattern in &self.patterns {
            let fitting = tags.iter().filter(|(tag, _)| {
                !tag.as_str().starts_with(BOOTC) && matches(pattern, tag.as_str())
            });
            for (tag, time) in fitting.skip(self.keep_last.unwrap_or(0)) {
                // A time in the future is no age.
                let age = self.now.duration_since(*time).unwrap_or_default();
                let reason = match self.older_than {
                    Some(limit) if age <= limit => continue,
                    Some(_) => RemoveReason::TooOld,
                    None => RemoveReason::BeyondLast,
                };
                if !expired.iter().any(|(other, _)| other == tag) {
                    expired.push((tag.clone(), reason));
                }
            }
        }
        // What another pattern keeps stays.
        expired.retain(|(tag, _)| {
            !self.patterns.iter().any(|pattern| {
                let fitting = tags.iter().filter(|(t, _)| matches(pattern, t.as_str()));
                let mut kept = fitting.take(self.keep_last.unwrap_or(0));
                kept.any(|(kept, _)| kept == tag)
            })
        });
        expired
    }
}

/// Whether a text fits a pattern with `*` and `?`.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much of the text it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == '?' || Some(c) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((after, begin)) => {
                    *begin += 1;
                    (p, t) = (*after, *begin);
                }
                None => return false,
            },
        }
    }
    pattern
        .get(p..)
        .is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn expired(patterns: &[&str], keep_last: Option<usize>, days: Option<u32>) -> Vec<String> {
        let now = SystemTime::UNIX_EPOCH + 1000 * DAY;
        let retention = Retention {
            patterns: patterns.iter().map(ToString::to_string).collect(),
            keep_last,
            older_than: days.map(|days| days * DAY),
            now,
        };
        let tags = [
            ("app:1", 30),
            ("app:2", 20),
            ("app:3", 10),
            ("app:4", 0),
            ("db:1", 40),
            ("localhost/bootc-sha256:aa", 90),
        ];
        let tags = tags.map(|(tag, age)| (Tag::new(tag).unwrap(), now - age * DAY));
        let expired = retention.expired(tags.to_vec());
        expired
            .into_iter()
            .map(|(tag, _)| tag.to_string())
            .collect()
    }

    #[test]
    fn the_newest_tags_of_each_pattern_stay_and_so_do_the_young_ones() {
        assert_eq!(expired(&["app:*"], Some(2), None), ["app:2", "app:1"]);
        assert_eq!(expired(&["app:*"], Some(9), None), [] as [&str; 0]);
        assert_eq!(expired(&["app:*"], None, Some(15)), ["app:2", "app:1"]);
        assert_eq!(expired(&["app:*"], Some(3), Some(5)), ["app:1"]);
        assert_eq!(expired(&["app:*"], Some(1), Some(25)), ["app:1"]);
        assert_eq!(
            expired(&["app:*", "db:*"], Some(1), None),
            ["app:3", "app:2", "app:1"]
        );
        assert_eq!(
            expired(&["app:*", "app:1"], Some(1), None),
            ["app:3", "app:2"]
        );
        assert_eq!(expired(&["app:*"], None, None), [] as [&str; 0]);
        assert_eq!(expired(&[], Some(0), None), [] as [&str; 0]);
    }

    #[test]
    fn bootcs_tags_have_no_age() {
        assert_eq!(expired(&["*"], Some(4), None), ["db:1"]);
        assert_eq!(expired(&["localhost/*"], None, Some(1)), [] as [&str; 0]);
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, text, fits) in [
            ("app:*", "app:1", true),
            ("app:*", "app:", true),
            ("app:*", "my/app:1", false),
            ("*app:?", "my/app:1", true),
            ("*app:?", "my/app:12", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("", "", true),
            ("", "a", false),
            ("**", "a", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }
}
