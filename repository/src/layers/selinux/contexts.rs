//! The text of an SELinux policy's files: which policy, which contexts, which aliases.
//!
//! Words are split at Unicode white space, as composefs-rs does.

use std::collections::HashMap;
use std::path::PathBuf;

use super::super::boot::{BootProblem, ContextProblem};

/// Longest line in bytes, far beyond any path.
const LINE_LIMIT: usize = 16 << 10;
/// Longest target of an alias in bytes: what Linux takes for a path.
const TARGET_LIMIT: usize = 4095;
/// What stands for no context.
const NO_CONTEXT: &str = "<<none>>";

/// Paths that are labelled as if they were others.
pub(super) type Aliases = HashMap<Vec<u8>, PathBuf>;

/// A context of a [`Rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContextId(u32);

/// Which patterns have which context, in the order of the files: of those that match, the last counts.
#[derive(Default)]
pub(super) struct Rules {
    patterns: Vec<String>,
    labels: Vec<Option<ContextId>>,
    contexts: Vec<String>,
    ids: HashMap<String, ContextId>,
}

impl Rules {
    /// Adds the rules of a `file_contexts` file.
    pub(super) fn parse(&mut self, text: &str) -> Result<(), BootProblem> {
        for_each_line(text, |words| {
            let Some(pattern) = words.next() else {
                return Ok(());
            };
            let second = words.next().ok_or(ContextProblem::NoContext)?;
            let (file_type, context) = match second.strip_prefix('-') {
                None => (".", second),
                Some(file_type @ ("b" | "c" | "d" | "p" | "l" | "s" | "-")) => {
                    (file_type, words.next().ok_or(ContextProblem::NoContext)?)
                }
                Some(_) => return Err(ContextProblem::FileType(second.into())),
            };
            self.patterns.push(format!("^({pattern}){file_type}$"));
            let label = self.intern(context);
            self.labels.push(label);
            Ok(())
        })
    }

    /// Equal contexts are one: hard links are split only where labels differ.
    fn intern(&mut self, context: &str) -> Option<ContextId> {
        if context == NO_CONTEXT {
            return None;
        }
        if let Some(id) = self.ids.get(context) {
            return Some(*id);
        }
        let id = ContextId(self.contexts.len() as u32);
        self.contexts.push(context.into());
        self.ids.insert(context.into(), id);
        Some(id)
    }

    /// The whole patterns, to be matched with a path and a type character.
    pub(super) fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// What the rule with this number gives.
    pub(super) fn context_of(&self, rule: usize) -> Option<ContextId> {
        self.labels.get(rule).copied().flatten()
    }

    /// The text of a context.
    pub(super) fn context(&self, id: ContextId) -> &str {
        self.contexts.get(id.0 as usize).map_or("", String::as_str)
    }
}

/// Adds the aliases of a `file_contexts.subs` file; of an alias that comes twice the later counts.
pub(super) fn parse_aliases(text: &str, aliases: &mut Aliases) -> Result<(), BootProblem> {
    for_each_line(text, |words| {
        let Some(alias) = words.next() else {
            return Ok(());
        };
        let target = words.next().ok_or(ContextProblem::NoTarget)?;
        if target.len() > TARGET_LIMIT {
            return Err(ContextProblem::Long);
        }
        aliases.insert(alias.into(), target.into());
        Ok(())
    })
}

/// The name of the policy in `/etc/selinux/config`; `None` if it names none.
pub(super) fn policy_type(config: &[u8]) -> Result<Option<String>, BootProblem> {
    // What comes after the line that counts is not looked at, not even whether it is UTF-8.
    for line in config.split(|byte| *byte == b'\n') {
        let line = str::from_utf8(line).map_err(|_| BootProblem::NotUtf8)?;
        // The key of a comment begins with a `#`.
        if let Some((key, value)) = line.split_once('=')
            && key.trim().eq_ignore_ascii_case("SELINUXTYPE")
        {
            return Ok(Some(value.trim().into()));
        }
    }
    Ok(None)
}

/// Hands the words of each line to `parse`, none for an empty line or a comment, and sees to it that
/// all are used.
fn for_each_line(
    text: &str,
    mut parse: impl FnMut(&mut dyn Iterator<Item = &str>) -> Result<(), ContextProblem>,
) -> Result<(), BootProblem> {
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace().peekable();
        if words.peek().is_none_or(|first| first.starts_with('#')) {
            continue;
        }
        let parsed = if line.len() > LINE_LIMIT {
            Err(ContextProblem::Long)
        } else {
            parse(&mut words).and_then(|()| match words.next() {
                None => Ok(()),
                Some(word) => Err(ContextProblem::Excess(word.into())),
            })
        };
        parsed.map_err(|problem| BootProblem::Line {
            line: index + 1,
            problem,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(result: Result<(), BootProblem>) -> (usize, ContextProblem) {
        match result {
            Err(BootProblem::Line { line, problem }) => (line, problem),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_become_patterns_with_their_contexts() {
        let text =
            "# comment\n\n  \t\n/a\t-d\tone\n/b(/.*)? two\n  /c -- <<none>>\r\n#/d x\n/e one";
        let mut rules = Rules::default();
        rules.parse(text).unwrap();
        assert_eq!(
            rules.patterns(),
            ["^(/a)d$", "^(/b(/.*)?).$", "^(/c)-$", "^(/e).$"]
        );
        let contexts: Vec<_> = (0..4)
            .map(|rule| rules.context_of(rule).map(|id| rules.context(id)))
            .collect();
        assert_eq!(contexts, [Some("one"), Some("two"), None, Some("one")]);
        assert_eq!(rules.context_of(0), rules.context_of(3));
        assert_eq!(rules.context_of(4), None);
    }

    #[test]
    fn every_other_line_is_an_error_with_its_number() {
        for (text, line, expected) in [
            ("/a", 1, ContextProblem::NoContext),
            ("#\n/a -d", 2, ContextProblem::NoContext),
            ("/a -x c", 1, ContextProblem::FileType("-x".into())),
            ("/a -dd c", 1, ContextProblem::FileType("-dd".into())),
            ("/a - c", 1, ContextProblem::FileType("-".into())),
            ("/a b c", 1, ContextProblem::Excess("c".into())),
            ("/a -d b # c", 1, ContextProblem::Excess("#".into())),
        ] {
            assert_eq!(
                problem(Rules::default().parse(text)),
                (line, expected),
                "{text}"
            );
        }
        let long = format!("/{} c", "a".repeat(LINE_LIMIT));
        assert_eq!(
            problem(Rules::default().parse(&long)),
            (1, ContextProblem::Long)
        );
    }

    #[test]
    fn the_later_of_two_equal_aliases_counts() {
        let mut aliases = Aliases::new();
        parse_aliases("# x\n/a /b\n/c\u{a0}/d\n/a /e\n", &mut aliases).unwrap();
        assert_eq!(aliases[&b"/a"[..]], PathBuf::from("/e"));
        assert_eq!(aliases[&b"/c"[..]], PathBuf::from("/d"));
        assert_eq!(
            problem(parse_aliases("/a", &mut aliases)),
            (1, ContextProblem::NoTarget)
        );
        let excess = parse_aliases("/a b c", &mut aliases);
        assert_eq!(problem(excess), (1, ContextProblem::Excess("c".into())));
        let long = format!("/a {}", "b".repeat(TARGET_LIMIT + 1));
        assert_eq!(
            problem(parse_aliases(&long, &mut aliases)),
            (1, ContextProblem::Long)
        );
    }

    #[test]
    fn the_first_policy_of_the_configuration_counts() {
        for (config, expected) in [
            (&b""[..], None),
            (b"SELINUX=enforcing\n", None),
            (
                b"#SELINUXTYPE=no\n SelinuxType = targeted \nSELINUXTYPE=mls",
                Some("targeted"),
            ),
            (b"SELINUXTYPE=a=b\r\n", Some("a=b")),
            (b"SELINUXTYPE=", Some("")),
            (b"SELINUXTYPE=x\n\xff\n", Some("x")),
        ] {
            assert_eq!(policy_type(config).unwrap().as_deref(), expected);
        }
        assert!(policy_type(b"\xff\nSELINUXTYPE=x").is_err());
    }
}
