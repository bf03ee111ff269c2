//! Keeps what took time to make, as far as memory allows: the least recently used goes first.
//!
//! It makes and measures nothing itself, and knows no time.

use std::sync::Arc;

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: Arc<V>,
    bytes: u64,
}

/// Values of up to `bytes_max` in all, but `entries_min` however large they are. What somebody still holds is never evicted
/// and may exceed that.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    bytes_max: u64,
    entries_min: usize,
    /// The most recently used last.
    entries: Vec<Entry<K, V>>,
}

impl<K: PartialEq, V> Cache<K, V> {
    pub(crate) fn new(bytes_max: u64, entries_min: usize) -> Self {
        Self { bytes_max, entries_min, entries: Vec::new() }
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

    /// Evicts until `bytes` more fit; whether they do. Asked before a large value is made, so that both are never in memory.
    pub(crate) fn make_room(&mut self, bytes: u64) -> bool {
        while self.entries.len() >= self.entries_min && self.bytes().saturating_add(bytes) > self.bytes_max {
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

    fn cache(bytes_max: u64, keys: &[&'static str]) -> Cache<&'static str, String> {
        let mut cache = Cache::new(bytes_max, 0);
        keys.iter().for_each(|key| cache.insert(*key, Arc::new((*key).to_owned()), 10));
        cache
    }

    fn keys(cache: &Cache<&'static str, String>) -> Vec<&'static str> {
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
    fn so_many_are_kept_however_large_they_are() {
        let mut cache = Cache::new(15, 2);
        for key in ["a", "b", "c"] {
            cache.insert(key, Arc::default(), 10);
        }
        assert_eq!((keys(&cache), cache.bytes()), (vec!["b", "c"], 20));
        cache.insert("small", Arc::default(), 1);
        assert_eq!(keys(&cache), ["c", "small"]);
    }
}
