//! The engine as its users see it: loading good and bad models, and pictures that depend on nothing but their request.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

#[path = "engine/checkpoints.rs"]
mod checkpoints;
#[path = "golden/tiny.rs"]
mod tiny;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use darkroom::engine::{
    Engine, LoadError, LoadOptions, PictureFiles, Pipeline, Precision, Precisions, RenderError, Rendered, RgbImage,
    RowId, StartingPictures, encode, load, read_manifest,
};
use darkroom::job::{
    Defaults, FaultClass, FaultCode, FeatureCache, ImageSpec, LongPrompt, LoraChoice, OutputFormat, PromptOptions,
    SamplerKind, SigmaSpacing, Start,
};
use serde_json::{Value, json};

const SHAPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/local/models/shapes");
const UNET_WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

fn spec(change: impl FnOnce(&mut ImageSpec)) -> ImageSpec {
    let defaults =
        Defaults { width: 16, height: 16, num_inference_steps: 4, guidance_scale: 3.0, scheduler: SamplerKind::Ddim };
    let mut spec = ImageSpec { seed: 1, ..ImageSpec::with_defaults("a red star", &defaults) };
    change(&mut spec);
    spec
}

fn rendered(model: &mut Pipeline, spec: &ImageSpec, noise: Option<&Path>) -> Result<Rendered, RenderError> {
    model.render(spec, &StartingPictures::default(), noise, &mut |_, _| {})
}

fn admit(model: &mut Pipeline, row: RowId, spec: &ImageSpec) -> u32 {
    model.admit(row, spec, &StartingPictures::default()).unwrap().steps
}

fn picture(model: &mut Pipeline, spec: &ImageSpec) -> RgbImage {
    rendered(model, spec, None).unwrap().image
}

/// Breaks a tiny model with `damage` and returns why it cannot be loaded.
fn refusal(damage: impl FnOnce(&Path)) -> LoadError {
    let directory = tiny::model("sd1");
    damage(directory.path());
    load(directory.path(), &LoadOptions::default()).unwrap_err()
}

fn replace_tensors(file: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, file).unwrap();
}

fn replace_unet_tensors(directory: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    replace_tensors(&directory.join(UNET_WEIGHTS), change);
}

#[test]
fn a_directory_that_does_not_exist_is_named() {
    let error = load(Path::new("/nowhere/model"), &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, LoadError::Missing { path } if path == Path::new("/nowhere/model")), "{error}");
    let error = refusal(|directory| std::fs::remove_file(directory.join("vae/config.json")).unwrap());
    assert!(matches!(&error, LoadError::Missing { path } if path.ends_with("vae/config.json")), "{error}");
    let error = refusal(|directory| std::fs::remove_file(directory.join(UNET_WEIGHTS)).unwrap());
    assert!(matches!(&error, LoadError::Missing { path } if path.ends_with(UNET_WEIGHTS)), "{error}");
}

#[test]
fn a_truncated_weights_file_is_named() {
    for keep in [0, 5, 1000, 20_000] {
        let error = refusal(|directory| {
            let path = directory.join(UNET_WEIGHTS);
            let bytes = std::fs::read(&path).unwrap();
            assert!(keep < bytes.len());
            std::fs::write(path, &bytes[..keep]).unwrap();
        });
        assert!(matches!(&error, LoadError::Weights { path, .. } if path.ends_with(UNET_WEIGHTS)), "{keep}: {error}");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let error = refusal(|directory| {
        replace_unet_tensors(directory, |tensors| {
            tensors.remove(name).unwrap();
        });
    });
    let LoadError::MissingTensor { path, tensor } = &error else { panic!("{error}") };
    assert!(path.ends_with(UNET_WEIGHTS));
    assert_eq!(tensor, name);
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named_with_both_shapes() {
    let name = "time_embedding.linear_1.weight";
    let error = refusal(|directory| {
        replace_unet_tensors(directory, |tensors| {
            tensors.insert(name.into(), tiny::tensor(name, &[32, 9]));
        });
    });
    let LoadError::WrongShape { tensor, expected, found, .. } = &error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), expected.as_slice(), found.as_slice()), (name, &[32, 8][..], &[32, 9][..]));
}

#[test]
fn pickle_files_are_never_read() {
    let error = refusal(|directory| {
        let bin = directory.join("unet/diffusion_pytorch_model.bin");
        std::fs::rename(directory.join(UNET_WEIGHTS), bin).unwrap();
    });
    assert!(matches!(&error, LoadError::Pickle { path } if path.ends_with("diffusion_pytorch_model.bin")), "{error}");
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let cases: [(&str, &str, Value); 12] = [
        ("model_index.json", "_class_name", json!("KandinskyPipeline")),
        ("model_index.json", "unet", json!(["diffusers", "UNet3DConditionModel"])),
        ("model_index.json", "text_encoder", json!(["transformers", "CLIPTextModelWithProjection"])),
        ("model_index.json", "vae", Value::Null),
        ("scheduler/scheduler_config.json", "_class_name", json!("KDPM2DiscreteScheduler")),
        ("scheduler/scheduler_config.json", "thresholding", json!(true)),
        ("unet/config.json", "addition_embed_type", json!("image")),
        ("unet/config.json", "down_block_types", json!(["AttnDownBlock2D", "DownBlock2D"])),
        ("unet/config.json", "a_field_of_the_future", json!("yes")),
        ("vae/config.json", "in_channels", json!(4)),
        ("vae/config.json", "up_block_types", json!(["AttnUpDecoderBlock2D", "UpDecoderBlock2D"])),
        ("text_encoder/config.json", "hidden_act", json!("relu")),
    ];
    for (name, key, value) in cases {
        let error = refusal(|directory| tiny::edit(&directory.join(name), key, value));
        let LoadError::Unsupported { file, field, supported, .. } = &error else { panic!("{name} {key}: {error}") };
        assert!(file.ends_with(name) && field == key && !supported.is_empty(), "{error}");
    }
}

#[test]
fn contradictions_in_the_configuration_are_named() {
    let cases = [
        ("unet/config.json", "cross_attention_dim", json!(24)),
        ("unet/config.json", "in_channels", json!(8)),
        ("unet/config.json", "out_channels", json!(8)),
        ("unet/config.json", "attention_head_dim", json!([2])),
        ("vae/config.json", "norm_num_groups", json!(3)),
    ];
    for (name, key, value) in cases {
        let error = refusal(|directory| tiny::edit(&directory.join(name), key, value));
        assert!(matches!(&error, LoadError::Invalid { field, .. } if field == key), "{error}");
    }
    let error = refusal(|directory| std::fs::write(directory.join("unet/config.json"), "{").unwrap());
    assert!(matches!(&error, LoadError::Json { path, .. } if path.ends_with("unet/config.json")), "{error}");
    let error = refusal(|directory| std::fs::write(directory.join("tokenizer/tokenizer.json"), "{}").unwrap());
    assert!(matches!(&error, LoadError::Tokenizer { .. }), "{error}");
}

#[test]
fn sharded_and_half_precision_weights_are_found() {
    let directory = tiny::model("sd1");
    let expected = picture(&mut load(directory.path(), &LoadOptions::default()).unwrap(), &spec(|_| {}));

    let whole = directory.path().join(UNET_WEIGHTS);
    let tensors = candle_core::safetensors::load(&whole, &Device::Cpu).unwrap();
    let mut shards = [HashMap::new(), HashMap::new()];
    let mut weight_map = HashMap::new();
    for (index, (name, tensor)) in tensors.into_iter().enumerate() {
        weight_map.insert(name.clone(), format!("shard-{}.safetensors", index % 2));
        shards[index % 2].insert(name, tensor);
    }
    for (index, shard) in shards.iter().enumerate() {
        candle_core::safetensors::save(shard, directory.path().join(format!("unet/shard-{index}.safetensors")))
            .unwrap();
    }
    let index = directory.path().join("unet/diffusion_pytorch_model.safetensors.index.json");
    tiny::write_json(&index, &json!({ "weight_map": weight_map }));
    std::fs::remove_file(&whole).unwrap();
    let vae = directory.path().join("vae");
    std::fs::rename(
        vae.join("diffusion_pytorch_model.safetensors"),
        vae.join("diffusion_pytorch_model.fp16.safetensors"),
    )
    .unwrap();
    assert_eq!(picture(&mut load(directory.path(), &LoadOptions::default()).unwrap(), &spec(|_| {})), expected);

    std::fs::remove_file(directory.path().join("unet/shard-1.safetensors")).unwrap();
    let error = load(directory.path(), &LoadOptions::default()).unwrap_err();
    assert!(matches!(&error, LoadError::Missing { path } if path.ends_with("shard-1.safetensors")), "{error}");
}

#[test]
fn a_manifest_follows_from_the_configuration() {
    let directory = tiny::model("sd1");
    let manifest = read_manifest(directory.path()).unwrap();
    assert_eq!(manifest.family, "StableDiffusionPipeline");
    // 8 latent pixels of 2 pixels each; one halving makes a grid of 4, and 8 is the coarsest that requests know.
    assert_eq!((manifest.defaults.width, manifest.defaults.height), (16, 16));
    assert_eq!((manifest.limits.side_min, manifest.limits.side_max, manifest.limits.side_multiple), (16, 32, 8));
    assert_eq!(manifest.defaults.scheduler, SamplerKind::Pndm);

    let overrides = directory.path().join("darkroom.toml");
    std::fs::write(
        &overrides,
        "name = 'tiny'\n[limits]\nside_max = 64\nimages_in_batch_max = 3\n\
         [defaults]\nwidth = 24\nnum_inference_steps = 7\nguidance_scale = 2.5\nscheduler = 'euler'\n",
    )
    .unwrap();
    let manifest = read_manifest(directory.path()).unwrap();
    assert_eq!(manifest.name.as_str(), "tiny");
    assert_eq!((manifest.limits.side_max, manifest.limits.images_in_batch_max), (64, 3));
    assert_eq!((manifest.defaults.width, manifest.defaults.height), (24, 16));
    assert_eq!(
        (manifest.defaults.num_inference_steps, manifest.defaults.scheduler),
        (7, SamplerKind::Euler(SigmaSpacing::Trained))
    );

    for (wrong, key) in [
        ("nam = 'tiny'", "toml"),
        ("name = 'a.b'", "name"),
        ("[limits]\nside_multiple = 12", "limits.side_multiple"),
        ("[limits]\nside_max = 8", "limits"),
        ("[defaults]\nheight = 20", "defaults.height"),
        ("[defaults]\nscheduler = 'plms'", "defaults.scheduler"),
        ("[defaults]\nguidance_scale = 0.5", "defaults.guidance_scale"),
        ("[defaults]\nnum_inference_steps = 0", "defaults.num_inference_steps"),
    ] {
        std::fs::write(&overrides, wrong).unwrap();
        let error = read_manifest(directory.path()).unwrap_err();
        if let LoadError::Invalid { field, .. } = &error {
            assert_eq!(field, key, "{error}");
        } else {
            assert!(key == "toml" && matches!(error, LoadError::Toml { .. }), "{wrong}: {error}");
        }
    }
}

#[test]
fn the_digest_tells_models_apart() {
    let (one, same, other) = (tiny::model("sd1"), tiny::model("sd1"), tiny::model("sd1"));
    replace_unet_tensors(other.path(), |tensors| {
        tensors.insert("conv_in.bias".into(), tiny::tensor("another", &[8]));
    });
    // What only fills gaps in requests is not part of a model's identity.
    std::fs::write(same.path().join("darkroom.toml"), "name = 'tiny'").unwrap();
    let digest = |directory: &tempfile::TempDir| {
        let model = load(directory.path(), &LoadOptions::default()).unwrap();
        model.digest().wait().unwrap().to_owned()
    };
    assert_eq!(digest(&one), digest(&same));
    assert_ne!(digest(&one), digest(&other));
    assert!(digest(&one).len() == 64 && digest(&one).chars().all(|c| c.is_ascii_hexdigit() && !c.is_uppercase()));
}

/// Those of a model that does not know flow matching.
fn samplers() -> impl Iterator<Item = SamplerKind> {
    SamplerKind::ALL.iter().copied().filter(|kind| *kind != SamplerKind::FlowMatchEuler)
}

/// A file `<name>.safetensors` that changes one layer of the model `sd1`.
fn write_lora(directory: &Path, name: &str, layer: &str, width: usize) {
    let tensors: HashMap<String, Tensor> = [("lora_A", [2, width]), ("lora_B", [width, 2])]
        .map(|(half, shape)| {
            let key = format!("unet.{layer}.{half}.weight");
            let values = (tiny::tensor(&format!("{name}.{key}"), &shape) * 3.0).unwrap();
            (key, values)
        })
        .into();
    candle_core::safetensors::save(&tensors, directory.join(format!("{name}.safetensors"))).unwrap();
}

fn lora(name: &str, weight: f32) -> LoraChoice {
    LoraChoice { name: name.parse().unwrap(), weight }
}

/// Images that differ in all that can differ within a batch.
fn mixed(kinds: &[SamplerKind], loras: &[Vec<LoraChoice>]) -> Vec<ImageSpec> {
    let mut specs: Vec<ImageSpec> = kinds
        .iter()
        .enumerate()
        .map(|(index, kind)| {
            spec(|spec| {
                spec.scheduler = *kind;
                spec.num_inference_steps = 3 + index as u32 % 6;
                spec.seed = 10 + index as u64;
                spec.guidance_scale = if index % 2 == 0 { 1.0 } else { 2.0 + index as f32 };
                spec.prompt = ["a red star", "and", "a star and a star"][index % 3].into();
                spec.loras = loras.get(index % (loras.len() + 1)).cloned().unwrap_or_default();
                let interval = 1 + index as u32 % 4;
                spec.cache = (interval > 1).then_some(FeatureCache { interval });
            })
        })
        .collect();
    let kind = kinds[0];
    specs.push(spec(|spec| (spec.scheduler, spec.negative_prompt) = (kind, "red".into())));
    let long = PromptOptions { long: LongPrompt::Chunk, ..PromptOptions::default() };
    let several_chunks = (kind, "and ".repeat(90), long);
    specs.push(spec(|spec| (spec.scheduler, spec.prompt, spec.prompt_options) = several_chunks));
    specs
}

#[test]
fn an_image_is_the_same_bytes_alone_and_in_any_batch() {
    let folder = tempfile::tempdir().unwrap();
    write_lora(folder.path(), "one", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 8);
    write_lora(folder.path(), "two", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", 16);
    let sets = [vec![lora("one", 1.0)], vec![lora("two", -0.5), lora("one", 0.7)]];
    for (variant, loras) in [("sd1", &sets[..]), ("sd2", &[]), ("sdxl", &[]), ("sd3", &[]), ("flux-dev", &[])] {
        let directory = tiny::model(variant);
        let load = |precision: Option<Precision>| {
            let (precisions, loras) = (Precisions::all(precision), Some(folder.path().into()));
            load(directory.path(), &LoadOptions { precisions, loras, ..LoadOptions::default() }).unwrap()
        };
        for mut model in [None, Some(Precision::F16), Some(Precision::Bf16)].map(load) {
            let mut kinds = model.manifest().schedulers.clone();
            kinds.resize(kinds.len().max(6), kinds[0]);
            let specs = mixed(&kinds, loras);
            let alone: Vec<RgbImage> = specs.iter().map(|spec| picture(&mut model, spec)).collect();

            // Row n joins at step n; each leaves when it is done; the order within the batch changes at every step.
            let mut left: Vec<(RowId, u32)> = Vec::new();
            let mut done = vec![None; specs.len()];
            let mut turn = 0;
            while done.iter().any(Option::is_none) {
                if let Some(spec) = specs.get(turn) {
                    let id = RowId(turn as u64);
                    left.push((id, admit(&mut model, id, spec)));
                }
                left.rotate_left(1);
                model.step(&left.iter().map(|(id, _)| *id).collect::<Vec<_>>()).unwrap();
                if turn == 4 {
                    model.preview(left[0].0).unwrap();
                }
                left.iter_mut().for_each(|(_, steps)| *steps -= 1);
                for (id, _) in left.extract_if(.., |(_, steps)| *steps == 0) {
                    done[id.0 as usize] = Some(model.decode(id).unwrap());
                    model.release(id);
                }
                turn += 1;
            }
            for (index, (alone, together)) in alone.into_iter().zip(done).enumerate() {
                assert_eq!(Some(alone), together, "{variant}, {}: {:?}", model.placement(), specs[index]);
            }
        }
    }
}

#[test]
fn loras_change_images_by_name_and_weight_and_those_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_lora(folder.path(), "one", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 8);
    write_lora(folder.path(), "other", "down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q", 8);
    let directory = tiny::model("sd1");
    let options = LoadOptions { loras: Some(folder.path().into()), ..LoadOptions::default() };
    let mut model = load(directory.path(), &options).unwrap();
    let with = |name: &str, weight: f32| spec(|spec| spec.loras = vec![lora(name, weight)]);
    let plain = picture(&mut model, &spec(|_| {}));
    let changed = picture(&mut model, &with("one", 1.0));
    assert_ne!(changed, plain);
    assert_ne!(changed, picture(&mut model, &with("one", 0.5)));
    assert_eq!(changed, picture(&mut model, &with("one", 1.0)));
    assert_eq!(plain, picture(&mut model, &with("one", 0.0)));
    for (name, words) in [("other", "another architecture"), ("none", "one, other")] {
        let fault = model.admit(RowId(1), &with(name, 1.0), &StartingPictures::default()).unwrap_err();
        assert!(fault.class == FaultClass::Reject && fault.message.contains(words), "{fault}");
    }
    let mut without = load(directory.path(), &LoadOptions::default()).unwrap();
    let fault = without.admit(RowId(1), &with("one", 1.0), &StartingPictures::default()).unwrap_err();
    assert_eq!(fault.class, FaultClass::Reject, "{fault}");
}

#[test]
fn prompts_that_were_encoded_ahead_are_not_encoded_again_and_make_the_same_picture() {
    for variant in ["sd1", "sd2", "sdxl", "sd3", "flux-dev"] {
        let directory = tiny::model(variant);
        let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
        let kind = model.manifest().defaults.scheduler;
        let change = |spec: &mut ImageSpec| {
            (spec.scheduler, spec.prompt, spec.negative_prompt) = (kind, "a (red) star".into(), "red".into());
        };
        let asked = spec(change);
        let expected = picture(&mut load(directory.path(), &LoadOptions::default()).unwrap(), &asked);

        // While the engine steps another image, from several threads at once.
        let other = spec(|spec| spec.scheduler = kind);
        let other_alone = picture(&mut load(directory.path(), &LoadOptions::default()).unwrap(), &other);
        let steps = admit(&mut model, RowId(1), &other);
        let before = model.prompt_encoder().encoded();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (prompts, asked) = (model.prompt_encoder(), &asked);
                scope.spawn(move || prompts.prepare(asked).unwrap());
            }
            (0..steps).for_each(|_| model.step(&[RowId(1)]).unwrap());
        });
        let prompts = model.prompt_encoder();
        let encoded = if variant == "flux-dev" { 1 } else { 2 };
        assert_eq!(prompts.encoded() - before, encoded, "{variant}: guidance takes two prompts, each once");
        assert_eq!(picture(&mut model, &asked), expected, "{variant}");
        assert_eq!(model.decode(RowId(1)).unwrap(), other_alone, "{variant}: the image that was stepped meanwhile");
        assert_eq!(prompts.encoded() - before, encoded, "{variant}: admitting found what was prepared");
        // Another prompt is encoded when it is admitted.
        picture(&mut model, &spec(|spec| (spec.scheduler, spec.prompt) = (kind, "and".into())));
        assert!(prompts.encoded() - before > encoded, "{variant}");
    }
}

#[test]
fn prompts_of_images_with_loras_are_not_encoded_ahead() {
    let directory = tiny::model("sd1");
    let model = load(directory.path(), &LoadOptions::default()).unwrap();
    let prompts = model.prompt_encoder();
    prompts.prepare(&spec(|spec| spec.loras = vec![lora("one", 1.0)])).unwrap();
    assert_eq!(prompts.encoded(), 0);
}

#[test]
fn prompts_of_twice_a_full_batch_are_known_until_they_are_admitted() {
    let directory = tiny::model("sd1");
    let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
    let prompts = model.prompt_encoder();
    let asked = |index: u32| {
        let text = |what: &str| format!("{what} {}", "star ".repeat(index as usize));
        spec(|spec| (spec.prompt, spec.negative_prompt) = (text("red"), text("and")))
    };
    let claimed = 2 * model.manifest().limits.images_in_batch_max;
    (0..claimed).for_each(|index| prompts.prepare(&asked(index)).unwrap());
    let encoded = prompts.encoded();
    assert_eq!(encoded, u64::from(2 * claimed));
    for index in 0..claimed {
        admit(&mut model, RowId(index.into()), &asked(index));
    }
    assert_eq!(prompts.encoded(), encoded);
}

#[test]
fn prompts_that_are_cut_off_come_with_a_warning() {
    let directory = tiny::model("sd1");
    let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
    let long = spec(|spec| spec.prompt = format!("{}the end", "and ".repeat(80)));
    let warnings = rendered(&mut model, &long, None).unwrap().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].starts_with("prompt: ") && warnings[0].ends_with("the end"),
        "{warnings:?}"
    );
    assert_eq!(rendered(&mut model, &spec(|_| {}), None).unwrap().warnings, Vec::<String>::new());
}

#[test]
fn starting_pictures_that_cannot_be_used_are_refused_by_field() {
    let directory = tiny::model("sd1");
    let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
    let file = |width: u32, height: u32| {
        let pixels = vec![200; 3 * width as usize * height as usize];
        Some(encode(&RgbImage { width, height, pixels }, OutputFormat::Png).unwrap().into())
    };
    let inpaint = spec(|spec| spec.start = Start::Inpaint { strength: 0.5 });
    for (init_image, mask_image, words) in [
        (None, file(16, 16), "init_image"),
        (file(16, 16), None, "mask_image"),
        (file(16, 16), file(16, 8), "mask_image"),
        (Some("<svg/>".into()), file(16, 16), "init_image"),
    ] {
        let fault = StartingPictures::prepare(&PictureFiles { init_image, mask_image }, &inpaint).unwrap_err();
        assert!(fault.class == FaultClass::Reject && fault.message.contains(words), "{fault}");
    }
    let fault = model.admit(RowId(1), &inpaint, &StartingPictures::default()).unwrap_err();
    assert!(fault.class == FaultClass::Reject && fault.message.contains("init_image"), "{fault}");
    let files = PictureFiles { init_image: file(40, 20), mask_image: file(40, 20) };
    let pictures = StartingPictures::prepare(&files, &inpaint).unwrap();
    assert_eq!(model.admit(RowId(1), &inpaint, &pictures).unwrap().steps, 2);
    // Too little strength for a single step.
    let nothing = spec(|spec| spec.start = Start::Picture { strength: 0.1 });
    assert_eq!(model.admit(RowId(1), &nothing, &pictures).unwrap_err().class, FaultClass::Reject);
}

#[test]
fn half_precision_on_the_cpu_draws_nearly_the_same() {
    for family in ["sd1", "sdxl", "sd3", "flux-dev"] {
        let directory = tiny::model(family);
        let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
        let spec = spec(|spec| spec.scheduler = model.manifest().defaults.scheduler);
        let full = picture(&mut model, &spec);
        // bf16 has three bits less than f16.
        for (precision, mean_max) in [(Precision::F16, 3.0), (Precision::Bf16, 12.0)] {
            let options = LoadOptions { precisions: Precisions::all(Some(precision)), ..LoadOptions::default() };
            let half = picture(&mut load(directory.path(), &options).unwrap(), &spec);
            let differences = half.pixels.iter().zip(&full.pixels).map(|(half, full)| u32::from(half.abs_diff(*full)));
            let mean = f64::from(differences.sum::<u32>()) / full.pixels.len() as f64;
            assert!(mean > 0.0 && mean < mean_max, "{family}, {precision:?}: {mean}");
        }
    }
}

#[test]
fn weights_of_16_bits_draw_on_the_cpu_the_same_whoever_rounded_them() {
    for (family, precision) in [
        ("sd1", Precision::F16),
        ("sd1", Precision::Bf16),
        ("sdxl", Precision::F16),
        ("sd3", Precision::F16),
        ("sd3", Precision::Bf16),
        ("flux-dev", Precision::F16),
        ("flux-dev", Precision::Bf16),
    ] {
        let directory = tiny::model(family);
        let drawn = |precision: Precision| {
            let options = LoadOptions { precisions: Precisions::all(Some(precision)), ..LoadOptions::default() };
            let mut model = load(directory.path(), &options).unwrap();
            let spec = spec(|spec| spec.scheduler = model.manifest().defaults.scheduler);
            picture(&mut model, &spec)
        };
        let full = drawn(Precision::F32);
        let rounded_when_loaded = drawn(precision);
        let dtype = if precision == Precision::F16 { DType::F16 } else { DType::BF16 };
        let parts = std::fs::read_dir(directory.path()).unwrap().map(|part| part.unwrap().path());
        let files = parts.filter(|part| part.is_dir()).flat_map(|part| std::fs::read_dir(part).unwrap());
        for file in files.map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "safetensors") {
                replace_tensors(&file, |tensors| {
                    tensors.values_mut().for_each(|tensor| *tensor = tensor.to_dtype(dtype).unwrap());
                });
            }
        }
        let (read_in_their_file, made_wider_when_loaded) = (drawn(precision), drawn(Precision::F32));
        assert_ne!(full, rounded_when_loaded, "{family}, {precision:?}");
        assert_eq!(rounded_when_loaded, read_in_their_file, "{family}, {precision:?}");
        // By f16 nothing else is rounded; by bf16 what they are multiplied with is.
        let is_the_same = rounded_when_loaded == made_wider_when_loaded;
        assert_eq!(is_the_same, precision == Precision::F16, "{family}, {precision:?}");
    }
}

#[test]
fn an_image_is_a_function_of_its_request() {
    let directory = tiny::model("sd1");
    let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
    let mut again = load(directory.path(), &LoadOptions::default()).unwrap();
    for kind in samplers() {
        let asked = spec(|spec| spec.scheduler = kind);
        let first = picture(&mut model, &asked);
        assert_eq!(first, picture(&mut model, &asked), "{kind}: the same model, again");
        assert_eq!(first, picture(&mut again, &asked), "{kind}: another process");
        assert_ne!(first, picture(&mut model, &spec(|spec| (spec.scheduler, spec.seed) = (kind, 2))), "{kind}: a seed");
    }
    let base = picture(&mut model, &spec(|_| {}));
    let changes: [fn(&mut ImageSpec); 4] = [
        |spec| spec.prompt = "a star".into(),
        |spec| spec.negative_prompt = "red".into(),
        |spec| spec.guidance_scale = 2.0,
        |spec| spec.num_inference_steps = 5,
    ];
    for change in changes {
        assert_ne!(base, picture(&mut model, &spec(change)));
    }
    // Without guidance the negative prompt is not even encoded.
    let unguided = |negative: &str| spec(|spec| (spec.guidance_scale, spec.negative_prompt) = (1.0, negative.into()));
    assert_eq!(picture(&mut model, &unguided("")), picture(&mut model, &unguided("red")));
}

#[test]
fn sizes_other_than_the_trained_one_are_drawn_and_wrong_ones_refused() {
    let directory = tiny::model("sd1");
    let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
    let wide = picture(&mut model, &spec(|spec| (spec.width, spec.height) = (32, 16)));
    assert_eq!((wide.width, wide.height, wide.pixels.len()), (32, 16, 32 * 16 * 3));
    for (width, height) in [(0, 16), (20, 16), (16, 40)] {
        let fault = model
            .admit(RowId(1), &spec(|spec| (spec.width, spec.height) = (width, height)), &StartingPictures::default())
            .unwrap_err();
        assert_eq!((fault.class, fault.code), (FaultClass::Reject, FaultCode::InvalidRequest), "{fault}");
    }
    let many = spec(|spec| (spec.scheduler, spec.num_inference_steps) = (SamplerKind::Lcm, 60));
    let unsuitable = spec(|spec| spec.scheduler = SamplerKind::FlowMatchEuler);
    for asked in [many, unsuitable] {
        assert_eq!(model.admit(RowId(1), &asked, &StartingPictures::default()).unwrap_err().class, FaultClass::Reject);
    }
}

#[test]
fn calls_out_of_order_are_faults_and_move_no_row() {
    let directory = tiny::model("sd1");
    let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
    let asked = spec(|spec| spec.num_inference_steps = 2);
    let expected = picture(&mut model, &asked);
    assert!(model.step(&[RowId(1)]).is_err() && model.decode(RowId(1)).is_err() && model.preview(RowId(1)).is_err());
    assert_eq!(admit(&mut model, RowId(1), &asked), 2);
    assert!(model.decode(RowId(1)).is_err());
    assert!(model.step(&[RowId(1), RowId(2)]).is_err());
    model.step(&[]).unwrap();
    model.step(&[RowId(1)]).unwrap();
    let half_way = model.decode(RowId(1)).unwrap();
    assert!(half_way != expected && (half_way.width, half_way.height) == (expected.width, expected.height));
    model.step(&[RowId(1)]).unwrap();
    assert!(model.step(&[RowId(1)]).is_err());
    assert_eq!(model.decode(RowId(1)).unwrap(), expected);
    model.release(RowId(1));
    model.release(RowId(1));
    assert!(model.decode(RowId(1)).is_err());
}

#[test]
fn a_preview_is_a_small_jpeg() {
    let directory = tiny::model("sd1");
    let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
    admit(&mut model, RowId(1), &spec(|spec| spec.width = 32));
    for _ in 0..2 {
        let bytes = model.preview(RowId(1)).unwrap();
        assert_eq!(bytes[..2], [0xff, 0xd8]);
        model.step(&[RowId(1)]).unwrap();
    }
}

#[test]
fn latents_can_be_given_and_kept() {
    let directory = tiny::model("sd1");
    let mut model = load(directory.path(), &LoadOptions::default()).unwrap();
    let file = directory.path().join("latents.safetensors");
    let mut calls = Vec::new();
    let first = model
        .render(&spec(|_| {}), &StartingPictures::default(), None, &mut |step, steps| calls.push((step, steps)))
        .unwrap();
    assert_eq!(calls, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    first.save_latents(&file).unwrap();
    let kept = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    assert_eq!(kept["latents"].dims(), [1, 4, 8, 8]);

    let given = |seed| spec(|spec| spec.seed = seed);
    let one = rendered(&mut model, &given(1), Some(&file)).unwrap().image;
    let two = rendered(&mut model, &given(2), Some(&file)).unwrap().image;
    assert_eq!(one, two, "the seed decides nothing when the noise is given");
    assert_ne!(one, first.image);
    let wrong_size = spec(|spec| spec.width = 32);
    assert!(rendered(&mut model, &wrong_size, Some(&file)).is_err());
    assert!(rendered(&mut model, &given(1), Some(Path::new("/nowhere"))).is_err());
}

/// The palette that the model `shapes` was trained with.
const COLOURS: [(&str, [i32; 3]); 12] = [
    ("red", [222, 38, 42]),
    ("orange", [248, 138, 26]),
    ("yellow", [252, 222, 50]),
    ("green", [42, 165, 68]),
    ("cyan", [58, 212, 222]),
    ("blue", [40, 80, 220]),
    ("purple", [132, 52, 182]),
    ("pink", [252, 142, 196]),
    ("white", [246, 246, 246]),
    ("black", [26, 26, 30]),
    ("gray", [134, 137, 142]),
    ("brown", [128, 78, 42]),
];

fn nearest(pixel: &[u8]) -> &'static str {
    let distance =
        |colour: &[i32; 3]| -> i32 { colour.iter().zip(pixel).map(|(a, b)| (a - i32::from(*b)).pow(2)).sum() };
    COLOURS.iter().min_by_key(|(_, colour)| distance(colour)).unwrap().0
}

fn most_common<'a>(names: impl Iterator<Item = &'a str>) -> &'a str {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    counts.into_iter().max_by_key(|(name, count)| (*count, *name)).unwrap().0
}

/// The colour of the border, and the most frequent other one.
fn colours(image: &RgbImage) -> (&'static str, &'static str) {
    let (width, height) = (image.width as usize, image.height as usize);
    let named: Vec<_> = image.pixels.chunks_exact(3).map(nearest).collect();
    let border = named.iter().enumerate().filter(|(index, _)| {
        let (x, y) = (index % width, index / width);
        x < 8 || y < 8 || x >= width - 8 || y >= height - 8
    });
    let background = most_common(border.map(|(_, name)| *name));
    (background, most_common(named.iter().copied().filter(|name| *name != background)))
}

#[test]
fn steps_that_keep_features_draw_nearly_the_same() {
    let mut model = load(Path::new(SHAPES), &LoadOptions::default()).unwrap();
    let asked = ImageSpec {
        seed: 1,
        ..ImageSpec::with_defaults("a red star on a white background", &model.manifest().defaults)
    };
    let plain = picture(&mut model, &asked);
    let mut before = 0.0;
    // (interval, mean difference of a channel, of 255, at most)
    for (interval, most) in [(2, 1.5), (3, 2.5), (5, 5.0)] {
        let other = picture(&mut model, &ImageSpec { cache: Some(FeatureCache { interval }), ..asked.clone() });
        let differences = plain.pixels.iter().zip(&other.pixels).map(|(a, b)| f64::from(a.abs_diff(*b)));
        let mean = differences.sum::<f64>() / plain.pixels.len() as f64;
        assert!(mean > before && mean < most, "every {interval} steps: {mean}");
        assert_eq!(colours(&other), ("white", "red"), "every {interval} steps");
        before = mean;
    }
}

#[test]
fn the_default_model_draws_prompts_it_was_never_trained_on() {
    let mut model = load(Path::new(SHAPES), &LoadOptions::default()).unwrap();
    let asked = [
        ("red", "star", "white"),
        ("blue", "hexagon", "yellow"),
        ("purple", "circle", "green"),
        ("yellow", "square", "blue"),
        ("green", "ring", "black"),
    ];
    let defaults = model.manifest().defaults.clone();
    let rows: Vec<RowId> = (0..asked.len() as u64).map(RowId).collect();
    let mut steps = 0;
    for (id, (colour, shape, background)) in rows.iter().zip(asked) {
        let prompt = format!("a {colour} {shape} on a {background} background");
        let spec = ImageSpec { num_inference_steps: 10, seed: 1, ..ImageSpec::with_defaults(prompt, &defaults) };
        steps = admit(&mut model, *id, &spec);
    }
    for _ in 0..steps {
        model.step(&rows).unwrap();
    }
    for (id, (colour, shape, background)) in rows.iter().zip(asked) {
        let found = colours(&model.decode(*id).unwrap());
        assert_eq!(found, (background, colour), "a {colour} {shape} on a {background} background");
    }
}
