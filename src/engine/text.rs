//! Prompts to embeddings: CLIP's tokenizer and text encoder.
//!
//! Each prompt is encoded alone, so its embedding never depends on other prompts. There is no weighting syntax: a prompt
//! is text, and what goes beyond 77 tokens is cut off, as in diffusers.

use std::path::Path;

use candle_core::{Device, Result, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{PaddingDirection, PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

use super::config::{TextActivation, TextEncoderConfig, read_json};
use super::error::LoadError;
use super::layers::{Attention, LayerNorm, Linear};
use super::weights::Weights;

/// Embeddings that are kept: the images of a job share their prompts, and most jobs share the empty negative prompt.
const KEPT_MAX: usize = 32;

/// A prompt's way to its embedding.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    tokenizer: Tokenizer,
    clip: Clip,
    /// The most recently used last.
    kept: Vec<(String, Tensor)>,
}

impl TextEncoder {
    pub(crate) fn new(
        directory: &Path,
        weights: &Weights,
        config: &TextEncoderConfig,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let tokenizer = read_tokenizer(&directory.join("tokenizer"), config.max_position_embeddings)?;
        Ok(Self { tokenizer, clip: Clip::new(weights, config, device)?, kept: Vec::new() })
    }

    /// The embedding of `prompt`: `(1, d, 77)` in the model's number format.
    pub(crate) fn encode(&mut self, prompt: &str) -> Result<Tensor> {
        if let Some(found) = self.kept.iter().position(|(kept, _)| kept == prompt) {
            let entry = self.kept.remove(found);
            let embedding = entry.1.clone();
            self.kept.push(entry);
            return Ok(embedding);
        }
        let embedding = self.clip.forward(&self.tokens(prompt)?)?;
        if self.kept.len() == KEPT_MAX {
            self.kept.remove(0);
        }
        self.kept.push((prompt.to_owned(), embedding.clone()));
        Ok(embedding)
    }

    /// The ids of `prompt`'s tokens, between start and end, cut and padded to the encoder's length.
    pub(crate) fn tokens(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(prompt, true).map_err(candle_core::Error::wrap)?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// The tokenizer in `directory`: `tokenizer.json`, or made from `vocab.json` and `merges.txt`.
pub(super) fn read_tokenizer(directory: &Path, length: usize) -> std::result::Result<Tokenizer, LoadError> {
    let path = directory.join("tokenizer.json");
    let refused = |error: tokenizers::Error| LoadError::Tokenizer { path: path.clone(), reason: error.to_string() };
    let mut tokenizer = if path.is_file() {
        Tokenizer::from_file(&path).map_err(refused)?
    } else {
        let assembled = assemble(directory)?;
        Tokenizer::from_bytes(assembled.to_string()).map_err(refused)?
    };
    let pad_token = pad_token(directory)?;
    let Some(pad_id) = tokenizer.token_to_id(&pad_token) else {
        return Err(LoadError::Tokenizer { path, reason: format!("it does not know its padding token `{pad_token}`") });
    };
    tokenizer
        .with_truncation(Some(TruncationParams { max_length: length, ..TruncationParams::default() }))
        .map_err(refused)?;
    tokenizer.with_padding(Some(PaddingParams {
        strategy: PaddingStrategy::Fixed(length),
        direction: PaddingDirection::Right,
        pad_id,
        pad_token,
        ..PaddingParams::default()
    }));
    Ok(tokenizer)
}

/// What short prompts are filled up with: the end token in Stable Diffusion 1, `!` in 2.
fn pad_token(directory: &Path) -> std::result::Result<String, LoadError> {
    #[derive(Default, Deserialize)]
    struct Special {
        pad_token: Option<Value>,
    }
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let path = directory.join(name);
        if path.is_file() {
            // Either the token itself, or an object around it.
            let token = read_json::<Special>(&path)?.pad_token;
            if let Some(text) = token.as_ref().and_then(|token| token.as_str().or_else(|| token["content"].as_str())) {
                return Ok(text.to_owned());
            }
        }
    }
    Ok(END.to_owned())
}

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// CLIP's tokenizer as transformers' `CLIPTokenizerFast` makes it from the two files that older models come with.
fn assemble(directory: &Path) -> std::result::Result<Value, LoadError> {
    let vocabulary_path = directory.join("vocab.json");
    let vocabulary: Value = read_json(&vocabulary_path)?;
    let id = |token: &str| {
        vocabulary.get(token).and_then(Value::as_u64).ok_or_else(|| LoadError::Tokenizer {
            path: vocabulary_path.clone(),
            reason: format!("it does not know `{token}`"),
        })
    };
    let (start, end) = (id(START)?, id(END)?);
    let merges_path = directory.join("merges.txt");
    let merges = std::fs::read_to_string(&merges_path).map_err(|source| LoadError::reading(&merges_path, source))?;
    let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    let special = |id: u64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": [special(start, START), special(end, END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Removed", "invert": true, "pattern": {"Regex":
                "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                           "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": merges},
    }))
}

#[derive(Debug)]
struct ClipLayer {
    norm_1: LayerNorm,
    attention: Attention,
    norm_2: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

/// CLIP's text transformer, up to its last hidden state. (candle-transformers' takes no sizes but those it knows.)
#[derive(Debug)]
struct Clip {
    /// `(vocabulary, d)`
    tokens: Tensor,
    /// `(t, d)`
    positions: Tensor,
    layers: Vec<ClipLayer>,
    norm: LayerNorm,
    activation: TextActivation,
    /// `(t, t)`: minus infinity where a token would look ahead.
    mask: Tensor,
    device: Device,
}

impl Clip {
    fn new(weights: &Weights, config: &TextEncoderConfig, device: &Device) -> std::result::Result<Self, LoadError> {
        let (width, length) = (config.hidden_size, config.max_position_embeddings);
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
            .flat_map(|row| (0..length).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        Ok(Self {
            tokens: weights.get(&[config.vocab_size, width], "embeddings.token_embedding.weight")?,
            positions: weights.get(&[length, width], "embeddings.position_embedding.weight")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<std::result::Result<_, _>>()?,
            norm: LayerNorm::new(&weights.at("final_layer_norm"), width, config.layer_norm_eps)?,
            activation: config.hidden_act,
            mask: Tensor::from_vec(mask, (length, length), device)?,
            device: device.clone(),
        })
    }

    /// `(1, d, t)`
    fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(tokens, tokens.len(), &self.device)?;
        let x = (self.tokens.index_select(&ids, 0)? + &self.positions)?; // (t, d)
        let mut x = x.t()?.contiguous()?.unsqueeze(0)?;
        for layer in &self.layers {
            let y = layer.norm_1.forward(&x)?;
            x = (layer.attention.forward(&y, &y, Some(&self.mask))? + x)?;
            let y = layer.widen.forward(&layer.norm_2.forward(&x)?)?;
            let y = match self.activation {
                TextActivation::QuickGelu => (&y * candle_nn::ops::sigmoid(&(&y * 1.702)?)?)?,
                TextActivation::Gelu => y.gelu_erf()?,
            };
            x = (layer.narrow.forward(&y)? + x)?;
        }
        self.norm.forward(&x)
    }
}
