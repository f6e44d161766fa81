//! What a command tells on standard error: how far it has come, and what the user should know.
//!
//! One [`Channel`] for each process. It shows bars, prints lines, or writes JSON lines for another program
//! (docs/json.md); then standard error carries nothing else.

mod bars;
mod json;
mod lines;

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex};

use importer::pull::PodmanOutput;
use serde::Serialize;

use crate::args::ProgressArg;
pub(crate) use json::Log;

/// How progress is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Silent,
    Bars,
    Lines,
    Json,
}

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Level {
    /// Something that was found or left out.
    Note,
    /// Something that the user may want to mend.
    Warning,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ending {
    Done,
    Findings,
    Failed,
    Interrupted,
}

impl Ending {
    /// The exit status.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Findings | Self::Failed => 1,
            Self::Interrupted => 130,
        }
    }
}

/// The way to standard error; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    how: How,
    /// Whether the last event of all was written.
    ended: Arc<Mutex<bool>>,
}

impl Channel {
    pub(crate) fn new(wish: ProgressArg) -> Self {
        let how = match wish {
            ProgressArg::Auto if std::io::stderr().is_terminal() => How::Bars,
            ProgressArg::Auto | ProgressArg::None => How::Silent,
            ProgressArg::Bars => How::Bars,
            ProgressArg::Plain => How::Lines,
            ProgressArg::Json => How::Json,
        };
        Self {
            how,
            ended: Arc::default(),
        }
    }

    /// Whether standard error is for a program.
    pub(crate) fn is_json(&self) -> bool {
        self.how == How::Json
    }

    /// What podman is to show when it works for us.
    pub(crate) fn podman(&self) -> PodmanOutput {
        match self.how {
            How::Bars | How::Lines => PodmanOutput::Progress,
            How::Silent | How::Json => PodmanOutput::Quiet,
        }
    }

    /// The first event of all.
    pub(crate) fn begin(&self, command: &str) {
        if self.is_json() {
            json::begin(command);
        }
    }

    /// A message for the user.
    pub(crate) fn tell(&self, level: Level, text: &str) {
        match (self.how, level) {
            (How::Json, _) => json::message(level, text),
            (_, Level::Note) => eprintln!("composefs-store: {text}"),
            (_, Level::Warning) => eprintln!("composefs-store: warning: {text}"),
        }
    }

    /// Work on one of several images begins.
    pub(crate) fn image(&self, name: &str, index: usize, images: usize) {
        match self.how {
            How::Json => json::image(name, index, images),
            How::Lines => eprintln!("{name} ({} of {images})", index + 1),
            How::Bars | How::Silent => {}
        }
    }

    /// An image is imported.
    pub(crate) fn imported(&self, report: &importer::ImportReport) {
        if self.is_json() {
            json::imported(report);
        }
    }

    /// A receiver of one import's events.
    pub(crate) fn import(&self) -> Box<dyn importer::Progress> {
        match self.how {
            How::Silent => Box::new(importer::Quiet),
            How::Bars => Box::new(bars::Import::new()),
            How::Lines => Box::new(lines::Import::default()),
            How::Json => Box::new(json::import_event),
        }
    }

    /// A receiver of the phases of a collection or check.
    pub(crate) fn phases(&self) -> Box<dyn gc::Progress> {
        match self.how {
            How::Silent => Box::new(()),
            How::Bars => Box::new(bars::Phases::new()),
            How::Lines => Box::new(lines::Phases),
            How::Json => Box::new(json::Phases::default()),
        }
    }

    /// The last event of all; only the first call counts.
    pub(crate) fn end(&self, ending: Ending, error: Option<&str>) {
        let mut ended = self
            .ended
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if std::mem::replace(&mut *ended, true) {
            return;
        }
        if self.is_json() {
            json::end(ending, error);
        } else if let Some(error) = error {
            eprintln!("composefs-store: {error}");
        }
    }
}

/// What people call a phase.
fn words(phase: gc::Phase) -> &'static str {
    match phase {
        gc::Phase::Waiting => "waiting for others",
        gc::Phase::Marking => "reading what is needed",
        gc::Phase::Listing => "listing objects",
        gc::Phase::RemovingNames => "removing names",
        gc::Phase::RemovingObjects => "removing objects",
        gc::Phase::CheckingObjects => "checking objects",
        gc::Phase::CheckingNames => "checking streams and images",
        gc::Phase::CheckingMeaning => "making layers and images again",
        gc::Phase::Mending => "mending objects",
    }
}

/// What people call a stage.
fn stage(stage: importer::Stage) -> &'static str {
    match stage {
        importer::Stage::Check => "looking for what is there already",
        importer::Stage::Layers => "reading layers",
        importer::Stage::Rootfs => "making the root filesystem image",
        importer::Stage::Publish => "making it durable",
    }
}

/// A layer by the ID or digest under which its source knows it.
fn title(layer: &importer::LayerPlan) -> String {
    match (&layer.id, &layer.blob) {
        (Some(id), _) => short(id.as_str()).to_owned(),
        (None, Some(blob)) => short(&blob.to_hex()).to_owned(),
        (None, None) => short(&layer.diff_id.to_hex()).to_owned(),
    }
}

/// The twelve digits of an ID that podman shows.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
