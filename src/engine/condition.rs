//! Prompts to what the denoiser is conditioned on, by the rules of each family of pipelines.
//!
//! Each prompt is encoded alone, so its embedding never depends on other prompts, and is kept for whoever wants it next. How
//! text becomes tokens is `prompt`'s business.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor};

use super::cache::Cache;
use super::clip::{Clip, Encoded};
use super::config::Family;
use super::mmdit;
use super::prompt::{self, Piece, Tokenized};
use super::t5::T5Encoder;
use super::tokenizer::ClipTokenizer;
use crate::job::{ImageSpec, PromptOptions, Weighting};

/// Embeddings that are kept: the images of a job share their prompts, and most jobs share the empty negative prompt.
const KEPT_BYTES_MAX: u64 = 64 << 20;
/// Embeddings that are kept at least, for each image of a full batch: prompt and negative prompt of those that step and of
/// as many that wait for it, encoded ahead.
const KEPT_PER_IMAGE: usize = 4;
/// Tokens of zeros that stand for a T5 that a Stable Diffusion 3 does not have, as in diffusers.
pub(crate) const SD3_T5_TOKENS: usize = 256;
/// Tokens that FLUX.1 reads, as in diffusers.
pub(crate) const FLUX_T5_TOKENS: usize = 512;

/// A tokenizer with its encoder.
#[derive(Debug)]
pub(crate) struct ClipEncoder {
    pub(crate) tokenizer: ClipTokenizer,
    pub(crate) clip: Clip,
}

/// All text encoders of a pipeline.
#[derive(Debug)]
pub(crate) struct TextEncoders {
    pub(crate) family: Family,
    /// At least one.
    pub(crate) clips: Vec<ClipEncoder>,
    pub(crate) t5: Option<T5Encoder>,
    /// Channels of the prompt's tokens in a Stable Diffusion 3.
    pub(crate) joint_attention_dim: usize,
    /// Whether an image without a negative prompt is guided away from zeros.
    pub(crate) force_zeros_for_empty_prompt: bool,
    /// Whether one row of an image is enough whatever the guidance: it is an input of the denoiser, or there is none.
    pub(crate) guidance_is_built_in: bool,
    pub(crate) known: Known,
}

/// What was encoded before. It can be asked while a prompt is being encoded.
#[derive(Debug)]
pub(crate) struct Known {
    kept: Mutex<Cache<PromptKey, Prompt>>,
    /// Held while encoding: of two threads that want a prompt the second finds it, and the device is given one encoding at a
    /// time. Nobody waits for it on one of rayon's threads, which encoders need.
    encoding: Arc<Mutex<()>>,
    /// Prompts that were encoded.
    encoded: AtomicU64,
}

/// What a prompt's embedding depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PromptKey {
    text: String,
    options: PromptOptions,
    chunks: usize,
}

/// What became of a prompt, in the CPU's memory.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// `(1, d, t)` in the encoders' number format.
    context: Tensor,
    /// `(1, p)`
    pooled: Tensor,
}

/// What one image is conditioned on, in the CPU's memory: one row, or with guidance two, of which the first is the negative
/// prompt.
#[derive(Clone, Debug)]
pub(crate) struct Conditioning {
    /// `(g, d, t)`
    pub(crate) context: Tensor,
    /// `(g, p)`
    pub(crate) pooled: Tensor,
    /// What the requester should know.
    pub(crate) warnings: Vec<String>,
}

impl Known {
    /// Nothing yet; later enough for the images of twice `images_in_batch_max`. Encoding waits for `encoding`.
    pub(crate) fn new(images_in_batch_max: u32, encoding: Arc<Mutex<()>>) -> Self {
        let kept_min = KEPT_PER_IMAGE.saturating_mul(images_in_batch_max as usize);
        Self { kept: Mutex::new(Cache::new(KEPT_BYTES_MAX, kept_min)), encoding, encoded: AtomicU64::new(0) }
    }

    fn kept(&self) -> MutexGuard<'_, Cache<PromptKey, Prompt>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The prompt of `key`, made by `encode` if it is not known.
    fn get_or_encode(&self, key: PromptKey, encode: impl FnOnce() -> Result<Prompt>) -> Result<Arc<Prompt>> {
        if let Some(prompt) = self.kept().get(&key) {
            return Ok(prompt);
        }
        let _turn = self.encoding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prompt) = self.kept().get(&key) {
            return Ok(prompt);
        }
        let Prompt { context, pooled } = encode()?;
        // Which also waits until the device is done.
        let prompt =
            Arc::new(Prompt { context: context.to_device(&Device::Cpu)?, pooled: pooled.to_device(&Device::Cpu)? });
        self.encoded.fetch_add(1, Ordering::Relaxed);
        self.kept().insert(key, Arc::clone(&prompt), prompt.bytes());
        Ok(prompt)
    }
}

impl Prompt {
    fn bytes(&self) -> u64 {
        [&self.context, &self.pooled].map(|part| (part.elem_count() * part.dtype().size_in_bytes()) as u64).iter().sum()
    }
}

impl TextEncoders {
    /// How many prompts were encoded.
    pub(crate) fn encoded(&self) -> u64 {
        self.known.encoded.load(Ordering::Relaxed)
    }

    /// What an image is conditioned on. Without guidance its negative prompt is not even encoded.
    pub(crate) fn condition_image(&self, spec: &ImageSpec) -> Result<Conditioning> {
        let guided = spec.guidance_scale > 1.0 && !self.guidance_is_built_in;
        let negative = guided.then_some(spec.negative_prompt.as_str());
        self.condition(&spec.prompt, negative, spec.prompt_options)
    }

    /// The conditioning of an image; `negative_prompt` is none without guidance.
    pub(crate) fn condition(
        &self,
        prompt: &str,
        negative_prompt: Option<&str>,
        options: PromptOptions,
    ) -> Result<Conditioning> {
        let tokenized = self.tokenize(prompt, options)?;
        let negative = match negative_prompt {
            Some("") if self.force_zeros_for_empty_prompt => None,
            Some(text) => Some((text, self.tokenize(text, options)?)),
            None => None,
        };
        let mut warnings = Vec::new();
        let mut chunks = 1;
        let negatives = negative.as_ref().map(|(text, tokenized)| ("negative_prompt", *text, tokenized));
        for (field, text, tokenized) in [Some(("prompt", prompt, &tokenized)), negatives].into_iter().flatten() {
            chunks = tokenized.iter().map(|one| one.ids.len()).fold(chunks, usize::max);
            let mut cut: Vec<(&str, String)> =
                tokenized.iter().filter_map(|one| Some(("CLIP", one.truncated.clone()?))).collect();
            cut.dedup();
            if let Some(t5) = &self.t5 {
                cut.extend(t5.truncated(&plain(text, options))?.map(|text| ("T5", text)));
            }
            let warning = |(encoder, text)| format!("{field}: longer than {encoder} reads; cut off: {text}");
            warnings.extend(cut.into_iter().map(warning));
        }
        let positive = self.encode(prompt, tokenized, options, chunks)?;
        let negative = match (negative_prompt, negative) {
            (None, _) => {
                let Prompt { context, pooled } = positive.as_ref();
                return Ok(Conditioning { context: context.clone(), pooled: pooled.clone(), warnings });
            }
            (Some(_), None) => {
                Arc::new(Prompt { context: positive.context.zeros_like()?, pooled: positive.pooled.zeros_like()? })
            }
            (Some(_), Some((text, tokenized))) => self.encode(text, tokenized, options, chunks)?,
        };
        Ok(Conditioning {
            context: Tensor::cat(&[&negative.context, &positive.context], 0)?,
            pooled: Tensor::cat(&[&negative.pooled, &positive.pooled], 0)?,
            warnings,
        })
    }

    /// The tokens of `text` for each CLIP.
    fn tokenize(&self, text: &str, options: PromptOptions) -> Result<Vec<Tokenized>> {
        let one = |encoder: &ClipEncoder| {
            let ClipTokenizer { inner, special, length } = &encoder.tokenizer;
            prompt::tokenize(inner, text, options, *special, *length)
        };
        self.clips.iter().map(one).collect()
    }

    fn encode(
        &self,
        text: &str,
        tokenized: Vec<Tokenized>,
        options: PromptOptions,
        chunks: usize,
    ) -> Result<Arc<Prompt>> {
        let key = PromptKey { text: text.to_owned(), options, chunks };
        self.known.get_or_encode(key, || {
            let clips = self.clips.iter().zip(tokenized);
            let encoded: Vec<Encoded> =
                clips.map(|(encoder, tokenized)| encoder.encode(tokenized, chunks)).collect::<Result<_>>()?;
            self.combine(&encoded, text, options)
        })
    }

    /// What the family takes from which encoder.
    fn combine(&self, encoded: &[Encoded], text: &str, options: PromptOptions) -> Result<Prompt> {
        let (Some(first), Some(last)) = (encoded.first(), encoded.last()) else {
            candle_core::bail!("the pipeline has no text encoder");
        };
        let t5 = match &self.t5 {
            Some(t5) => Some(t5.encode(&plain(text, options))?),
            None => None,
        };
        match (self.family, t5) {
            (Family::StableDiffusion, _) => Ok(Prompt { context: first.last.clone(), pooled: first.pooled.clone() }),
            (Family::StableDiffusionXl, _) => {
                let states: Vec<&Tensor> = encoded.iter().map(|one| &one.penultimate).collect();
                Ok(Prompt { context: Tensor::cat(&states, 1)?, pooled: last.pooled.clone() })
            }
            (Family::StableDiffusion3, t5) => {
                let t5 = t5.map(|t5| t5.to_dtype(first.penultimate.dtype())).transpose()?;
                let (one, other) = (&first.penultimate, &last.penultimate);
                let context = mmdit::context(one, other, t5.as_ref(), self.joint_attention_dim, SD3_T5_TOKENS)?;
                Ok(Prompt { context, pooled: mmdit::pooled(&first.pooled, &last.pooled)? })
            }
            (Family::Flux, Some(t5)) => Ok(Prompt { context: t5, pooled: first.pooled.clone() }),
            (Family::Flux, None) => candle_core::bail!("the pipeline has no T5"),
        }
    }
}

/// A prompt without what weighs it: T5 takes no weights.
fn plain(text: &str, options: PromptOptions) -> String {
    match options.weighting {
        Weighting::Off => text.to_owned(),
        Weighting::On => prompt::parse(text)
            .into_iter()
            .map(|piece| match piece {
                Piece::Text { text, .. } => text,
                Piece::Break => " ".to_owned(),
            })
            .collect(),
    }
}

impl ClipEncoder {
    /// All chunks of a prompt, one after the other; the pooled embedding is the first chunk's.
    fn encode(&self, tokenized: Tokenized, chunks: usize) -> Result<Encoded> {
        let ClipTokenizer { special, length, .. } = self.tokenizer;
        let Tokenized { ids, weights, .. } = tokenized.padded(chunks, special, length);
        let (mut last, mut penultimate, mut pooled) = (Vec::new(), Vec::new(), None);
        for (ids, weights) in ids.iter().zip(&weights) {
            let encoded = self.clip.forward(ids)?;
            last.push(prompt::weigh(&encoded.last, weights)?);
            penultimate.push(prompt::weigh(&encoded.penultimate, weights)?);
            pooled.get_or_insert(encoded.pooled);
        }
        match pooled {
            Some(pooled) => {
                Ok(Encoded { last: Tensor::cat(&last, 2)?, penultimate: Tensor::cat(&penultimate, 2)?, pooled })
            }
            None => candle_core::bail!("a prompt of no chunks"),
        }
    }
}
