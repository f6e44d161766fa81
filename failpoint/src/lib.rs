//! Named points at which a test can kill the process, to prove that no durable step can be
//! interrupted with harm. In a release build they are nothing: only one with debug assertions has them.
#![forbid(unsafe_code)]

/// Kills the process with SIGKILL if `COMPOSEFS_STORE_FAILPOINT` is `name` or, for the n-th time (from
/// 1) this point is reached, `name:n`. Does nothing unless built with debug assertions.
#[cfg(not(debug_assertions))]
#[inline]
pub fn failpoint(_name: &str) {}

/// Kills the process with SIGKILL if `COMPOSEFS_STORE_FAILPOINT` is `name` or, for the n-th time (from
/// 1) this point is reached, `name:n`. Does nothing unless built with debug assertions.
#[cfg(debug_assertions)]
pub fn failpoint(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);

    let wanted = WANTED.get_or_init(|| {
        let value = std::env::var("COMPOSEFS_STORE_FAILPOINT").ok()?;
        Some(match value.split_once(':') {
            Some((name, n)) => (
                name.to_owned(),
                n.parse().expect("failpoint count is a number"),
            ),
            None => (value, 1),
        })
    });
    if let Some((wanted, n)) = wanted
        && wanted == name
        && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *n
    {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
