//! The engine's hot paths on the CPU: each fused operation beside what candle makes of single ones, in turns and in one
//! process, at the sizes of Stable Diffusion 1.5; then a step of the model `shapes` by how many images step together, its
//! decoder and the encoder of PNG.
//!
//! `cargo bench --bench engine`. Prints medians and ratios; it judges nothing. What the scheduler costs is in `policy`.

mod turns;

use std::path::PathBuf;
use std::time::Duration;

use candle_core::{DType, Result, Tensor};
use darkroom::engine::{Engine, LoadOptions, Pipeline, RgbImage, RowId, StartingPictures, encode, load, operations};
use darkroom::job::{FeatureCache, ImageSpec, OutputFormat};

use turns::{median, milliseconds, print, timed, wave};

/// Turns that count, after one that does not.
const TURNS: usize = 5;
/// Relative to the largest value.
const DIFFERENCE_MAX: f32 = 1e-4;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    print(&format!("{:44} {:>10} {:>10} {:>7}", "operation", "fused ms", "candle ms", "ratio"));
    let image = wave((2, 320, 64, 64))?;
    let (weight, bias) = (wave((320, 320, 3, 3))?, wave(320)?);
    compare(
        "convolution 320 to 320, 2 of 64x64",
        || operations::convolution(&image, &weight, &bias),
        || image.conv2d(&weight, 1, 1, 1, 1)?.broadcast_add(&bias.reshape((1, (), 1, 1))?),
    )?;
    // Of so few bits that bf16 has them, too.
    let coarse = |x: &Tensor| x.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    let (narrow, coarse_image, coarse_weight) = (weight.to_dtype(DType::BF16)?, coarse(&image)?, coarse(&weight)?);
    compare(
        "convolution 320 to 320, 2 of 64x64, bf16",
        || operations::convolution(&coarse_image, &narrow, &bias),
        || coarse_image.conv2d(&coarse_weight, 1, 1, 1, 1)?.broadcast_add(&bias.reshape((1, (), 1, 1))?),
    )?;
    let small = wave((2, 1280, 16, 16))?;
    let (weight, bias) = (wave((1280, 1280, 3, 3))?, wave(1280)?);
    compare(
        "convolution 1280 to 1280, 2 of 16x16",
        || operations::convolution(&small, &weight, &bias),
        || small.conv2d(&weight, 1, 1, 1, 1)?.broadcast_add(&bias.reshape((1, (), 1, 1))?),
    )?;
    let heads = wave((16, 40, 4096))?;
    compare(
        "attention, 16 heads of 40, 4096 tokens",
        || operations::attention(&heads, &heads, &heads, 0.158),
        || {
            let scores = (heads.transpose(1, 2)?.matmul(&heads)? * 0.158)?;
            heads.matmul(&candle_nn::ops::softmax_last_dim(&scores)?.transpose(1, 2)?)
        },
    )?;
    let tokens = wave((2, 320, 4096))?;
    let wide = wave((2560, 320))?;
    compare(
        "product 320 to 2560, 2 of 4096 tokens",
        || operations::product(&tokens, &wide),
        || wide.unsqueeze(0)?.broadcast_as((2, 2560, 320))?.matmul(&tokens),
    )?;
    let (narrow, coarse_tokens, coarse_wide) = (wide.to_dtype(DType::BF16)?, coarse(&tokens)?, coarse(&wide)?);
    compare(
        "product 320 to 2560, 2 of 4096 tokens, bf16",
        || operations::product(&coarse_tokens, &narrow),
        || coarse_wide.unsqueeze(0)?.broadcast_as((2, 2560, 320))?.matmul(&coarse_tokens),
    )?;
    let affine = wave((2, 320))?;
    let norm = candle_nn::GroupNorm::new(affine.get(0)?, affine.get(1)?, 320, 32, 1e-5)?;
    compare(
        "group norm and SiLU, 2 of 320x64x64",
        || operations::group_norm_silu(&image, &affine, 32, 1e-5),
        || candle_nn::Module::forward(&norm, &image)?.silu(),
    )?;
    compare(
        "layer norm, 2 of 320x4096",
        || operations::layer_norm(&tokens, &affine, 1e-5),
        || {
            let last = tokens.transpose(1, 2)?.contiguous()?;
            candle_nn::ops::layer_norm(&last, &affine.get(0)?, &affine.get(1)?, 1e-5)?.transpose(1, 2)?.contiguous()
        },
    )?;
    let gated = wave((2, 2560, 4096))?;
    compare(
        "gated GELU, 2 of 2560x4096",
        || operations::gated_gelu(&gated),
        || {
            let halves = gated.chunk(2, 1)?;
            &halves[0] * halves[1].gelu_erf()?
        },
    )?;

    let shapes = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/local/models/shapes"));
    let mut model = load(&shapes, &LoadOptions::default())?;
    for images in [1, 2, 4, 8] {
        let took = step(&mut model, images)?;
        let each = milliseconds(took) / f64::from(images);
        print(&format!("{:44} {:10.2}, {each:.2} each", format!("shapes, a step of {images}"), milliseconds(took)));
    }
    keeping(&mut model)?;
    let (row, spec) = (RowId(0), request(&model, 0));
    for _ in 0..model.admit(row, &spec, &StartingPictures::default())?.steps {
        model.step(&[row])?;
    }
    let picture = model.decode(row)?;
    let decoding = repeated(|| model.decode(row).map(drop))?;
    print(&format!("{:44} {:10.2}", "shapes, decode", milliseconds(decoding)));
    let (width, height) = (1024, 1024);
    // The picture again and again: as easy to compress as a real one.
    let line = |y: usize| picture.pixels.chunks_exact(3 * picture.width as usize).cycle().nth(y).unwrap_or_default();
    let pixels = (0..height as usize).flat_map(|y| line(y).iter().cycle().take(3 * width as usize).copied()).collect();
    let large = RgbImage { width, height, pixels };
    let mut bytes = 0;
    let encoding = repeated(|| encode(&large, OutputFormat::Png).map(|png| bytes = png.len()))?;
    print(&format!("{:44} {:10.2}, {bytes} bytes", "PNG of 1024x1024", milliseconds(encoding)));
    Ok(())
}

fn request(model: &Pipeline, seed: u64) -> ImageSpec {
    ImageSpec { seed, ..ImageSpec::with_defaults("a red star", &model.manifest().defaults) }
}

fn step(model: &mut Pipeline, images: u32) -> std::result::Result<Duration, Box<dyn std::error::Error>> {
    let rows: Vec<RowId> = (0..u64::from(images)).map(RowId).collect();
    for row in &rows {
        let spec = request(model, row.0);
        model.admit(*row, &spec, &StartingPictures::default())?;
    }
    let took = repeated(|| model.step(&rows))?;
    rows.iter().for_each(|row| model.release(*row));
    Ok(took)
}

/// All steps of an image where only every n-th is a whole one, and how far the picture is from the plain one.
fn keeping(model: &mut Pipeline) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let row = RowId(0);
    let mut plain: Option<(Duration, RgbImage)> = None;
    for interval in [None, Some(2), Some(3), Some(5), Some(10)] {
        let spec = ImageSpec { cache: interval.map(|interval| FeatureCache { interval }), ..request(model, 0) };
        let mut times = Vec::new();
        for _ in 0..TURNS {
            let steps = model.admit(row, &spec, &StartingPictures::default())?.steps;
            times.push(timed(|| (0..steps).try_for_each(|_| model.step(&[row])))?.1);
        }
        let (took, picture) = (median(times), model.decode(row)?);
        let name = match interval {
            None => "shapes, all 20 steps".to_owned(),
            Some(interval) => format!("shapes, one of {interval} steps whole"),
        };
        match &plain {
            None => print(&format!("{name:44} {:10.2}", milliseconds(took))),
            Some((all, whole)) => {
                let ratio = took.as_secs_f64() / all.as_secs_f64();
                let off: u64 = picture.pixels.iter().zip(&whole.pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
                let off = off as f64 / picture.pixels.len() as f64;
                print(&format!("{name:44} {:10.2}, {ratio:.2} of all, off by {off:.2} of 255", milliseconds(took)));
            }
        }
        plain.get_or_insert((took, picture));
    }
    model.release(row);
    Ok(())
}

fn compare(
    name: &str,
    fused: impl Fn() -> Result<Tensor>,
    plain: impl Fn() -> Result<Tensor>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let theirs = plain()?;
    let largest = theirs.abs()?.max_all()?.to_scalar::<f32>()?;
    let difference = (fused()? - theirs)?.abs()?.max_all()?.to_scalar::<f32>()? / largest;
    if difference > DIFFERENCE_MAX {
        return Err(format!("{name}: the results differ by {difference:.1e}").into());
    }
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        times[0].push(timed(&fused)?.1);
        times[1].push(timed(&plain)?.1);
    }
    let [ours, theirs] = times.map(median);
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    print(&format!("{name:44} {:10.2} {:10.2} {ratio:7.3}", milliseconds(ours), milliseconds(theirs)));
    Ok(())
}

/// The median of turns after one that does not count.
fn repeated<E>(mut run: impl FnMut() -> std::result::Result<(), E>) -> std::result::Result<Duration, E> {
    run()?;
    let mut times = Vec::new();
    for _ in 0..TURNS {
        times.push(timed(&mut run)?.1);
    }
    Ok(median(times))
}
