//! Which rows step together.
//!
//! Rows may share a step when model, latent shape and dtype agree. A worker has one model in one dtype, so the size of
//! the picture decides. Different sizes take turns, step by step, so that none waits for another to finish.

use std::collections::BTreeMap;

use super::message::RowKey;

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

/// The group after `last` in a fixed round, with its rows.
pub(super) fn next_group(
    rows: impl Iterator<Item = (RowKey, Group)>,
    last: Option<Group>,
) -> Option<(Group, Vec<RowKey>)> {
    let mut groups: BTreeMap<Group, Vec<RowKey>> = BTreeMap::new();
    for (row, group) in rows {
        groups.entry(group).or_default().push(row);
    }
    let after = groups.keys().copied().find(|group| last.is_none_or(|last| *group > last));
    let chosen = after.or_else(|| groups.keys().next().copied())?;
    groups.remove_entry(&chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_turns() {
        let group = |width| Group { key: BatchKey { width, height: 64 }, alone: None };
        let rows = [(RowKey(1), group(64)), (RowKey(2), group(128)), (RowKey(3), group(64))];
        let mut last = None;
        let mut turns = Vec::new();
        for _ in 0..4 {
            let (chosen, rows) = next_group(rows.into_iter(), last).unwrap();
            turns.push(rows);
            last = Some(chosen);
        }
        assert_eq!(turns, [vec![RowKey(1), RowKey(3)], vec![RowKey(2)], vec![RowKey(1), RowKey(3)], vec![RowKey(2)]]);
        assert_eq!(next_group([].into_iter(), last), None);
    }
}
