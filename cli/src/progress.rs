//! An import's progress on a terminal: a bar for each layer being read. In a pipe it is quiet.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Mutex;

use importer::{Event, LayerPlan, Progress, Stage};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Bars on standard error.
pub(crate) struct Bars {
    all: MultiProgress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    titles: Vec<(String, Option<u64>)>,
    layers: HashMap<usize, ProgressBar>,
    stage: Option<ProgressBar>,
}

impl Bars {
    /// Bars if standard error is a terminal.
    pub(crate) fn on_terminal() -> Option<Self> {
        std::io::stderr().is_terminal().then(|| Self {
            all: MultiProgress::new(),
            state: Mutex::default(),
        })
    }

    fn stage(&self, state: &mut State, stage: Stage) {
        let words = match stage {
            Stage::Check => "looking for what is there already",
            Stage::Layers => {
                state.stage = None;
                return;
            }
            Stage::Rootfs => "making the root filesystem image",
            Stage::Publish => "making it durable",
        };
        let spinner = self.all.add(ProgressBar::new_spinner().with_message(words));
        spinner.enable_steady_tick(std::time::Duration::from_millis(100));
        state.stage = Some(spinner);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let _ = self.all.clear();
    }
}

impl Progress for Bars {
    fn event(&self, event: &Event<'_>) {
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
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
                state
                    .layers
                    .insert(*layer, self.all.add(bar.with_message(title)));
            }
            Event::LayerAdvanced { layer, bytes, .. } => {
                if let Some(bar) = state.layers.get(layer) {
                    bar.inc(*bytes);
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

/// A layer by the ID or digest under which its source knows it.
fn title(layer: &LayerPlan) -> String {
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

/// A collection's or check's phases: one bar on standard error, if that is a terminal.
pub(crate) struct Phases(Option<Mutex<ProgressBar>>);

impl Phases {
    pub(crate) fn on_terminal() -> Self {
        Self(
            std::io::stderr()
                .is_terminal()
                .then(|| Mutex::new(ProgressBar::hidden())),
        )
    }

    fn with(&self, act: impl FnOnce(&mut ProgressBar)) {
        if let Some(bar) = &self.0 {
            act(&mut bar
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner));
        }
    }
}

impl gc::Progress for Phases {
    fn begin(&self, phase: gc::Phase, total: Option<u64>) {
        let words = match phase {
            gc::Phase::Waiting => "waiting for others to leave the repository",
            gc::Phase::Marking => "reading what is needed",
            gc::Phase::Listing => "listing objects",
            gc::Phase::RemovingNames => "removing names",
            gc::Phase::RemovingObjects => "removing objects",
            gc::Phase::CheckingObjects => "checking objects",
            gc::Phase::CheckingNames => "checking streams and images",
        };
        self.with(|bar| {
            bar.finish_and_clear();
            *bar = match total {
                Some(total) => ProgressBar::new(total).with_style(
                    ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}")
                        .expect("the template is constant"),
                ),
                None => ProgressBar::new_spinner(),
            }
            .with_message(words);
        });
    }

    fn advance(&self, steps: u64) {
        self.with(|bar| bar.inc(steps));
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        self.with(|bar| bar.finish_and_clear());
    }
}
