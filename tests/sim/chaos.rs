//! What happens to the server and to workers by itself: outages, kills, stalls and the wish that they end.

use std::time::Duration;

use darkroom::sched::{Input, Mono};

use crate::world::{Event, Parcel, World};

/// What can happen to the server or to a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Disaster {
    Crash,
    Stall,
    Drain,
    Outage,
    StoreOutage,
    /// Requests and events go on, but the bucket has no quorum.
    RecordsOutage,
    ServerKill,
    Redelivery,
}

impl World {
    pub(crate) fn prepare_disasters(&mut self) {
        let chaos = self.knobs.chaos.clone();
        let disasters = [
            (Disaster::Crash, chaos.crashes),
            (Disaster::Stall, chaos.stalls),
            (Disaster::Drain, chaos.drains),
            (Disaster::Outage, chaos.outages),
            (Disaster::RecordsOutage, chaos.records_outages),
            (Disaster::ServerKill, chaos.server_kills),
            (Disaster::Redelivery, chaos.redeliveries),
            (Disaster::StoreOutage, chaos.store_outages),
        ];
        let end = u64::try_from(self.knobs.calm_after.as_millis()).unwrap_or(0);
        for (disaster, times) in disasters {
            for _ in 0..times {
                let at = Mono::ZERO.after(self.random.millis(0, end));
                self.at(at, Event::Disaster(disaster));
            }
        }
    }

    pub(crate) fn disaster(&mut self, disaster: Disaster) {
        self.note(|| format!("disaster: {disaster:?}"));
        let alive: Vec<u32> = self.workers.keys().copied().collect();
        let victim = if alive.is_empty() { 0 } else { self.random.pick(&alive) };
        let pending = self.broker.pending();
        match disaster {
            Disaster::Outage => {
                let length = self.random.millis(100, 60_000);
                self.outage_until = self.outage_until.max(self.now.after(length));
                self.broker.lose_pulls();
            }
            Disaster::StoreOutage => {
                let length = self.random.millis(100, 60_000);
                self.store_out_until = self.store_out_until.max(self.now.after(length));
            }
            Disaster::RecordsOutage => {
                let length = self.random.millis(100, 60_000);
                self.records_out_until = self.records_out_until.max(self.now.after(length));
            }
            Disaster::ServerKill => {
                self.broker.lose_pulls();
                for sequence in pending {
                    if self.random.chance(500) {
                        self.broker.redeliver(self.now, sequence, true);
                    } else {
                        self.broker.round_down(self.now, sequence);
                    }
                }
            }
            Disaster::Redelivery if !pending.is_empty() => {
                let sequence = self.random.pick(&pending);
                let forgotten = self.random.chance(500);
                self.broker.redeliver(self.now, sequence, forgotten);
            }
            Disaster::Crash => self.kill(victim),
            Disaster::Stall => self.stall(victim),
            Disaster::Drain => self.drain(victim),
            Disaster::Redelivery => {}
        }
    }

    /// Everything it held is gone; what has left it may or may not arrive.
    pub(crate) fn kill(&mut self, key: u32) {
        if self.workers.remove(&key).is_some() {
            self.note(|| format!("w{key} is killed"));
            self.oracle.met("worker: killed");
            self.oracle.gone(key);
            self.replace(key);
        }
    }

    pub(crate) fn replace(&mut self, key: u32) {
        self.broker.withdraw_pulls(key);
        let after = self.random.millis(500, 6000);
        self.at(self.now.after(after), Event::Start);
    }

    fn stall(&mut self, key: u32) {
        let ack_wait = u64::try_from(self.knobs.config.ack_wait.as_millis()).unwrap_or(0);
        let length = self.random.millis(500, ack_wait * 5 / 2);
        self.stall_for(key, length);
    }

    pub(crate) fn stall_for(&mut self, key: u32, length: Duration) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        if worker.inbox.is_none() {
            worker.inbox = Some(Vec::new());
            let until = self.now.after(length);
            self.oracle.trouble(key, until);
            self.note(|| format!("w{key} stands still until {}", until.as_micros()));
            self.at(until, Event::Resume(key));
        }
    }

    pub(crate) fn resume(&mut self, key: u32) {
        let Some(worker) = self.workers.get_mut(&key) else { return };
        let mut parcels = worker.inbox.take().unwrap_or_default();
        let tick = Parcel { input: Input::Tick, note: None };
        // Which branch of a `select!` comes first is chance.
        let place = if self.random.chance(500) { 0 } else { parcels.len() };
        parcels.insert(place, tick);
        for parcel in parcels {
            self.arrive(key, parcel);
        }
    }

    fn drain(&mut self, key: u32) {
        self.arrive(key, Parcel { input: Input::Drain, note: None });
        // The platform is as good as its word.
        let end = self.now.after(self.knobs.config.grace).after(Duration::from_millis(100));
        self.at(end, Event::Kill(key));
    }
}
