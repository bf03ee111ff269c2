//! Which rows step together.
//!
//! Rows may share a step when model, latent shape and dtype agree. A worker has one model in one dtype, so the size of
//! the picture decides. A row that is not chosen stays where it is, with all its state, until it is: that is how a more
//! urgent job takes the place of a less urgent one.
//!
//! The most urgent row leads. Others of its size join it as far as that is worth it: while less time per picture outweighs
//! the longer step ([`images_in_step`]). Rows of less urgent classes only ride along where they hardly slow it.

use super::cost::CostModel;
use super::message::RowKey;

/// A step may have this many images before its length counts as much as its time per image, while nothing more waits.
const PATIENCE_IMAGES: f64 = 100.0;
/// By how much less urgent rows may lengthen a step.
const RIDE_MAX: f64 = 1.25;
/// A larger batch that gains less than this per image is not worth its longer step.
const GAIN_MIN: f64 = 0.01;

/// What all rows of a step have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchKey {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// Rows that step together: of one key, and alone where they or a batch with them have failed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) key: BatchKey,
    pub(super) alone: Option<RowKey>,
}

/// How urgent something is: the smaller, the sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Its class, behind all of those whose tenants had much less.
    pub(super) level: u8,
    /// Of its priority, its deadline, and of how long it has been passed over.
    pub(super) class: u8,
    /// Its tenant's turn.
    pub(super) turn: i64,
    /// How long it is here for what it still needs, as a ratio in thousandths: the larger, the sooner. What is short or
    /// nearly done goes before what is long, and what is long does not wait for ever.
    pub(super) response: std::cmp::Reverse<u64>,
    /// Who came first.
    pub(super) order: u64,
}

/// A row that could step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) row: RowKey,
    pub(super) group: Group,
    pub(super) rank: Rank,
}

/// Whether more work waits than is held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backlog {
    /// Not as far as one knows: short steps are worth something.
    None,
    /// Yes: whoever comes next waits for all of these, so only time per image counts.
    Waiting,
}

/// The rows of the next step, the leader first, at most `limit(key)` of them.
pub(super) fn next_step(
    mut candidates: Vec<Candidate>,
    costs: &CostModel,
    limit: impl Fn(BatchKey) -> u32,
    backlog: Backlog,
) -> Option<(Group, Vec<RowKey>)> {
    let leader = *candidates.iter().min_by_key(|candidate| candidate.rank)?;
    let group = leader.group;
    candidates.retain(|candidate| candidate.group == group);
    let mut mates = candidates;
    mates.sort_unstable_by_key(|candidate| candidate.rank);
    let limit = limit(group.key).max(1);
    let count = |mates: usize| u32::try_from(mates).unwrap_or(u32::MAX).min(limit);
    let peers = count(mates.iter().filter(|mate| mate.rank.class <= leader.rank.class).count());
    let step_ms = costs.steps_ms(group.key);
    let mut images = images_in_step(peers, &step_ms, backlog);
    if images == peers {
        let longest_ms = RIDE_MAX * step_ms(peers);
        let all = count(mates.len());
        images = (peers..=all).rev().find(|images| *images == peers || step_ms(*images) <= longest_ms).unwrap_or(peers);
    }
    mates.truncate(images as usize);
    Some((group, mates.into_iter().map(|mate| mate.row).collect()))
}

/// How many of `waiting` equally urgent images should step together: the number `n` that minimises
/// `step(n) / n * (1 + n / patience)`, time per image weighed with the length of the step. Where more work waits, length
/// does not count.
pub(super) fn images_in_step(waiting: u32, step_ms: impl Fn(u32) -> f64, backlog: Backlog) -> u32 {
    let cost = |images: u32| {
        let each = step_ms(images) / f64::from(images);
        match backlog {
            Backlog::None => each * (1.0 + f64::from(images) / PATIENCE_IMAGES),
            Backlog::Waiting => each,
        }
    };
    let mut best = (1, cost(1));
    for images in 2..=waiting {
        let cost = cost(images);
        if cost < best.1 * (1.0 - GAIN_MIN) {
            best = (images, cost);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::time::Duration;

    use super::*;

    fn group(width: u32) -> Group {
        Group { key: BatchKey { width, height: 64 }, alone: None }
    }

    fn candidate(row: u64, width: u32, class: u8, turn: i64) -> Candidate {
        let rank = Rank { level: class, class, turn, response: Reverse(0), order: row };
        Candidate { row: RowKey(row), group: group(width), rank }
    }

    fn costs(width: u32, one_ms: u64, eight_ms: u64) -> CostModel {
        let mut costs = CostModel::default();
        costs.measured_step(group(width).key, 1, Duration::from_millis(one_ms));
        costs.measured_step(group(width).key, 8, Duration::from_millis(eight_ms));
        costs
    }

    fn rows(candidates: &[Candidate], costs: &CostModel, limit: u32, backlog: Backlog) -> Vec<u64> {
        let step = next_step(candidates.to_vec(), costs, |_| limit, backlog);
        step.map(|(_, rows)| rows.iter().map(|row| row.0).collect()).unwrap_or_default()
    }

    #[test]
    fn the_most_urgent_row_leads_and_those_of_its_size_join() {
        let all = [candidate(1, 64, 1, 0), candidate(2, 128, 0, 0), candidate(3, 128, 0, 1), candidate(4, 64, 1, 0)];
        assert_eq!(rows(&all, &costs(128, 100, 110), 8, Backlog::None), [2, 3]);
        assert_eq!(rows(&all, &costs(128, 100, 110), 1, Backlog::None), [2]);
        assert_eq!(rows(&[], &CostModel::default(), 8, Backlog::None), [] as [u64; 0]);
    }

    #[test]
    fn a_batch_is_as_large_as_it_pays() {
        // All of the step is for the weights: the more the better.
        let free = |images: u32| 100.0 + f64::from(images);
        assert_eq!(images_in_step(8, free, Backlog::None), 8);
        // Every image takes its time: together all would only be late.
        let dear = |images: u32| 100.0 * f64::from(images);
        assert_eq!(images_in_step(8, dear, Backlog::None), 1);
        assert_eq!(images_in_step(8, dear, Backlog::Waiting), 1);
        // In between it depends on who waits.
        let between = |images: u32| 30.0 + 16.0 * f64::from(images);
        let (calm, busy) = (images_in_step(64, between, Backlog::None), images_in_step(64, between, Backlog::Waiting));
        assert!(1 < calm && calm < busy, "{calm} {busy}");
    }

    #[test]
    fn less_urgent_rows_ride_along_only_where_they_hardly_slow_the_leader() {
        let all = [candidate(1, 64, 0, 0), candidate(2, 64, 2, 0), candidate(3, 64, 2, 0)];
        assert_eq!(rows(&all, &costs(64, 100, 110), 8, Backlog::None), [1, 2, 3]);
        assert_eq!(rows(&all, &costs(64, 100, 800), 8, Backlog::None), [1]);
    }
}
