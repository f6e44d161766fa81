//! JSON lines on standard error, as docs/json.md describes them.

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Ending, Level};

/// Of the lines as a whole. Raised when something is taken away or means something else.
const VERSION: u32 = 1;

/// Time between two events about the same phase.
const PAUSE: Duration = Duration::from_millis(100);

/// What this program adds to the events of an import.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line<'a> {
    Begin {
        version: u32,
        command: &'a str,
    },
    Image {
        name: &'a str,
        index: usize,
        images: usize,
    },
    Imported {
        report: &'a importer::ImportReport,
    },
    Phase {
        phase: &'static str,
        total: Option<u64>,
    },
    PhaseAdvanced {
        phase: &'static str,
        done: u64,
    },
    Message {
        level: Level,
        text: &'a str,
    },
    Log {
        text: &'a str,
    },
    End {
        outcome: Ending,
        status: u8,
        error: Option<&'a str>,
    },
}

/// Writes one line in one go. A reader that went away does not stop the work.
fn write(line: &impl Serialize) {
    let Ok(mut text) = serde_json::to_vec(line) else {
        return;
    };
    text.push(b'\n');
    let _ = std::io::stderr().lock().write_all(&text);
}

pub(super) fn begin(command: &str) {
    write(&Line::Begin {
        version: VERSION,
        command,
    });
}

pub(super) fn image(name: &str, index: usize, images: usize) {
    write(&Line::Image {
        name,
        index,
        images,
    });
}

pub(super) fn imported(report: &importer::ImportReport) {
    write(&Line::Imported { report });
}

pub(super) fn message(level: Level, text: &str) {
    write(&Line::Message { level, text });
}

pub(super) fn end(outcome: Ending, error: Option<&str>) {
    write(&Line::End {
        outcome,
        status: outcome.status(),
        error,
    });
}

/// An importer's event is a line as it is.
pub(super) fn import_event(event: &importer::Event<'_>) {
    write(event);
}

/// The phases of a collection or check.
#[derive(Default)]
pub(super) struct Phases(Mutex<Option<Phase>>);

struct Phase {
    name: &'static str,
    done: u64,
    told: u64,
    when: Instant,
}

impl Phase {
    fn tell(&mut self) {
        if self.done > self.told {
            self.told = self.done;
            self.when = Instant::now();
            write(&Line::PhaseAdvanced {
                phase: self.name,
                done: self.done,
            });
        }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.tell();
    }
}

impl gc::Progress for Phases {
    fn begin(&self, phase: gc::Phase, total: Option<u64>) {
        let name = match phase {
            gc::Phase::Waiting => "waiting",
            gc::Phase::Marking => "marking",
            gc::Phase::Listing => "listing",
            gc::Phase::RemovingNames => "removing-names",
            gc::Phase::RemovingObjects => "removing-objects",
            gc::Phase::CheckingObjects => "checking-objects",
            gc::Phase::CheckingNames => "checking-names",
            gc::Phase::CheckingMeaning => "checking-meaning",
            gc::Phase::Mending => "mending",
        };
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The end of the phase before comes first.
        *current = None;
        write(&Line::Phase { phase: name, total });
        *current = Some(Phase {
            name,
            done: 0,
            told: 0,
            when: Instant::now(),
        });
    }

    fn advance(&self, steps: u64) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(phase) = current.as_mut() {
            phase.done += steps;
            if phase.when.elapsed() >= PAUSE {
                phase.tell();
            }
        }
    }
}

/// Where the log goes when standard error is for a program: each entry becomes a line.
pub(crate) struct Log;

impl std::io::Write for Log {
    fn write(&mut self, entry: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(entry);
        write(&Line::Log {
            text: text.trim_end(),
        });
        Ok(entry.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
