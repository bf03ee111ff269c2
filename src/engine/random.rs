//! The random numbers of PyTorch: what `torch.randn` gives for a seed, from generators that are plain values.
//!
//! A [`Generator`] stands for a `torch.Generator` of the CPU or of a CUDA device: draws of other sizes or in another
//! order give other numbers, as they do there. Only normal values in f32 are made, and nothing is drawn from the
//! operating system. The algorithms are PyTorch's (`ATen/native/cpu/DistributionTemplates.h`, `ATen/native/cuda/
//! DistributionTemplates.h`), read and measured in 2.15.
//!
//! How exact [`Rng::TorchCpu`] is:
//!
//! * Draws of 16 values and more have the bits that PyTorch makes on x86-64 machines with AVX2 or AVX-512, that is on
//!   practically all of them. Its logarithm, sine and cosine are polynomials, whose products and sums GCC has fused. On
//!   other machines (ARM, `ATEN_CPU_CAPABILITY=default`) PyTorch calls the C library instead, and values differ by up
//!   to 2e-6 there; here they do not depend on the machine.
//! * Draws of up to 15 values are worked out in f64 by the C library, whose last bit almost never shows in f32.
//!
//! [`Rng::TorchCuda`] has the same integers as the GPU. What is made of them passes through the GPU's own
//! approximations of sine and cosine, for which NVIDIA documents an absolute error of about 5e-7 and which no other
//! device has: values are near those of a GPU, not the same bits. This was compared with published
//! values, not with a GPU.

use std::f64::consts::PI;

use crate::job::Rng;

/// Values that are drawn together, and the smallest draw that is made of such blocks.
const BLOCK: usize = 16;

/// A `torch.Generator`: its whole state is its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Generator(Source);

#[derive(Clone, Debug, PartialEq)]
enum Source {
    Cpu(Box<CpuGenerator>),
    Cuda(CudaGenerator),
}

/// Bytes that are no state of a generator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes are not the state of a random number generator: {reason}")]
pub(crate) struct InvalidState {
    /// How many bytes there are.
    pub(crate) length: usize,
    /// What is wrong with them.
    pub(crate) reason: &'static str,
}

impl Generator {
    /// `torch.Generator(device).manual_seed(seed)`. PyTorch's CPU generator uses only the lower 32 bits of a seed.
    pub(crate) fn new(rng: Rng, seed: u64) -> Self {
        Self(match rng {
            Rng::TorchCpu => {
                Source::Cpu(Box::new(CpuGenerator { words: MersenneTwister::new(seed as u32), second: None }))
            }
            Rng::TorchCuda => Source::Cuda(CudaGenerator { seed, offset: 0 }),
        })
    }

    /// `torch.randn(count, generator=self)` in f32.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f32> {
        match &mut self.0 {
            Source::Cpu(generator) if count < BLOCK => (0..count).map(|_| generator.next_normal() as f32).collect(),
            Source::Cpu(generator) => generator.normal_blocks(count),
            Source::Cuda(generator) => generator.normal(count, CUDA_DEVICE),
        }
    }

    /// All that [`Generator::restore`] needs to continue exactly here: 2510 bytes on the CPU, 17 for CUDA.
    pub(crate) fn state(&self) -> Vec<u8> {
        match &self.0 {
            Source::Cpu(generator) => {
                let mut bytes = vec![STATE_OF_CPU];
                bytes.extend(generator.words.state.iter().flat_map(|word| word.to_le_bytes()));
                bytes.extend((generator.words.next as u32).to_le_bytes());
                bytes.push(u8::from(generator.second.is_some()));
                bytes.extend(generator.second.unwrap_or_default().to_le_bytes());
                bytes
            }
            Source::Cuda(CudaGenerator { seed, offset }) => {
                let mut bytes = vec![STATE_OF_CUDA];
                bytes.extend(seed.to_le_bytes());
                bytes.extend(offset.to_le_bytes());
                bytes
            }
        }
    }

    /// The generator whose [`Generator::state`] was `bytes`.
    ///
    /// # Errors
    /// [`InvalidState`] for bytes that no generator gives.
    pub(crate) fn restore(bytes: &[u8]) -> Result<Self, InvalidState> {
        let invalid = |reason| InvalidState { length: bytes.len(), reason };
        let mut rest = bytes;
        let source = match take(&mut rest).map(u8::from_le_bytes) {
            Some(STATE_OF_CPU) => CpuGenerator::read(&mut rest).map(|generator| Source::Cpu(Box::new(generator))),
            Some(STATE_OF_CUDA) => CudaGenerator::read(&mut rest).map(Source::Cuda),
            Some(_) | None => return Err(invalid("they do not begin with a known kind")),
        };
        match source {
            Some(source) if rest.is_empty() => Ok(Self(source)),
            Some(_) => Err(invalid("there are too many")),
            None => Err(invalid("there are too few, or a position in them is out of range")),
        }
    }
}

/// First bytes of states.
const STATE_OF_CPU: u8 = 1;
const STATE_OF_CUDA: u8 = 2;

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

/// PyTorch's generator on the CPU.
#[derive(Clone, Debug, PartialEq)]
struct CpuGenerator {
    words: MersenneTwister,
    /// The second value of the pair that the last small draw made, if it is still to be used.
    second: Option<f64>,
}

impl CpuGenerator {
    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let mut state = [0; STATE_WORDS];
        for word in &mut state {
            *word = u32::from_le_bytes(take(bytes)?);
        }
        let next = u32::from_le_bytes(take(bytes)?) as usize;
        let [has_second] = take(bytes)?;
        let second = f64::from_le_bytes(take(bytes)?);
        let in_range = next <= STATE_WORDS && has_second <= 1;
        let second = (has_second == 1).then_some(second);
        in_range.then_some(Self { words: MersenneTwister { state, next }, second })
    }

    /// One value of a draw below 16: Box and Muller's transform of two uniform values, in f64.
    fn next_normal(&mut self) -> f64 {
        if let Some(second) = self.second.take() {
            return second;
        }
        let (angle, tail) = (self.next_uniform_f64(), self.next_uniform_f64());
        let radius = (-2.0 * (-tail).ln_1p()).sqrt();
        let (sine, cosine) = (2.0 * PI * angle).sin_cos();
        self.second = Some(radius * sine);
        radius * cosine
    }

    /// A draw of at least 16. The uniform values of the whole draw come first. What does not fill a block becomes part
    /// of a last block of 16 that is drawn again and covers values that were ready.
    fn normal_blocks(&mut self, count: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (0..count).map(|_| self.next_uniform_f32()).collect();
        let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
        blocks.iter_mut().for_each(box_muller);
        if !rest.is_empty()
            && let Some(last) = values.last_chunk_mut::<BLOCK>()
        {
            *last = std::array::from_fn(|_| self.next_uniform_f32());
            box_muller(last);
        }
        values
    }

    /// 24 bits, 0 to just below 1.
    fn next_uniform_f32(&mut self) -> f32 {
        (self.words.next_word() & 0x00ff_ffff) as f32 / (1_u32 << 24) as f32
    }

    /// 53 bits, 0 to just below 1.
    fn next_uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.words.next_word()), u64::from(self.words.next_word()));
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }
}

const STATE_WORDS: usize = 624;
const STATE_MIDDLE: usize = 397;

/// MT19937 of Matsumoto and Nishimura, with the seeding of 2002.
#[derive(Clone, Debug, PartialEq)]
struct MersenneTwister {
    state: [u32; STATE_WORDS],
    /// The word that is tempered next; at the end of the state, all of it is renewed first.
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; STATE_WORDS];
        for index in 1..STATE_WORDS {
            let before = state[index - 1];
            state[index] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index as u32);
        }
        Self { state, next: STATE_WORDS }
    }

    fn next_word(&mut self) -> u32 {
        if self.next == STATE_WORDS {
            self.renew();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9d2c_5680;
        word ^= word << 15 & 0xefc6_0000;
        word ^ word >> 18
    }

    fn renew(&mut self) {
        for index in 0..STATE_WORDS {
            let joined = self.state[index] & 0x8000_0000 | self.state[(index + 1) % STATE_WORDS] & 0x7fff_ffff;
            let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + STATE_MIDDLE) % STATE_WORDS] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }
}

/// Turns uniform values into normal ones: the first eight are radii, the other eight the angles that belong to them.
fn box_muller(block: &mut [f32; BLOCK]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (first, second) in first.iter_mut().zip(second) {
        let radius = (-2.0 * ln(1.0 - *first)).sqrt();
        let (sine, cosine) = sin_cos((2.0 * PI) as f32 * *second);
        // Adding the mean, zero, is what leaves no negative zeros.
        (*first, *second) = (radius * cosine + 0.0, radius * sine + 0.0);
    }
}

/// The logarithm of `x`, which is positive and not subnormal: Cephes' polynomial, fused as in PyTorch's build.
fn ln(x: f32) -> f32 {
    const FACTORS: [f32; 8] = [
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    // x = mantissa * 2^exponent with a mantissa from the square root of a half to that of two.
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as f32 - 126.0;
    let mut mantissa = f32::from_bits(bits & 0x007f_ffff | 0.5_f32.to_bits());
    if mantissa < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        mantissa += mantissa;
    }
    let x = mantissa - 1.0;
    let square = x * x;
    let series = FACTORS.iter().fold(7.037_683_6e-2_f32, |sum, factor| sum.mul_add(x, *factor)) * x;
    let tail = (-0.5_f32).mul_add(square, series.mul_add(square, exponent * LN_2_LOW));
    exponent.mul_add(LN_2_HIGH, x + tail)
}

/// Sine and cosine of `angle`, 0 to 2π: Cephes' polynomials, fused as in PyTorch's build.
fn sin_cos(angle: f32) -> (f32, f32) {
    /// π/4 in three parts, of which the first two have few bits.
    const QUARTER_PI: [f32; 3] = [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8];

    // The nearest even multiple of π/4, and what is left of the angle.
    let octant = ((angle * (4.0 / PI) as f32) as u32 + 1) & !1;
    let multiple = octant as f32;
    let x = QUARTER_PI.iter().fold(angle, |rest, part| (-multiple).mul_add(*part, rest));
    let square = x * x;
    let cosine = 2.443_315_7e-5_f32.mul_add(square, -1.388_731_6e-3).mul_add(square, 4.166_664_6e-2);
    let cosine = (cosine * square).mul_add(square, -0.5 * square) + 1.0;
    let sine = (-1.951_529_6e-4_f32).mul_add(square, 8.332_161e-3).mul_add(square, -1.666_665_5e-1);
    let sine = (sine * square).mul_add(x, x);
    match octant & 6 {
        0 => (sine, cosine),
        2 => (cosine, -sine),
        4 => (-sine, -cosine),
        _ => (-cosine, sine),
    }
}

/// What of a GPU decides which thread makes which value, and so the order of the values of large draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CudaDevice {
    multiprocessors: usize,
    threads_per_multiprocessor: usize,
}

/// An H100 SXM. It matters only for draws of more values than a GPU has threads (270 336 here, 221 184 on an A100): the
/// latents of one picture of 1024 x 1024 have 65 536 with four channels and 262 144 with sixteen.
const CUDA_DEVICE: CudaDevice = CudaDevice { multiprocessors: 132, threads_per_multiprocessor: 2048 };

const CUDA_THREADS_PER_BLOCK: usize = 256;

/// PyTorch's generator on a CUDA device: every thread has a stream of Philox blocks of its own.
#[derive(Clone, Debug, PartialEq)]
struct CudaGenerator {
    seed: u64,
    /// Blocks that every thread has used up. (PyTorch counts the words of them, four times as many.)
    offset: u64,
}

impl CudaGenerator {
    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self { seed: u64::from_le_bytes(take(bytes)?), offset: u64::from_le_bytes(take(bytes)?) })
    }

    /// Thread `t` of `n` makes the values `t`, `t + n`, `t + 2n`, `t + 3n` from its first block, the next four from its
    /// second, and drops those that the draw does not have.
    fn normal(&mut self, count: usize, device: CudaDevice) -> Vec<f32> {
        let blocks_at_once = device.multiprocessors * (device.threads_per_multiprocessor / CUDA_THREADS_PER_BLOCK);
        let threads = count.div_ceil(CUDA_THREADS_PER_BLOCK).min(blocks_at_once) * CUDA_THREADS_PER_BLOCK;
        let mut values = vec![0.0; count];
        for (turn, values) in (self.offset..).zip(values.chunks_mut((4 * threads).max(1))) {
            for thread in 0..threads.min(values.len()) {
                let made = normal4(philox(counter(turn, thread as u64), words(self.seed)));
                for (value, made) in values[thread..].iter_mut().step_by(threads).zip(made) {
                    *value = made;
                }
            }
        }
        self.offset += count.div_ceil((4 * threads).max(1)) as u64;
        values
    }
}

fn words(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn counter(block: u64, stream: u64) -> [u32; 4] {
    let ([a, b], [c, d]) = (words(block), words(stream));
    [a, b, c, d]
}

/// Philox4x32-10 of Salmon, Moraes, Dror and Shaw ("Parallel random numbers: as easy as 1, 2, 3").
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const ROUNDS: u32 = 10;
    (0..ROUNDS).fold(counter, |[a, b, c, d], round| {
        let key = [
            key[0].wrapping_add(round.wrapping_mul(0x9e37_79b9)),
            key[1].wrapping_add(round.wrapping_mul(0xbb67_ae85)),
        ];
        let [low_a, high_a] = words(u64::from(a) * 0xd251_1f53);
        let [low_c, high_c] = words(u64::from(c) * 0xcd9e_8d57);
        [high_c ^ b ^ key[0], low_c, high_a ^ d ^ key[1], low_a]
    })
}

/// Four normal values from one block, as `curand_normal4` makes them.
fn normal4([a, b, c, d]: [u32; 4]) -> [f32; 4] {
    const STEP: f32 = 1.0 / 4_294_967_296.0;
    const STEP_OF_ANGLE: f32 = STEP * (2.0 * PI) as f32;
    let pair = |radius: u32, angle: u32| {
        let radius = (radius as f32).mul_add(STEP, STEP / 2.0);
        let angle = (angle as f32).mul_add(STEP_OF_ANGLE, STEP_OF_ANGLE / 2.0);
        // In f64 and rounded, so that the C library's last bit does not show.
        let radius = (-2.0 * f64::from(radius).ln() as f32).sqrt();
        let (sine, cosine) = f64::from(angle).sin_cos();
        [radius * sine as f32, radius * cosine as f32]
    };
    let ([first, second], [third, fourth]) = (pair(a, b), pair(c, d));
    [first, second, third, fourth]
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use sha2::{Digest, Sha256};

    use super::*;

    /// Draws everything that `tests/golden/randn.py` recorded from PyTorch.
    #[test]
    fn every_bit_is_that_of_torch_on_the_cpu() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/randn.json")).unwrap();
        let sequences = golden["sequences"].as_array().unwrap();
        assert!(sequences.len() > 200, "{} sequences", sequences.len());
        for sequence in sequences {
            let seed = sequence["seed"].as_u64().unwrap();
            let mut generator = Generator::new(Rng::TorchCpu, seed);
            for (index, draw) in sequence["draws"].as_array().unwrap().iter().enumerate() {
                let count = draw["count"].as_u64().unwrap() as usize;
                let name = format!("seed {seed}, draw {index} of {count}");
                let bytes: Vec<u8> = generator.normal(count).iter().flat_map(|value| value.to_le_bytes()).collect();
                assert_eq!(bytes.len(), 4 * count, "{name}");
                let bits = bytes.as_chunks::<4>().0.iter().map(|bytes| u64::from(u32::from_le_bytes(*bytes)));
                for (position, (ours, theirs)) in bits.zip(draw["bits"].as_array().unwrap()).enumerate() {
                    assert_eq!(ours, theirs.as_u64().unwrap(), "{name}, value {position}");
                }
                if let Some(expected) = draw.get("sha256") {
                    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                    assert_eq!(digest, expected.as_str().unwrap(), "{name}");
                }
            }
        }
    }

    /// The known answers that are published with Random123.
    #[test]
    fn philox_gives_the_published_words() {
        let ones = 0xffff_ffff;
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), expected, "{counter:08x?} {key:08x?}");
        }
    }

    /// The first values of `torch.randn((3, 4), device="cuda")` as other reimplementations publish them.
    #[test]
    fn values_are_near_those_known_of_a_gpu() {
        let expected = [
            -0.924_662_59,
            -0.425_344_15,
            -2.643_845_7,
            0.145_183_88,
            -0.120_866_47,
            -0.579_725_64,
            -0.622_851_22,
            -0.328_387_09,
            -1.074_542_31,
            -0.363_144_07,
            -1.671_050_67,
            2.265_504_97,
        ];
        let values = Generator::new(Rng::TorchCuda, 0).normal(12);
        for (ours, theirs) in values.iter().zip(expected) {
            assert!((f64::from(*ours) - theirs).abs() < 1e-6, "{ours} {theirs}");
        }
    }

    #[test]
    fn threads_of_a_gpu_make_further_values_only_when_there_are_too_few_of_them() {
        // One multiprocessor with two blocks of 256 threads.
        let device = CudaDevice { multiprocessors: 1, threads_per_multiprocessor: 512 };
        let mut generator = CudaGenerator { seed: 7, offset: 3 };
        let values = generator.normal(2 * 2048 + 600, device);
        let made = |turn: u64, thread: u64| normal4(philox(counter(3 + turn, thread), words(7)));
        assert_eq!(values[17], made(0, 17)[0]);
        assert_eq!(values[3 * 512 + 17], made(0, 17)[3]);
        assert_eq!(values[2048 + 512 + 511], made(1, 511)[1]);
        assert_eq!(values[2 * 2048 + 512 + 87], made(2, 87)[1]);
        assert_eq!(generator.offset, 6);
        // Few values come from one thread each.
        let mut generator = CudaGenerator { seed: 7, offset: 3 };
        let few = generator.normal(300, device);
        assert_eq!((few[0], few[299], generator.offset), (made(0, 0)[0], made(0, 299)[0], 4));
    }

    #[test]
    fn a_generator_continues_from_its_state() {
        for rng in Rng::ALL {
            let mut generator = Generator::new(*rng, 7);
            for count in [0, 1, 16, 3, 700, 2] {
                generator.normal(count);
                let mut restored = Generator::restore(&generator.state()).unwrap();
                assert_eq!(restored, generator, "{rng}, after {count}");
                assert_eq!(restored.normal(5), generator.clone().normal(5), "{rng}, after {count}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_state_are_refused() {
        for rng in Rng::ALL {
            let state = Generator::new(*rng, 7).state();
            let longer = [state.as_slice(), &[0]].concat();
            for wrong in [&state[..state.len() - 1], &longer, &state[1..], &[]] {
                assert!(Generator::restore(wrong).is_err(), "{rng}: {} bytes", wrong.len());
            }
        }
        let mut state = Generator::new(Rng::TorchCpu, 7).state();
        state[1 + 4 * STATE_WORDS] = 0xff;
        let error = Generator::restore(&state).unwrap_err();
        assert_eq!(error.length, 2510, "{error}");
    }

    #[test]
    fn seeds_and_draws_tell_generators_apart() {
        for rng in Rng::ALL {
            let first = |seed| Generator::new(*rng, seed).normal(20);
            assert_eq!(first(7), first(7), "{rng}");
            assert_ne!(first(7), first(8), "{rng}");
            let mut generator = Generator::new(*rng, 7);
            assert_ne!(generator.normal(20), generator.normal(20), "{rng}");
        }
        // PyTorch on the CPU uses 32 bits of a seed, on a GPU all of them.
        let equal = |rng| Generator::new(rng, 5).normal(20) == Generator::new(rng, (1 << 32) + 5).normal(20);
        assert!(equal(Rng::TorchCpu) && !equal(Rng::TorchCuda));
    }
}
