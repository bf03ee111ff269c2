//! `profile`: how long the engine takes on this machine for each stage of an image, and how much memory, with no bus. Workers
//! here find the figures where it keeps them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context as _;
use bytesize::ByteSize;
use darkroom::engine::{
    self, DeviceChoice, DeviceMemory, Engine, LoadOptions, Pipeline, Precision, Precisions, RowId, StartingPictures,
};
use darkroom::job::{Fault, ImageSpec, OutputFormat, Task};
use darkroom::shell::clock::Clock;
use darkroom::shell::costs;
use darkroom::wire::cost::{CostTable, DecodeCost, StepCost};
use serde_json::json;

use super::output::Output;
use super::{Exit, Failed};

#[derive(Debug, clap::Args)]
pub(crate) struct ProfileOptions {
    /// The model: a diffusers directory
    #[arg(long, env = "DARKROOM_MODEL", value_name = "DIR")]
    model: PathBuf,
    /// Sizes of images, in pixels; the model's own when absent
    #[arg(long = "size", value_name = "WIDTHxHEIGHT", value_delimiter = ',', value_parser = size)]
    sizes: Vec<[u32; 2]>,
    /// How many images step together
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 2, 4], value_parser = clap::value_parser!(u32).range(1..=64))]
    images: Vec<u32>,
    /// How often each stage is measured, after once that does not count, on a GPU three times
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    turns: u32,
    /// Also measure whole images, from the prompt to the PNG, of so many steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    whole: Option<u32>,
    /// Number format of all parts: f32, f16 or bf16
    #[arg(long, env = "DARKROOM_DTYPE", value_name = "NAME")]
    dtype: Option<Precision>,
    /// Where the figures are kept for workers; in the user's cache when absent
    #[arg(long, env = "DARKROOM_COSTS", value_name = "FILE")]
    costs: Option<PathBuf>,
    /// Where to compute: auto, cpu or cuda
    #[arg(long, env = "DARKROOM_DEVICE", default_value = "auto")]
    device: DeviceChoice,
}

fn size(text: &str) -> Result<[u32; 2], String> {
    let sides = text.split_once('x').and_then(|(width, height)| Some([width.parse().ok()?, height.parse().ok()?]));
    sides.ok_or_else(|| "must be WIDTHxHEIGHT, such as 512x512".to_owned())
}

/// What one size takes.
struct Stages {
    encode_ms: f64,
    /// By number of images.
    steps: Vec<(u32, Measured)>,
    decode: Measured,
    /// One image's, to be stored between two steps.
    checkpoint_ms: f64,
    /// From a prompt to the bytes of a PNG.
    whole_ms: Option<f64>,
}

/// What a stage takes.
struct Measured {
    /// The median.
    ms: f64,
    /// On top of the loaded model.
    bytes: Option<u64>,
}

impl std::fmt::Display for Measured {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:.1} ms", self.ms)?;
        match self.bytes {
            Some(bytes) => write!(formatter, " and {}", ByteSize::b(bytes)),
            None => Ok(()),
        }
    }
}

/// Measures stages of a model that is loaded.
struct Stopwatch {
    clock: Clock,
    memory: DeviceMemory,
    /// Memory in use when the model was loaded and had done nothing.
    loaded_bytes: Option<u64>,
    /// The most that this process had before the present watch, which begins anew.
    resident_peak_bytes: Option<u64>,
    /// With the first ones, which do not count.
    turns: u32,
    uncounted: u32,
}

pub(crate) fn profile(options: &ProfileOptions, output: &Output) -> Result<Exit, Failed> {
    let clock = Clock::start();
    let precisions = Precisions::all(options.dtype);
    let load = LoadOptions { device: options.device, precisions, loras: None };
    let mut model = engine::load(&options.model, &load)?;
    let loading_ms = clock.now().as_micros() as f64 / 1e3;
    let loaded_resident_peak_bytes = resident_peak_bytes();
    let manifest = model.manifest().clone();
    if !manifest.tasks.contains(&Task::TextToImage) {
        return Err(anyhow::anyhow!("the model makes no image from a prompt alone, which is what is measured").into());
    }
    let own = [manifest.defaults.width, manifest.defaults.height];
    let sizes = if options.sizes.is_empty() { vec![own] } else { options.sizes.clone() };
    let memory = model.memory();
    let loaded_bytes = memory.used();
    let uncounted = model.warm_up_steps().max(1);
    let turns = options.turns + uncounted;
    let mut stopwatch = Stopwatch { clock, memory, loaded_bytes, resident_peak_bytes: None, turns, uncounted };
    let mut text = format!("{} on {}: ready after {loading_ms:.0} ms", manifest.name, model.placement());
    let (mut steps, mut decode, mut encode_ms, mut checkpoint_ms, mut whole_ms) =
        (Vec::new(), Vec::new(), 0.0, 0.0, None);
    for [width, height] in sizes {
        let Stages { encode_ms: encode, steps: of_step, decode: of_decode, checkpoint_ms: checkpoint, whole_ms: whole } =
            measure(&mut model, [width, height], options, &mut stopwatch)?;
        text +=
            &format!("\n{width}x{height}: encode {encode:.1} ms, decode {of_decode}, checkpoint {checkpoint:.3} ms");
        if let (Some(ms), Some(steps)) = (whole, options.whole) {
            text += &format!(", a whole image of {steps} steps {ms:.1} ms");
        }
        for (images, measured) in of_step {
            text += &format!(", step of {images} {measured}");
            let Measured { ms, bytes } = measured;
            steps.push(StepCost { width, height, images, ms, bytes });
        }
        let Measured { ms, bytes } = of_decode;
        decode.push(DecodeCost { width, height, ms, bytes });
        (encode_ms, checkpoint_ms, whole_ms) = (encode, checkpoint, whole);
    }
    let table = CostTable { model: manifest.name.to_string(), placement: model.placement(), steps, decode };
    if let Some(path) = options.costs.clone().or_else(|| costs::path(&table.model, &table.placement)) {
        costs::write(&path, &table).with_context(|| format!("the figures cannot be kept at {}", path.display()))?;
        text += &format!("\nkept at {}", path.display());
    }
    let CostTable { model: name, placement, steps, decode } = table;
    let result = json!({
        "model": name, "family": manifest.family, "placement": placement,
        "loading_ms": loading_ms, "loaded_resident_peak_bytes": loaded_resident_peak_bytes,
        "resident_peak_bytes": stopwatch.resident_peak_bytes.max(resident_peak_bytes()), "encode_ms": encode_ms,
        "checkpoint_ms": checkpoint_ms, "whole_ms": whole_ms, "steps": steps, "decode": decode,
    });
    output.line(text, &result);
    Ok(Exit::Success)
}

fn measure(
    model: &mut Pipeline,
    [width, height]: [u32; 2],
    options: &ProfileOptions,
    stopwatch: &mut Stopwatch,
) -> Result<Stages, Fault> {
    let defaults = model.manifest().defaults.clone();
    let turns = stopwatch.turns;
    let of_steps = |prompt: String, num_inference_steps: u32| ImageSpec {
        width,
        height,
        negative_prompt: format!("not {prompt}"),
        num_inference_steps,
        ..ImageSpec::with_defaults(&prompt, &defaults)
    };
    let spec = |prompt: String| of_steps(prompt, turns);
    let mut steps = Vec::new();
    // In this order: what an allocator kept of a larger step would count as a smaller one's.
    for images in options.images.iter().collect::<BTreeSet<_>>() {
        let rows: Vec<RowId> = (0..u64::from(*images)).map(RowId).collect();
        let mut steps_left = u32::MAX;
        for row in &rows {
            // Each with a prompt of its own, because prompts are encoded once.
            let spec = spec(format!("{width} {height} {images} {}", row.0));
            steps_left = steps_left.min(model.admit(*row, &spec, &StartingPictures::default())?.steps);
        }
        steps.push((*images, stopwatch.turn_by_turn(steps_left.min(turns), |_| model.step(&rows))?));
        rows.iter().for_each(|row| model.release(*row));
    }
    let row = RowId(0);
    let nothing = StartingPictures::default();
    let encode = stopwatch.turn_by_turn(turns, |turn| {
        model.admit(row, &spec(format!("{width} {height} alone {turn}")), &nothing).map(|_| ())
    })?;
    for _ in 0..model.admit(row, &spec("decoded".to_owned()), &nothing)?.steps {
        model.step(&[row])?;
    }
    let decode = stopwatch.turn_by_turn(turns, |_| model.decode(row).map(|_| ()))?;
    let checkpoint = stopwatch.turn_by_turn(turns, |_| model.save(row).map(|_| ()))?;
    model.release(row);
    let whole = match options.whole {
        Some(steps) => Some(stopwatch.turn_by_turn(turns, |turn| {
            let spec = of_steps(format!("{width} {height} whole {turn}"), steps);
            for _ in 0..model.admit(row, &spec, &nothing)?.steps {
                model.step(&[row])?;
            }
            let image = model.decode(row)?;
            model.release(row);
            engine::encode(&image, OutputFormat::Png).map(|_| ())
        })?),
        None => None,
    };
    let whole_ms = whole.map(|whole| whole.ms);
    Ok(Stages { encode_ms: encode.ms, steps, decode, checkpoint_ms: checkpoint.ms, whole_ms })
}

impl Stopwatch {
    /// What `run` takes, over all turns but the first, in which weights are read, algorithms found and steps recorded.
    fn turn_by_turn(&mut self, turns: u32, mut run: impl FnMut(u32) -> Result<(), Fault>) -> Result<Measured, Fault> {
        // What other sizes left in a GPU's memory is not this one's.
        self.memory.give_back();
        let mut times = Vec::new();
        let mut watch = None;
        for turn in 0..turns {
            if turn <= self.uncounted {
                self.resident_peak_bytes = self.resident_peak_bytes.max(resident_peak_bytes());
                watch = self.memory.watch();
            }
            let began = self.clock.now();
            run(turn)?;
            times.push(self.clock.now().since(began).as_secs_f64() * 1e3);
        }
        // From what the loaded model has, not from what was in use before the stage: allocators hold on to what they had.
        let peak = watch.and_then(|watch| watch.peak());
        let bytes = peak.zip(self.loaded_bytes).map(|(peak, loaded)| peak.saturating_sub(loaded));
        let uncounted = (self.uncounted as usize).min(times.len().saturating_sub(1));
        let mut counted = times.split_off(uncounted);
        counted.sort_by(f64::total_cmp);
        Ok(Measured { ms: counted.get(counted.len() / 2).copied().unwrap_or_default(), bytes })
    }
}

/// The most resident memory that this process had since somebody began to watch, where the system tells.
fn resident_peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}
