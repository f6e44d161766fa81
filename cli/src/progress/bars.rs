//! Bars on a terminal: one for each layer being read, or one for the phase of a collection or check.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use importer::{Event, Stage};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{stage, title, words};

/// An import's bars; they vanish with this value.
pub(super) struct Import {
    all: MultiProgress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    titles: Vec<(String, Option<u64>)>,
    layers: HashMap<usize, ProgressBar>,
    stage: Option<ProgressBar>,
}

impl Import {
    pub(super) fn new() -> Self {
        Self {
            all: MultiProgress::new(),
            state: Mutex::default(),
        }
    }

    fn stage(&self, state: &mut State, now: Stage) {
        if let Some(spinner) = state.stage.take() {
            spinner.finish_and_clear();
        }
        if now != Stage::Layers {
            let spinner = ProgressBar::new_spinner().with_message(stage(now));
            let spinner = self.all.add(spinner);
            spinner.enable_steady_tick(Duration::from_millis(100));
            state.stage = Some(spinner);
        }
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        let _ = self.all.clear();
    }
}

impl importer::Progress for Import {
    fn event(&self, event: &Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Layers { layers } => {
                state.titles = layers
                    .iter()
                    .map(|layer| (title(layer), layer.size))
                    .collect();
            }
            Event::Stage { stage } => self.stage(&mut state, *stage),
            Event::LayerStarted { layer } => {
                let (title, size) = state.titles.get(*layer).cloned().unwrap_or_default();
                let bar = match size {
                    Some(size) => ProgressBar::new(size).with_style(bar_style()),
                    None => ProgressBar::no_length().with_style(bar_style()),
                };
                let bar = self.all.add(bar.with_message(title));
                state.layers.insert(*layer, bar);
            }
            Event::LayerAdvanced { layer, bytes, .. } => {
                if let Some(bar) = state.layers.get(layer) {
                    bar.set_position(*bytes);
                }
            }
            Event::LayerFinished { layer, .. } => {
                if let Some(bar) = state.layers.remove(layer) {
                    bar.finish_and_clear();
                    self.all.remove(&bar);
                }
            }
        }
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{msg:12} {bar:30} {binary_bytes:>10}/{binary_total_bytes:10} {binary_bytes_per_sec:>12} {eta:>4}",
    )
    .expect("the template is constant")
}

/// One bar, for one phase after the other.
pub(super) struct Phases(Mutex<ProgressBar>);

impl Phases {
    pub(super) fn new() -> Self {
        Self(Mutex::new(ProgressBar::hidden()))
    }
}

impl gc::Progress for Phases {
    fn begin(&self, phase: gc::Phase, total: Option<u64>) {
        let mut bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bar.finish_and_clear();
        *bar = match total {
            Some(total) => ProgressBar::new(total).with_style(
                ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}")
                    .expect("the template is constant"),
            ),
            None => ProgressBar::new_spinner(),
        }
        .with_message(words(phase));
    }

    fn advance(&self, steps: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .inc(steps);
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .finish_and_clear();
    }
}
