//! What a script can say, and how it is played against a queue: the modelled one or a real one.
//!
//! Nothing here knows a clock, a server or the model: a queue brings its own time. Lower bounds of time hold exactly;
//! upper ones are the `expires` of a pull that the queue itself ends, so that a slow machine cannot fail them. Where a
//! script must have been quick enough for its expectations to mean something it says so with [`Step::InTime`], and a
//! run that was not is [`Failure::TooSlow`] and says nothing of the queue.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Whatever does not happen within this does not happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A claim and the steps that show it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    pub(crate) claim: &'static str,
    pub(crate) ack_wait_millis: u64,
    pub(crate) steps: &'static [Step],
}

impl Script {
    /// Whether it kills the server.
    pub(crate) fn kills(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Kill))
    }
}

/// What a worker tells the queue of a message, by its own latest delivery of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Ack,
    Term,
    Nak { delay_millis: u64 },
    Extend,
}

/// What a worker hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Delivered {
        message: u32,
        count: u64,
    },
    PullOver {
        lane: usize,
    },
    #[allow(dead_code, reason = "the model has nothing else to say")]
    Unknown(String),
}

/// A message and the delivery counts that are allowed, both ends included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    message: u32,
    count_min: u64,
    count_max: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Publish {
        lane: usize,
        message: u32,
    },
    /// Returns when the queue has the pull. A worker has at most one open on a lane.
    Pull {
        worker: u32,
        lane: usize,
        max: u32,
        /// Pulls of a lower number are served before.
        preference: u8,
        expires_millis: u64,
    },
    /// The next that the worker hears is this.
    Delivered {
        worker: u32,
        expected: Expected,
    },
    /// The next that the worker hears are these, in whatever order.
    DeliveredInAnyOrder {
        worker: u32,
        expected: &'static [Expected],
    },
    /// The next that the worker hears is that its pull was not filled in time.
    PullOver {
        worker: u32,
        lane: usize,
    },
    Say {
        worker: u32,
        message: u32,
        word: Word,
    },
    /// What is said must remain without an answer.
    Unheard {
        worker: u32,
        message: u32,
        word: Word,
    },
    /// What is said may remain without an answer, and then something else follows.
    HeardOrNot {
        worker: u32,
        message: u32,
        word: Word,
        heard: &'static [Self],
        unheard: &'static [Self],
    },
    /// The worker pulls, gets and gives back at once, for every count from the first to the last.
    PassBack {
        worker: u32,
        message: u32,
        counts: (u64, u64),
    },
    /// The worker's pulls lose their inbox, the worker lives on.
    Withdraw {
        worker: u32,
    },
    /// The worker's connection ends without a word.
    Die {
        worker: u32,
    },
    /// The server is killed and started again.
    Kill,
    /// The server is told to forget what the lane's consumer delivered.
    Forget {
        lane: usize,
    },
    /// Time during which nothing happens that could be waited for.
    Pass {
        millis: u64,
    },
    /// A moment to measure from.
    Mark(&'static str),
    /// At least so long after the mark.
    NotBefore {
        mark: &'static str,
        millis: u64,
    },
    /// Less than so long after the mark, or the run says nothing.
    InTime {
        mark: &'static str,
        millis: u64,
    },
    /// The messages that the stream has.
    Stored(&'static [u32]),
}

pub(crate) const fn publish(lane: usize, message: u32) -> Step {
    Step::Publish { lane, message }
}

pub(crate) const fn pull(worker: u32, lane: usize, max: u32, expires_millis: u64) -> Step {
    Step::Pull { worker, lane, max, preference: 0, expires_millis }
}

/// A pull that waits behind those of a lower number.
pub(crate) const fn pull_behind(worker: u32, lane: usize, preference: u8) -> Step {
    Step::Pull { worker, lane, max: 1, preference, expires_millis: 20_000 }
}

pub(crate) const fn expected(message: u32, count_min: u64, count_max: u64) -> Expected {
    Expected { message, count_min, count_max }
}

pub(crate) const fn delivered(worker: u32, message: u32, count: u64) -> Step {
    Step::Delivered { worker, expected: expected(message, count, count) }
}

pub(crate) const fn over(worker: u32, lane: usize) -> Step {
    Step::PullOver { worker, lane }
}

pub(crate) const fn ack(worker: u32, message: u32) -> Step {
    Step::Say { worker, message, word: Word::Ack }
}

pub(crate) const fn term(worker: u32, message: u32) -> Step {
    Step::Say { worker, message, word: Word::Term }
}

pub(crate) const fn nak(worker: u32, message: u32, delay_millis: u64) -> Step {
    Step::Say { worker, message, word: Word::Nak { delay_millis } }
}

pub(crate) const fn extend(worker: u32, message: u32) -> Step {
    Step::Say { worker, message, word: Word::Extend }
}

pub(crate) const fn pass(millis: u64) -> Step {
    Step::Pass { millis }
}

pub(crate) const fn not_before(mark: &'static str, millis: u64) -> Step {
    Step::NotBefore { mark, millis }
}

pub(crate) const fn in_time(mark: &'static str, millis: u64) -> Step {
    Step::InTime { mark, millis }
}

/// A work queue with one consumer per lane and the workers that use it.
pub(crate) trait Queue {
    /// Time since some beginning.
    fn now(&self) -> Duration;
    async fn publish(&mut self, lane: usize, message: u32);
    async fn pull(&mut self, worker: u32, lane: usize, max: u32, preference: u8, expires: Duration);
    /// Waits for the queue's word that it has heard it; false if none came however often it was said.
    async fn say(&mut self, worker: u32, message: u32, word: Word) -> bool;
    async fn withdraw(&mut self, worker: u32);
    async fn die(&mut self, worker: u32);
    async fn kill(&mut self);
    async fn forget(&mut self, lane: usize);
    async fn pass(&mut self, duration: Duration);
    /// What the worker hears next, within [`PATIENCE`].
    async fn next(&mut self, worker: u32) -> Option<Event>;
    /// What the stream has; may wait until it is what is `awaited`.
    async fn stored(&mut self, awaited: &[u32]) -> Vec<u32>;
    /// What living workers have heard and no step asked for.
    fn unread(&mut self) -> Vec<(u32, Event)>;
}

/// Why a script was not played to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The queue does not do what the script says.
    Broken(String),
    /// The machine was too slow to tell.
    TooSlow(String),
}

/// Plays a script.
pub(crate) async fn play<Q: Queue>(script: &Script, queue: &mut Q) -> Result<(), Failure> {
    let mut marks = BTreeMap::new();
    let mut steps: VecDeque<&Step> = script.steps.iter().collect();
    while let Some(step) = steps.pop_front() {
        let told = |what: String| format!("{step:?}: {what}");
        match one(step, queue, &mut marks).await {
            Ok(more) => more.iter().rev().for_each(|step| steps.push_front(step)),
            Err(Failure::Broken(what)) => return Err(Failure::Broken(told(what))),
            Err(Failure::TooSlow(what)) => return Err(Failure::TooSlow(told(what))),
        }
    }
    match queue.unread() {
        unread if unread.is_empty() => Ok(()),
        unread => Err(Failure::Broken(format!("after the last step: {unread:?}"))),
    }
}

/// Does one step, and answers what comes before the next.
async fn one<Q: Queue>(
    step: &Step,
    queue: &mut Q,
    marks: &mut BTreeMap<&'static str, Duration>,
) -> Result<&'static [Step], Failure> {
    match *step {
        Step::Publish { lane, message } => queue.publish(lane, message).await,
        Step::Pull { worker, lane, max, preference, expires_millis } => {
            queue.pull(worker, lane, max, preference, Duration::from_millis(expires_millis)).await;
        }
        Step::Delivered { worker, expected } => heard(queue, worker, &mut vec![expected]).await?,
        Step::DeliveredInAnyOrder { worker, expected } => {
            let mut expected = expected.to_vec();
            while !expected.is_empty() {
                heard(queue, worker, &mut expected).await?;
            }
        }
        Step::PullOver { worker, lane } => {
            let event = queue.next(worker).await;
            must(event == Some(Event::PullOver { lane }), || format!("the worker hears {event:?}"))?;
        }
        Step::Say { worker, message, word } => say(queue, worker, message, word).await?,
        Step::PassBack { worker, message, counts: (first, last) } => {
            for count in first..=last {
                queue.pull(worker, 0, 1, 0, PATIENCE).await;
                heard(queue, worker, &mut vec![expected(message, count, count)]).await?;
                say(queue, worker, message, Word::Nak { delay_millis: 0 }).await?;
            }
        }
        Step::Withdraw { worker } => queue.withdraw(worker).await,
        Step::Die { worker } => queue.die(worker).await,
        Step::Kill => queue.kill().await,
        Step::Forget { lane } => queue.forget(lane).await,
        Step::Pass { millis } => queue.pass(Duration::from_millis(millis)).await,
        Step::Mark(mark) => {
            marks.insert(mark, queue.now());
        }
        Step::NotBefore { mark, millis } => {
            let passed = queue.now().saturating_sub(marks[mark]);
            must(passed >= Duration::from_millis(millis), || format!("after {passed:?}"))?;
        }
        Step::InTime { mark, millis } => {
            let passed = queue.now().saturating_sub(marks[mark]);
            if passed >= Duration::from_millis(millis) {
                return Err(Failure::TooSlow(format!("after {passed:?}")));
            }
        }
        Step::Stored(messages) => {
            let stored = queue.stored(messages).await;
            must(stored == messages, || format!("the stream has {stored:?}"))?;
        }
        Step::Unheard { worker, message, word } => {
            let heard = queue.say(worker, message, word).await;
            must(!heard, || "it was answered".to_owned())?;
        }
        Step::HeardOrNot { worker, message, word, heard, unheard } => {
            return Ok(if queue.say(worker, message, word).await { heard } else { unheard });
        }
    }
    Ok(&[])
}

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::Broken(what())) }
}

async fn say<Q: Queue>(queue: &mut Q, worker: u32, message: u32, word: Word) -> Result<(), Failure> {
    if queue.say(worker, message, word).await { Ok(()) } else { Err(Failure::TooSlow("no answer".to_owned())) }
}

/// Takes what the worker hears next out of what is expected.
async fn heard<Q: Queue>(queue: &mut Q, worker: u32, expected: &mut Vec<Expected>) -> Result<(), Failure> {
    let event = queue.next(worker).await;
    let place = expected.iter().position(|expected| {
        matches!(event, Some(Event::Delivered { message, count })
            if message == expected.message && (expected.count_min..=expected.count_max).contains(&count))
    });
    must(place.is_some(), || format!("the worker hears {event:?}"))?;
    expected.remove(place.unwrap_or(0));
    Ok(())
}
