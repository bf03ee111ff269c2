//! One denoising step of our UNet against candle-transformers' own on the same weights, in turns, in one process.
//!
//! `cargo bench --bench unet [-- DIRECTORY]`; without a directory, the committed model `shapes`. Both compute the two
//! rows of guidance for the model's own picture size. Prints medians and their ratio; it judges nothing. Their outputs
//! differ where the model's `norm_num_groups` is not 32: candle-transformers does not pass it on to its blocks. Ours are
//! compared with diffusers in the tests.

mod turns;

use std::path::PathBuf;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::stable_diffusion::unet_2d::{
    BlockConfig, UNet2DConditionModel, UNet2DConditionModelConfig,
};
use darkroom::engine::{LoadOptions, load};

use turns::{median, milliseconds, print, timed, wave};

/// Turns of each engine that count, after one that does not.
const TURNS: usize = 40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shapes = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/local/models/shapes"));
    // Cargo passes `--bench` to benchmarks.
    let directory = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map_or(shapes, PathBuf::from);
    let device = Device::Cpu;
    let ours = load(&directory, &LoadOptions::default())?;
    let unet = ours.unet().ok_or("the model has no UNet")?;

    let text = std::fs::read_to_string(directory.join("unet/config.json"))?;
    let config: serde_json::Value = serde_json::from_str(&text)?;
    let number = |field: &str| config[field].as_u64().ok_or_else(|| format!("no number `{field}`")).map(|n| n as usize);
    let channels = config["block_out_channels"].as_array().ok_or("no block_out_channels")?;
    let blocks = channels
        .iter()
        .enumerate()
        .map(|(index, channels)| BlockConfig {
            out_channels: channels.as_u64().unwrap_or(0) as usize,
            use_cross_attn: (config["down_block_types"][index] == "CrossAttnDownBlock2D").then_some(1),
            attention_head_dim: config["attention_head_dim"][index]
                .as_u64()
                .or_else(|| config["attention_head_dim"].as_u64())
                .unwrap_or(8) as usize,
        })
        .collect();
    let weights = std::fs::read(directory.join("unet/diffusion_pytorch_model.safetensors"))?;
    let theirs = UNet2DConditionModel::new(
        VarBuilder::from_buffered_safetensors(weights, DType::F32, &device)?,
        number("in_channels")?,
        number("out_channels")?,
        false,
        UNet2DConditionModelConfig {
            blocks,
            layers_per_block: number("layers_per_block")?,
            norm_num_groups: number("norm_num_groups")?,
            cross_attention_dim: number("cross_attention_dim")?,
            use_linear_projection: config["use_linear_projection"] == true,
            ..UNet2DConditionModelConfig::default()
        },
    )?;

    let side = number("sample_size")?;
    let latents = wave((2, number("in_channels")?, side, side))?;
    let context = wave((2, 77, number("cross_attention_dim")?))?;
    let channels_first = context.transpose(1, 2)?.contiguous()?;
    let timestep = 500.0;

    let mut times = [Vec::new(), Vec::new()];
    let mut worst = 0.0_f32;
    for turn in 0..=TURNS {
        let (mine, of_mine) = timed(|| unet.forward(&latents, &[timestep, timestep], &channels_first, None))?;
        let (other, of_other) = timed(|| theirs.forward(&latents, f64::from(timestep), &context))?;
        worst = worst.max((mine - other)?.abs()?.max_all()?.to_scalar::<f32>()?);
        if turn > 0 {
            times[0].push(of_mine);
            times[1].push(of_other);
        }
    }
    let [mine, other] = times.map(median);
    print(&format!("latents {side}x{side}, 2 rows, {TURNS} turns, medians"));
    print(&format!("darkroom            {:8.2} ms", milliseconds(mine)));
    print(&format!("candle-transformers {:8.2} ms", milliseconds(other)));
    print(&format!("ratio               {:8.3}", mine.as_secs_f64() / other.as_secs_f64()));
    print(&format!("largest difference  {worst:8.1e}"));
    Ok(())
}
