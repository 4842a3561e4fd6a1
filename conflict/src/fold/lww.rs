//! The last write wins, and a write that lost without having been seen is listed.
//!
//! The winner of a cell (a document, or one field) is the write with the greatest marker. Another write of the cell is
//!
//! - *history*, when a later one replaced it knowingly: one with a greater marker that had seen it as the winner, that is
//!   as the greatest of all that it had seen;
//! - *superseded*, when it is not history and one with a greater marker had not seen it. The greatest of those is named
//!   as what it was superseded by.
//!
//! So a write that lost to a concurrent one stays listed when someone who has seen both replaces the winner: what they
//! replaced is the winner. Each of these is a function of the writes alone, whatever the order in which they arrive.
//!
//! Of history no value is kept, only its place and what it had seen, until garbage collection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_clock::{Position, RegionId, Timestamp};
use meridian_event::EventId;
use serde::{Deserialize, Serialize};
use serde_json::{Map as Object, Value};

use super::dot::{Actor, Context, Marker, OpDot, Seen};
use super::element::Element;

const BYTES: usize = 128;
const CELL_BYTES: usize = 128;
const WRITE_BYTES: usize = 240;
const SEEN_BYTES: usize = 16;

type Name = Arc<str>;

/// A write's place among those of its cell. The dot only tells apart what never has equal markers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Rank {
    pub(super) marker: Marker,
    pub(super) dot: OpDot,
}

impl Rank {
    /// Before every write.
    const FIRST: Self = Self {
        marker: Marker {
            timestamp: Timestamp::ZERO,
            region: RegionId(0),
            position: Position::ZERO,
        },
        dot: OpDot {
            actor: Actor {
                region: RegionId(0),
                generation: 0,
            },
            counter: 0,
        },
    };
}

/// One event's write, as it arrives.
#[derive(Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) rank: Rank,
    pub(super) id: EventId,
    pub(super) context: Context<'a>,
    /// What has come before it.
    pub(super) clock: &'a Seen,
}

/// A write that lost to one that had not seen it.
#[derive(Clone, Debug, PartialEq)]
pub struct Superseded {
    /// Its event.
    pub id: EventId,
    /// Its operation.
    pub dot: OpDot,
    /// Where it counts as made.
    pub marker: Marker,
    /// Kind `fields`: which of the fields it wrote it lost, sorted. Empty for a `document`.
    pub fields: Vec<String>,
    /// What it wrote and lost: the document, or an object with the lost fields, `null` where it deleted one.
    pub value: Value,
    /// The event that won over it: of those with a greater marker that had not seen it, the greatest.
    pub by: EventId,
    /// That event's operation.
    pub by_dot: OpDot,
}

/// The write that a document or a field shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Winner {
    /// The field; none for a `document`.
    pub field: Option<String>,
    /// Its event.
    pub id: EventId,
    /// Its operation.
    pub dot: OpDot,
    /// Where it counts as made.
    pub marker: Marker,
}

/// Cells by name; a document is one cell whose name is empty.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Cells {
    cells: BTreeMap<Name, Cell>,
    // Of all that was collected, the greatest.
    floor: Option<Rank>,
    // Below it, things were collected that an operation without it might have been about.
    collected: Seen,
    // Writes that have seen some that are still to come, so that what they replaced may still change.
    #[serde(skip)]
    incomplete: BTreeSet<(Name, Rank)>,
    // Each of them under one operation that it has seen and that has not come: by actor and counter.
    #[serde(skip)]
    waiting: BTreeMap<Actor, BTreeSet<(u64, Name, Rank)>>,
    #[serde(skip)]
    listed: BTreeSet<(Rank, Name)>,
    #[serde(skip)]
    bytes: usize,
}

/// The writes of one cell; never none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Cell {
    writes: BTreeMap<Rank, Write>,
    // Those whose value is kept.
    #[serde(skip)]
    kept: BTreeSet<Rank>,
    // Of each actor, by counter, the writes that are greater than all that it wrote before. Its clock rises, so these are
    // all it wrote, and the greatest that someone had seen is found without a walk over what they had not.
    #[serde(skip)]
    rising: BTreeMap<Actor, Vec<Rank>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Write {
    id: EventId,
    seen: Seen,
    value: Kept,
    // While incomplete: the greatest that it has seen, so far.
    over: Option<Rank>,
    // While its value is kept: how many writes replaced it knowingly, so far.
    excuses: u32,
    // While its value is kept: the greatest of those that won over it unseen.
    beaten: Option<(Rank, EventId)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kept {
    /// History, or listed and told.
    Gone,
    /// The field was deleted.
    Deleted,
    Value(Element),
}

impl Cells {
    /// Adds a write of the cell `name`; without a value it is deleted.
    ///
    /// Returns `false` when what it says about other writes, or they about it, may have been collected.
    pub(super) fn write(
        &mut self,
        arrival: Arrival<'_>,
        name: &Name,
        value: Option<&Element>,
    ) -> bool {
        let Arrival {
            rank,
            id,
            context,
            clock,
        } = arrival;
        let bytes = &mut self.bytes;
        let cell = self.cells.entry(name.clone()).or_insert_with(|| {
            *bytes += CELL_BYTES + name.len();
            Cell::default()
        });
        let over = cell.greatest_within(|actor| context.get(actor));
        // Below the floor, and out of sight of an operation that had not seen what was collected, there may have been
        // writes that it says something about, or that say something about it.
        let is_exact = self.floor.is_none_or(|floor| {
            rank > floor && self.collected.iter().all(|dot| context.contains(dot))
        });
        let mut write = Write {
            id,
            seen: context.to_seen(),
            value: value.map_or(Kept::Deleted, |value| Kept::Value(value.clone())),
            over,
            excuses: 0,
            beaten: cell.greatest_unaware(rank),
        };
        let mut touched = vec![rank];
        touched.extend(cell.beat(rank, id, context));
        // Those that had seen it before it came may have replaced it, and not what they seemed to replace.
        let from = (name.clone(), Rank::FIRST);
        let early = self
            .incomplete
            .range(from..)
            .take_while(|(of, _)| of == name);
        for (_, other) in early {
            touched.extend(cell.retarget(*other, rank, &mut write));
        }
        if let Some(over) = over.filter(|over| *over < rank) {
            cell.excuse(over);
            touched.push(over);
        }
        self.bytes += write.bytes();
        cell.writes.insert(rank, write);
        cell.kept.insert(rank);
        cell.rise(rank);
        self.incomplete.insert((name.clone(), rank));
        self.list(name, touched);
        self.wait_or_complete(name.clone(), rank, clock);
        is_exact
    }

    /// Completes the writes all of whose context has come, now that `clock` has.
    pub(super) fn settle(&mut self, clock: &Seen) {
        let mut come = Vec::new();
        for (actor, waiting) in &mut self.waiting {
            let has_come = clock.get(*actor);
            while waiting
                .first()
                .is_some_and(|(counter, ..)| *counter <= has_come)
                && let Some((_, name, rank)) = waiting.pop_first()
            {
                come.push((name, rank));
            }
        }
        for (name, rank) in come {
            self.wait_or_complete(name, rank, clock);
        }
    }

    /// Forgets what no operation still to come is about, if they all have seen `last`.
    pub(super) fn collect(&mut self, last: &Seen) {
        let mut deleted = Vec::new();
        self.collected.merge(last);
        for (name, cell) in &mut self.cells {
            let Some(top) = cell.greatest_within(|actor| last.get(actor)) else {
                continue;
            };
            let is_needed = cell.kept.range(..top).next().is_some();
            let is_garbage = |rank: &Rank, write: &Write| {
                write.value == Kept::Gone
                    && last.contains(rank.dot)
                    && (*rank < top || (*rank == top && !is_needed))
                    && !self.incomplete.contains(&(name.clone(), *rank))
            };
            let before = cell.writes.len();
            let bytes = &mut self.bytes;
            let floor = &mut self.floor;
            cell.writes.retain(|rank, write| {
                let is_garbage = is_garbage(rank, write);
                if is_garbage {
                    *bytes -= write.bytes();
                    *floor = (*floor).max(Some(*rank));
                }
                !is_garbage
            });
            if cell.writes.len() < before {
                cell.count_anew();
            }
            let is_deleted = cell
                .writes
                .get(&top)
                .is_some_and(|write| write.value == Kept::Deleted);
            let is_waited_for = self.incomplete.contains(&(name.clone(), top));
            if is_deleted && cell.writes.len() == 1 && !is_waited_for {
                self.floor = self.floor.max(Some(top));
                deleted.push(name.clone());
            }
        }
        for name in deleted {
            let cell = self.cells.remove(&name).expect("it was just looked at");
            let writes: usize = cell.writes.values().map(Write::bytes).sum();
            self.bytes -= CELL_BYTES + name.len() + writes;
        }
    }

    /// The only cell's value; `null` before it was written.
    pub(super) fn document(&self) -> Value {
        let mut winners = self.winners();
        winners
            .next()
            .map_or(Value::Null, |(_, value)| value.to_value())
    }

    /// The values of the fields that are not deleted.
    pub(super) fn fields(&self) -> Value {
        let fields = self
            .winners()
            .map(|(name, value)| (name.as_ref().to_owned(), value.to_value()));
        Value::Object(fields.collect())
    }

    /// The superseded writes of a document, or of fields (`are_fields`), by marker.
    pub(super) fn superseded(&self, are_fields: bool) -> impl Iterator<Item = Superseded> + '_ {
        let mut listed = self.listed.iter().peekable();
        std::iter::from_fn(move || {
            let (rank, name) = listed.next()?;
            let mut names = vec![name];
            while let Some((_, name)) = listed.next_if(|(other, _)| other == rank) {
                names.push(name);
            }
            Some(self.superseded_at(*rank, &names, are_fields))
        })
    }

    /// Drops what is listed of the events `ids`.
    pub(super) fn forget(&mut self, ids: &BTreeSet<EventId>) {
        let is_told =
            |(rank, name): &&(Rank, Name)| ids.contains(&self.cells[name].writes[rank].id);
        let told: Vec<(Rank, Name)> = self.listed.iter().filter(is_told).cloned().collect();
        for (rank, name) in told {
            self.release(&name, rank);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        BYTES + self.bytes
    }

    /// `None` when a cell has no write, or no winner, or a vector is not spelled as we spell it.
    pub(super) fn of_image(mut cells: Self, clock: &Seen) -> Option<Self> {
        for (name, cell) in &mut cells.cells {
            let (_, winner) = cell.writes.last_key_value()?;
            let is_sound = winner.value != Kept::Gone && winner.beaten.is_none();
            if !is_sound || !cell.writes.values().all(|write| write.seen.is_canonical()) {
                return None;
            }
            cells.bytes += CELL_BYTES + name.len();
            cell.count_anew();
            for (rank, write) in &cell.writes {
                cells.bytes += write.bytes();
                if write.value != Kept::Gone {
                    cell.kept.insert(*rank);
                }
                if write.is_listed() {
                    cells.listed.insert((*rank, name.clone()));
                }
                if let Some(missing) = write.seen.first_beyond(clock) {
                    cells.incomplete.insert((name.clone(), *rank));
                    let waiting = cells.waiting.entry(missing.actor).or_default();
                    waiting.insert((missing.counter, name.clone(), *rank));
                }
            }
        }
        Some(cells)
    }

    fn winners(&self) -> impl Iterator<Item = (&Name, &Element)> {
        self.cells.iter().filter_map(|(name, cell)| {
            let (_, winner) = cell.writes.last_key_value()?;
            match &winner.value {
                Kept::Value(value) => Some((name, value)),
                Kept::Deleted | Kept::Gone => None,
            }
        })
    }

    fn superseded_at(&self, rank: Rank, names: &[&Name], are_fields: bool) -> Superseded {
        let writes = names.iter().map(|name| &self.cells[*name].writes[&rank]);
        let first = writes.clone().next().expect("something is listed");
        let beaten = writes.clone().filter_map(|write| write.beaten);
        let (beaten_by, by) = beaten.max().expect("it is listed because it was beaten");
        let mut values = writes.map(|write| match &write.value {
            Kept::Value(value) => value.to_value(),
            Kept::Deleted | Kept::Gone => Value::Null,
        });
        let fields: Vec<String> = match are_fields {
            true => names.iter().map(|name| name.as_ref().to_string()).collect(),
            false => Vec::new(),
        };
        let value = match are_fields {
            true => Value::Object(fields.iter().cloned().zip(values).collect::<Object<_, _>>()),
            false => values.next().unwrap_or_default(),
        };
        Superseded {
            id: first.id,
            dot: rank.dot,
            marker: rank.marker,
            fields,
            value,
            by,
            by_dot: beaten_by.dot,
        }
    }

    /// The write that each cell shows, by name. One that was deleted shows none.
    pub(super) fn winning(&self, are_fields: bool) -> impl Iterator<Item = Winner> + '_ {
        self.cells.iter().filter_map(move |(name, cell)| {
            let (rank, write) = cell.writes.last_key_value()?;
            matches!(write.value, Kept::Value(_)).then(|| Winner {
                field: are_fields.then(|| name.as_ref().to_string()),
                id: write.id,
                dot: rank.dot,
                marker: rank.marker,
            })
        })
    }

    /// Completes a write, unless something that it has seen is still to come; then it waits for that.
    fn wait_or_complete(&mut self, name: Name, rank: Rank, clock: &Seen) {
        let write = self.cells.get(&name).and_then(|it| it.writes.get(&rank));
        match write.and_then(|write| write.seen.first_beyond(clock)) {
            None => self.complete(&name, rank),
            Some(missing) => {
                let waiting = self.waiting.entry(missing.actor).or_default();
                waiting.insert((missing.counter, name, rank));
            }
        }
    }

    /// Everything that this write had seen has come: what it replaced is settled.
    fn complete(&mut self, name: &Name, rank: Rank) {
        self.incomplete.remove(&(name.clone(), rank));
        let write = self
            .cells
            .get_mut(name)
            .and_then(|cell| cell.writes.get_mut(&rank));
        let over = write.and_then(|write| write.over.take());
        if let Some(over) = over.filter(|over| *over < rank) {
            self.release(name, over);
        }
    }

    /// Lets go of a value that nobody will ask for any more.
    fn release(&mut self, name: &Name, rank: Rank) {
        let Some(cell) = self.cells.get_mut(name) else {
            return;
        };
        if cell.kept.remove(&rank)
            && let Some(write) = cell.writes.get_mut(&rank)
        {
            self.bytes -= write.bytes();
            write.value = Kept::Gone;
            write.excuses = 0;
            write.beaten = None;
            self.bytes += write.bytes();
            self.listed.remove(&(rank, name.clone()));
        }
    }

    /// Lists or takes off the list what was touched.
    fn list(&mut self, name: &Name, touched: Vec<Rank>) {
        let cell = &self.cells[name];
        for rank in touched {
            let is_listed = cell.writes.get(&rank).is_some_and(Write::is_listed);
            let entry = (rank, name.clone());
            match is_listed {
                true => self.listed.insert(entry),
                false => self.listed.remove(&entry),
            };
        }
    }
}

impl Cell {
    /// The greatest write among the first so many of each actor.
    fn greatest_within(&self, seen: impl Fn(Actor) -> u64) -> Option<Rank> {
        let greatest = self.rising.iter().filter_map(|(actor, rising)| {
            let seen = seen(*actor);
            let count = rising.partition_point(|rank| rank.dot.counter <= seen);
            rising[..count].last().copied()
        });
        greatest.max()
    }

    /// Counts a write among its actor's; each comes after those with lower counters.
    fn rise(&mut self, rank: Rank) {
        let rising = self.rising.entry(rank.dot.actor).or_default();
        if rising.last() < Some(&rank) {
            rising.push(rank);
        }
    }

    fn count_anew(&mut self) {
        let mut ranks: Vec<Rank> = self.writes.keys().copied().collect();
        ranks.sort_unstable_by_key(|rank| rank.dot);
        self.rising.clear();
        ranks.into_iter().for_each(|rank| self.rise(rank));
    }

    /// The greatest write above `rank` that had not seen it.
    fn greatest_unaware(&self, rank: Rank) -> Option<(Rank, EventId)> {
        let mut down = self.writes.range(rank..).rev();
        let unaware = down.find(|(_, write)| !write.seen.contains(rank.dot));
        unaware.map(|(above, write)| (*above, write.id))
    }

    /// Marks the kept writes below `rank`, which had not seen them, as beaten by it. Returns which.
    fn beat(&mut self, rank: Rank, id: EventId, context: Context<'_>) -> Vec<Rank> {
        let below = self.kept.range(..rank);
        let beaten: Vec<Rank> = below
            .filter(|other| !context.contains(other.dot))
            .copied()
            .collect();
        for other in &beaten {
            if let Some(write) = self.writes.get_mut(other) {
                write.beaten = write.beaten.max(Some((rank, id)));
            }
        }
        beaten
    }

    /// Tells `other`, which may have seen the new write at `rank`, that it has come. Returns what `other` seemed to
    /// have replaced before.
    fn retarget(&mut self, other: Rank, rank: Rank, write: &mut Write) -> Option<Rank> {
        let seer = self.writes.get_mut(&other)?;
        if !seer.seen.contains(rank.dot) || seer.over > Some(rank) {
            return None;
        }
        let before = seer.over.replace(rank);
        if rank < other {
            write.excuses += 1;
        }
        let before = before.filter(|before| *before < other)?;
        let replaced = self.writes.get_mut(&before)?;
        if replaced.value != Kept::Gone {
            replaced.excuses = replaced.excuses.saturating_sub(1);
        }
        Some(before)
    }

    fn excuse(&mut self, rank: Rank) {
        if let Some(write) = self.writes.get_mut(&rank)
            && write.value != Kept::Gone
        {
            write.excuses += 1;
        }
    }
}

impl Write {
    fn is_listed(&self) -> bool {
        self.value != Kept::Gone && self.excuses == 0 && self.beaten.is_some()
    }

    fn bytes(&self) -> usize {
        let value = match &self.value {
            Kept::Value(value) => value.as_str().len(),
            Kept::Gone | Kept::Deleted => 0,
        };
        WRITE_BYTES + self.seen.len() * SEEN_BYTES + value
    }
}
