//! Memory that operations use for themselves and give back: fresh pages would cost more than some of what is done in them.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// What nobody uses at the moment; about as many as there are threads and rows, of what their largest operation needed.
static UNUSED: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// So many values, of which nothing is known.
#[derive(Debug)]
pub(crate) struct Scratch {
    values: Vec<f32>,
    length: usize,
}

impl Scratch {
    pub(crate) fn new(length: usize) -> Self {
        let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough; else the largest, which grows.
        let best = (0..unused.len()).min_by_key(|index| {
            let have = unused[*index].len();
            if have >= length { (0, have) } else { (1, usize::MAX - have) }
        });
        let mut values = best.map(|index| unused.swap_remove(index)).unwrap_or_default();
        drop(unused);
        if values.len() < length {
            // What is in it would be copied for nothing.
            values = vec![0.0; length];
        }
        Self { values, length }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[..self.length]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.length]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        UNUSED.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.values));
    }
}
