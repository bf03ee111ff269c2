//! Damaged inputs out of good ones: a function of a number, so that a test is the same each time.

/// Numbers and words at which readers go wrong.
const WORDS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1e999",
    "-1e-999",
    "nan",
    "inf",
    "NaN",
    "null",
    "true",
    "{}",
    "[]",
    "\"\"",
    "[[",
    "{\"",
    "\\ud800",
    "\0",
    "\r\n",
    ".",
    ",",
    ":",
    "..",
    "/",
    "%2e",
    "*",
    ">",
    "255",
    "256",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "18446744073709551615",
    "18446744073709551616",
    "0.1",
    "1e-7",
    "00",
    "+1",
    " ",
    "\u{feff}",
    "\u{202e}",
    "é",
    "𝕏",
    "((((",
    "))))",
    "]]",
    ":1.5)",
    "BREAK",
    "\\(",
    "2026-01-01T00:00:00Z",
    "-009999-01-02T01:59:59Z",
    "9999-12-31T23:59:60Z",
    "F32",
    "BF16",
    "I64",
    "data_offsets",
];

/// splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// A range of `length`, mostly a short one.
    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = if self.below(4) == 0 { length } else { 8 };
        start..(start + self.below(most + 1)).min(length)
    }
}

/// The `index`th damaged input of `seeds`.
pub(crate) fn mutated(seeds: &[&[u8]], index: u64) -> Vec<u8> {
    let mut chance = Chance(index.wrapping_mul(0xD134_2543_DE82_EF95));
    let mut bytes = seeds[chance.below(seeds.len())].to_vec();
    for _ in 0..=chance.below(4) {
        let place = chance.below(bytes.len() + 1);
        match chance.below(9) {
            0 => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte ^= 1 << chance.below(8);
                }
            }
            1 => {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = chance.next() as u8;
                }
            }
            2 => bytes.truncate(place),
            3 => drop(bytes.drain(chance.range(bytes.len()))),
            4 => {
                let copied = bytes[chance.range(bytes.len())].to_vec();
                bytes.splice(place..place, copied);
            }
            5 => {
                let other = seeds[chance.below(seeds.len())];
                let other = other[chance.range(other.len())].to_vec();
                bytes.splice(chance.range(bytes.len()), other);
            }
            6 => {
                let word = WORDS[chance.below(WORDS.len())].bytes();
                bytes.splice(place..place, word);
            }
            // A word instead of a number, or of what stands between two quotes.
            kind => {
                let inside = |byte: &u8| if kind == 7 { byte.is_ascii_digit() } else { byte.is_ascii_alphanumeric() };
                let start = bytes.iter().skip(place).position(inside).map_or(bytes.len(), |found| place + found);
                let length = bytes[start..].iter().take_while(|byte| inside(byte)).count();
                let word = WORDS[chance.below(WORDS.len())].bytes();
                bytes.splice(start..start + length, word);
            }
        }
    }
    bytes
}
