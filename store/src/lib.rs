//! A node's disk: the origin logs it holds, the indexes that find events in them, and small state.
//!
//! Blocks of all origin logs, local and remote, lie interleaved in one physical log, so that one
//! write and one `fdatasync` commit whatever is queued. [`Store::submit`] queues a block;
//! [`Store::read_log`], [`Store::scan`], [`Store::read_stream`] and [`Store::ordered`] read what is
//! committed. What a region wrote beyond the cut of a fence is moved out of the log by [`strand()`],
//! before the store is opened.
//!
//! Not here: who may write and which position comes next (`node`), moving blocks between regions
//! (`replication`), what events mean (`conflict`, `projection`). Start reading at `disk`, then
//! `envelope`, `segment`, `commit`, `recovery`. Every byte is described in `docs/format.md`.
//!
//! Always true (`durable`, `dense`): whatever was reported committed is read back verbatim after
//! any crash, or reported as damaged; it is never silently missing, and an origin log never has a
//! gap that [`Store::damaged`] does not name.

mod answer;
mod build;
pub mod checked_file;
mod commit;
mod core;
mod damage;
mod disk;
mod envelope;
mod error;
mod files;
mod generations;
mod housekeeping;
mod index;
mod offset;
mod options;
mod ordered;
mod queue;
mod read;
mod recovery;
mod repair;
mod scrub;
mod segment;
mod small;
mod store;
mod strand;
mod stranded;
mod stream;
mod verify;
mod walk;

pub use answer::{Direction, Found, Health, LogHead, Recovery, ScanPage, StoreStats, StreamRange};
pub use damage::{DamagedRange, Hole, RepairError};
pub use disk::{Disk, DiskFile, RealDisk, SimDisk};
pub use error::{CommitError, OpenError, ReadError, SubmitError};
pub use generations::{Generations, NotAdmitted};
pub use offset::LogOffset;
pub use options::{Lanes, StoreOptions};
pub use ordered::{OrderedReader, Reached};
pub use scrub::{ScrubCursor, ScrubStep};
pub use small::{KeyValue, SmallError, SmallState};
pub use store::{CommitGroup, Dependencies, Done, Store};
pub use strand::{StrandError, Stranded, strand};
pub use stranded::{ReadStrandedError, StrandedTail, read_stranded, stranded};
pub use verify::{Damage, VerifyError, VerifyReport, verify};
