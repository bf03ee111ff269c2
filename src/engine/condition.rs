//! Prompts to what the denoiser is conditioned on, by the rules of each family of pipelines.
//!
//! Each prompt is encoded alone, so its embedding never depends on other prompts. How text becomes tokens is `prompt`'s
//! business.

use std::sync::Mutex;

use candle_core::{Result, Tensor};

use super::clip::{Clip, Encoded};
use super::config::Family;
use super::tokenizer::ClipTokenizer;
use crate::job::PromptOptions;

/// Embeddings that are kept: the images of a job share their prompts, and most jobs share the empty negative prompt.
const KEPT_MAX: usize = 32;

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
    pub(crate) clips: Vec<ClipEncoder>,
    /// Whether an image without a negative prompt is guided away from zeros.
    pub(crate) force_zeros_for_empty_prompt: bool,
    /// The most recently used last.
    kept: Mutex<Vec<((String, PromptOptions), Prompt)>>,
}

/// What became of a prompt.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    /// `(1, d, t)` in the encoders' number format.
    pub(crate) context: Tensor,
    /// `(1, p)`
    pub(crate) pooled: Tensor,
}

/// What one image is conditioned on: one row, or with guidance two, of which the first is the negative prompt.
#[derive(Clone, Debug)]
pub(crate) struct Conditioning {
    /// `(g, d, t)`
    pub(crate) context: Tensor,
    /// `(g, p)`
    pub(crate) pooled: Tensor,
    /// What the requester should know.
    pub(crate) warnings: Vec<String>,
}

impl TextEncoders {
    pub(crate) fn new(family: Family, clips: Vec<ClipEncoder>, force_zeros_for_empty_prompt: bool) -> Self {
        Self { family, clips, force_zeros_for_empty_prompt, kept: Mutex::default() }
    }

    /// The conditioning of an image.
    pub(crate) fn condition(
        &self,
        prompt: &str,
        negative_prompt: Option<&str>,
        options: PromptOptions,
    ) -> Result<Conditioning> {
        let positive = self.encode(prompt, options)?;
        let Some(negative_prompt) = negative_prompt else {
            return Ok(Conditioning { context: positive.context, pooled: positive.pooled, warnings: Vec::new() });
        };
        let negative = if negative_prompt.is_empty() && self.force_zeros_for_empty_prompt {
            Prompt { context: positive.context.zeros_like()?, pooled: positive.pooled.zeros_like()? }
        } else {
            self.encode(negative_prompt, options)?
        };
        Ok(Conditioning {
            context: Tensor::cat(&[negative.context, positive.context], 0)?,
            pooled: Tensor::cat(&[negative.pooled, positive.pooled], 0)?,
            warnings: Vec::new(),
        })
    }

    fn encode(&self, text: &str, options: PromptOptions) -> Result<Prompt> {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(found) = kept.iter().position(|(key, _)| key.0 == text && key.1 == options) {
            let entry = kept.remove(found);
            let prompt = entry.1.clone();
            kept.push(entry);
            return Ok(prompt);
        }
        let encoded: Vec<Encoded> =
            self.clips.iter().map(|one| one.clip.forward(&one.tokenizer.tokens(text)?)).collect::<Result<_>>()?;
        let prompt = self.combine(&encoded)?;
        if kept.len() == KEPT_MAX {
            kept.remove(0);
        }
        kept.push(((text.to_owned(), options), prompt.clone()));
        Ok(prompt)
    }

    /// What the family takes from which encoder.
    fn combine(&self, encoded: &[Encoded]) -> Result<Prompt> {
        let (Some(first), Some(last)) = (encoded.first(), encoded.last()) else {
            candle_core::bail!("the pipeline has no text encoder");
        };
        match self.family {
            Family::StableDiffusion => Ok(Prompt { context: first.last.clone(), pooled: first.pooled.clone() }),
            Family::StableDiffusionXl => {
                let states: Vec<&Tensor> = encoded.iter().map(|one| &one.penultimate).collect();
                Ok(Prompt { context: Tensor::cat(&states, 1)?, pooled: last.pooled.clone() })
            }
            Family::StableDiffusion3 | Family::Flux => todo!(),
        }
    }
}
