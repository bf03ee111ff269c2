//! The transformer of Stable Diffusion 3 and 3.5 (diffusers' `SD3Transformer2DModel`), from its own `config.json`, and
//! how it wants the embeddings of its three text encoders.
//!
//! What the output means, and what is done with it, is the sampler's business.

use candle_core::{DType, Device, Result, Tensor};

use super::config::Sd3Config;
use super::dit::{BlockKind, BlockShape, Conditioning, ContinuousNorm, JointBlock, changed, patches, sinusoids};
use super::error::LoadError;
use super::layers::{Linear, accumulate};
use super::weights::{Table, Weights};

/// The velocity prediction model.
#[derive(Debug)]
pub(crate) struct Sd3Transformer {
    patch_embedding: Linear,
    /// A row for each place in the largest picture, in the model's file: in memory it would be as large as a layer.
    positions: Table,
    conditioning: Conditioning,
    context_embedding: Linear,
    blocks: Vec<JointBlock>,
    norm: ContinuousNorm,
    output: Linear,
    config: Sd3Config,
}

impl Sd3Transformer {
    pub(crate) fn new(weights: &Weights, config: &Sd3Config) -> std::result::Result<Self, LoadError> {
        let shape = BlockShape {
            heads: config.num_attention_heads,
            head_width: config.attention_head_dim,
            qk_norm: config.qk_norm,
        };
        let width = shape.width();
        let block = |index: usize| {
            let kind = BlockKind {
                dual_attention: config.dual_attention_layers.contains(&index),
                last: index + 1 == config.num_layers,
            };
            JointBlock::new(&weights.at(&format!("transformer_blocks.{index}")), shape, kind)
        };
        let patch = config.patch_size * config.patch_size;
        let places = config.pos_embed_max_size * config.pos_embed_max_size;
        Ok(Self {
            patch_embedding: Linear::patchwise(
                &weights.at("pos_embed.proj"),
                config.in_channels,
                config.patch_size,
                width,
            )?,
            positions: weights.table(&[1, places, width], "pos_embed.pos_embed")?,
            conditioning: Conditioning::new(
                &weights.at("time_text_embed"),
                config.pooled_projection_dim,
                width,
                false,
            )?,
            context_embedding: Linear::new(&weights.at("context_embedder"), config.joint_attention_dim, width)?,
            blocks: (0..config.num_layers).map(block).collect::<std::result::Result<_, _>>()?,
            norm: ContinuousNorm::new(&weights.at("norm_out"), width)?,
            output: Linear::new(&weights.at("proj_out"), width, patch * config.out_channels)?,
            config: config.clone(),
        })
    }

    /// The part of the blocks' modulation that does not depend on the timestep: `pooled (b, p)` to `(b, d)`.
    ///
    /// `pooled` is what [`pooled`] makes. The guidance scale is no input of these models: it is ignored.
    pub(crate) fn vector(&self, pooled: &Tensor, guidance: Option<f32>) -> Result<Tensor> {
        self.conditioning.vector(pooled, guidance)
    }

    /// Timesteps from 0 to 1000, which is what diffusers' scheduler and pipeline pass on as it is, as the model takes
    /// them: `(n, e)`.
    pub(crate) fn embed(timesteps: &[f32], device: &Device, dtype: DType) -> Result<Tensor> {
        sinusoids(timesteps, device, dtype)
    }

    /// The model's output for latents `x (b, c, h, w)`, with what [`Self::embed`] made of each row's timestep, the prompts'
    /// embeddings `context (b, d, t)` of [`context`], the `vector (b, v)` of [`Self::vector`] and the [`Self::places`]. All
    /// tensors are in the model's number format, and so is the result.
    ///
    /// With it comes what all blocks changed, as [`changed`] says.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        time: &Tensor,
        context: &Tensor,
        vector: &Tensor,
        places: &Tensor,
        kept: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (b, _, h, w) = x.dims4()?;
        let side = self.config.patch_size;
        let (rows, columns) = (h / side, w / side);
        let embedding = self.conditioning.forward(time, vector)?;
        let before = self.patch_embedding.forward(&patches(x, side)?)?;
        let places = places.broadcast_as(before.shape())?.contiguous()?;
        let before = accumulate(before, &places)?;
        let (image, change) = changed(&before, kept, || {
            let (mut image, mut context) = (before.clone(), self.context_embedding.forward(context)?);
            for block in &self.blocks {
                (image, context) = block.forward(&image, context, &embedding, None)?;
            }
            Ok(image)
        })?;
        let y = self.output.forward(&self.norm.forward(&image, &embedding)?)?;
        // Its channels are row and column in the patch, then the latents' channel.
        let y = y.reshape(&[b, side, side, self.config.out_channels, rows, columns][..])?;
        let y = y.permute(&[0, 3, 4, 1, 5, 2][..])?.reshape((b, self.config.out_channels, h, w))?;
        Ok((y, change))
    }

    /// The embeddings of the places of the patches of latents of such a height and width, in the middle of the largest
    /// picture: `(d, t)`.
    pub(crate) fn places(&self, size: [usize; 2]) -> Result<Tensor> {
        let [rows, columns] = size.map(|side| side / self.config.patch_size);
        let side = self.config.pos_embed_max_size;
        if rows > side || columns > side {
            candle_core::bail!("{rows} by {columns} patches are more than pos_embed_max_size, {side}");
        }
        let (top, left) = ((side - rows) / 2, (side - columns) / 2);
        let places = (top..top + rows).flat_map(|row| (left..left + columns).map(move |column| row * side + column));
        self.positions.rows(places)?.t()?.contiguous()
    }
}

/// The prompt's tokens, `(1, d, 77 + t)`, from those of its encoders, as diffusers' `encode_prompt` puts them together.
///
/// `clip_l (1, e, 77)` and `clip_g (1, f, 77)` are the last but one hidden states of the two CLIPs, without a norm
/// after them; `t5 (1, d, t)` is the T5's output. A model without T5 takes `max_sequence_length` (diffusers: 256)
/// tokens of zeros in its place. `d` is the transformer's `joint_attention_dim`.
pub(crate) fn context(
    clip_l: &Tensor,
    clip_g: &Tensor,
    t5: Option<&Tensor>,
    joint_attention_dim: usize,
    max_sequence_length: usize,
) -> Result<Tensor> {
    let clip = Tensor::cat(&[clip_l, clip_g], 1)?;
    let (b, width, _) = clip.dims3()?;
    if width > joint_attention_dim {
        candle_core::bail!("the CLIPs have {width} channels, more than joint_attention_dim, {joint_attention_dim}");
    }
    let clip = clip.pad_with_zeros(1, 0, joint_attention_dim - width)?;
    match t5 {
        Some(t5) => Tensor::cat(&[&clip, t5], 2),
        None => {
            let nothing = Tensor::zeros((b, joint_attention_dim, max_sequence_length), clip.dtype(), clip.device())?;
            Tensor::cat(&[&clip, &nothing], 2)
        }
    }
}

/// The pooled prompt, `(1, e + f)`, from the projected pooled outputs of the two CLIPs.
pub(crate) fn pooled(clip_l: &Tensor, clip_g: &Tensor) -> Result<Tensor> {
    Tensor::cat(&[clip_l, clip_g], 1)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::dit::golden::{self, Inputs, Part};
    use super::super::tiny;
    use super::*;

    fn load(part: &Part) -> std::result::Result<Sd3Transformer, LoadError> {
        load_as(part, DType::F32)
    }

    fn load_as(part: &Part, dtype: DType) -> std::result::Result<Sd3Transformer, LoadError> {
        Sd3Transformer::new(&part.weights("transformer", dtype), &Sd3Config::read(part.directory())?)
    }

    fn forward(
        model: &Sd3Transformer,
        inputs: &Inputs,
        vector: &Tensor,
        kept: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let Inputs { latents, timesteps, context, .. } = inputs;
        let time = Sd3Transformer::embed(timesteps, latents.device(), latents.dtype())?;
        let (_, _, h, w) = latents.dims4()?;
        model.forward(latents, &time, context, vector, &model.places([h, w])?, kept)
    }

    #[test]
    fn the_transformer_computes_what_diffusers_computes() {
        for variant in ["sd3", "sd3.5"] {
            let part = golden::transformer("sd3", variant);
            // In f64 nothing goes to the CPU's kernels, as on other devices.
            for dtype in [DType::F32, DType::F64] {
                let model = load_as(&part, dtype).unwrap();
                let inputs = golden::inputs().to_dtype(dtype);
                let vector = model.vector(&inputs.pooled, None).unwrap();
                let (output, change) = forward(&model, &inputs, &vector, None).unwrap();
                assert_eq!(output.dims(), inputs.latents.dims());
                part.check(variant, &output);
                part.check(variant, &forward(&model, &inputs, &vector, Some(&change)).unwrap().0);
            }
        }
    }

    #[test]
    fn prompts_are_put_together_as_in_diffusers() {
        let columns =
            |name: &str, shape: [usize; 3]| tiny::tensor(name, &shape).transpose(1, 2).unwrap().contiguous().unwrap();
        let (clip_l, clip_g) = (columns("clip_l", [1, 6, 4]), columns("clip_g", [1, 6, 5]));
        let t5 = columns("t5", [1, 3, 12]);
        let pooled = pooled(&tiny::tensor("clip_l.pooled", &[1, 4]), &tiny::tensor("clip_g.pooled", &[1, 5])).unwrap();
        for (variant, t5) in [("t5", Some(&t5)), ("no_t5", None)] {
            let golden = &golden::document()["sd3_context"][variant];
            let context = context(&clip_l, &clip_g, t5, 12, 2).unwrap();
            golden::check(variant, &context.transpose(1, 2).unwrap(), &golden["context"]);
            golden::check(variant, &pooled, &golden["pooled"]);
        }
        assert!(context(&clip_l, &clip_g, None, 8, 2).unwrap_err().to_string().contains("joint_attention_dim"));
    }

    #[test]
    fn a_row_alone_is_a_row_among_others() {
        let model = load(&golden::transformer("sd3", "sd3.5")).unwrap();
        golden::rows_alone(|inputs| {
            let vector = model.vector(&inputs.pooled, None).unwrap();
            forward(&model, inputs, &vector, None).unwrap().0
        });
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        golden::refusals(
            "sd3",
            "sd3.5",
            load,
            "transformer_blocks.1.attn2.norm_k.weight",
            &[
                ("qk_norm", "\"layer_norm\"".parse().unwrap()),
                ("caption_projection_dim", "25".parse().unwrap()),
                ("dual_attention_layers", "[3]".parse().unwrap()),
                ("patch_size", "0".parse().unwrap()),
                ("pos_embed_type", "\"learned\"".parse().unwrap()),
            ],
        );
    }

    #[test]
    fn pictures_beyond_the_position_embedding_are_refused() {
        let model = load(&golden::transformer("sd3", "sd3.5")).unwrap();
        let inputs = golden::inputs();
        let vector = model.vector(&inputs.pooled, None).unwrap();
        for (h, w, reason) in [(8, 14, "pos_embed_max_size"), (9, 8, "patches")] {
            let latents = Tensor::zeros((2, 4, h, w), DType::F32, &Device::Cpu).unwrap();
            let inputs = Inputs { latents, ..golden::inputs() };
            let error = forward(&model, &inputs, &vector, None).unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
