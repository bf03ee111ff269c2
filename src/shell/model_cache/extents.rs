//! Which bytes of a file are there: a set of ranges that do not touch. Pure.

use std::ops::Range;

/// Parts of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extents(Vec<Range<u64>>);

impl Extents {
    /// All of a file of this size.
    #[cfg(test)]
    pub(super) fn all(size: u64) -> Self {
        let mut extents = Self::default();
        extents.add(0..size);
        extents
    }

    /// Adds a part; it may overlap what is there.
    pub(super) fn add(&mut self, part: Range<u64>) {
        if part.is_empty() {
            return;
        }
        let first = self.0.partition_point(|range| range.end < part.start);
        let last = self.0.partition_point(|range| range.start <= part.end);
        let merged = match self.0.get(first..last) {
            Some([]) | None => part,
            Some(touched) => {
                let end = touched[touched.len() - 1].end.max(part.end);
                touched[0].start.min(part.start)..end
            }
        };
        self.0.splice(first..last, [merged]);
    }

    /// Where the part that begins with the first byte ends.
    pub(super) fn contiguous(&self) -> u64 {
        self.0.first().filter(|range| range.start == 0).map_or(0, |range| range.end)
    }

    /// What is missing of a file of this size, in order.
    pub(super) fn holes(&self, size: u64) -> Vec<Range<u64>> {
        let mut holes = Vec::new();
        let mut at = 0;
        for range in &self.0 {
            if range.start.min(size) > at {
                holes.push(at..range.start.min(size));
            }
            at = at.max(range.end);
        }
        if at < size {
            holes.push(at..size);
        }
        holes
    }

    /// How many bytes are there.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "one extent is what is meant")]

    use super::*;

    /// One byte at a time, as nobody would do it.
    #[test]
    fn parts_in_any_order_are_the_set_of_their_bytes() {
        const SIZE: u64 = 24;
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..2_000 {
            let (mut extents, mut bytes) = (Extents::default(), [false; SIZE as usize]);
            for _ in 0..random(7) {
                let start = random(SIZE);
                let end = start + random(SIZE - start + 1);
                extents.add(start..end);
                bytes[start as usize..end as usize].fill(true);
            }
            let there = bytes.iter().filter(|there| **there).count() as u64;
            assert_eq!(extents.bytes(), there);
            let contiguous = bytes.iter().take_while(|there| **there).count() as u64;
            assert_eq!(extents.contiguous(), contiguous, "{extents:?}");
            let mut missing = [false; SIZE as usize];
            let holes = extents.holes(SIZE);
            for hole in &holes {
                missing[hole.start as usize..hole.end as usize].fill(true);
            }
            assert!(bytes.iter().zip(missing).all(|(there, missing)| *there != missing), "{extents:?} {holes:?}");
            assert!(holes.windows(2).all(|pair| pair[0].end < pair[1].start), "{holes:?}");
            assert!(extents.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{extents:?}");
        }
    }

    #[test]
    fn a_whole_file_has_no_holes_and_an_empty_one_neither() {
        assert!(Extents::all(9).holes(9).is_empty());
        assert!(Extents::default().holes(0).is_empty());
        assert_eq!(Extents::default().holes(2), [0..2]);
    }
}
