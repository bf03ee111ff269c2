//! All held jobs, and what is asked of them often: how many there are of which kind, which of them wait, and when the next
//! of them needs something. Kept up to date with every change, so that no question has to look at all jobs.
//!
//! It decides nothing.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::super::batch::BatchKey;
use super::super::fair::TenantKey;
use super::super::message::Ticket;
use super::super::time::Mono;
use super::held::{CLASSES, Held, Phase};

/// What is held of one tenant in one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Images still to be made of jobs that are claimed, or about to be.
    pub(super) claimed: u32,
    /// The same of jobs that are held ahead.
    pub(super) ahead: u32,
    /// Jobs that are held ahead.
    pub(super) jobs_ahead: u32,
    /// Jobs.
    pub(super) jobs: u32,
}

/// What jobs are equal in that are claimed for the same reasons: size, tenant, class.
pub(super) type Kind = (BatchKey, TenantKey, u8);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    /// What time it is.
    pub(super) now: Mono,
    jobs: BTreeMap<Ticket, Held>,
    index: Index,
}

/// What follows from the jobs.
#[derive(Clone, Debug, Default)]
struct Index {
    counts: BTreeMap<(TenantKey, u8), Counts>,
    of_class: [Counts; CLASSES],
    claimed: BTreeMap<Kind, u32>,
    keys: BTreeMap<BatchKey, u32>,
    ahead: BTreeMap<Kind, BTreeSet<Ticket>>,
    waiting: BTreeSet<Ticket>,
    with_deadline: BTreeSet<Ticket>,
    suspects: u32,
    /// Nothing is due at any job before.
    quiet_until: Option<Mono>,
}

impl Roster {
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Held> {
        self.jobs.get(&ticket)
    }

    pub(super) fn contains(&self, ticket: Ticket) -> bool {
        self.jobs.contains_key(&ticket)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ticket, &Held)> {
        self.jobs.iter().map(|(ticket, held)| (*ticket, held))
    }

    /// Jobs that are held ahead.
    pub(super) fn ahead(&self) -> impl Iterator<Item = (Ticket, &Held)> {
        self.index.ahead.values().flatten().filter_map(|ticket| Some((*ticket, self.jobs.get(ticket)?)))
    }

    /// The same, by kind.
    pub(super) fn ahead_by_kind(&self) -> impl Iterator<Item = (Kind, impl Iterator<Item = (Ticket, &Held)>)> {
        self.index
            .ahead
            .iter()
            .map(|(kind, tickets)| (*kind, tickets.iter().filter_map(|ticket| Some((*ticket, self.jobs.get(ticket)?)))))
    }

    /// Jobs with images that wait for rows.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Ticket, &Held)> {
        self.index.waiting.iter().filter_map(|ticket| Some((*ticket, self.jobs.get(ticket)?)))
    }

    /// Jobs that end when they miss their deadline.
    pub(super) fn with_deadline(&self) -> impl Iterator<Item = (Ticket, &Held)> {
        self.index.with_deadline.iter().filter_map(|ticket| Some((*ticket, self.jobs.get(ticket)?)))
    }

    /// Whether a job is held that is given up when one more worker dies with it.
    pub(super) fn has_suspect(&self) -> bool {
        self.index.suspects > 0
    }

    /// By tenant and class.
    pub(super) fn counts(&self) -> impl Iterator<Item = (TenantKey, u8, Counts)> {
        self.index.counts.iter().map(|((tenant, class), counts)| (*tenant, *class, *counts))
    }

    /// Images still to be made of claimed jobs, by size, tenant and class.
    pub(super) fn claimed(&self) -> impl Iterator<Item = (BatchKey, TenantKey, u8, u32)> {
        self.index.claimed.iter().map(|((key, tenant, class), images)| (*key, *tenant, *class, *images))
    }

    /// What is held of all tenants, by class.
    pub(super) fn of_class(&self) -> &[Counts; CLASSES] {
        &self.index.of_class
    }

    /// Whether there are jobs of more than one tenant.
    pub(super) fn is_shared(&self) -> bool {
        let counts = &self.index.counts;
        counts.first_key_value().map(|((first, _), _)| first) != counts.last_key_value().map(|((last, _), _)| last)
    }

    /// Images still to be made, of the tenant with most of them.
    pub(super) fn most_images_of_a_tenant(&self) -> u32 {
        let (mut most, mut last, mut images) = (0, None, 0);
        for ((tenant, _), counts) in &self.index.counts {
            images = counts.claimed + counts.ahead + if last == Some(tenant) { images } else { 0 };
            last = Some(tenant);
            most = most.max(images);
        }
        most
    }

    /// The sizes of all jobs.
    pub(super) fn keys(&self) -> impl Iterator<Item = BatchKey> {
        self.index.keys.keys().copied()
    }

    /// When something may be due at one of the jobs.
    pub(super) fn wake_at(&self) -> Option<Mono> {
        self.index.quiet_until
    }

    pub(super) fn insert(&mut self, ticket: Ticket, held: Held) {
        self.index.enters(ticket, &held, self.now);
        *self.index.keys.entry(held.offer.key).or_default() += 1;
        self.jobs.insert(ticket, held);
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Held> {
        let held = self.jobs.remove(&ticket)?;
        self.index.leaves(ticket, &held);
        if let Entry::Occupied(mut count) = self.index.keys.entry(held.offer.key) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(held)
    }

    /// Changes a job; `None` when there is none.
    pub(super) fn change<T>(&mut self, ticket: Ticket, change: impl FnOnce(&mut Held) -> T) -> Option<T> {
        let held = self.jobs.get_mut(&ticket)?;
        self.index.leaves(ticket, held);
        let changed = change(held);
        self.index.enters(ticket, held, self.now);
        Some(changed)
    }

    /// A job, to note how far it is: neither what it is at nor what it still wants may change.
    pub(super) fn noting(&mut self, ticket: Ticket) -> Option<&mut Held> {
        self.jobs.get_mut(&ticket)
    }

    /// Shows every job to `wake`, which does what is due but changes neither what the job is at nor what it wants.
    pub(super) fn wake(&mut self, mut wake: impl FnMut(Ticket, &mut Held)) {
        self.index.quiet_until = None;
        for (ticket, held) in &mut self.jobs {
            wake(*ticket, held);
            self.index.wake_by(held.due_at(self.now));
        }
    }

    /// Whether all that is kept up to date is what a look at all jobs gives.
    pub(super) fn is_consistent(&self) -> bool {
        let mut anew = Self { now: self.now, ..Self::default() };
        for (ticket, held) in self.iter() {
            anew.insert(ticket, held.clone());
        }
        let due_in_time = match (self.index.quiet_until, anew.index.quiet_until) {
            (Some(known), Some(due)) => known <= due,
            (None, due) => due.is_none(),
            (Some(_), None) => true,
        };
        self.index.counts == anew.index.counts
            && self.index.of_class == anew.index.of_class
            && self.index.keys == anew.index.keys
            && self.index.ahead == anew.index.ahead
            && self.index.waiting == anew.index.waiting
            && self.index.with_deadline == anew.index.with_deadline
            && self.index.suspects == anew.index.suspects
            && self.index.claimed == anew.index.claimed
            && due_in_time
    }
}

fn kind(held: &Held) -> Kind {
    (held.offer.key, held.offer.tenant, held.class())
}

impl Index {
    fn enters(&mut self, ticket: Ticket, held: &Held, now: Mono) {
        self.count(held, |count, by| count + by);
        self.wake_by(held.due_at(now));
        if held.phase == Phase::Ahead {
            self.ahead.entry(kind(held)).or_default().insert(ticket);
        }
        if held.waits_for_rows() {
            self.waiting.insert(ticket);
        }
        if held.is_open() && held.ends_by().is_some() {
            self.with_deadline.insert(ticket);
        }
    }

    fn leaves(&mut self, ticket: Ticket, held: &Held) {
        self.count(held, |count, by| count - by);
        if held.phase == Phase::Ahead
            && let Entry::Occupied(mut tickets) = self.ahead.entry(kind(held))
        {
            tickets.get_mut().remove(&ticket);
            if tickets.get().is_empty() {
                tickets.remove();
            }
        }
        if held.waits_for_rows() {
            self.waiting.remove(&ticket);
        }
        if held.ends_by().is_some() {
            self.with_deadline.remove(&ticket);
        }
    }

    fn wake_by(&mut self, at: Mono) {
        self.quiet_until = Some(self.quiet_until.map_or(at, |earlier| earlier.min(at)));
    }

    fn count(&mut self, held: &Held, by: impl Fn(u32, u32) -> u32) {
        let images = if held.is_open() { held.offer.images - held.images_decoded } else { 0 };
        self.suspects = by(self.suspects, u32::from(held.is_suspect));
        let class = held.class();
        let is_ahead = held.phase == Phase::Ahead;
        let counts = self.counts.entry((held.offer.tenant, class)).or_default();
        for counts in [&mut *counts, &mut self.of_class[usize::from(class)]] {
            counts.jobs = by(counts.jobs, 1);
            if is_ahead {
                counts.ahead = by(counts.ahead, images);
                counts.jobs_ahead = by(counts.jobs_ahead, 1);
            } else {
                counts.claimed = by(counts.claimed, images);
            }
        }
        if *counts == Counts::default() {
            self.counts.remove(&(held.offer.tenant, class));
        }
        if !is_ahead && images > 0 {
            let claimed = self.claimed.entry(kind(held)).or_default();
            *claimed = by(*claimed, images);
            if *claimed == 0 {
                self.claimed.remove(&kind(held));
            }
        }
    }
}
