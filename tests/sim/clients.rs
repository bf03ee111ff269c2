//! What clients publish, and when: good requests, malformed ones, repeats, and other requests under a taken id.

use std::time::Duration;

use darkroom::job::OnLate;
use darkroom::sched::{BatchKey, Deadline, Mono, Offer, TenantKey};

use crate::knobs::Knobs;
use crate::random::Random;

/// What the engine makes of a job, every time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poison {
    /// A picture.
    None,
    /// A fault of the request.
    Reject,
    /// A fault of the world.
    Retry,
    /// It takes the engine down.
    Fatal,
}

/// A request as it lies in the stream.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) job: u32,
    pub(crate) digest: u64,
    pub(crate) lane: usize,
    /// `None` when it is malformed.
    pub(crate) offer: Option<Offer>,
    pub(crate) steps: u32,
    pub(crate) poison: Poison,
    /// Steps before the poison works.
    pub(crate) poison_at: u32,
    /// The store takes all but its images.
    pub(crate) unstorable: bool,
}

/// What clients do at one moment.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Publish(Body),
    Cancel { job: u32, keep_partial: bool },
    KillAll,
}

impl Body {
    /// One picture of four steps.
    pub(crate) fn plain(job: u32, poison: Poison) -> Self {
        let key = BatchKey { width: 64, height: 64 };
        let offer = Some(Offer {
            images: 1,
            key,
            previews: None,
            steps: 4,
            whole_every: 1,
            tenant: TenantKey(0),
            deadline: None,
        });
        Self { job, digest: u64::from(job) << 8, lane: 0, offer, steps: 4, poison, poison_at: 1, unstorable: false }
    }

    fn drawn(job: u32, knobs: &Knobs, random: &mut Random) -> Self {
        let side = random.pick(&[64, 64, 64, 128, 256]);
        let images = if random.chance(50) { random.small(1, 8) } else { random.small(1, 4) };
        let previews = random.chance(300).then(|| random.small(1, 3));
        let key = BatchKey { width: side, height: 64 };
        let steps = if random.chance(100) { random.small(20, 100) } else { random.small(0, 12) };
        let poisoned = random.chance(knobs.clients.poisoned);
        let poison = random.pick(&[Poison::Reject, Poison::Retry, Poison::Fatal]);
        Self {
            job,
            digest: u64::from(job) << 8,
            lane: random.small(0, u32::try_from(knobs.config.lanes.len()).unwrap_or(1) - 1) as usize,
            offer: Some(Offer {
                images,
                key,
                previews,
                steps,
                whole_every: 1,
                tenant: TenantKey(random.between(0, 2)),
                deadline: None,
            }),
            steps,
            poison: if poisoned { poison } else { Poison::None },
            poison_at: random.small(0, steps),
            unstorable: false,
        }
    }
}

/// The deeds of a run, all before the world calms down, and the jobs whose record is damaged from the start.
pub(crate) fn plan(knobs: &Knobs, random: &mut Random) -> (Vec<(Mono, Deed)>, Vec<u32>) {
    let end = u64::try_from(knobs.calm_after.as_millis()).unwrap_or(0) * 9 / 10;
    let mut deeds = Vec::new();
    let mut damaged = Vec::new();
    let mut at = Mono::ZERO;
    let bursts = random.chance(500);
    for job in 1..=knobs.clients.jobs {
        if !bursts || random.chance(150) {
            at = Mono::ZERO.after(random.millis(0, end));
        }
        let mut body = Body::drawn(job, knobs, random);
        let later = |random: &mut Random| at.after(random.millis(0, 20_000)).min(Mono::ZERO.after(knobs.calm_after));
        if let Some(offer) = &mut body.offer
            && random.chance(knobs.clients.pressed)
        {
            let on_late = random.pick(&[OnLate::Fail, OnLate::Continue]);
            offer.deadline = Some(Deadline { at: at.after(random.millis(0, 20_000)), on_late });
        }
        if random.chance(knobs.clients.malformed) {
            body.offer = None;
        }
        while random.chance(knobs.clients.repeated) {
            deeds.push((later(random), Deed::Publish(body.clone())));
        }
        if random.chance(knobs.clients.conflicting) {
            let mut other = Body { digest: body.digest + 1, ..Body::drawn(job, knobs, random) };
            if random.chance(300) {
                other.offer = None;
            }
            deeds.push((later(random), Deed::Publish(other)));
        }
        if random.chance(knobs.clients.cancelled) {
            let keep_partial = random.chance(400);
            deeds.push((later(random).after(Duration::from_millis(1)), Deed::Cancel { job, keep_partial }));
        }
        if random.chance(knobs.clients.damaged) {
            damaged.push(job);
        }
        deeds.push((at, Deed::Publish(body)));
    }
    (deeds, damaged)
}
