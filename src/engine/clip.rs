//! CLIP's text encoder, with everything that a pipeline may take from it.
//!
//! Each prompt is encoded alone, so its embedding never depends on other prompts. Tokens come from elsewhere.

use candle_core::{Device, Result, Tensor};

use super::config::{ClipConfig, TextActivation};
use super::error::LoadError;
use super::kernels::Gelu;
use super::layers::{Attention, LayerNorm, Linear, gelu};
use super::weights::{Table, Weights};

/// What the encoder makes of one prompt.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    /// The last hidden states after the final norm: `(1, d, t)`.
    pub(crate) last: Tensor,
    /// The hidden states before the last layer, without a norm: `(1, d, t)`.
    pub(crate) penultimate: Tensor,
    /// `last` at the end of the prompt, projected where the model has a projection: `(1, p)`.
    pub(crate) pooled: Tensor,
}

/// Whether the pooled embedding is projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    /// `CLIPTextModel`.
    None,
    /// `CLIPTextModelWithProjection`.
    Linear,
}

/// What a configuration says if it does not say which token ends a prompt.
const END_IS_HIGHEST: u32 = 2;

#[derive(Debug)]
struct ClipLayer {
    norm_1: LayerNorm,
    attention: Attention,
    norm_2: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

/// CLIP's text transformer. (candle-transformers' takes no sizes but those it knows.)
#[derive(Debug)]
pub(crate) struct Clip {
    /// `(vocabulary, d)`
    tokens: Table,
    /// `(t, d)`
    positions: Tensor,
    layers: Vec<ClipLayer>,
    norm: LayerNorm,
    projection: Option<Linear>,
    end: u32,
    activation: TextActivation,
    /// `(s, t)`: minus infinity where a token `t` would look ahead.
    mask: Tensor,
}

impl Clip {
    pub(crate) fn new(
        weights: &Weights,
        config: &ClipConfig,
        projection: Projection,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let (width, length) = (config.hidden_size, config.max_position_embeddings);
        let projection = match projection {
            Projection::None => None,
            Projection::Linear => Some(Linear::unbiased(&weights.at("text_projection"), width, config.projection_dim)?),
        };
        let prefixed = weights.at("text_model");
        let weights = if prefixed.has("final_layer_norm.weight") || !weights.has("final_layer_norm.weight") {
            prefixed
        } else {
            weights.clone()
        };
        let layer = |index: usize| -> std::result::Result<ClipLayer, LoadError> {
            let weights = weights.at(&format!("encoder.layers.{index}"));
            let attention = weights.at("self_attn");
            let linear = |name: &str| Linear::new(&attention.at(name), width, width);
            Ok(ClipLayer {
                norm_1: LayerNorm::new(&weights.at("layer_norm1"), width, config.layer_norm_eps)?,
                attention: Attention {
                    query: linear("q_proj")?,
                    key: linear("k_proj")?,
                    value: linear("v_proj")?,
                    output: linear("out_proj")?,
                    heads: config.num_attention_heads,
                    upcast: true,
                },
                norm_2: LayerNorm::new(&weights.at("layer_norm2"), width, config.layer_norm_eps)?,
                widen: Linear::new(&weights.at("mlp.fc1"), width, config.intermediate_size)?,
                narrow: Linear::new(&weights.at("mlp.fc2"), config.intermediate_size, width)?,
            })
        };
        let mask: Vec<f32> = (0..length)
            .flat_map(|key| (0..length).map(move |query| if key > query { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        Ok(Self {
            tokens: weights.table(&[config.vocab_size, width], "embeddings.token_embedding.weight")?,
            positions: weights.get(&[length, width], "embeddings.position_embedding.weight")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<std::result::Result<_, _>>()?,
            norm: LayerNorm::new(&weights.at("final_layer_norm"), width, config.layer_norm_eps)?,
            projection,
            end: config.eos_token_id,
            activation: config.hidden_act,
            mask: Tensor::from_vec(mask, (length, length), device)?,
        })
    }

    /// Encodes one prompt of as many tokens as the model has positions.
    pub(crate) fn forward(&self, tokens: &[u32]) -> Result<Encoded> {
        let x = (self.tokens.rows(tokens.iter().map(|token| *token as usize))? + &self.positions)?; // (t, d)
        let mut x = x.t()?.contiguous()?.unsqueeze(0)?;
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate = x.clone();
            let y = layer.norm_1.forward(&x)?;
            x = (layer.attention.forward(&y, &y, Some(&self.mask))? + x)?;
            let y = layer.widen.forward(&layer.norm_2.forward(&x)?)?;
            let y = match self.activation {
                TextActivation::QuickGelu => gelu(y, Gelu::Quick)?,
                TextActivation::Gelu => gelu(y, Gelu::Erf)?,
            };
            x = (layer.narrow.forward(&y)? + x)?;
        }
        let last = self.norm.forward(&x)?;
        let pooled = last.narrow(2, self.end_of(tokens), 1)?.contiguous()?; // (1, d, 1)
        let pooled = match &self.projection {
            Some(projection) => projection.forward(&pooled)?,
            None => pooled,
        };
        Ok(Encoded { last, penultimate, pooled: pooled.squeeze(2)? })
    }

    /// The position of the token that ends the prompt.
    fn end_of(&self, tokens: &[u32]) -> usize {
        let end = if self.end == END_IS_HIGHEST { tokens.iter().copied().max() } else { Some(self.end) };
        tokens.iter().position(|token| Some(*token) == end).unwrap_or(0)
    }
}
