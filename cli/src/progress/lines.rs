//! Lines for a log: one when a stage, layer or phase begins or ends.

use std::sync::{Mutex, PoisonError};

use importer::{Event, LayerOutcome};

use super::{stage, title, words};
use crate::output::size;

/// An import's lines.
#[derive(Default)]
pub(super) struct Import {
    titles: Mutex<Vec<String>>,
}

impl importer::Progress for Import {
    fn event(&self, event: &Event<'_>) {
        let mut titles = self.titles.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Layers { layers } => {
                *titles = layers
                    .iter()
                    .zip(1..)
                    .map(|(layer, number)| {
                        format!("layer {number} of {} ({})", layers.len(), title(layer))
                    })
                    .collect();
            }
            Event::Stage { stage: now } => eprintln!("{}", stage(*now)),
            Event::LayerFinished { layer, report } => {
                let title = titles.get(*layer).map_or("layer", String::as_str);
                match report.outcome {
                    LayerOutcome::Imported | LayerOutcome::Trusted => {
                        eprintln!("{title}: read {}", size(report.tar_bytes));
                    }
                    LayerOutcome::Present => eprintln!("{title}: there already"),
                    LayerOutcome::Repeated => eprintln!("{title}: the same as one below"),
                }
            }
            Event::LayerStarted { .. } | Event::LayerAdvanced { .. } => {}
        }
    }
}

/// A line for each phase.
pub(super) struct Phases;

impl gc::Progress for Phases {
    fn begin(&self, phase: gc::Phase, _: Option<u64>) {
        eprintln!("{}", words(phase));
    }
}
