//! The modelled queue: the simulation's broker in virtual time, on request with a bug planted around it.
//!
//! The broker itself has no bugs to switch on: they are put into what it is told and what it says.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use darkroom::sched::Mono;

use crate::broker::{Broker, Post, Timer};
use crate::bugs::Bug;
use crate::clients::Body;
use crate::script::{Event, PATIENCE, Queue, Script, Word};

const LANES: usize = 2;

/// What a killed server still knows of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    Whole,
    /// When leases began, in whole seconds.
    Seconds,
    None,
}

impl Memory {
    pub(crate) const ALL: &'static [Self] = &[Self::Whole, Self::Seconds, Self::None];
}

/// The broker, its time, and who heard what.
#[derive(Debug)]
pub(crate) struct Modelled {
    broker: Broker,
    memory: Memory,
    bug: Option<Bug>,
    now: Mono,
    timers: BTreeMap<(Mono, u64), Timer>,
    timers_made: u64,
    /// The broker's sequences, and the messages of the script.
    messages: BTreeMap<u64, u32>,
    /// Who had it last.
    holders: BTreeMap<u64, u32>,
    heard: BTreeMap<u32, VecDeque<Event>>,
    saved: Vec<u64>,
    delayed: Vec<u64>,
    was_killed: bool,
}

impl Modelled {
    pub(crate) fn new(script: &Script, memory: Memory, bug: Option<Bug>) -> Self {
        let ack_wait = Duration::from_millis(script.ack_wait_millis);
        Self {
            broker: Broker::new(LANES, ack_wait),
            memory,
            bug,
            // Not at a whole second.
            now: Mono::from_micros(700_000),
            timers: BTreeMap::new(),
            timers_made: 0,
            messages: BTreeMap::new(),
            holders: BTreeMap::new(),
            heard: BTreeMap::new(),
            saved: Vec::new(),
            delayed: Vec::new(),
            was_killed: false,
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn sequence(&self, message: u32) -> u64 {
        let found = self.messages.iter().find(|(_, found)| **found == message);
        *found.expect("a message of the script was published before").0
    }

    fn hear(&mut self, worker: u32, event: Event) {
        self.heard.entry(worker).or_default().push_back(event);
    }

    /// Takes what the broker says.
    fn absorb(&mut self) {
        let mut deliveries = Vec::new();
        while let Some(post) = self.broker.next_post() {
            match post {
                Post::Timer { at, timer } => {
                    let left = at.since(self.now);
                    let early = match timer {
                        Timer::Message { .. } => self.has(Bug::RedeliversEarly),
                        Timer::Pull { .. } => self.has(Bug::PullExpiresEarly),
                    };
                    let at = if early { self.now.after(left / 2) } else { at };
                    self.timers_made += 1;
                    self.timers.insert((at, self.timers_made), timer);
                }
                Post::PullExpired { worker, lane } => {
                    if self.has(Bug::ExpiredPullIsServed) {
                        self.broker.pull(self.now, worker, lane, 1, 0, PATIENCE);
                    }
                    self.hear(worker, Event::PullOver { lane });
                }
                Post::PullLost { worker, lane } => {
                    if self.has(Bug::KillTellsOfPulls) {
                        self.hear(worker, Event::PullOver { lane });
                    }
                }
                Post::Deliver { worker, sequence, count } => deliveries.push((worker, sequence, count)),
            }
        }
        // Bugs of order exchange what pulls got at one moment.
        let mut got: Vec<(u64, u64)> = deliveries.iter().map(|(_, sequence, count)| (*sequence, *count)).collect();
        match self.bug {
            Some(Bug::NewBeforeAgain) => got.sort_by_key(|(_, count)| *count > 1),
            Some(Bug::AgainBackwards) => got.sort_by_key(|(sequence, count)| {
                let place = deliveries.iter().position(|(_, found, _)| found == sequence).unwrap_or(0);
                if *count > 1 { (0, deliveries.len() - place) } else { (1, place) }
            }),
            Some(Bug::NewBackwards) => got.reverse(),
            Some(_) | None => {}
        }
        for ((worker, ..), (sequence, count)) in deliveries.into_iter().zip(got) {
            if self.saved.contains(&sequence) || self.has(Bug::DeliveriesLimited) && count > 20 {
                continue;
            }
            self.holders.insert(sequence, worker);
            let count = if self.has(Bug::CountsForgotten) { 1 } else { count };
            self.hear(worker, Event::Delivered { message: self.messages[&sequence], count });
        }
    }

    /// Lets time pass, up to the next timer or as far as it may; false if there was none.
    fn advance(&mut self, until: Mono) -> bool {
        let next = self.timers.first_key_value().map(|((at, _), _)| *at);
        if next.is_none_or(|at| at > until) {
            self.now = self.now.max(until);
            return false;
        }
        if let Some(((at, _), timer)) = self.timers.pop_first() {
            self.now = self.now.max(at);
            let muted = match timer {
                Timer::Message { .. } => self.has(Bug::NeverRedelivers),
                Timer::Pull { .. } => self.has(Bug::PullNeverExpires),
            };
            if !muted {
                self.broker.ring(self.now, timer);
            }
            self.absorb();
        }
        true
    }

    /// Takes what the broker says, and rings what is due at this moment.
    fn settle_down(&mut self) {
        self.absorb();
        while self.advance(self.now) {}
    }

    /// Somebody else had it since.
    fn is_stale(&self, worker: u32, sequence: u64) -> bool {
        self.holders.get(&sequence).is_some_and(|holder| *holder != worker)
    }

    /// Its lease is over or forgotten.
    fn is_free(&self, sequence: u64) -> bool {
        self.broker.holds(sequence) && !self.broker.pending().contains(&sequence)
    }

    fn remove(&mut self, worker: u32, sequence: u64, word: Word) -> bool {
        let (again, refused) = if word == Word::Ack {
            (Bug::AckedComesAgain, Bug::StaleAckRefused)
        } else {
            (Bug::TerminatedComesAgain, Bug::StaleTermRefused)
        };
        if self.has(again) {
            self.broker.nak(self.now, sequence, Duration::from_millis(500));
            return true;
        }
        let ignored = self.has(refused) && self.is_stale(worker, sequence)
            || self.has(Bug::LateAckRefused) && self.is_free(sequence)
            || self.has(Bug::KillLosesAcks) && self.was_killed
            || self.has(Bug::DelayedAckIgnored) && self.delayed.contains(&sequence);
        ignored || self.broker.remove(sequence) || self.has(Bug::ForgottenCanBeAcked)
    }

    fn give_back(&mut self, worker: u32, sequence: u64, delay: Duration) {
        let ignored = self.has(Bug::NakIgnored)
            || self.has(Bug::StaleNakRefused) && self.is_stale(worker, sequence)
            || self.has(Bug::LateNakIgnored) && self.is_free(sequence)
            || self.has(Bug::FirstDelayStands) && self.delayed.contains(&sequence);
        if ignored {
            return;
        }
        if self.has(Bug::NakRevives) && !self.broker.holds(sequence) {
            let body = self.broker.message(sequence).body.clone();
            let revived = self.broker.publish(self.now, body);
            self.messages.insert(revived, self.messages[&sequence]);
        }
        self.delayed.push(sequence);
        if self.has(Bug::ForgottenCanBePutOff) && self.is_free(sequence) {
            self.saved.push(sequence);
        }
        let delay = if self.has(Bug::DelayIgnored) { Duration::ZERO } else { delay };
        self.broker.nak(self.now, sequence, delay);
    }

    fn extend(&mut self, worker: u32, sequence: u64) {
        if self.has(Bug::LateExtensionSaves) && self.is_free(sequence) {
            self.saved.push(sequence);
        }
        let ignored =
            self.has(Bug::ExtensionIgnored) || self.has(Bug::StaleExtensionRefused) && self.is_stale(worker, sequence);
        if !ignored {
            self.broker.extend(self.now, sequence);
        }
    }
}

impl Queue for Modelled {
    fn now(&self) -> Duration {
        self.now.since(Mono::ZERO)
    }

    async fn publish(&mut self, lane: usize, message: u32) {
        let lane = if self.has(Bug::LanesMixed) { 0 } else { lane };
        let sequence = self.broker.publish(self.now, Body { lane });
        self.messages.insert(sequence, message);
        self.settle_down();
    }

    async fn pull(&mut self, worker: u32, lane: usize, max: u32, preference: u8, expires: Duration) {
        let preference = if self.has(Bug::PreferenceIsIgnored) { 0 } else { preference };
        match self.bug {
            Some(Bug::PullTakesOneMore) => self.broker.pull(self.now, worker, lane, max + 1, preference, expires),
            Some(Bug::PullTakesOnlyOne) => self.broker.pull(self.now, worker, lane, 1, preference, expires),
            Some(Bug::OneWorkerGetsAll) => {
                for _ in 0..max {
                    self.broker.pull(self.now, worker, lane, 1, preference, expires);
                }
            }
            // Whoever pulled before is put behind.
            Some(Bug::NewestPullFirst) => {
                self.broker.pull(self.now, worker, lane, max, preference, expires);
                for other in (1..4).filter(|other| *other != worker) {
                    let before = self.heard.get(&other).map_or(0, VecDeque::len);
                    if before == 0 && other < worker {
                        self.broker.withdraw_pulls(other);
                        self.broker.pull(self.now, other, lane, 1, preference, expires);
                    }
                }
            }
            Some(_) | None => self.broker.pull(self.now, worker, lane, max, preference, expires),
        }
        self.settle_down();
    }

    async fn say(&mut self, worker: u32, message: u32, word: Word) -> bool {
        let sequence = self.sequence(message);
        let mut heard = true;
        match word {
            Word::Ack | Word::Term => heard = self.remove(worker, sequence, word),
            Word::Nak { delay_millis } => self.give_back(worker, sequence, Duration::from_millis(delay_millis)),
            Word::Extend => self.extend(worker, sequence),
        }
        self.settle_down();
        heard
    }

    async fn withdraw(&mut self, worker: u32) {
        if !self.has(Bug::WithdrawnPullIsServed) {
            self.broker.withdraw_pulls(worker);
        }
    }

    async fn die(&mut self, worker: u32) {
        if !self.has(Bug::DeadWorkerIsServed) {
            self.broker.withdraw_pulls(worker);
        }
        self.heard.remove(&worker);
    }

    async fn kill(&mut self) {
        self.was_killed = true;
        if !self.has(Bug::KillKeepsPulls) {
            self.broker.lose_pulls();
        }
        for sequence in self.broker.pending() {
            match self.memory {
                _ if self.has(Bug::KillLosesMessages) => drop(self.broker.remove(sequence)),
                Memory::Whole => {}
                Memory::Seconds => self.broker.round_down(self.now, sequence),
                Memory::None => self.broker.redeliver(self.now, sequence, true),
            }
        }
        if self.has(Bug::KillBringsSettledBack) {
            let gone = self.messages.iter().filter(|(sequence, _)| !self.broker.holds(**sequence));
            for message in gone.map(|(_, message)| *message).collect::<Vec<_>>() {
                self.publish(0, message).await;
            }
        }
        self.settle_down();
    }

    async fn forget(&mut self, lane: usize) {
        for sequence in self.broker.pending() {
            if self.broker.message(sequence).body.lane == lane && !self.has(Bug::ForgottenStayHeld) {
                self.broker.redeliver(self.now, sequence, !self.has(Bug::ForgottenCountsStay));
            }
        }
        self.settle_down();
    }

    async fn pass(&mut self, duration: Duration) {
        let until = self.now.after(duration);
        while self.advance(until) {}
    }

    async fn next(&mut self, worker: u32) -> Option<Event> {
        let until = self.now.after(PATIENCE);
        loop {
            if let Some(event) = self.heard.get_mut(&worker).and_then(VecDeque::pop_front) {
                return Some(event);
            }
            if !self.advance(until) {
                return None;
            }
        }
    }

    async fn stored(&mut self, _awaited: &[u32]) -> Vec<u32> {
        let held = self.messages.iter().filter(|(sequence, _)| self.broker.holds(**sequence));
        held.map(|(_, message)| *message).collect()
    }

    fn unread(&mut self) -> Vec<(u32, Event)> {
        let heard = std::mem::take(&mut self.heard);
        heard.into_iter().flat_map(|(worker, events)| events.into_iter().map(move |event| (worker, event))).collect()
    }
}
