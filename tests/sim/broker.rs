//! A model of a JetStream work queue with one consumer per lane, as `reference/nats.md` found it to behave.
//!
//! An acknowledgement of any kind is accepted from whoever sends it, if the server knows of a delivery; an extension
//! after the lease saves nothing, while giving the message back puts it off even then; a message given back waits as
//! pending; what is due again goes before what is new, in the order in which it became due; a killed server forgets
//! pulls and who holds what.
//!
//! It has no clock: what is due when goes to the world as [`Post::Timer`]. It knows no ids of messages, so it drops no
//! duplicates, and none of the consumer's limits, which no run reaches. `tests/contract` holds it to a real server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use darkroom::sched::Mono;

use crate::clients::Body;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has had it, as far as the server knows.
    New,
    /// Due again.
    Again,
    /// Delivered, or given back with a delay; redelivered when its timer rings.
    Pending,
    /// Acknowledged or terminated.
    Gone,
}

/// A message of the request stream.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) body: Body,
    pub(crate) deliveries: u64,
    state: State,
    due: Mono,
    generation: u64,
}

/// The messages of a lane that a pull can have.
#[derive(Clone, Debug, Default)]
struct Ready {
    again: VecDeque<u64>,
    new: BTreeSet<u64>,
}

impl Ready {
    fn pop(&mut self) -> Option<u64> {
        self.again.pop_front().or_else(|| self.new.pop_first())
    }

    fn remove(&mut self, sequence: u64) {
        self.again.retain(|again| *again != sequence);
        self.new.remove(&sequence);
    }
}

#[derive(Clone, Debug)]
struct Pull {
    id: u64,
    worker: u32,
    lane: usize,
    left: u32,
    preference: u8,
}

/// What the broker wants the world to do.
#[derive(Clone, Debug)]
pub(crate) enum Post {
    Deliver { worker: u32, sequence: u64, count: u64 },
    PullExpired { worker: u32, lane: usize },
    PullLost { worker: u32, lane: usize },
    Timer { at: Mono, timer: Timer },
}

/// Rings once; what was settled or extended since ignores it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    Message { sequence: u64, generation: u64 },
    Pull { id: u64 },
}

/// The request stream and its consumers.
#[derive(Debug)]
pub(crate) struct Broker {
    ack_wait: Duration,
    messages: BTreeMap<u64, Message>,
    ready: Vec<Ready>,
    pulls: VecDeque<Pull>,
    pulls_made: u64,
    posts: VecDeque<Post>,
}

impl Broker {
    pub(crate) fn new(lanes: usize, ack_wait: Duration) -> Self {
        Self {
            ack_wait,
            messages: BTreeMap::new(),
            ready: vec![Ready::default(); lanes],
            pulls: VecDeque::new(),
            pulls_made: 0,
            posts: VecDeque::new(),
        }
    }

    pub(crate) fn next_post(&mut self) -> Option<Post> {
        self.posts.pop_front()
    }

    pub(crate) fn message(&self, sequence: u64) -> &Message {
        &self.messages[&sequence]
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = (u64, &Message)> {
        self.messages.iter().map(|(sequence, message)| (*sequence, message))
    }

    pub(crate) fn holds(&self, sequence: u64) -> bool {
        self.messages.get(&sequence).is_some_and(|message| message.state != State::Gone)
    }

    /// Messages that somebody has, or that wait for their delay.
    pub(crate) fn pending(&self) -> Vec<u64> {
        self.messages().filter(|(_, message)| message.state == State::Pending).map(|(sequence, _)| sequence).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.values().all(|message| message.state == State::Gone)
    }

    pub(crate) fn publish(&mut self, now: Mono, body: Body) -> u64 {
        let sequence = self.messages.len() as u64 + 1;
        let lane = body.lane;
        let message = Message { body, deliveries: 0, state: State::New, due: now, generation: 0 };
        self.messages.insert(sequence, message);
        self.ready[lane].new.insert(sequence);
        self.dispatch(now);
        sequence
    }

    pub(crate) fn pull(&mut self, now: Mono, worker: u32, lane: usize, max: u32, preference: u8, expires: Duration) {
        self.pulls_made += 1;
        let id = self.pulls_made;
        self.queue(Pull { id, worker, lane, left: max, preference });
        self.posts.push_back(Post::Timer { at: now.after(expires), timer: Timer::Pull { id } });
        self.dispatch(now);
    }

    /// Messages that wait on a lane.
    pub(crate) fn waiting(&self, lane: usize) -> u64 {
        let ready = &self.ready[lane];
        (ready.new.len() + ready.again.len()) as u64
    }

    /// The connection or the interest of a worker is gone.
    pub(crate) fn withdraw_pulls(&mut self, worker: u32) {
        self.pulls.retain(|pull| pull.worker != worker);
    }

    /// All pulls are gone, and nobody is told.
    pub(crate) fn lose_pulls(&mut self) {
        for Pull { worker, lane, .. } in self.pulls.drain(..) {
            self.posts.push_back(Post::PullLost { worker, lane });
        }
    }

    pub(crate) fn ring(&mut self, now: Mono, timer: Timer) {
        match timer {
            Timer::Pull { id } => {
                let Some(index) = self.pulls.iter().position(|pull| pull.id == id) else { return };
                if let Some(Pull { worker, lane, .. }) = self.pulls.remove(index) {
                    self.posts.push_back(Post::PullExpired { worker, lane });
                }
            }
            Timer::Message { sequence, generation } => {
                if self.messages[&sequence].generation == generation {
                    self.redeliver(now, sequence, false);
                }
            }
        }
    }

    /// A pending message is due again; `forgotten` when the server does not even know that it was delivered.
    pub(crate) fn redeliver(&mut self, now: Mono, sequence: u64, forgotten: bool) {
        let Some(message) = self.messages.get_mut(&sequence) else { return };
        if message.state == State::Pending {
            message.generation += 1;
            let ready = &mut self.ready[message.body.lane];
            if forgotten {
                message.state = State::New;
                message.deliveries = 0;
                ready.new.insert(sequence);
            } else {
                message.state = State::Again;
                ready.again.push_back(sequence);
            }
            self.dispatch(now);
        }
    }

    /// An acknowledgement or termination. False if it is not even answered: the server does not know of a delivery.
    ///
    /// It goes by the numbers of deliveries, so an old one may remain without an answer for some deliveries more. To a
    /// worker that is a lost request, of which a run has enough.
    pub(crate) fn remove(&mut self, sequence: u64) -> bool {
        let Some(message) = self.messages.get_mut(&sequence) else { return false };
        if message.state == State::New {
            return false;
        }
        message.state = State::Gone;
        message.generation += 1;
        self.ready[message.body.lane].remove(sequence);
        true
    }

    pub(crate) fn nak(&mut self, now: Mono, sequence: u64, delay: Duration) {
        let Some(message) = self.messages.get_mut(&sequence) else { return };
        if message.state == State::Again {
            message.state = State::Pending;
            self.ready[message.body.lane].remove(sequence);
        }
        self.due(sequence, now.after(delay));
    }

    pub(crate) fn extend(&mut self, now: Mono, sequence: u64) {
        self.due(sequence, now.after(self.ack_wait));
    }

    /// A server that was killed and still knows that a message is pending is up to a second early with it: it writes
    /// down in whole seconds when a lease began.
    pub(crate) fn round_down(&mut self, now: Mono, sequence: u64) {
        let Some(message) = self.messages.get(&sequence) else { return };
        let due = message.due.as_micros();
        let began = due.saturating_sub(Mono::ZERO.after(self.ack_wait).as_micros());
        self.due(sequence, now.max(Mono::from_micros(due - began % 1_000_000)));
    }

    fn due(&mut self, sequence: u64, at: Mono) {
        let Some(message) = self.messages.get_mut(&sequence) else { return };
        if message.state == State::Pending {
            message.due = at;
            message.generation += 1;
            let timer = Timer::Message { sequence, generation: message.generation };
            self.posts.push_back(Post::Timer { at, timer });
        }
    }

    /// Puts a pull behind all that are to be served before it.
    fn queue(&mut self, pull: Pull) {
        let place = self.pulls.iter().position(|other| other.preference > pull.preference).unwrap_or(self.pulls.len());
        self.pulls.insert(place, pull);
    }

    fn dispatch(&mut self, now: Mono) {
        let mut index = 0;
        while index < self.pulls.len() {
            let lane = self.pulls[index].lane;
            let Some(sequence) = self.ready[lane].pop() else {
                index += 1;
                continue;
            };
            let Some(mut pull) = self.pulls.remove(index) else { return };
            let Some(message) = self.messages.get_mut(&sequence) else { return };
            message.state = State::Pending;
            message.deliveries += 1;
            let count = message.deliveries;
            self.posts.push_back(Post::Deliver { worker: pull.worker, sequence, count });
            self.due(sequence, now.after(self.ack_wait));
            pull.left -= 1;
            if pull.left > 0 {
                // Whoever has just been served waits behind the others.
                self.queue(pull);
            }
        }
    }
}
