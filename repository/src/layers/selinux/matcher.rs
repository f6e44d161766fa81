//! Thousands of patterns against hundreds of thousands of paths: which of those that match is the last?
//!
//! All patterns that finite automata can decide are one lazily built automaton: one pass over a path
//! answers for all of them, in time that does not depend on what the patterns look like. It is the
//! engine below the `regex` crate, used directly because its leftmost-first semantics give the pattern
//! with the best rank at once, where a `RegexSet` would collect all that match.
//!
//! Patterns with look-around or back-references, few in any policy, and spellings that only PCRE2
//! takes, go to PCRE2: it is what libselinux and composefs-rs match with, so that labels agree by
//! construction, and its Rust crate is kept by the author of `regex`. `fancy-regex` is the other
//! candidate, all Rust and livelier, but it has a dialect of its own. PCRE2 runs without its compiler
//! to machine code, and with limits.
//!
//! A policy that exceeds a limit is an error, never a missing label.

use pcre2::bytes::Regex;
use regex_automata::hybrid::dfa::{Builder, Cache, Config, DFA};
use regex_automata::nfa::thompson::{self, Compiler};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, PatternID};

use super::super::boot::BootProblem;

/// Most bytes of the automaton of all patterns before determinisation.
const NFA_LIMIT: usize = 128 << 20;
/// Bytes for determinised states before all of them are forgotten.
const CACHE_CAPACITY: usize = 64 << 20;
/// How often they may be forgotten: about a minute of work. A policy like that of Fedora and all paths of a
/// distribution need a fraction of the cache once.
const CACHE_CLEARS: usize = 32;
/// Most patterns for PCRE2.
const FALLBACKS: usize = 1024;
/// Most steps of PCRE2 for one path and pattern.
const STEPS: u32 = 1_000_000;
/// Most KiB of memory of PCRE2 for one path and pattern.
const HEAP_KIB: u32 = 20_000;

/// All patterns of a policy, compiled.
pub(super) struct Matcher {
    automaton: Option<Automaton>,
    /// Last pattern first.
    fallbacks: Vec<Fallback>,
}

struct Automaton {
    dfa: DFA,
    cache: Cache,
    /// The numbers of its patterns in the policy, last first: a smaller pattern ID has precedence.
    patterns: Vec<usize>,
}

struct Fallback {
    pattern: usize,
    regex: Regex,
}

impl Matcher {
    /// Compiles patterns, of which a later one has precedence.
    pub(super) fn new(patterns: &[String]) -> Result<Self, BootProblem> {
        // Bytes, not characters; a dot is everything but NUL.
        let config = syntax::Config::new()
            .unicode(false)
            .utf8(false)
            .line_terminator(0);
        let (mut parsed, mut numbers) = (Vec::new(), Vec::new());
        let mut fallbacks = Vec::new();
        for (number, pattern) in patterns.iter().enumerate().rev() {
            if let Ok(hir) = syntax::parse_with(pattern, &config) {
                parsed.push(hir);
                numbers.push(number);
            } else if fallbacks.len() < FALLBACKS {
                fallbacks.push(Fallback::new(number, pattern)?);
            } else {
                let reason = format!("more than {FALLBACKS} patterns need look-around");
                return Err(BootProblem::Complex(reason));
            }
        }
        let automaton = (!parsed.is_empty())
            .then(|| {
                let config = thompson::Config::new()
                    .utf8(false)
                    .nfa_size_limit(Some(NFA_LIMIT))
                    .which_captures(thompson::WhichCaptures::None);
                let nfa = Compiler::new()
                    .configure(config)
                    .build_many_from_hir(&parsed);
                let nfa = nfa.map_err(|error| BootProblem::Complex(error.to_string()))?;
                let config = Config::new()
                    .cache_capacity(CACHE_CAPACITY)
                    .skip_cache_capacity_check(true)
                    .minimum_cache_clear_count(Some(CACHE_CLEARS));
                let dfa = Builder::new().configure(config).build_from_nfa(nfa);
                let dfa = dfa.map_err(|error| BootProblem::Complex(error.to_string()))?;
                Ok(Automaton {
                    cache: dfa.create_cache(),
                    dfa,
                    patterns: numbers,
                })
            })
            .transpose()?;
        Ok(Self {
            automaton,
            fallbacks,
        })
    }

    /// The number of the last pattern that matches.
    pub(super) fn find(&mut self, subject: &[u8]) -> Result<Option<usize>, BootProblem> {
        let found = match &mut self.automaton {
            Some(automaton) => automaton.find(subject)?,
            None => None,
        };
        for fallback in &self.fallbacks {
            if found.is_some_and(|found| found > fallback.pattern) {
                break;
            }
            if fallback.is_match(subject)? {
                return Ok(Some(fallback.pattern));
            }
        }
        Ok(found)
    }
}

impl Automaton {
    fn find(&mut self, subject: &[u8]) -> Result<Option<usize>, BootProblem> {
        let input = Input::new(subject).anchored(Anchored::Yes);
        let found = self.dfa.try_search_fwd(&mut self.cache, &input);
        let found = found.map_err(|error| BootProblem::Complex(error.to_string()))?;
        let number = |id: PatternID| self.patterns.get(id.as_usize()).copied();
        Ok(found.and_then(|found| number(found.pattern())))
    }
}

impl Fallback {
    fn new(number: usize, pattern: &str) -> Result<Self, BootProblem> {
        let limited = format!("(*LIMIT_MATCH={STEPS})(*LIMIT_HEAP={HEAP_KIB}){pattern}");
        let regex = Regex::new(&limited).map_err(|error| BootProblem::Pattern {
            pattern: pattern.into(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            pattern: number,
            regex,
        })
    }

    fn is_match(&self, subject: &[u8]) -> Result<bool, BootProblem> {
        let matched = self.regex.is_match(subject);
        matched.map_err(|error| BootProblem::Complex(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(patterns: &[&str]) -> Matcher {
        let patterns: Vec<_> = patterns.iter().map(ToString::to_string).collect();
        Matcher::new(&patterns).unwrap()
    }

    #[test]
    fn the_last_pattern_that_matches_counts_whichever_engine_it_needs() {
        let mut matcher = matcher(&[
            "^(/.*).$",
            "^(/usr/(?!lib/).*).$",
            "^(/usr/bin/.*)-$",
            "^(/usr/b(?=in).*)l$",
            "^(/usr/lib{x}).$",
        ]);
        for (subject, expected) in [
            (&b"/etc-"[..], Some(0)),
            (b"/usr/lib/x-", Some(0)),
            (b"/usr/share/x-", Some(1)),
            (b"/usr/bin/x-", Some(2)),
            (b"/usr/bin/x\n-", Some(2)),
            (b"/usr/bin/\xff\xfe-", Some(2)),
            (b"/usr/bin/xd", Some(1)),
            (b"/usr/bin/xl", Some(3)),
            // PCRE2's dot stops at a line end.
            (b"/usr/bin/x\nyl", Some(0)),
            // Braces that are no repetition are braces for PCRE2 alone.
            (b"/usr/lib{x}d", Some(4)),
            (b"usr", None),
            (b"", None),
        ] {
            let found = matcher.find(subject).unwrap();
            assert_eq!(found, expected, "{}", subject.escape_ascii());
        }
    }

    #[test]
    fn no_pattern_matches_nothing() {
        assert_eq!(matcher(&[]).find(b"/d").unwrap(), None);
        assert_eq!(matcher(&["^(/(?=x).).$"]).find(b"/yd").unwrap(), None);
    }

    #[test]
    fn patterns_made_to_exhaust_memory_or_time_are_refused() {
        let patterns = ["^(((a{1000}){1000}){1000}).$".to_owned()];
        assert!(matches!(
            Matcher::new(&patterns),
            Err(BootProblem::Complex(_))
        ));
        let patterns = ["^((?=((a{60000}){60000})).*).$".to_owned()];
        assert!(matches!(
            Matcher::new(&patterns),
            Err(BootProblem::Pattern { .. })
        ));
        let patterns = vec!["^((?=x).).$".to_owned(); FALLBACKS + 1];
        assert!(matches!(
            Matcher::new(&patterns),
            Err(BootProblem::Complex(_))
        ));

        let mut slow = matcher(&["^((?=(a+)+[bc]).*).$"]);
        let subject = [&[b'a'; 4000][..], b"-"].concat();
        assert!(matches!(slow.find(&subject), Err(BootProblem::Complex(_))));
    }
}
