//! Keeps what was made with LoRAs, as far as memory allows: the least recently used goes first.
//!
//! It makes and measures nothing itself, and knows no time.

use std::sync::Arc;

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

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: Arc<V>,
    bytes: u64,
}

/// Values of up to `bytes_max` in all. What somebody still holds is never evicted and may exceed that.
#[derive(Debug)]
pub(crate) struct MergedCache<K, V> {
    bytes_max: u64,
    /// The most recently used last.
    entries: Vec<Entry<K, V>>,
}

impl<K: PartialEq, V> MergedCache<K, V> {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, entries: Vec::new() }
    }

    /// Bytes of all that is kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// The value of `key`, which is then the most recently used.
    pub(crate) fn get(&mut self, key: &K) -> Option<Arc<V>> {
        let found = self.entries.iter().position(|entry| entry.key == *key)?;
        let entry = self.entries.remove(found);
        let value = Arc::clone(&entry.value);
        self.entries.push(entry);
        Some(value)
    }

    /// Evicts until `bytes` more fit; whether they do. Asked before a value is made, so that both are never in memory.
    pub(crate) fn make_room(&mut self, bytes: u64) -> bool {
        while self.bytes().saturating_add(bytes) > self.bytes_max {
            let Some(unused) = self.entries.iter().position(|entry| Arc::strong_count(&entry.value) == 1) else {
                return false;
            };
            self.entries.remove(unused);
        }
        true
    }

    /// Keeps `value`, of `bytes`, as the most recently used, and evicts others as far as there must be room.
    pub(crate) fn insert(&mut self, key: K, value: Arc<V>, bytes: u64) {
        self.entries.retain(|entry| entry.key != key);
        self.make_room(bytes);
        self.entries.push(Entry { key, value, bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(bytes_max: u64, keys: &[&'static str]) -> MergedCache<&'static str, String> {
        let mut cache = MergedCache::new(bytes_max);
        keys.iter().for_each(|key| cache.insert(*key, Arc::new((*key).to_owned()), 10));
        cache
    }

    fn keys(cache: &MergedCache<&'static str, String>) -> Vec<&'static str> {
        cache.entries.iter().map(|entry| entry.key).collect()
    }

    #[test]
    fn what_was_inserted_is_found() {
        let mut cache = cache(30, &["a", "b"]);
        assert_eq!(cache.get(&"a").as_deref(), Some(&"a".to_owned()));
        assert_eq!((cache.get(&"c"), cache.bytes()), (None, 20));
        cache.insert("a", Arc::new("new".into()), 15);
        assert_eq!((cache.get(&"a").as_deref(), cache.bytes()), (Some(&"new".to_owned()), 25));
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = cache(30, &["a", "b", "c"]);
        cache.get(&"a");
        cache.insert("d", Arc::default(), 10);
        assert_eq!(keys(&cache), ["c", "a", "d"]);
        assert!(cache.make_room(20));
        assert_eq!(keys(&cache), ["d"]);
    }

    #[test]
    fn what_is_in_use_stays() {
        let mut cache = cache(20, &["a", "b"]);
        let held = cache.get(&"a").unwrap();
        cache.get(&"b");
        cache.insert("c", Arc::default(), 10);
        assert_eq!(keys(&cache), ["a", "c"]);
        assert!(!cache.make_room(20));
        assert_eq!(keys(&cache), ["a"]);
        drop(held);
        assert!(cache.make_room(20));
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn what_is_larger_than_the_cache_is_kept_only_as_long_as_it_is_used() {
        let mut cache = cache(15, &["a"]);
        let large = Arc::new(String::new());
        cache.insert("large", Arc::clone(&large), 100);
        assert_eq!(keys(&cache), ["large"]);
        assert!(!cache.make_room(1));
        drop(large);
        assert!(cache.make_room(1));
    }

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
