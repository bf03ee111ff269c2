//! PyTorch's normally distributed numbers, so that a seed means here what it means there.
//!
//! A [`Generator`] is a value: what it draws next depends on nothing but itself, it can be written down and read back, and
//! copies go their own ways. Which numbers are drawn for what is not decided here.
//!
//! `torch-cpu` is the 32-bit Mersenne Twister (Matsumoto and Nishimura, 1998) with the two ways in which PyTorch makes
//! normal numbers of its words: in blocks of 16 with the single precision functions of the Cephes library, as its x86-64
//! builds do on every processor since 2013, or, for fewer than 16 numbers, one by one in double precision. `torch-cuda` is
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

use crate::job::Rng;

/// The words of the Mersenne Twister's state.
const WORDS: usize = 624;
/// The distance of the words that are combined.
const MIDDLE: usize = 397;
/// Numbers that are made together.
const BLOCK: usize = 16;

/// Numbers of one image, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Generator {
    TorchCpu(MersenneTwister),
    TorchCuda(Philox),
}

/// Bytes that are no generator's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state of the random numbers is damaged")]
pub(crate) struct DamagedState;

impl Generator {
    /// What `torch.Generator(device).manual_seed(seed)` is.
    pub(crate) fn new(rng: Rng, seed: u64) -> Self {
        match rng {
            Rng::TorchCpu => Self::TorchCpu(MersenneTwister::new(seed)),
            Rng::TorchCuda => Self::TorchCuda(Philox { seed, offset: 0 }),
        }
    }

    /// What `torch.randn(count)` gives, in f32.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f32> {
        match self {
            Self::TorchCpu(twister) => twister.normal(count),
            Self::TorchCuda(philox) => philox.normal(count),
        }
    }

    /// The whole state.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::TorchCpu(twister) => {
                let mut bytes = vec![0];
                bytes.extend((twister.next as u32).to_le_bytes());
                bytes.push(u8::from(twister.spare.is_some()));
                bytes.extend(twister.spare.unwrap_or_default().to_le_bytes());
                bytes.extend(twister.words.iter().flat_map(|word| word.to_le_bytes()));
                bytes
            }
            Self::TorchCuda(Philox { seed, offset }) => {
                let mut bytes = vec![1];
                bytes.extend(seed.to_le_bytes());
                bytes.extend(offset.to_le_bytes());
                bytes
            }
        }
    }

    /// The generator whose state [`Self::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, DamagedState> {
        match bytes.split_first() {
            Some((0, rest)) => {
                let (next, rest) = rest.split_first_chunk().ok_or(DamagedState)?;
                let (spare_is_some, rest) = rest.split_first().ok_or(DamagedState)?;
                let (spare, rest) = rest.split_first_chunk().ok_or(DamagedState)?;
                let next = u32::from_le_bytes(*next) as usize;
                let (words, left) = rest.as_chunks::<4>();
                let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
                if words.len() != WORDS || !left.is_empty() || next > WORDS || *spare_is_some > 1 {
                    return Err(DamagedState);
                }
                let spare = (*spare_is_some == 1).then(|| f64::from_le_bytes(*spare));
                Ok(Self::TorchCpu(MersenneTwister { words, next, spare }))
            }
            Some((1, rest)) => {
                let (seed, rest) = rest.split_first_chunk().ok_or(DamagedState)?;
                let offset = rest.try_into().map_err(|_| DamagedState)?;
                Ok(Self::TorchCuda(Philox { seed: u64::from_le_bytes(*seed), offset: u64::from_le_bytes(offset) }))
            }
            _ => Err(DamagedState),
        }
    }
}

/// PyTorch's generator on the CPU.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MersenneTwister {
    /// 624 of them.
    words: Vec<u32>,
    /// The word that is taken next; 624 when all are taken.
    next: usize,
    /// The second of two numbers that were made together, one by one.
    spare: Option<f64>,
}

impl MersenneTwister {
    fn new(seed: u64) -> Self {
        let mut words = Vec::with_capacity(WORDS);
        // PyTorch takes the lower half of a seed.
        let mut word = seed as u32;
        words.push(word);
        for index in 1..WORDS as u32 {
            word = 1_812_433_253_u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(index);
            words.push(word);
        }
        Self { words, next: WORDS, spare: None }
    }

    fn word(&mut self) -> u32 {
        if self.next == WORDS {
            self.twist();
        }
        let mut word = self.words[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for index in 0..WORDS {
            let mixed = (self.words[index] & 0x8000_0000) | (self.words[(index + 1) % WORDS] & 0x7fff_ffff);
            let twisted = (mixed >> 1) ^ if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[index] = self.words[(index + MIDDLE) % WORDS] ^ twisted;
        }
        self.next = 0;
    }

    /// From 0 to below 1.
    fn uniform(&mut self) -> f32 {
        (self.word() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    fn uniform_double(&mut self) -> f64 {
        let (high, low) = (u64::from(self.word()), u64::from(self.word()));
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.one_normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform()).collect();
        for block in values.as_chunks_mut::<BLOCK>().0 {
            box_muller(block);
        }
        if !count.is_multiple_of(BLOCK)
            && let Some(tail) = values.last_chunk_mut::<BLOCK>()
        {
            tail.iter_mut().for_each(|value| *value = self.uniform());
            box_muller(tail);
        }
        values
    }

    fn one_normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (turn, distance) = (self.uniform_double(), self.uniform_double());
        let radius = (-2.0 * (-distance).ln_1p()).sqrt();
        let (sine, cosine) = (2.0 * std::f64::consts::PI * turn).sin_cos();
        self.spare = Some(radius * sine);
        radius * cosine
    }
}

/// Sixteen uniform numbers become normal ones: the eighth after each is its partner.
fn box_muller(block: &mut [f32; BLOCK]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (first, second) in first.iter_mut().zip(second) {
        let radius = (-2.0 * cephes_ln(1.0 - *first)).sqrt();
        let (sine, cosine) = cephes_sin_cos(std::f32::consts::TAU * *second);
        (*first, *second) = (radius * cosine, radius * sine);
    }
}

/// The logarithm of a positive normal number, rounded in each operation as PyTorch's vector code rounds.
#[expect(
    clippy::excessive_precision,
    reason = "the nearest single precision numbers are not always found with fewer digits"
)]
fn cephes_ln(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 8] = [
        -1.151_461_03e-1,
        1.167_699_87e-1,
        -1.242_014_08e-1,
        1.424_932_28e-1,
        -1.666_805_77e-1,
        2.000_071_48e-1,
        -2.499_999_4e-1,
        3.333_333_1e-1,
    ];
    // ln 2 in two parts.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut exponent = (bits >> 23) as f32 - 126.0;
    let mut mantissa = f32::from_bits(bits & 0x007f_ffff | 0.5_f32.to_bits());
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        mantissa = mantissa - 1.0 + mantissa;
    } else {
        mantissa -= 1.0;
    }
    let square = mantissa * mantissa;
    let series = COEFFICIENTS.iter().fold(7.037_683_6e-2, |sum: f32, next| sum.mul_add(mantissa, *next));
    let series = (series * mantissa).mul_add(square, exponent * LN_2_LOW);
    let series = square.mul_add(-0.5, series);
    exponent.mul_add(LN_2_HIGH, mantissa + series)
}

/// Sine and cosine of an angle from 0 to 2 pi, rounded in each operation as PyTorch's vector code rounds.
#[expect(
    clippy::excessive_precision,
    reason = "the nearest single precision numbers are not always found with fewer digits"
)]
fn cephes_sin_cos(angle: f32) -> (f32, f32) {
    // pi / 4 in three parts.
    const QUARTER: [f32; 3] = [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8];
    let octant = ((angle * std::f32::consts::FRAC_1_PI * 4.0) as u32 + 1) & !1;
    let rest = QUARTER.iter().fold(angle, |rest, part| (octant as f32).mul_add(-part, rest));
    let square = rest * rest;
    let cosine = 2.443_315_7e-5_f32.mul_add(square, -1.388_731_6e-3).mul_add(square, 4.166_664_6e-2);
    let cosine = (cosine * square).mul_add(square, -0.5 * square) + 1.0;
    let sine = (-1.951_529_6e-4_f32).mul_add(square, 8.332_161e-3).mul_add(square, -1.666_665_46e-1);
    let sine = (sine * square).mul_add(rest, rest);
    let (sine, cosine) = if octant & 2 == 0 { (sine, cosine) } else { (cosine, sine) };
    let negative = |value: f32, yes: bool| if yes { -value } else { value };
    (negative(sine, octant & 4 != 0), negative(cosine, octant.wrapping_sub(2) & 4 == 0))
}

/// PyTorch's generator on CUDA: a function of seed, thread and offset.
///
/// Above 270,336 numbers at a time PyTorch's order depends on the device; this is that of an H100.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Philox {
    seed: u64,
    /// Numbers that each thread has taken.
    offset: u64,
}

/// Threads of one block of PyTorch's kernel.
const BLOCK_THREADS: usize = 256;
/// Blocks that an H100 runs at once: 132 multiprocessors of 2048 threads.
const GRID_BLOCKS_MAX: usize = 132 * 2048 / BLOCK_THREADS;
/// Numbers of one call of Philox.
const LANES: usize = 4;

impl Philox {
    fn normal(&mut self, count: usize) -> Vec<f32> {
        let threads = BLOCK_THREADS * count.div_ceil(BLOCK_THREADS).min(GRID_BLOCKS_MAX);
        let mut values = vec![0.0; count];
        let rounds = count.div_ceil((threads * LANES).max(1));
        for round in 0..rounds {
            for thread in 0..threads {
                let first = round * threads * LANES + thread;
                if first >= count {
                    break;
                }
                let words = philox(self.seed, thread as u64, self.offset / LANES as u64 + round as u64);
                let (a, b) = curand_box_muller(words[0], words[1]);
                let (c, d) = curand_box_muller(words[2], words[3]);
                for (lane, value) in [a, b, c, d].into_iter().enumerate() {
                    if let Some(place) = values.get_mut(first + lane * threads) {
                        *place = value;
                    }
                }
            }
        }
        self.offset += (rounds * LANES) as u64;
        values
    }
}

/// Ten rounds of Philox4x32.
fn philox(key: u64, subsequence: u64, counter: u64) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let mut key = [key as u32, (key >> 32) as u32];
    let mut words = [counter as u32, (counter >> 32) as u32, subsequence as u32, (subsequence >> 32) as u32];
    for _ in 0..10 {
        let (first, second) = (MULTIPLIERS[0] * u64::from(words[0]), MULTIPLIERS[1] * u64::from(words[2]));
        words = [
            (second >> 32) as u32 ^ words[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ words[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    words
}

/// Two words become two normal numbers, as in cuRAND.
fn curand_box_muller(first: u32, second: u32) -> (f32, f32) {
    const UNIT: f32 = 1.0 / 4_294_967_296.0;
    const TURN: f32 = UNIT * std::f32::consts::TAU;
    let distance = (first as f32).mul_add(UNIT, UNIT / 2.0);
    let angle = (second as f32).mul_add(TURN, TURN / 2.0);
    let radius = (-2.0 * distance.ln()).sqrt();
    let (sine, cosine) = angle.sin_cos();
    (radius * sine, radius * cosine)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn numbers_are_those_of_torch_bit_for_bit() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/noise.json")).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let seed = case["seed"].as_u64().unwrap();
            let mut generator = Generator::new(Rng::TorchCpu, seed);
            for draw in case["draws"].as_array().unwrap() {
                let count = draw["count"].as_u64().unwrap() as usize;
                let values = generator.normal(count);
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                assert_eq!(digest, draw["sha256"], "seed {seed}, {count} numbers: {:?}", &values[..count.min(4)]);
            }
        }
    }

    #[test]
    fn philox_has_its_published_values() {
        // The known answers that its authors distribute: counter and key all zeros, and all ones.
        assert_eq!(philox(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, u64::MAX, u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn cuda_numbers_are_those_of_torch_on_a_gpu() {
        // torch.randn((3, 4), device="cuda") after torch.manual_seed(0).
        let theirs = [
            -0.924_662_6,
            -0.425_344_15,
            -2.643_845_7,
            0.145_183_88,
            -0.120_866_47,
            -0.579_725_6,
            -0.622_851_2,
            -0.328_387_1,
            -1.074_542_3,
            -0.363_144_07,
            -1.671_050_7,
            2.265_505,
        ];
        let ours = Generator::new(Rng::TorchCuda, 0).normal(12);
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() <= 6e-7 * theirs.abs().max(1.0), "{ours}, on a GPU {theirs}");
        }
    }

    #[test]
    fn a_state_that_was_written_down_goes_on_where_it_was() {
        for rng in Rng::ALL {
            let mut generator = Generator::new(*rng, 9);
            for count in [3, 100, 1, 17, 700] {
                generator.normal(count);
                let mut restored = Generator::from_bytes(&generator.to_bytes()).unwrap();
                assert_eq!(restored, generator);
                assert_eq!(restored.normal(5), generator.normal(5), "{rng} after {count}");
            }
            let bytes = generator.to_bytes();
            for damaged in [&bytes[..bytes.len() - 1], &[], &[7], &[bytes.as_slice(), &[0]].concat()] {
                assert_eq!(Generator::from_bytes(damaged), Err(DamagedState));
            }
        }
    }

    #[test]
    fn numbers_are_standard_normal() {
        for rng in Rng::ALL {
            let values = Generator::new(*rng, 1).normal(400_000);
            let mean = values.iter().sum::<f32>() / 4e5;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 4e5;
            assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{rng}: mean {mean}, variance {variance}");
        }
    }
}
