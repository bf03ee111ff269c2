//! The model that is run at each step, whatever its architecture.
//!
//! What it is told besides latents, timestep and prompt is one vector for each row, worked out once for each image.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::config::TIME_IDS;
use super::flux::FluxTransformer;
use super::mmdit::Sd3Transformer;
use super::unet::Unet;

/// One of the architectures.
#[derive(Debug)]
pub(crate) enum Denoiser {
    Unet(Box<Unet>),
    Sd3(Sd3Transformer),
    Flux(FluxTransformer),
}

/// What an image is conditioned on beside its prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// SDXL's sizes in pixels: height and width of the original, crop from the top and the left, height and width of the
    /// target.
    pub(crate) time_ids: [f32; TIME_IDS],
    /// For models with guidance built in.
    pub(crate) guidance_scale: f32,
}

impl Denoiser {
    /// The vector for prompts with the pooled embeddings `pooled (b, p)`: `(b, v)`, or `None` for models without one.
    pub(crate) fn vector(&self, pooled: &Tensor, told: Told) -> Result<Option<Tensor>> {
        match self {
            Self::Unet(unet) => unet.vector(pooled, told.time_ids, told.guidance_scale),
            Self::Sd3(transformer) => transformer.vector(pooled, None).map(Some),
            Self::Flux(transformer) => transformer.vector(pooled, Some(told.guidance_scale)).map(Some),
        }
    }

    /// The output for latents `x (b, c, h, w)`, each row at its own timestep: `(b, c, h, w)`, and the deep features, of which
    /// the first dimension is `b`. Those that are `kept` from another step are not worked out again.
    ///
    /// On the CPU each row is worked out alone, beside the others: its operations are divided among the threads that have
    /// no row, and where all have one, none waits for another at the end of every operation.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        timesteps: &[f32],
        context: &Tensor,
        vector: Option<&Tensor>,
        kept: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        if !x.device().is_cpu() || timesteps.len() == 1 {
            return self.forward_together(x, timesteps, context, vector, kept);
        }
        let row = |index: usize| {
            let row = |tensor: &Tensor| tensor.narrow(0, index, 1);
            let (vector, kept) = (vector.map(row).transpose()?, kept.map(row).transpose()?);
            let timestep = &timesteps[index..=index];
            self.forward_together(&row(x)?, timestep, &row(context)?, vector.as_ref(), kept.as_ref())
        };
        let rows = (0..timesteps.len()).into_par_iter().map(row).collect::<Result<Vec<_>>>()?;
        let (outputs, deep): (Vec<Tensor>, Vec<Tensor>) = rows.into_iter().unzip();
        Ok((Tensor::cat(&outputs, 0)?, Tensor::cat(&deep, 0)?))
    }

    fn forward_together(
        &self,
        x: &Tensor,
        timesteps: &[f32],
        context: &Tensor,
        vector: Option<&Tensor>,
        kept: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        match (self, vector) {
            (Self::Unet(unet), vector) => unet.forward_keeping(x, timesteps, context, vector, kept),
            (Self::Sd3(transformer), Some(vector)) => transformer.forward(x, timesteps, context, vector, kept),
            (Self::Flux(transformer), Some(vector)) => transformer.forward(x, timesteps, context, vector, kept),
            (Self::Sd3(_) | Self::Flux(_), None) => candle_core::bail!("the transformer needs the pooled prompt"),
        }
    }
}
