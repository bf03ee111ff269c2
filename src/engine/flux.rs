//! The transformer of FLUX.1 schnell and dev (diffusers' `FluxTransformer2DModel`), from its own `config.json`.
//!
//! Latents go in and come out as pictures: packing 2×2 of them into a token happens in here. What the output means, and
//! what is done with it, is the sampler's business.

use candle_core::{DType, Device, Result, Tensor};

use super::config::FluxConfig;
use super::dit::{
    BlockKind, BlockShape, Conditioning, ContinuousNorm, JointBlock, Modulation, Projections, changed, patches,
    sinusoids,
};
use super::error::LoadError;
use super::kernels::Gelu;
use super::layers::{Linear, gelu};
use super::weights::Weights;

/// Latent pixels along a side of what becomes a token.
const PATCH_SIDE: usize = 2;
/// Of the rotary embedding.
const THETA: f64 = 10_000.0;

/// A block that makes no difference between tokens, and in which attention and the feed-forward part stand side by
/// side.
#[derive(Debug)]
struct SingleBlock {
    modulation: Modulation,
    projections: Projections,
    widen: Linear,
    output: Linear,
}

impl SingleBlock {
    fn new(weights: &Weights, shape: BlockShape) -> std::result::Result<Self, LoadError> {
        let width = shape.width();
        Ok(Self {
            modulation: Modulation::new(&weights.at("norm"), width, 1)?,
            projections: Projections::new(&weights.at("attn"), shape)?,
            widen: Linear::new(&weights.at("proj_mlp"), width, 4 * width)?,
            output: Linear::new(&weights.at("proj_out"), 5 * width, width)?,
        })
    }

    /// `x (b, d, t)`
    fn forward(&self, x: &Tensor, embedding: &Tensor, turns: &Tensor) -> Result<Tensor> {
        let adaptation = self.modulation.one(embedding)?;
        let normed = adaptation.apply(x)?;
        let attended = self.projections.forward(&normed)?.attend(x.dim(0)?, Some(turns))?;
        let widened = gelu(self.widen.forward(&normed)?, Gelu::Tanh)?;
        adaptation.add(x, self.output.forward(&Tensor::cat(&[attended, widened], 1)?)?)
    }
}

/// The velocity prediction model.
#[derive(Debug)]
pub(crate) struct FluxTransformer {
    input: Linear,
    conditioning: Conditioning,
    context_embedding: Linear,
    blocks: Vec<JointBlock>,
    single_blocks: Vec<SingleBlock>,
    norm: ContinuousNorm,
    output: Linear,
    config: FluxConfig,
}

impl FluxTransformer {
    pub(crate) fn new(weights: &Weights, config: &FluxConfig) -> std::result::Result<Self, LoadError> {
        let shape =
            BlockShape { heads: config.num_attention_heads, head_width: config.attention_head_dim, qk_norm: true };
        let width = shape.width();
        let block = |index: usize| {
            JointBlock::new(&weights.at(&format!("transformer_blocks.{index}")), shape, BlockKind::default())
        };
        let single = |index: usize| SingleBlock::new(&weights.at(&format!("single_transformer_blocks.{index}")), shape);
        Ok(Self {
            input: Linear::new(&weights.at("x_embedder"), config.in_channels, width)?,
            conditioning: Conditioning::new(
                &weights.at("time_text_embed"),
                config.pooled_projection_dim,
                width,
                config.guidance_embeds,
            )?,
            context_embedding: Linear::new(&weights.at("context_embedder"), config.joint_attention_dim, width)?,
            blocks: (0..config.num_layers).map(block).collect::<std::result::Result<_, _>>()?,
            single_blocks: (0..config.num_single_layers).map(single).collect::<std::result::Result<_, _>>()?,
            norm: ContinuousNorm::new(&weights.at("norm_out"), width)?,
            output: Linear::new(&weights.at("proj_out"), width, config.out_channels())?,
            config: config.clone(),
        })
    }

    /// The part of the blocks' modulation that does not depend on the timestep: `pooled (b, p)`, the CLIP's pooled
    /// output (without a projection), to `(b, d)`.
    ///
    /// Models that were distilled from guidance (dev) need its scale, others (schnell) ignore it.
    pub(crate) fn vector(&self, pooled: &Tensor, guidance: Option<f32>) -> Result<Tensor> {
        self.conditioning.vector(pooled, guidance)
    }

    /// Timesteps from 0 to 1000 as the model takes them: `(n, e)`.
    pub(crate) fn embed(timesteps: &[f32], device: &Device, dtype: DType) -> Result<Tensor> {
        // diffusers' pipeline divides by 1000 and its model multiplies by 1000: in f32 that is not always the identity.
        let timesteps: Vec<f32> = timesteps.iter().map(|timestep| timestep / 1000.0 * 1000.0).collect();
        sinusoids(&timesteps, device, dtype)
    }

    /// Where the tokens of prompts of `tokens` and of latents of such a height and width are, as [`turns`] says.
    pub(crate) fn places(&self, [height, width]: [usize; 2], tokens: usize, device: &Device) -> Result<Tensor> {
        turns(&self.config.axes_dims_rope, tokens, height / PATCH_SIDE, width / PATCH_SIDE, device)
    }

    /// The model's output for latents `x (b, c, h, w)` of even sides, with what [`Self::embed`] made of each row's timestep, the
    /// prompts' embeddings `context (b, d, t)`, which are the T5's output, the `vector (b, v)` of [`Self::vector`] and the
    /// [`Self::places`]. All tensors are in the model's number format, and so is the result.
    ///
    /// With it comes what all blocks changed, as [`changed`] says.
    ///
    /// In f16 the activations of the published models overflow: use bf16 or f32.
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
        let (rows, columns) = (h / PATCH_SIDE, w / PATCH_SIDE);
        let tokens = context.dim(2)?;
        let embedding = self.conditioning.forward(time, vector)?;

        let before = self.input.forward(&patches(x, PATCH_SIDE)?)?;
        let (image, change) = changed(&before, kept, || {
            let (mut image, mut context) = (before.clone(), self.context_embedding.forward(context)?);
            for block in &self.blocks {
                (image, context) = block.forward(&image, context, &embedding, Some(places))?;
            }
            let mut all = Tensor::cat(&[context, image], 2)?;
            for block in &self.single_blocks {
                all = block.forward(&all, &embedding, places)?;
            }
            all.narrow(2, tokens, rows * columns)?.contiguous()
        })?;
        let y = self.output.forward(&self.norm.forward(&image, &embedding)?)?;
        // Its channels are the latents' channel, then row and column in the patch.
        let y = y.reshape(&[b, self.config.out_channels() / 4, PATCH_SIDE, PATCH_SIDE, rows, columns][..])?;
        Ok((y.permute(&[0, 1, 4, 2, 5, 3][..])?.reshape((b, (), h, w))?, change))
    }
}

/// Cosines and sines of the rotary embedding, f32 `(2, d / 2, t)`, of `tokens` tokens of the prompt, which are nowhere,
/// and of `rows` by `columns` patches of the image.
///
/// Computed in f64, as diffusers does on the CPU.
fn turns(axes: &[usize; 3], tokens: usize, rows: usize, columns: usize, device: &Device) -> Result<Tensor> {
    let count = tokens + rows * columns;
    let half = axes.iter().sum::<usize>() / 2;
    let mut values = Vec::with_capacity(2 * half * count);
    for function in [f64::cos, f64::sin] {
        let at = |position: usize, frequency: f64| function(position as f64 * frequency) as f32;
        for (axis, width) in axes.iter().enumerate() {
            for pair in 0..width / 2 {
                let frequency = 1.0 / THETA.powf((2 * pair) as f64 / *width as f64);
                values.resize(values.len() + tokens, at(0, frequency));
                match axis {
                    0 => values.resize(values.len() + rows * columns, at(0, frequency)),
                    1 => (0..rows).for_each(|row| values.resize(values.len() + columns, at(row, frequency))),
                    _ => {
                        let line: Vec<f32> = (0..columns).map(|column| at(column, frequency)).collect();
                        (0..rows).for_each(|_| values.extend(&line));
                    }
                }
            }
        }
    }
    Tensor::from_vec(values, (2, half, count), device)
}

#[cfg(test)]
mod tests {

    use super::super::dit::golden::{self, Inputs, Part};
    use super::*;

    fn load(part: &Part) -> std::result::Result<FluxTransformer, LoadError> {
        load_as(part, DType::F32)
    }

    fn load_as(part: &Part, dtype: DType) -> std::result::Result<FluxTransformer, LoadError> {
        FluxTransformer::new(&part.weights("transformer", dtype), &FluxConfig::read(part.directory())?)
    }

    fn forward(
        model: &FluxTransformer,
        inputs: &Inputs,
        vector: &Tensor,
        kept: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let Inputs { latents, timesteps, context, .. } = inputs;
        let time = FluxTransformer::embed(timesteps, latents.device(), latents.dtype())?;
        let (_, _, h, w) = latents.dims4()?;
        let places = model.places([h, w], context.dim(2)?, latents.device())?;
        model.forward(latents, &time, context, vector, &places, kept)
    }

    #[test]
    fn the_transformer_computes_what_diffusers_computes() {
        for variant in ["schnell", "dev"] {
            let part = golden::transformer("flux", variant);
            // In f64 nothing goes to the CPU's kernels, as on other devices.
            for dtype in [DType::F32, DType::F64] {
                let model = load_as(&part, dtype).unwrap();
                let inputs = golden::inputs().to_dtype(dtype);
                let vector = model.vector(&inputs.pooled, Some(inputs.guidance)).unwrap();
                let (output, change) = forward(&model, &inputs, &vector, None).unwrap();
                assert_eq!(output.dims(), inputs.latents.dims());
                part.check(variant, &output);
                part.check(variant, &forward(&model, &inputs, &vector, Some(&change)).unwrap().0);
            }
        }
    }

    #[test]
    fn a_row_alone_is_a_row_among_others() {
        let model = load(&golden::transformer("flux", "dev")).unwrap();
        golden::rows_alone(|inputs| {
            let vector = model.vector(&inputs.pooled, Some(inputs.guidance)).unwrap();
            forward(&model, inputs, &vector, None).unwrap().0
        });
    }

    #[test]
    fn only_models_distilled_from_guidance_need_its_scale() {
        let pooled = golden::inputs().pooled;
        let schnell = load(&golden::transformer("flux", "schnell")).unwrap();
        let of = |guidance| schnell.vector(&pooled, guidance).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(of(None), of(Some(3.5)));
        let dev = load(&golden::transformer("flux", "dev")).unwrap();
        assert!(dev.vector(&pooled, None).unwrap_err().to_string().contains("guidance scale"));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        golden::refusals(
            "flux",
            "dev",
            load,
            "single_transformer_blocks.1.attn.norm_k.weight",
            &[
                ("patch_size", "2".parse().unwrap()),
                ("in_channels", "18".parse().unwrap()),
                ("axes_dims_rope", "[2, 2, 2]".parse().unwrap()),
                ("axes_dims_rope", "[3, 3, 2]".parse().unwrap()),
                ("pooled_dim", "2".parse().unwrap()),
            ],
        );
    }

    #[test]
    fn turns_follow_rows_and_columns_of_the_image_and_leave_the_prompt_alone() {
        let table = turns(&[2, 2, 4], 3, 2, 5, &Device::Cpu).unwrap();
        assert_eq!(table.dims(), [2, 4, 13]);
        for token in 0..13usize {
            let (row, column) = token.checked_sub(3).map_or((0, 0), |place| (place / 5, place % 5));
            let angles = [0.0, row as f64, column as f64, column as f64 * 0.01];
            let expected = angles.map(f64::cos).into_iter().chain(angles.map(f64::sin)).map(|value| value as f32);
            let found = table.narrow(2, token, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(found, expected.collect::<Vec<_>>(), "token {token}");
        }
    }
}
