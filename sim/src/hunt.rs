//! Many seeds, one after the other, on a few threads.

use std::any::Any;
use std::cell::RefCell;
use std::ops::Range;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use crate::plan::Plan;
use crate::world::{self, Ran, RunOptions};

thread_local! {
    // Where the run on this thread reports to.
    static REPORTS_TO: RefCell<Option<Sender<Ran>>> = const { RefCell::new(None) };
}

static SILENT: AtomicBool = AtomicBool::new(false);

/// Runs one plan on a thread of its own, so that nothing of an earlier run is left on it.
///
/// A panic anywhere in the run ends it. Its thread stays where it is, for good: to take down a world
/// in the middle of a step panics again, in quinn and tokio, and that would take this process along.
///
/// # Panics
/// When the thread cannot be made.
#[expect(
    clippy::disallowed_methods,
    reason = "a run is a thread, which a panic leaves behind"
)]
pub fn run_alone(plan: &Plan, options: impl Into<RunOptions>) -> Ran {
    let options = options.into();
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            if !SILENT.load(Ordering::Relaxed) {
                before(panicked);
            }
            if let Some(reports_to) = REPORTS_TO.take() {
                let ran = world::ended_by_panic(&text_of(panicked));
                // Nobody waits any more only when the process ends.
                let _ = reports_to.send(ran);
                loop {
                    thread::park();
                }
            }
        }));
    });
    let (reports_to, report) = channel();
    let plan = plan.clone();
    thread::Builder::new()
        .spawn(move || {
            REPORTS_TO.set(Some(reports_to.clone()));
            let ran = world::run(&plan, options);
            let _ = reports_to.send(ran);
        })
        .expect("a thread");
    report.recv().expect("a run ends with a report")
}

fn text_of(panicked: &PanicHookInfo<'_>) -> String {
    let payload: &dyn Any = panicked.payload();
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied());
    let place = panicked.location().map(ToString::to_string);
    format!(
        "{} ({})",
        text.unwrap_or("without a word").replace('\n', " "),
        place.unwrap_or_default()
    )
}

/// Runs the plans of these seeds, which `draw` makes, on `jobs` threads and as `options` say; `each`
/// is told of every one, in any order, and ends the hunt by answering false.
pub fn hunt(
    seeds: Range<u64>,
    draw: impl Fn(u64) -> Plan + Sync,
    options: impl Into<RunOptions>,
    jobs: usize,
    each: impl Fn(&Plan, &Ran) -> bool + Sync,
) {
    let options = options.into();
    let end = seeds.end;
    let next = AtomicU64::new(seeds.start);
    let one_at_a_time = Mutex::new(());
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let plan = draw(seed);
                    let ran = run_alone(&plan, options);
                    let _turn = one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
                    if !each(&plan, &ran) {
                        next.store(end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Keeps panics from being printed: they are part of a run's report.
pub fn silence_panics() {
    SILENT.store(true, Ordering::Relaxed);
}
