//! What goes into the scheduler and what comes out of it: closed enums of plain values.

use std::time::Duration;

use crate::job::{Fault, OnLate, Pool, Priority};

use super::batch::BatchKey;
use super::fair::TenantKey;
use super::time::Mono;

/// Names one message of the request stream: its stream sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names one image in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey(pub u64);

/// One consumer that messages are pulled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Its priority.
    pub priority: Priority,
    /// Its pool.
    pub pool: Pool,
}

/// What the scheduler needs to know of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Images to make.
    pub images: u32,
    /// What a batch must agree on.
    pub key: BatchKey,
    /// A preview with every n-th step.
    pub previews: Option<u32>,
    /// Denoising steps of each image, as asked for.
    pub steps: u32,
    /// Of so many steps one is whole, and the others take a share of it; 1 where all are.
    pub whole_every: u32,
    /// Whose it is.
    pub tenant: TenantKey,
    /// When it should be done.
    pub deadline: Option<Deadline>,
}

/// When a job should be done, and what becomes of it if it cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Its last step, and its decode, are to be over by then.
    pub at: Mono,
    /// What becomes of it otherwise.
    pub on_late: OnLate,
}

/// Whether the job is ours to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is; so many attempts failed before.
    Won {
        /// Failures on record.
        failures: u32,
        /// Workers that it was taken over from.
        deaths: u32,
        /// Somebody wants it stopped and what is there kept.
        stopping: bool,
    },
    /// It is, but what it starts from cannot be had.
    Unprepared {
        /// Failures on record.
        failures: u32,
        /// Why.
        fault: Fault,
    },
    /// It has ended; its terminal event may be missing.
    Ended {
        /// Whether a dead letter belongs to its end.
        dead_letter: bool,
    },
    /// Another message of the stream is this job.
    Duplicate,
    /// The id belongs to a different request.
    Conflict,
    /// Another worker seems to be at it.
    HeldElsewhere,
}

/// A change of the job's record, by compare-and-set with the fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The images are stored.
    Complete,
    /// It was stopped; what there was of its images is stored.
    Cancel,
    /// It can never complete.
    Fail(Fault),
    /// Back to the queue, one failure more.
    Retry(Fault),
    /// Back to the queue, unharmed.
    GiveBack,
    /// The request is malformed: a failed record under its id, unless that id is taken.
    Refuse,
}

/// How a message is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done: remove it.
    Ack,
    /// Deliver it again after a delay.
    Nak(Duration),
    /// Never deliver it again.
    Term,
}

/// One thing the shell does for a job. A job has at most one action out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take the job in its record; answered with [`Acted::Claimed`].
    Claim,
    /// Upload what was saved of its rows, and let the record point there.
    Checkpoint,
    /// Upload the images.
    Store,
    /// Change the record.
    Record(Transition),
    /// Publish the terminal event that the record holds, unless it is there already.
    Publish,
    /// Put the original message in the dead-letter stream.
    DeadLetter,
    /// Settle the message, confirmed by the server.
    Settle(Verdict),
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acted {
    /// As wished.
    Done,
    /// The answer to [`Action::Claim`].
    Claimed(Claim),
    /// The record belongs to somebody else: the fence did not hold.
    Lost,
    /// The job has ended by somebody else's hand: it was cancelled.
    Ended,
    /// It did not work.
    Failed(Fault),
}

/// What the engine can be asked. One question at a time, except `Release`, which has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineWork {
    /// Encode the prompts and draw the noise of one image.
    Admit {
        /// The new row.
        row: RowKey,
        /// Its job.
        ticket: Ticket,
        /// Its index in the job.
        image: u32,
    },
    /// One denoising step of all `rows`, then previews of some.
    Step {
        /// Rows of one [`BatchKey`].
        rows: Vec<RowKey>,
        /// Rows to preview after the step.
        previews: Vec<RowKey>,
    },
    /// Write down how far these rows of one job are.
    Save {
        /// Their job.
        ticket: Ticket,
        /// Rows that have made a step.
        rows: Vec<RowKey>,
    },
    /// Latents to pixels; as far as they are, when steps are left.
    Decode {
        /// The finished row.
        row: RowKey,
        /// Its job.
        ticket: Ticket,
        /// Its index in the job.
        image: u32,
    },
    /// Forget a row.
    Release {
        /// The row.
        row: RowKey,
    },
}

/// The engine's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineReport {
    /// The row needs so many steps.
    Admitted {
        /// Denoising steps.
        steps: u32,
        /// Those of them that were made before, by whoever had the job then.
        made: u32,
    },
    /// What was saved is with the shell.
    Saved,
    /// Every row moved one step.
    Stepped,
    /// The picture is with the shell.
    Decoded,
}

/// How a pull ended, if not by being filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullOutcome {
    /// Nothing more came in time.
    Expired,
    /// The server refused or did not answer.
    Failed,
}

/// What somebody else made of a job's record while it is held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordChange {
    /// The job was cancelled.
    Cancelled,
    /// It shall be stopped, and what is there kept.
    Stopping,
    /// Another worker has it.
    Taken,
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A message came. The scheduler now owes exactly one settlement for `ticket`, unless the record is lost.
    Delivered {
        /// Its stream sequence; the same for a redelivery.
        ticket: Ticket,
        /// Index of the consumer it came from.
        lane: usize,
        /// What it asks for; `None` when it is malformed.
        offer: Option<Offer>,
        /// Messages that waited for the same consumer then.
        pending: u64,
        /// How often it was delivered, to anybody: 1 is the first time.
        deliveries: u64,
    },
    /// A pull is over.
    PullEnded {
        /// Index of the consumer.
        lane: usize,
        /// Why.
        outcome: PullOutcome,
    },
    /// After [`Effect::StopPulling`]: no further message will come.
    PullsStopped,
    /// An action is over.
    Acted {
        /// The job.
        ticket: Ticket,
        /// How.
        outcome: Acted,
    },
    /// The record of a claimed job was looked at, and is no longer as it was left.
    RecordChanged {
        /// The job.
        ticket: Ticket,
        /// How.
        change: RecordChange,
    },
    /// The lease was extended by a request sent at `sent`.
    Extended {
        /// The job.
        ticket: Ticket,
        /// When the request left.
        sent: Mono,
    },
    /// The engine answered.
    Engine(Result<EngineReport, Fault>),
    /// Whether this worker is one of those that stay though they have nothing to do.
    Stay(bool),
    /// The process is asked to end.
    Drain,
    /// Time passed.
    Tick,
}

/// Something to do. Nothing here may block: the shell starts it and goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask a consumer for messages.
    Pull {
        /// Index of the consumer.
        lane: usize,
        /// At most so many.
        max: u32,
        /// Whoever asks with a lower number, up to 9, is served before: an idle worker before a busy one.
        preference: u8,
    },
    /// Withdraw all pulls; answered with [`Input::PullsStopped`] after the last message.
    StopPulling,
    /// Act for a job.
    Act {
        /// The job.
        ticket: Ticket,
        /// What to do.
        action: Action,
    },
    /// Tell the server that the job is being worked on; answered with [`Input::Extended`].
    Extend {
        /// The job.
        ticket: Ticket,
    },
    /// Ask the engine.
    Engine(EngineWork),
    /// Publish the `started` event: its first step begins, or its first decode if it needs no step.
    Started {
        /// The job.
        ticket: Ticket,
    },
    /// Publish progress.
    Progress {
        /// The job.
        ticket: Ticket,
        /// Steps made, over all images.
        step: u32,
        /// Steps in all.
        steps: u32,
        /// Time left at the present pace.
        remaining: Duration,
        /// The row whose preview goes with it.
        preview: Option<RowKey>,
    },
    /// Drop everything kept for a job.
    Forget {
        /// The job.
        ticket: Ticket,
    },
}
