//! Prompts to embeddings: the tokenizer and the encoder of T5, which Stable Diffusion 3 and FLUX.1 have besides CLIP.
//!
//! Each prompt is encoded alone. It is cut and padded to a fixed length, and the padding is attended to like any token:
//! diffusers gives T5 no attention mask either. Nothing is kept between prompts: that is for the caller to do.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use tokenizers::{Encoding, PaddingDirection, PaddingParams, PaddingStrategy, Tokenizer, TruncationParams};

use super::config::{T5Activation, T5Config};
use super::device::Placement;
use super::dit::RmsNorm;
use super::error::LoadError;
use super::kernels::Gelu;
use super::layers::{Linear, accumulate, attention, gelu};
use super::weights::{Table, Weights};

/// What short prompts are filled up with.
const PAD: &str = "<pad>";

/// Where T5's weights go beside those of other text encoders: the published T5s overflow in activations of f16.
pub(crate) fn placement(beside: &Placement) -> Placement {
    Placement { device: beside.device.clone(), dtype: narrowed(beside.dtype, beside.computes_in()) }
}

/// The number format for weights beside others in `dtype`, with activations in `computed`.
fn narrowed(dtype: DType, computed: DType) -> DType {
    if computed == DType::F16 { DType::BF16 } else { dtype }
}

/// A prompt's way to its embedding.
#[derive(Debug)]
pub(crate) struct T5Encoder {
    tokenizer: Tokenizer,
    model: T5,
}

impl T5Encoder {
    /// `tokenizer` is the directory of the tokenizer (`tokenizer_3` of Stable Diffusion 3, `tokenizer_2` of FLUX.1),
    /// `max_sequence_length` the number of tokens that every prompt is cut and padded to (diffusers: 256 for Stable
    /// Diffusion 3, 512 for FLUX.1). `weights` are where [`placement`] says.
    pub(crate) fn new(
        tokenizer: &Path,
        weights: &Weights,
        config: &T5Config,
        max_sequence_length: usize,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let tokenizer = read_tokenizer(tokenizer, max_sequence_length)?;
        Ok(Self { tokenizer, model: T5::new(weights, config, device)? })
    }

    /// The embedding of `prompt`: `(1, d, t)`, in the number format of the weights.
    pub(crate) fn encode(&self, prompt: &str) -> Result<Tensor> {
        self.model.forward(self.tokens(prompt)?.get_ids())
    }

    /// What of `prompt` is too long to be encoded, if anything is.
    pub(crate) fn truncated(&self, prompt: &str) -> Result<Option<String>> {
        let encoding = self.tokens(prompt)?;
        let Some(rest) = encoding.get_overflowing().first() else { return Ok(None) };
        let words = rest.get_offsets().iter().zip(rest.get_special_tokens_mask()).find(|(_, special)| **special == 0);
        Ok(words.and_then(|((start, _), _)| prompt.get(*start..)).map(|text| text.trim_start().to_owned()))
    }

    /// `prompt`'s tokens, with the end after them, cut and padded.
    fn tokens(&self, prompt: &str) -> Result<Encoding> {
        self.tokenizer.encode(prompt, true).map_err(candle_core::Error::wrap)
    }
}

fn read_tokenizer(directory: &Path, length: usize) -> std::result::Result<Tokenizer, LoadError> {
    let path = directory.join("tokenizer.json");
    let refused = |reason: String| LoadError::Tokenizer { path: path.clone(), reason };
    let pieces = directory.join("spiece.model");
    if !path.is_file() && pieces.is_file() {
        let reason = "only `tokenizer.json` is read; make it from `spiece.model` with Python: \
                      transformers.T5TokenizerFast.from_pretrained(directory).save_pretrained(directory)";
        return Err(LoadError::Tokenizer { path: pieces, reason: reason.into() });
    }
    if !path.is_file() {
        return Err(LoadError::Missing { path });
    }
    let mut tokenizer = super::tokenizer::read(&path)?;
    let Some(pad_id) = tokenizer.token_to_id(PAD) else {
        return Err(refused(format!("it does not know its padding token `{PAD}`")));
    };
    tokenizer
        .with_truncation(Some(TruncationParams { max_length: length, ..TruncationParams::default() }))
        .map_err(|error| refused(error.to_string()))?;
    tokenizer.with_padding(Some(PaddingParams {
        strategy: PaddingStrategy::Fixed(length),
        direction: PaddingDirection::Right,
        pad_id,
        pad_token: PAD.into(),
        ..PaddingParams::default()
    }));
    Ok(tokenizer)
}

#[derive(Debug)]
enum FeedForward {
    Relu { widen: Linear, narrow: Linear },
    GatedGelu { gate: Linear, widen: Linear, narrow: Linear },
}

impl FeedForward {
    fn new(weights: &Weights, config: &T5Config) -> std::result::Result<Self, LoadError> {
        let widening = |name: &str| Linear::unbiased(&weights.at(name), config.d_model, config.d_ff);
        let narrow = Linear::unbiased(&weights.at("wo"), config.d_ff, config.d_model)?;
        Ok(match config.activation {
            T5Activation::Relu => Self::Relu { widen: widening("wi")?, narrow },
            T5Activation::GatedGelu => Self::GatedGelu { gate: widening("wi_0")?, widen: widening("wi_1")?, narrow },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Relu { widen, narrow } => narrow.forward(&widen.forward(x)?.relu()?),
            Self::GatedGelu { gate, widen, narrow } => {
                narrow.forward(&(gelu(gate.forward(x)?, Gelu::Tanh)? * widen.forward(x)?)?)
            }
        }
    }
}

#[derive(Debug)]
struct T5Layer {
    norm_attention: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm_feed_forward: RmsNorm,
    feed_forward: FeedForward,
}

impl T5Layer {
    fn new(weights: &Weights, config: &T5Config) -> std::result::Result<Self, LoadError> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        let (first, second) = (weights.at("layer.0"), weights.at("layer.1"));
        let attention = first.at("SelfAttention");
        let projection = |name: &str| Linear::unbiased(&attention.at(name), width, inner);
        Ok(Self {
            norm_attention: RmsNorm::new(&first.at("layer_norm"), width, config.layer_norm_epsilon)?,
            query: projection("q")?,
            key: projection("k")?,
            value: projection("v")?,
            output: Linear::unbiased(&attention.at("o"), inner, width)?,
            norm_feed_forward: RmsNorm::new(&second.at("layer_norm"), width, config.layer_norm_epsilon)?,
            feed_forward: FeedForward::new(&second.at("DenseReluDense"), config)?,
        })
    }

    /// `x (1, d, t)`, `bias (heads, s, t)`
    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let y = self.norm_attention.forward(x)?;
        let (heads, tokens) = (bias.dim(0)?, x.dim(2)?);
        let split = |linear: &Linear| linear.forward(&y)?.reshape((heads, (), tokens));
        // Scores are not scaled: the weights of the queries are small instead.
        let y = attention(&split(&self.query)?, &split(&self.key)?, &split(&self.value)?, Some(bias), 1.0)?;
        let x = accumulate(self.output.forward(&y.reshape((1, (), tokens))?)?, x)?;
        accumulate(self.feed_forward.forward(&self.norm_feed_forward.forward(&x)?)?, &x)
    }
}

/// T5's encoder.
#[derive(Debug)]
struct T5 {
    /// Looked up in the file: in memory it would be larger than most layers.
    tokens: Table,
    /// What distances between tokens are worth to each head, `(buckets, heads)`: all layers share the first one's.
    distances: Tensor,
    layers: Vec<T5Layer>,
    norm: RmsNorm,
    buckets: usize,
    max_distance: usize,
    device: Device,
}

impl T5 {
    fn new(weights: &Weights, config: &T5Config, device: &Device) -> std::result::Result<Self, LoadError> {
        let width = config.d_model;
        // Files have the embedding under one of its two names, or under both.
        let same = "encoder.embed_tokens.weight";
        let name = if weights.has(same) && !weights.has("shared.weight") { same } else { "shared.weight" };
        let encoder = weights.at("encoder");
        let buckets = config.relative_attention_num_buckets;
        let distances = encoder.at("block.0.layer.0.SelfAttention.relative_attention_bias");
        let layer = |index: usize| T5Layer::new(&encoder.at(&format!("block.{index}")), config);
        Ok(Self {
            tokens: weights.table(&[config.vocab_size, width], name)?,
            distances: distances.get(&[buckets, config.num_heads], "weight")?,
            layers: (0..config.num_layers).map(layer).collect::<std::result::Result<_, _>>()?,
            norm: RmsNorm::new(&encoder.at("final_layer_norm"), width, config.layer_norm_epsilon)?,
            buckets,
            max_distance: config.relative_attention_max_distance,
            device: device.clone(),
        })
    }

    /// `(1, d, t)`
    fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        let x = self.tokens.rows(tokens.iter().map(|token| *token as usize))?; // (t, d)
        let mut x = x.t()?.contiguous()?.unsqueeze(0)?;
        let bias = self.bias(tokens.len())?;
        for layer in &self.layers {
            x = layer.forward(&x, &bias)?;
        }
        self.norm.forward(&x)
    }

    /// What each of `length` tokens `s` is worth to each `t`, by their distance: `(heads, s, t)`.
    fn bias(&self, length: usize) -> Result<Tensor> {
        let ids: Vec<u32> = (0..length as i64)
            .flat_map(|key| (0..length as i64).map(move |query| key - query))
            .map(|distance| bucket(distance, self.buckets, self.max_distance))
            .collect();
        let ids = Tensor::from_vec(ids, length * length, &self.device)?;
        let heads = self.distances.dim(1)?;
        self.distances.t()?.contiguous()?.index_select(&ids, 1)?.reshape((heads, length, length))
    }
}

/// Which of `buckets` a token at `distance` is in: one for each near distance, then ever wider ones up to
/// `max_distance`; the first half for tokens before, the second for tokens after.
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> u32 {
    let half = buckets / 2;
    let first = if distance > 0 { half } else { 0 };
    let (distance, exact) = (distance.unsigned_abs() as usize, half / 2);
    if distance < exact {
        return (first + distance) as u32;
    }
    // In f32 and in this order, as transformers does: results at the edges of buckets depend on it.
    let range = (max_distance as f64 / exact as f64).ln() as f32;
    let beyond = (distance as f32 / exact as f32).ln() / range * (half - exact) as f32;
    (first + (exact + beyond as usize).min(half - 1)) as u32
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::dit::golden::{self, Part};
    use super::super::tiny;
    use super::*;

    /// The tokenizer of the golden data in a directory of its own, after `change`.
    fn tokenizer_directory(change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut tokenizer = golden::document()["t5"]["tokenizer"].clone();
        change(&mut tokenizer);
        tiny::write_json(&directory.path().join("tokenizer.json"), &tokenizer);
        directory
    }

    fn load(part: &Part) -> std::result::Result<T5, LoadError> {
        let config = T5Config::read(part.directory(), "text_encoder")?;
        T5::new(&part.weights("text_encoder", DType::F32), &config, &Device::Cpu)
    }

    #[test]
    fn prompts_become_the_tokens_that_transformers_makes() {
        let golden = &golden::document()["t5"];
        let length = golden["length"].as_u64().unwrap() as usize;
        // Older files say `add_prefix_space` where newer ones say `prepend_scheme`.
        let older = |tokenizer: &mut Value| {
            let old = json!({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true});
            tokenizer["pre_tokenizer"]["pretokenizers"][1] = old;
        };
        for directory in [tokenizer_directory(|_| ()), tokenizer_directory(older)] {
            let tokenizer = read_tokenizer(directory.path(), length).unwrap();
            for (prompt, expected) in golden["tokens"].as_object().unwrap() {
                let expected: Vec<u32> = tiny::numbers(expected).into_iter().map(|id| id as u32).collect();
                assert_eq!(tokenizer.encode(prompt.as_str(), true).unwrap().get_ids(), expected, "{prompt:?}");
            }
        }
    }

    #[test]
    fn the_encoder_computes_what_transformers_computes() {
        let golden = &golden::document()["t5"];
        let directory = tokenizer_directory(|_| ());
        for variant in ["gated", "relu"] {
            let part = Part::new("text_encoder", &golden["variants"][variant]);
            let config = T5Config::read(part.directory(), "text_encoder").unwrap();
            let length = golden["length"].as_u64().unwrap() as usize;
            // In f64 nothing goes to the CPU's kernels, as on other devices.
            for dtype in [DType::F32, DType::F64] {
                let weights = part.weights("text_encoder", dtype);
                let encoder = T5Encoder::new(directory.path(), &weights, &config, length, &Device::Cpu).unwrap();
                let output = encoder.encode(golden["prompt"].as_str().unwrap()).unwrap();
                assert_eq!(output.dims(), [1, 24, length]);
                part.check(variant, &output.transpose(1, 2).unwrap());
            }
        }
    }

    #[test]
    fn what_is_cut_off_of_a_long_prompt_is_known() {
        let golden = &golden::document()["t5"];
        let length = golden["length"].as_u64().unwrap() as usize;
        let directory = tokenizer_directory(|_| ());
        let part = Part::new("text_encoder", &golden["variants"]["gated"]);
        let config = T5Config::read(part.directory(), "text_encoder").unwrap();
        let weights = part.weights("text_encoder", DType::F32);
        let encoder = T5Encoder::new(directory.path(), &weights, &config, length, &Device::Cpu).unwrap();
        assert_eq!(encoder.truncated("a red star").unwrap(), None);
        let long = "a red star ".repeat(length);
        let rest = encoder.truncated(&long).unwrap().unwrap();
        assert!(!rest.is_empty() && rest.len() < long.len() && long.ends_with(&rest), "{rest:?}");
        // One token was kept for the end: what was kept fits again, with one token more it does not.
        let kept = long.strip_suffix(&rest).unwrap();
        assert_eq!(encoder.truncated(kept).unwrap(), None);
        assert!(encoder.truncated(&format!("{kept}a red")).unwrap().is_some());
    }

    #[test]
    fn distances_fall_into_the_buckets_that_transformers_has() {
        let expected = tiny::numbers(&golden::document()["t5"]["buckets"]);
        for (distance, expected) in (-300..=300).zip(expected) {
            assert_eq!(bucket(distance, 32, 128), expected as u32, "{distance}");
        }
    }

    #[test]
    fn a_tokenizer_without_its_json_is_refused_with_the_way_to_make_it() {
        let directory = tempfile::tempdir().unwrap();
        let error = read_tokenizer(directory.path(), 8).unwrap_err();
        assert!(matches!(&error, LoadError::Missing { path } if path.ends_with("tokenizer.json")), "{error}");
        std::fs::write(directory.path().join("spiece.model"), "").unwrap();
        let error = read_tokenizer(directory.path(), 8).unwrap_err();
        assert!(error.to_string().contains("T5TokenizerFast"), "{error}");
        let unpadded = tokenizer_directory(|tokenizer| {
            tokenizer["added_tokens"][0]["content"] = json!("<nothing>");
            tokenizer["model"]["vocab"][0][0] = json!("<nothing>");
        });
        let error = read_tokenizer(unpadded.path(), 8).unwrap_err();
        assert!(error.to_string().contains("`<pad>`"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let golden = &golden::document()["t5"]["variants"]["gated"];
        let missing = "encoder.block.1.layer.1.DenseReluDense.wi_1.weight";
        golden::refusals_of(
            "text_encoder",
            golden,
            load,
            missing,
            &[
                ("feed_forward_proj", json!("gated-silu")),
                ("dense_act_fn", json!("relu")),
                ("model_type", json!("umt5")),
                ("is_decoder", json!(true)),
                ("relative_attention_num_buckets", json!(7)),
            ],
        );
    }

    #[test]
    fn weights_are_in_f16_only_where_nothing_is_computed_in_it() {
        let stored = [DType::F16, DType::BF16, DType::F32];
        assert_eq!(stored.map(|dtype| narrowed(dtype, DType::F32)), stored);
        assert_eq!(stored.map(|dtype| narrowed(dtype, dtype)), [DType::BF16, DType::BF16, DType::F32]);
    }
}
