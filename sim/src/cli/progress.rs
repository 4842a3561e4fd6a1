//! How far a long command is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::lock;

// Often enough to see that it lives, rarely enough for a log.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Counts what is done, on stderr.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    unit: &'static str,
    total: u64,
    done: AtomicU64,
    began: Instant,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Begins to count up to `total`.
    pub(crate) fn new(unit: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            let style = format!("{{bar:40}} {{pos}} of {{len}} {unit}, {{msg}}, {{eta}} to go");
            if let Ok(style) = ProgressStyle::with_template(&style) {
                bar.set_style(style);
            }
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            unit,
            total,
            done: AtomicU64::new(0),
            began: now,
            last_line: Mutex::new(now),
        }
    }

    /// One more is done.
    pub(crate) fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let speed = self.speed();
        if let Some(bar) = &self.bar {
            bar.set_message(speed);
            bar.set_position(done);
            return;
        }
        let mut last = lock(&self.last_line);
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            note!("{done} of {} {}, {speed}", self.total, self.unit);
        }
    }

    /// Prints a line on stderr without tearing the bar.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note!("{line}")),
            None => note!("{line}"),
        }
    }

    /// How many so far.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How many a minute, and in how long.
    pub(crate) fn speed(&self) -> String {
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
        let per_minute = self.done() as f64 * 60.0 / seconds;
        format!("{per_minute:.0} {}/min for {seconds:.0} s", self.unit)
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
