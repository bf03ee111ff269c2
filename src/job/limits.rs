//! Every fixed limit of the system, with its unit in the name and the reason for its value.

/// Identifiers: long enough for a UUID with a prefix, short enough for four of them in a subject.
pub const TOKEN_LENGTH_MAX: usize = 64;
/// One request body. The stream takes a little more, so that what is too long is answered, and NATS servers take 1 MiB with
/// headers. Pictures that do not fit travel as object keys.
pub const REQUEST_BYTES_MAX: usize = 768 * 1024;
/// A prompt, in Unicode characters. Text encoders read 77 tokens; anything longer is a mistake.
pub const PROMPT_CHARACTERS_MAX: usize = 2000;
/// Denoising steps of one image.
pub const STEPS_MAX: u32 = 100;
/// From one whole step to the next where features are kept between: beyond it pictures fall apart.
pub const CACHE_INTERVAL_MAX: u32 = 10;
/// Guidance below 1 has no meaning; above 20 it only saturates.
pub const GUIDANCE_MAX: f32 = 20.0;
/// Images of one job; each is a unit of scheduling of its own.
pub const IMAGES_MAX: u32 = 8;
/// Integers above 2^53 - 1 change silently in JSON readers that hold numbers as doubles.
pub const SEED_MAX: u64 = (1 << 53) - 1;
/// The URL of a webhook: longer ones are refused by web servers anyway.
pub const WEBHOOK_URL_BYTES_MAX: usize = 2048;
/// The body of a webhook, by Standard Webhooks 1.0.
pub const WEBHOOK_BODY_BYTES_MAX: usize = 20_000;
/// Echoed metadata, as compact JSON.
pub const METADATA_BYTES_MAX: usize = 4096;
/// Real failures after which a job is dead-lettered.
pub const FAILURES_MAX: u32 = 3;
/// Workers that die with a job, after which it is dead-lettered. Before the last of them it runs alone.
pub const DEATHS_MAX: u32 = 3;
/// The grid of widths and heights when the model demands no coarser one.
pub const SIZE_MULTIPLE: u32 = 8;
/// LoRAs of one job.
pub const LORAS_MAX: usize = 8;
/// Absolute weight of a LoRA; beyond it pictures are noise.
pub const LORA_WEIGHT_MAX: f32 = 10.0;
/// Sizes that SDXL is told, in pixels; nothing that large was in its training.
pub const TOLD_SIZE_MAX: u32 = 16_384;
/// A starting picture or mask, as a file. The largest photographs that cameras write as JPEG are below it.
pub const PICTURE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Width times height of a starting picture or mask: decoded, it takes four bytes a pixel.
pub const PICTURE_PIXELS_MAX: u64 = 32_000_000;
