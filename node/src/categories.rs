//! Sets the policies of categories while the node runs: asks for it, and answers for this region.
//!
//! What is decided is [`crate::control::category`]. Start reading at [`answer`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_clock::{LogId, Position, RegionId};
use meridian_conflict::{CategoryPolicy, HomeRule, Isolation, Kind, Mode};
use meridian_event::BlockError;
use meridian_points::reached;
use meridian_store::{ReadError, Store};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Node;
use crate::control::category::{Asked, Set};
use crate::control::{Command, Consensus, Federation};
use crate::homes::{Homes, MoveError};
use crate::sequencer::Sequencer;

/// How often it is looked again at what keeps a region from answering.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long one decision may take.
const DECIDE_WITHIN: Duration = Duration::from_secs(5);
/// How much of a log is read at once to look for events of a category.
const READ_BYTES: usize = 1 << 20;

/// How a category stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CategoryReport {
    /// How writes are settled, and who is home.
    pub policy: CategoryPolicy,
    /// What a home does that is cut off.
    pub isolation: Isolation,
    /// What its streams are, if every region may write them and they are merged.
    pub kind: Option<Kind>,
    /// While another policy is being set: the regions that have not said yet that they hold no events of the
    /// category. Nobody writes it meanwhile.
    pub waits_for: Vec<String>,
}

impl Node {
    /// How `category` stands.
    pub fn category(&self, category: &str) -> CategoryReport {
        let federation = self.homes().federation();
        let policies = self.homes().policies();
        let setting = federation.categories.get(category);
        let pending = setting.and_then(|it| it.pending.as_ref());
        let waits_for = pending.map_or_else(Vec::new, |pending| {
            let members = federation.members();
            let missing = members.difference(&pending.ready);
            missing.map(|it| self.name_of(*it)).collect()
        });
        CategoryReport {
            policy: policies.of(category),
            isolation: policies.isolation(category),
            kind: policies.kind(category),
            waits_for,
        }
    }

    /// Sets the policy of `category`, of which no region may hold an event unless only the isolation changes. Waits up
    /// to `wait` until it counts; whether it did not by then is told in the answer's `waits_for`, and it goes on.
    ///
    /// # Errors
    /// When it cannot be set, or nothing can be decided.
    pub async fn set_category(
        &self,
        category: &str,
        policy: CategoryPolicy,
        isolation: Isolation,
        kind: Option<Kind>,
        wait: Duration,
    ) -> Result<CategoryReport, MoveError> {
        let began = Instant::now();
        if category.starts_with('$') {
            return Err(MoveError::Invalid(format!(
                "category {category} is the server's own; name one that does not begin with $"
            )));
        }
        let kind = match policy.mode {
            Mode::Lww => kind.or(Some(Kind::Document)),
            Mode::Home | Mode::Crdt => kind,
        };
        if let Some(reason) = contradiction(&policy, isolation, kind) {
            return Err(MoveError::Invalid(reason));
        }
        let set = Set {
            policy,
            isolation,
            kind,
        };
        let before = self.homes().federation().version;
        let was = Set::of(&self.homes().policies(), category);
        let why = unsuitable(&was, &set);
        self.decide(Command::SetCategory {
            category: category.to_owned(),
            set,
        })
        .await?;
        let mut federation = self.homes().watch();
        let is_over = |it: &Arc<Federation>| !it.is_being_set(category);
        // What is not over by then is told in the answer.
        let over = timeout_at(began + wait, federation.wait_for(is_over)).await;
        if let Ok(Ok(now)) = over
            && let Some(setting) = now.categories.get(category)
            && let Some((change, by)) = setting.given_up
            && change > before
        {
            return Err(MoveError::Conflict(format!(
                "region {} holds events of category {category}, and {why}. Nothing was changed; of a category with \
                 events only the isolation can be set anew",
                self.name_of(by)
            )));
        }
        Ok(self.category(category))
    }

    fn name_of(&self, region: RegionId) -> String {
        let name = self.region_names().get(&region);
        name.cloned().unwrap_or_else(|| region.to_string())
    }
}

/// Why these cannot go together.
fn contradiction(
    policy: &CategoryPolicy,
    isolation: Isolation,
    kind: Option<Kind>,
) -> Option<String> {
    let has_home = policy.mode == Mode::Home;
    let of_mode = || Kind::of_mode(policy.mode).map(Kind::name);
    let of_mode = || of_mode().collect::<Vec<_>>().join(", ");
    let said = match kind {
        _ if !has_home && policy.home != HomeRule::Hash => {
            "`home` has no effect in this mode, which every region may write; leave it out".to_owned()
        }
        _ if !has_home && isolation == Isolation::Fenced => {
            "`isolation` has no effect in this mode, which every region may write; leave it out"
                .to_owned()
        }
        Some(_) if has_home => {
            "`type` has no effect in mode home, in which one region orders each stream; leave it out"
                .to_owned()
        }
        Some(kind) if kind.mode() != policy.mode => format!(
            "`type` is {kind}, which is not of this mode; name one of {}",
            of_mode()
        ),
        None if policy.mode == Mode::Crdt => format!(
            "`type` is missing: say what the category's streams are, one of {}",
            of_mode()
        ),
        _ => return None,
    };
    Some(said)
}

/// Why events of a category that was set as `was` do not suit `set`, and what can be done.
fn unsuitable(was: &Set, set: &Set) -> String {
    let name = |kind: Option<Kind>| kind.map_or("nothing", Kind::name);
    match (was.policy.mode, set.policy.mode) {
        (Mode::Home, Mode::Home) => {
            "by another rule other regions are home to its streams, without having been given them. Move \
             streams by `meridian home move`, or name a new category"
                .to_owned()
        }
        (Mode::Home, _) => {
            "what was written in turn is no operation that could be merged. Name a new category, and write \
             there what the old streams come to"
                .to_owned()
        }
        (_, Mode::Home) => {
            "what regions wrote side by side is in no one order that a home could go on from. Name a new \
             category, and write there what the old streams come to"
                .to_owned()
        }
        (_, _) => format!(
            "its operations are those of type {}; nobody could say what they come to as {}. Name a new category, \
             and write there what the old streams come to",
            name(was.kind),
            name(set.kind)
        ),
    }
}

/// Says of each category that is being set whether this region holds events of it, until `cancel`.
pub(crate) async fn answer(
    region: RegionId,
    homes: Arc<Homes>,
    store: Arc<Store>,
    sequencers: Vec<Arc<Sequencer>>,
    consensus: Arc<dyn Consensus>,
    cancel: CancellationToken,
) {
    let mut federation = homes.watch();
    loop {
        let now = Arc::clone(&federation.borrow_and_update());
        let asked = now.asks_about(region);
        let is_waiting = !asked.is_empty();
        let work = async {
            if is_waiting {
                answer_all(region, asked, &store, &sequencers, &*consensus).await;
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = work => {}
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            changed = federation.changed() => if changed.is_err() { return },
            () = sleep(LOOK_EVERY), if is_waiting => {}
        }
    }
}

async fn answer_all(
    region: RegionId,
    asked: BTreeMap<String, Asked>,
    store: &Store,
    sequencers: &[Arc<Sequencer>],
    consensus: &dyn Consensus,
) {
    // A block that was begun before this was known may hold what nobody may write any more.
    for sequencer in sequencers {
        while !sequencer.is_quiet() {
            reached("a category was set while a block was under way");
            sleep(LOOK_EVERY).await;
        }
    }
    for (category, asked) in asked {
        let holds = async {
            match asked.may_hold_events {
                true => Ok(false),
                false => holds_any(store, &category).await,
            }
        };
        let is_free = match holds.await {
            Ok(holds) => !holds,
            Err(error) => {
                warn!(category, %error, "whether there are events of a category that is being set cannot be read");
                continue;
            }
        };
        let about = Command::AboutCategory {
            category: category.clone(),
            change: asked.change,
            by: region,
            is_free,
        };
        let decided = consensus.propose(about, Instant::now() + DECIDE_WITHIN);
        match decided.await {
            Ok(_) => info!(
                category,
                is_free, "this region answered for a category that is being set"
            ),
            Err(error) => {
                warn!(category, %error, "a category that is being set waits for this region")
            }
        }
    }
}

/// Why it is not known whether there are events of a category.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Block(#[from] BlockError),
}

// Whether any log that is held here has an event of `category`. All is read: this is done once in a category's
// life, and mostly before there is much.
async fn holds_any(store: &Store, category: &str) -> Result<bool, LookError> {
    let logs: Vec<LogId> = store.heads().iter().map(|head| head.log).collect();
    for log in logs {
        let mut after = Position::ZERO;
        loop {
            let blocks = store.read_log(log, after, READ_BYTES)?;
            let Some(last) = blocks.last() else { break };
            after = last.header().last_position();
            for block in &blocks {
                let block = block.open()?;
                for event in block.events() {
                    if meridian_event::category_of(event?.stream) == category {
                        return Ok(true);
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    }
    Ok(false)
}
