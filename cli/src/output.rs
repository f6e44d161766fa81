//! How results look: one JSON document with `--json`, aligned columns and round numbers without.

use std::io::{self, Write};

use serde::Serialize;

/// What the user asked to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Text for people.
    Text,
    /// One JSON document.
    Json,
}

impl Style {
    /// Prints `value` as the JSON document of the command, or what `text` writes.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        // A plan may have a million lines.
        let mut out = io::BufWriter::new(io::stdout().lock());
        match self {
            Style::Json => {
                serde_json::to_writer_pretty(&mut out, value)?;
                writeln!(out)?;
            }
            Style::Text => text(&mut out)?,
        }
        out.flush()
    }
}

/// Bytes as people say them: `0 B`, `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// `1 file`, `2 files`.
pub(crate) fn count(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", indicatif::HumanCount(n))
}

/// Writes rows under their headings, each column as wide as its widest cell.
pub(crate) fn table<const N: usize>(
    out: &mut dyn Write,
    headings: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let mut widths = headings.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &[&str]| -> io::Result<()> {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            text += cell;
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(&headings)?;
    for row in rows {
        line(&row.each_ref().map(String::as_str))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        table(
            &mut out,
            ["NAME", "SIZE"],
            &[
                ["a-long-name".into(), "1 B".into()],
                ["b".into(), "2 B".into()],
            ],
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME         SIZE\na-long-name  1 B\nb            2 B\n"
        );
    }

    #[test]
    fn counts_agree_with_their_noun() {
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(1200, "file"), "1,200 files");
    }
}
