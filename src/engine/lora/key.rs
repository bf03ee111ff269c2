//! What tells models with LoRAs apart.

use crate::job::LoraName;

/// Which LoRAs with which weights: two requests with equal keys get the same model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct MergeKey(Vec<(LoraName, u32)>);

impl MergeKey {
    /// The order of `loras` does not count, the bits of the weights do.
    pub(crate) fn new(loras: impl IntoIterator<Item = (LoraName, f32)>) -> Self {
        let mut loras: Vec<_> = loras.into_iter().map(|(name, weight)| (name, weight.to_bits())).collect();
        loras.sort();
        Self(loras)
    }

    /// Whether it is the base model itself.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_loras_does_not_count_but_every_bit_of_their_weights_does() {
        let key =
            |loras: &[(&str, f32)]| MergeKey::new(loras.iter().map(|(name, weight)| (name.parse().unwrap(), *weight)));
        assert_eq!(key(&[("a", 1.0), ("b", 0.5)]), key(&[("b", 0.5), ("a", 1.0)]));
        assert_ne!(key(&[("a", 1.0)]), key(&[("a", 1.0 + f32::EPSILON)]));
        assert_ne!(key(&[("a", 1.0)]), key(&[("b", 1.0)]));
        assert!(key(&[]).is_empty() && !key(&[("a", 0.0)]).is_empty());
    }
}
