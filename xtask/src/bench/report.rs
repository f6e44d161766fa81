//! Sections of `docs/benchmarks.md`.

use super::measure::{Cost, ROUNDS};
use crate::steps::workspace;
use anyhow::{Context, Result};
use std::fmt::{self, Display, Write as _};
use std::process::Command;

const TITLE: &str = "# Benchmarks\n\nWritten by `cargo xtask bench`; not edited by hand.\n";

/// A section with its heading.
pub(super) struct Section {
    heading: &'static str,
    text: String,
}

impl Section {
    /// Begins a section with the command that makes it, the machine and the date.
    pub(super) fn new(heading: &'static str, command: &str) -> Result<Self> {
        Self::with_rounds(heading, command, ROUNDS)
    }

    /// The same where programs ran another number of times.
    pub(super) fn with_rounds(heading: &'static str, command: &str, rounds: usize) -> Result<Self> {
        let mut section = Self::without_rounds(heading, command)?;
        writeln!(
            section.text,
            "Each program ran {rounds} times in turns with the others, after once for the caches; \
             the table has medians."
        )?;
        Ok(section)
    }

    /// The same where each table says how often programs ran.
    pub(super) fn without_rounds(heading: &'static str, command: &str) -> Result<Self> {
        let text = format!("`{command}`, {}.\n", machine()?);
        Ok(Self { heading, text })
    }

    /// Adds a paragraph.
    pub(super) fn paragraph(&mut self, text: &str) {
        self.text.push('\n');
        self.text.push_str(text);
        self.text.push('\n');
    }

    /// Adds a table of what programs took; the first is what the others are compared with.
    pub(super) fn table(&mut self, subject: &str, rows: &[(&str, Cost)]) -> Result<()> {
        let Some((_, base)) = rows.first() else {
            return Ok(());
        };
        writeln!(
            self.text,
            "\n| {subject} | time | user + system | peak memory | time, CPU, memory compared |\n\
             |---|---:|---:|---:|---:|"
        )?;
        for (name, cost) in rows {
            let ratio = |part: f64, whole: f64| part / whole;
            writeln!(
                self.text,
                "| {name} | {:.3} s | {:.3} s | {:.1} MB | {:.2}, {:.2}, {:.2} |",
                cost.wall.as_secs_f64(),
                cost.cpu().as_secs_f64(),
                cost.peak as f64 / 1e6,
                ratio(cost.wall.as_secs_f64(), base.wall.as_secs_f64()),
                ratio(cost.cpu().as_secs_f64(), base.cpu().as_secs_f64()),
                ratio(cost.peak as f64, base.peak as f64),
            )?;
        }
        Ok(())
    }

    /// Begins a table with these columns, of which the first has words.
    pub(super) fn head(&mut self, columns: &[&str]) {
        self.text.push('\n');
        self.row(&columns.iter().map(ToString::to_string).collect::<Vec<_>>());
        self.text.push_str("|---");
        self.text.push_str(&"|---:".repeat(columns.len() - 1));
        self.text.push_str("|\n");
    }

    /// Adds a row to it.
    pub(super) fn row(&mut self, cells: &[String]) {
        self.text.push_str("| ");
        self.text.push_str(&cells.join(" | "));
        self.text.push_str(" |\n");
    }

    /// Replaces the section of this heading in `docs/benchmarks.md`, or adds it.
    pub(super) fn save(&self) -> Result<()> {
        let path = workspace().join("docs/benchmarks.md");
        let old = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => TITLE.to_owned(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let new = with_section(&old, &self.to_string());
        std::fs::write(&path, new).with_context(|| format!("write {}", path.display()))
    }
}

impl Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "## {}\n\n{}", self.heading, self.text)
    }
}

fn with_section(document: &str, section: &str) -> String {
    let heading = section.lines().next().unwrap_or_default();
    let mut new = String::new();
    let mut replaced = false;
    let mut parts = document.split_inclusive('\n').peekable();
    while let Some(line) = parts.next() {
        if line.trim_end() != heading {
            new.push_str(line);
            continue;
        }
        replaced = true;
        new.push_str(section);
        while parts.next_if(|line| !line.starts_with("## ")).is_some() {}
        if parts.peek().is_some() {
            new.push('\n');
        }
    }
    if !replaced {
        new.push('\n');
        new.push_str(section);
    }
    new
}

/// Processor, cores, kernel, day and load.
fn machine() -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let date = Command::new("date").args(["--utc", "+%F"]).output()?;
    let date = String::from_utf8(date.stdout)?;
    Ok(format!(
        "{}, {model}, {cores} cores, Linux {}, load {load} at the start",
        date.trim(),
        kernel.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::with_section;

    #[test]
    fn a_section_replaces_the_one_with_its_heading_and_no_other() {
        let old = "# T\n\n## A\n\nold\n\n## B\n\nkept\n";
        let new = "# T\n\n## A\n\nnew\n\n## B\n\nkept\n";
        assert_eq!(with_section(old, "## A\n\nnew\n"), new);
        let added = with_section(new, "## C\n\nlast\n");
        assert_eq!(added, format!("{new}\n## C\n\nlast\n"));
        assert_eq!(with_section(&added, "## C\n\nlast\n"), added);
    }
}
