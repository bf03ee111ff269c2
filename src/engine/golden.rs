//! Compares every stage of every family with what diffusers recorded, on the tiny models of `tests/golden`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use candle_core::Tensor;
use serde_json::Value;

use super::pipeline::Pipeline;
use super::random::Generator;
use super::{
    DeviceChoice, Engine, LoadOptions, PictureFiles, Precision, Precisions, RowId, StartingPictures, load, tiny,
};
use crate::job::{Defaults, ImageSpec, OutputFormat, Rng, Sizes, Start};

/// Every family, by the names of its files.
const FAMILIES: [&str; 9] = ["sd1", "sd2", "sd1-inpaint", "lcm", "sdxl", "sd3", "sd3.5", "flux-schnell", "flux-dev"];
/// Of embeddings and model outputs, relative to the largest magnitude.
const STAGE_TOLERANCE: f32 = 1e-4;
/// Of the final latents.
const LATENT_TOLERANCE: f32 = 1e-3;
/// The figures of a page of the documentation lie below these lines.
const TABLE: &str = "docs/models.md";
const TABLE_BEGIN: &str = "<!-- measured: begin -->";
const TABLE_END: &str = "<!-- measured: end -->";

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest magnitude of `theirs`.
fn error(ours: &Tensor, theirs: &Tensor) -> f32 {
    assert_eq!(ours.elem_count(), theirs.elem_count(), "{:?} and {:?}", ours.dims(), theirs.dims());
    let (ours, theirs) = (flat(ours), flat(theirs));
    let largest = theirs.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let worst = ours.iter().zip(&theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max);
    worst / largest
}

fn numbers<const N: usize>(value: &Value) -> Option<[u32; N]> {
    let numbers: Vec<u32> = value.as_array()?.iter().map(|number| number.as_u64().unwrap() as u32).collect();
    numbers.try_into().ok()
}

/// The specification that a recorded request means.
fn spec(pipeline: &Pipeline, request: &Value) -> ImageSpec {
    let number = |field: &str| request[field].as_f64().map(|number| number as f32);
    let whole = |field: &str| request[field].as_u64().unwrap() as u32;
    let (width, height) = (whole("width"), whole("height"));
    let strength = number("strength").unwrap_or(1.0);
    let defaults = Defaults {
        width,
        height,
        num_inference_steps: whole("num_inference_steps"),
        guidance_scale: number("guidance_scale").unwrap(),
        scheduler: match request["scheduler"].as_str() {
            Some(name) => name.parse().unwrap(),
            None => pipeline.manifest().defaults.scheduler,
        },
    };
    let unasked = ImageSpec::with_defaults(request["prompt"].as_str().unwrap(), &defaults);
    ImageSpec {
        negative_prompt: request["negative_prompt"].as_str().unwrap_or_default().into(),
        guidance_rescale: number("guidance_rescale").unwrap_or(0.0),
        seed: request["seed"].as_u64().unwrap(),
        start: match request["starting"].as_str() {
            None => Start::Noise,
            Some("img2img") => Start::Picture { strength },
            Some(_) => Start::Inpaint { strength },
        },
        sizes: Sizes {
            original: numbers(&request["original_size"]).unwrap_or(unasked.sizes.original),
            crops_coords_top_left: numbers(&request["crops_coords_top_left"]).unwrap_or([0, 0]),
            target: numbers(&request["target_size"]).unwrap_or(unasked.sizes.target),
        },
        ..unasked
    }
}

/// The recorded starting picture and mask as files.
fn files(tensors: &HashMap<String, Tensor>, start: &Start) -> PictureFiles {
    let file = |name: &str| {
        let tensor = &tensors[&format!("starting/{name}")];
        let (height, width) = (tensor.dims()[0] as u32, tensor.dims()[1] as u32);
        let values: Vec<u8> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        let pixels = if name == "mask" { values.iter().flat_map(|value| [*value; 3]).collect() } else { values };
        super::encode(&super::RgbImage { width, height, pixels }, OutputFormat::Png).unwrap().into()
    };
    PictureFiles {
        init_image: (*start != Start::Noise).then(|| file("picture")),
        mask_image: matches!(start, Start::Inpaint { .. }).then(|| file("mask")),
    }
}

/// What a request's image differs by.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    outputs: f32,
    latents: f32,
    /// Largest difference of a byte.
    bytes: u8,
    /// Share of bytes that differ by more than 1.
    off: f64,
}

/// Runs one recorded request, stage by stage.
fn run(pipeline: &mut Pipeline, tensors: &HashMap<String, Tensor>, request: &Value) -> Measured {
    let name = request["name"].as_str().unwrap();
    let spec = spec(pipeline, request);
    let row = RowId(1);
    let pictures = StartingPictures::prepare(&files(tensors, &spec.start), &spec).unwrap();
    let admitted = pipeline.admit(row, &spec, &pictures).unwrap();
    assert_eq!(u64::from(admitted.steps), request["steps"].as_u64().unwrap(), "{name}: steps");
    let mut measured = Measured::default();
    for step in 0..admitted.steps {
        if let Some(theirs) = tensors.get(&format!("{name}/output/{step}")) {
            let ours = pipeline.outputs(row).unwrap();
            measured.outputs = measured.outputs.max(error(&ours, theirs));
        }
        pipeline.step(&[row]).unwrap();
    }
    let latents = pipeline.vae_latents(row).unwrap();
    measured.latents = error(&latents, &tensors[&format!("{name}/vae_latents")]);
    let image = pipeline.decode(row).unwrap();
    pipeline.release(row);
    let theirs: Vec<u8> = tensors[&format!("{name}/image")].flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(image.pixels.len(), theirs.len(), "{name}: size");
    let differences: Vec<u8> = image.pixels.iter().zip(&theirs).map(|(ours, theirs)| ours.abs_diff(*theirs)).collect();
    measured.bytes = differences.iter().copied().max().unwrap();
    measured.off = differences.iter().filter(|difference| **difference > 1).count() as f64 / differences.len() as f64;
    measured
}

/// On the device that `DARKROOM_TEST_DEVICE` names: `local/bench/engine` names a GPU.
fn options(precision: Precision) -> LoadOptions {
    let device = std::env::var("DARKROOM_TEST_DEVICE").map_or(DeviceChoice::Cpu, |name| name.parse().unwrap());
    LoadOptions { device, precisions: Precisions::all(Some(precision)), loras: None }
}

fn open(family: &str, request: Option<&Value>) -> (tempfile::TempDir, Pipeline) {
    let directory = tiny::model(family);
    if let Some(config) = request.and_then(|request| request.get("scheduler_config")) {
        tiny::write_json(&directory.path().join("scheduler/scheduler_config.json"), config);
        let class = config["_class_name"].clone();
        let index = directory.path().join("model_index.json");
        tiny::edit(&index, "scheduler", serde_json::json!(["diffusers", class]));
    }
    let pipeline = load(directory.path(), &options(Precision::F32)).unwrap();
    (directory, pipeline)
}

#[test]
fn goldens_were_recorded_with_the_pinned_versions() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let pins = std::fs::read_to_string(directory.join("requirements.txt")).unwrap();
    let mut checked = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let versions = golden["versions"].as_object().filter(|versions| !versions.is_empty());
        for (library, version) in versions.unwrap_or_else(|| panic!("{} names no versions", path.display())) {
            let version = version.as_str().unwrap().split('+').next().unwrap();
            let pin = format!("{library}=={version}");
            assert!(pins.lines().any(|line| line == pin), "{}: {pin} is not pinned", path.display());
        }
        checked += 1;
    }
    assert!(checked > FAMILIES.len(), "{checked} files");
}

#[test]
fn tokens_are_those_of_transformers() {
    for family in FAMILIES {
        let golden = tiny::golden(family);
        let (_directory, pipeline) = open(family, None);
        for (index, (part, prompts)) in golden["tokens"].as_object().unwrap().iter().enumerate() {
            for (prompt, theirs) in prompts.as_object().unwrap() {
                let theirs: Vec<u32> =
                    theirs.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
                assert_eq!(pipeline.tokens(index, prompt), theirs, "{family}/{part}: {prompt:?}");
            }
        }
    }
}

#[test]
fn noise_is_that_of_torch_bit_for_bit() {
    for family in FAMILIES {
        let theirs = flat(&tiny::tensors(family)["noise"]);
        let ours = Generator::new(Rng::TorchCpu, 5).normal(theirs.len());
        assert_eq!(ours, theirs, "{family}");
    }
}

#[test]
fn embeddings_are_those_of_diffusers() {
    for family in FAMILIES {
        let (golden, tensors) = (tiny::golden(family), tiny::tensors(family));
        let (_directory, pipeline) = open(family, None);
        let prompts = &golden["prompts"];
        for index in 0..2 {
            let prompt = prompts[index].as_str().unwrap();
            let conditioning = pipeline.condition(prompt, Some("")).unwrap();
            for (name, ours, row) in [
                ("embedding", &conditioning.context, 1),
                ("pooled", &conditioning.pooled, 1),
                ("negative", &conditioning.context, 0),
            ] {
                let Some(theirs) = tensors.get(&format!("{name}/{index}")) else { continue };
                let error = error(&ours.narrow(0, row, 1).unwrap(), theirs);
                let zeros = flat(theirs).iter().all(|value| *value == 0.0);
                assert!(error <= STAGE_TOLERANCE || zeros, "{family}: {name} of {prompt:?} differs by {error}");
            }
        }
    }
}

#[test]
fn the_vae_computes_what_diffusers_computes() {
    for family in FAMILIES {
        let tensors = tiny::tensors(family);
        let (_directory, pipeline) = open(family, None);
        let decoded = pipeline.decoded(&tensors["noise"]).unwrap();
        assert!(error(&decoded, &tensors["decoded"]) <= STAGE_TOLERANCE, "{family}: decoder");
        let file = files(&tensors, &Start::Picture { strength: 1.0 }).init_image.unwrap();
        let (mean, deviation) = pipeline.encoded(&file, 24, 16).unwrap();
        assert!(error(&mean, &tensors["encoded/mean"]) <= STAGE_TOLERANCE, "{family}: encoder's mean");
        assert!(error(&deviation, &tensors["encoded/std"]) <= STAGE_TOLERANCE, "{family}: encoder's deviation");
    }
}

#[test]
fn every_request_gives_the_image_of_diffusers() {
    let mut table: BTreeMap<String, BTreeMap<String, Measured>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for family in FAMILIES {
        let (golden, tensors) = (tiny::golden(family), tiny::tensors(family));
        let (_directory, mut pipeline) = open(family, None);
        for request in golden["requests"].as_array().unwrap() {
            let name = request["name"].as_str().unwrap().to_owned();
            let mut other = request.get("scheduler_config").map(|_| open(family, Some(request)));
            let pipeline = other.as_mut().map_or(&mut pipeline, |(_, other)| other);
            let measured = run(pipeline, &tensors, request);
            let Measured { outputs, latents, bytes, off } = measured;
            if !(outputs <= STAGE_TOLERANCE && latents <= LATENT_TOLERANCE && bytes <= 2 && off <= 0.001) {
                wrong.push(format!("{family}, {name}: {measured:?}"));
            }
            table.entry(name).or_default().insert(family.to_owned(), measured);
        }
    }
    assert!(wrong.is_empty(), "not as in diffusers:\n{}", wrong.join("\n"));
    check_table(&table);
}

/// Where there are kernels for 16 bits alone: attention on tensor cores, convolutions with channels last.
#[test]
fn weights_of_16_bits_give_nearly_the_image_of_diffusers() {
    for family in ["sd1", "sdxl"] {
        let (golden, tensors) = (tiny::golden(family), tiny::tensors(family));
        let directory = tiny::model(family);
        for (precision, close) in [(Precision::F16, 0.01), (Precision::Bf16, 0.05)] {
            let mut pipeline = load(directory.path(), &options(precision)).unwrap();
            let Measured { outputs, latents, .. } = run(&mut pipeline, &tensors, &golden["requests"][0]);
            assert!(outputs <= close && latents <= close, "{family} in {precision:?}: {outputs}, {latents}");
        }
    }
}

/// The page of the documentation holds, for each request, the largest relative error of the final latents, rounded up to a
/// power of ten, because the last digits depend on the processor. `DARKROOM_WRITE_TABLE=1` writes it anew.
fn check_table(measured: &BTreeMap<String, BTreeMap<String, Measured>>) {
    let mut text = format!("| request | {} |\n|---|{}\n", FAMILIES.join(" | "), "---|".repeat(FAMILIES.len()));
    for (name, families) in measured {
        let _ = write!(text, "| `{name}` |");
        for family in FAMILIES {
            let cell = families.get(family).map_or_else(
                || "–".to_owned(),
                |measured| format!("1e{:.0}", measured.latents.max(1e-7).log10().ceil()),
            );
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(TABLE);
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(TABLE_BEGIN).unwrap();
    let (written, after) = rest.split_once(TABLE_END).unwrap();
    if std::env::var_os("DARKROOM_WRITE_TABLE").is_some() {
        std::fs::write(&path, format!("{before}{TABLE_BEGIN}\n\n{text}\n{TABLE_END}{after}")).unwrap();
        return;
    }
    let cells = |table: &str| -> Vec<Vec<String>> {
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    };
    let (ours, theirs) = (cells(&text), cells(written));
    assert_eq!(ours.len(), theirs.len(), "{TABLE} lacks requests; write it anew with DARKROOM_WRITE_TABLE=1");
    for (ours, written) in ours.iter().zip(&theirs) {
        assert_eq!(ours[1], written[1], "{TABLE} has other requests; write it anew with DARKROOM_WRITE_TABLE=1");
        for (found, said) in ours.iter().zip(written).skip(2) {
            let value = |cell: &str| cell.parse::<f32>().unwrap_or(0.0);
            // A processor of another make may round otherwise, but not by more than a power of ten.
            assert!(value(found) <= 10.0 * value(said), "{}: {TABLE} says {said}, measured {found}", ours[1]);
        }
    }
}
