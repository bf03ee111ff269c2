//! Files that the engine reads: checkpoints, LoRAs, weights, configurations, pictures; and prompts.

#[path = "../golden/tiny.rs"]
mod tiny;

use std::io::Cursor;
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use darkroom::engine::{Engine, LoadOptions, PictureFiles, Pipeline, RgbImage, RowId, StartingPictures, encode, load};
use darkroom::job::{
    Defaults, FaultClass, ImageSpec, LongPrompt, LoraChoice, OutputFormat, PromptOptions, SamplerKind, SigmaSpacing,
    Start, Weighting,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const ROW: RowId = RowId(1);
const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";
/// Families whose configurations have little in common.
const FAMILIES: [&str; 3] = ["sd1", "sdxl", "sd3"];
/// Models with LoRAs are kept; so many are enough.
const MERGED_MAX: u64 = 200;

fn spec() -> ImageSpec {
    let defaults =
        Defaults { width: 16, height: 16, num_inference_steps: 3, guidance_scale: 3.0, scheduler: SamplerKind::Ddim };
    ImageSpec::with_defaults("a red star", &defaults)
}

/// What is shared by all inputs. One that panicked leaves it as good as it was.
fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(directory: &Path) -> Pipeline {
    load(directory, &LoadOptions::default()).unwrap()
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let pixels = (0..3 * width * height).map(|index| (index * 7 % 251) as u8).collect();
    encode(&RgbImage { width, height, pixels }, OutputFormat::Png).unwrap()
}

static SD1: LazyLock<Mutex<(tempfile::TempDir, Pipeline)>> = LazyLock::new(|| {
    let directory = tiny::model("sd1");
    let pipeline = open(directory.path());
    Mutex::new((directory, pipeline))
});

/// Images whose samplers keep different things, and what they start from.
fn saved_images() -> Vec<(ImageSpec, StartingPictures)> {
    let kinds = [SamplerKind::Ddim, SamplerKind::UniPc(SigmaSpacing::Trained), SamplerKind::Heun(SigmaSpacing::Karras)];
    let mut specs: Vec<ImageSpec> = kinds.into_iter().map(|scheduler| ImageSpec { scheduler, ..spec() }).collect();
    specs.push(ImageSpec { start: Start::Inpaint { strength: 0.8 }, ..spec() });
    let file = bytes::Bytes::from(png(16, 16));
    let files = PictureFiles { init_image: Some(file.clone()), mask_image: Some(file) };
    let with_pictures = |spec: ImageSpec| {
        let pictures = StartingPictures::prepare(&files, &spec).unwrap();
        (spec, pictures)
    };
    specs.into_iter().map(with_pictures).collect()
}

pub(crate) fn checkpoints() -> Vec<Vec<u8>> {
    let mut shared = locked(&SD1);
    let model = &mut shared.1;
    let save = |(spec, pictures): (ImageSpec, StartingPictures)| {
        model.admit(ROW, &spec, &pictures).unwrap();
        model.step(&[ROW]).unwrap();
        let saved = model.save(ROW).unwrap();
        model.release(ROW);
        saved
    };
    saved_images().into_iter().map(save).collect()
}

/// The same file with the checksum that it should have, by the rule that `engine::checkpoint` writes down. Otherwise no
/// damage would come any further.
fn resealed(bytes: &[u8]) -> Option<Vec<u8>> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let metadata = header.metadata().as_ref()?;
    let mut hasher = Sha256::new();
    let mut add = |part: &[u8]| {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    };
    let mut facts: Vec<_> = metadata.iter().filter(|(name, _)| *name != "sha256").collect();
    facts.sort();
    for (name, value) in facts {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    let mut tensors: Vec<_> = file.iter().collect();
    tensors.sort_by_key(|(name, _)| *name);
    for (name, view) in tensors {
        add(name.as_bytes());
        add(format!("{:?} {:?}", view.dtype(), view.shape()).as_bytes());
        add(b"data");
        add(view.data());
    }
    let sum = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let old = metadata.get("sha256").filter(|old| old.len() == sum.len())?;
    let place = bytes.windows(old.len()).position(|window| window == old.as_bytes())?;
    let mut sealed = bytes.to_vec();
    sealed[place..place + sum.len()].copy_from_slice(sum.as_bytes());
    Some(sealed)
}

pub(crate) fn checkpoint(bytes: &[u8]) {
    static IMAGES: LazyLock<Vec<(ImageSpec, StartingPictures)>> = LazyLock::new(saved_images);
    let mut shared = locked(&SD1);
    let model = &mut shared.1;
    for bytes in [Some(bytes.to_vec()), resealed(bytes)].into_iter().flatten() {
        for (spec, pictures) in IMAGES.iter() {
            match model.resume(ROW, spec, pictures, &bytes) {
                Ok(admitted) => {
                    assert!(admitted.step <= admitted.steps);
                    let saved = model.save(ROW).unwrap();
                    assert_eq!(model.resume(ROW, spec, pictures, &saved), Ok(admitted.clone()));
                    assert_eq!(model.save(ROW).unwrap(), saved);
                    for _ in admitted.step..admitted.steps {
                        model.step(&[ROW]).unwrap();
                    }
                    // It may have been made so large that it is no number in the end.
                    let _ = model.decode(ROW);
                    model.release(ROW);
                }
                Err(_) => assert!(model.save(ROW).is_err(), "a row is left"),
            }
        }
    }
}

fn lora_tensors(layer: &str, shapes: [[usize; 2]; 2]) -> Vec<(String, Tensor)> {
    let halves = ["lora_A", "lora_B"].into_iter().zip(shapes);
    halves.map(|(half, shape)| (format!("unet.{layer}.{half}.weight"), tiny::tensor(half, &shape))).collect()
}

/// LoRAs in different spellings.
pub(crate) fn loras() -> Vec<Vec<u8>> {
    let layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let peft = lora_tensors(layer, [[2, 8], [8, 2]]);
    let mut kohya: Vec<(String, Tensor)> = ["lora_down", "lora_up"]
        .into_iter()
        .zip(&peft)
        .map(|(half, (_, tensor))| (format!("lora_unet_{}.{half}.weight", layer.replace('.', "_")), tensor.clone()))
        .collect();
    let alpha = Tensor::new(1.0_f32, &candle_core::Device::Cpu).unwrap();
    kohya.push((format!("lora_unet_{}.alpha", layer.replace('.', "_")), alpha));
    let adapter = json!({ "r": 2, "lora_alpha": 4, "alpha_pattern": { "^down_blocks": 3 }, "use_rslora": true });
    let metadata = [("lora_adapter_metadata".to_owned(), adapter.to_string())];
    vec![
        safetensors::serialize(peft.clone(), None).unwrap(),
        safetensors::serialize(kohya, None).unwrap(),
        safetensors::serialize(peft, Some(metadata.into())).unwrap(),
    ]
}

pub(crate) fn lora(bytes: &[u8]) {
    struct Shared {
        directory: tempfile::TempDir,
        folder: tempfile::TempDir,
        model: Option<Pipeline>,
        read: u64,
    }
    static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(|| {
        let (directory, folder) = (tiny::model("sd1"), tempfile::tempdir().unwrap());
        Mutex::new(Shared { directory, folder, model: None, read: 0 })
    });
    let mut shared = locked(&SHARED);
    let Shared { directory, folder, model, read } = &mut *shared;
    if read.is_multiple_of(MERGED_MAX) {
        *model = None;
    }
    *read += 1;
    let options = LoadOptions { loras: Some(folder.path().into()), ..LoadOptions::default() };
    let model = model.get_or_insert_with(|| load(directory.path(), &options).unwrap());
    let name = format!("fuzz-{read}");
    let path = folder.path().join(format!("{name}.safetensors"));
    std::fs::write(&path, bytes).unwrap();
    let asked = ImageSpec { loras: vec![LoraChoice { name: name.parse().unwrap(), weight: 0.5 }], ..spec() };
    match model.admit(ROW, &asked, &StartingPictures::default()) {
        Ok(_) => {
            model.step(&[ROW]).unwrap();
            model.release(ROW);
        }
        Err(fault) => assert_eq!(fault.class, FaultClass::Reject, "{fault}"),
    }
    std::fs::remove_file(path).unwrap();
}

/// The header of the weights, without what it is about, and a whole small file.
pub(crate) fn weight_files() -> Vec<Vec<u8>> {
    let directory = tiny::model("sd1");
    let file = std::fs::read(directory.path().join(WEIGHTS)).unwrap();
    let length = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    vec![file[8..8 + length].to_vec(), safetensors::serialize(lora_tensors("a", [[1, 2], [3, 1]]), None).unwrap()]
}

/// A header, which gets as many zeros as it speaks of, or a file.
pub(crate) fn weights(bytes: &[u8]) {
    const DATA_BYTES_MAX: u64 = 4 << 20;
    static DIRECTORY: LazyLock<Mutex<tempfile::TempDir>> = LazyLock::new(|| Mutex::new(tiny::model("sd1")));
    let directory = locked(&DIRECTORY);
    let mut file = bytes.to_vec();
    if bytes.starts_with(b"{") {
        let header: Option<Value> = serde_json::from_slice(bytes).ok();
        let entries = header.as_ref().and_then(Value::as_object);
        let ends = entries.into_iter().flat_map(|entries| entries.values());
        let end = ends.filter_map(|entry| entry["data_offsets"][1].as_u64()).max().unwrap_or(0);
        file = [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
        file.resize(file.len() + end.min(DATA_BYTES_MAX) as usize, 0);
    }
    // Beside the old file, which may still be mapped.
    let new = directory.path().join("unet/new");
    std::fs::write(&new, file).unwrap();
    std::fs::rename(new, directory.path().join(WEIGHTS)).unwrap();
    if let Ok(mut model) = load(directory.path(), &LoadOptions::default()) {
        let _ = model.render(&spec(), &StartingPictures::default(), None, &mut |_, _| {});
    }
}

/// Family, file and its content.
pub(crate) fn model_files() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let directory = tiny::model(family);
        for name in model_file_names(directory.path()) {
            let content = std::fs::read(directory.path().join(&name)).unwrap();
            all.push([format!("{family} {name}\n").as_bytes(), &content].concat());
        }
        let overrides = "name = 'tiny'\n[limits]\nside_max = 64\nimages_in_batch_max = 3\n[precision]\nvae = 'f16'\n\
            [defaults]\nwidth = 24\nnum_inference_steps = 7\nguidance_scale = 2.5\nscheduler = 'euler'\n";
        all.push(format!("{family} darkroom.toml\n{overrides}").into_bytes());
        let index = json!({ "weight_map": { "conv_in.bias": "diffusion_pytorch_model.fp16.safetensors" } });
        all.push(format!("{family} vae/diffusion_pytorch_model.safetensors.index.json\n{index}").into_bytes());
    }
    all
}

/// Everything but weights.
fn model_file_names(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "json" || extension == "txt") {
                names.push(path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    names.sort();
    names
}

pub(crate) fn model(bytes: &[u8]) {
    static DIRECTORIES: LazyLock<Mutex<Vec<tempfile::TempDir>>> =
        LazyLock::new(|| Mutex::new(FAMILIES.into_iter().map(tiny::model).collect()));
    static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
        let first_line = |seed: Vec<u8>| String::from_utf8_lossy(&seed).lines().next().unwrap().to_owned();
        model_files().into_iter().map(first_line).collect()
    });
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let Some(name) = NAMES.iter().find(|name| name.as_bytes() == &bytes[..end]) else { return };
    let content = &bytes[(end + 1).min(bytes.len())..];
    let (family, file) = name.split_once(' ').unwrap();
    let directories = locked(&DIRECTORIES);
    let directory = &directories[FAMILIES.iter().position(|one| *one == family).unwrap()];
    let path = directory.path().join(file);
    // A target that panicked before left something else there.
    let good = tiny_file(family, file);
    std::fs::write(&path, content).unwrap();
    let outcome = std::panic::catch_unwind(|| {
        if let Ok(mut model) = load(directory.path(), &LoadOptions::default()) {
            let scheduler = model.manifest().defaults.scheduler;
            let asked = ImageSpec { scheduler, ..spec() };
            let _ = model.render(&asked, &StartingPictures::default(), None, &mut |_, _| {});
        }
    });
    match good {
        Some(good) => std::fs::write(&path, good).unwrap(),
        None => std::fs::remove_file(&path).unwrap(),
    }
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// The undamaged file, if the family has it.
fn tiny_file(family: &str, file: &str) -> Option<Vec<u8>> {
    static GOOD: LazyLock<Vec<tempfile::TempDir>> = LazyLock::new(|| FAMILIES.into_iter().map(tiny::model).collect());
    let directory = &GOOD[FAMILIES.iter().position(|one| *one == family)?];
    std::fs::read(directory.path().join(file)).ok()
}

/// The first byte picks how the rest is read as a prompt.
pub(crate) fn prompt(bytes: &[u8]) {
    static MODELS: LazyLock<Mutex<Vec<Pipeline>>> = LazyLock::new(|| {
        let open = |family| {
            let directory = tiny::model(family);
            open(directory.path())
        };
        Mutex::new(FAMILIES.into_iter().map(open).collect())
    });
    let Some((choice, text)) = bytes.split_first() else { return };
    let options = PromptOptions {
        long: LongPrompt::ALL[usize::from(choice & 1)],
        weighting: if choice & 2 == 0 { Weighting::Off } else { Weighting::On },
    };
    let prompt: String = String::from_utf8_lossy(text).chars().take(2000).collect();
    let asked = ImageSpec { negative_prompt: prompt.clone(), prompt, prompt_options: options, ..spec() };
    for model in locked(&MODELS).iter() {
        model.prompt_encoder().prepare(&asked).unwrap();
    }
}

/// Pictures of every format, in colours of several kinds.
pub(crate) fn pictures() -> Vec<Vec<u8>> {
    use image::{DynamicImage, ImageFormat, RgbImage};
    let rgb = DynamicImage::ImageRgb8(RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 20, y as u8 * 30, 90])));
    let kinds = [
        rgb.clone(),
        rgb.to_rgba8().into(),
        rgb.to_luma8().into(),
        rgb.to_luma_alpha8().into(),
        rgb.to_rgb16().into(),
        rgb.to_rgba16().into(),
    ];
    let mut all = Vec::new();
    for (choice, format) in [(0, ImageFormat::Png), (1, ImageFormat::Jpeg), (2, ImageFormat::WebP)] {
        for kind in &kinds {
            let mut file = Cursor::new(vec![choice]);
            file.set_position(1);
            if kind.write_to(&mut file, format).is_ok() {
                all.push(file.into_inner());
            }
        }
    }
    all
}

/// The first byte says whether the rest is a mask as well as a picture.
pub(crate) fn picture(bytes: &[u8]) {
    let Some((choice, file)) = bytes.split_first() else { return };
    let file = bytes::Bytes::copy_from_slice(file);
    let strength = 0.5;
    let (start, mask_image) = match choice & 1 {
        0 => (Start::Picture { strength }, None),
        _ => (Start::Inpaint { strength }, Some(file.clone())),
    };
    let asked = ImageSpec { start, ..spec() };
    if let Err(fault) = StartingPictures::prepare(&PictureFiles { init_image: Some(file), mask_image }, &asked) {
        assert_eq!(fault.class, FaultClass::Reject, "{fault}");
        assert!(fault.message.contains("init_image") || fault.message.contains("mask_image"), "{fault}");
    }
}
