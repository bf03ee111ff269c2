//! LoRA files of every format against what diffusers and peft recorded in `tests/golden/lora.json`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::names::Target;
use super::{Base, Lora, LoraError, LoraSet, Part, find, list};
use crate::engine::clip::{Clip, Projection};
use crate::engine::config::{DenoiserConfig, PipelineConfig};
use crate::engine::device::Placement;
use crate::engine::tiny;
use crate::engine::unet::Unet;
use crate::engine::weights::{self, Tally, Weights};

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../tests/golden/lora.json")).unwrap()
}

fn shape(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|side| side.as_u64().unwrap() as usize).collect()
}

/// Writes the LoRA `name` as a file into `directory`, after `change` to its tensors.
fn write(directory: &Path, name: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> PathBuf {
    let file = &golden()["files"][name];
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (key, dims) in file["shapes"].as_object().unwrap() {
        tensors.insert(key.clone(), tiny::tensor(key, &shape(dims)));
    }
    for (key, alpha) in file["alphas"].as_object().unwrap() {
        tensors.insert(key.clone(), Tensor::new(alpha.as_f64().unwrap() as f32, &Device::Cpu).unwrap());
    }
    change(&mut tensors);
    let path = directory.join(format!("{name}.safetensors"));
    candle_core::safetensors::save(&tensors, &path).unwrap();
    if let Some(metadata) = file.get("adapter_metadata") {
        describe(&path, metadata);
    }
    path
}

/// Puts peft's configuration into the header of a safetensors file.
fn describe(path: &Path, metadata: &Value) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"] = json!({ "lora_adapter_metadata": metadata.to_string() });
    let header = header.to_string();
    let padded = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut changed = (padded.len() as u64).to_le_bytes().to_vec();
    changed.extend(padded.into_bytes());
    changed.extend(&bytes[8 + length..]);
    std::fs::write(path, changed).unwrap();
}

/// The weights of a part of a tiny model, f32 on the CPU.
fn part(model: &Path, part: Part) -> Weights {
    let placement = Placement { device: Device::Cpu, dtype: DType::F32 };
    Weights::open(&weights::files(&model.join(part.as_str())).unwrap(), &placement).unwrap()
}

fn base(model: &Path) -> Base {
    Base::new([(Part::Unet, &part(model, Part::Unet)), (Part::TextEncoder, &part(model, Part::TextEncoder))])
}

/// What the recorded case puts out.
fn output(model: &Path, case: &Value, loras: LoraSet) -> Tensor {
    let config = PipelineConfig::read(model).unwrap();
    if case["part"] == "text_encoder" {
        let weights = part(model, Part::TextEncoder).overlaid(Arc::new(loras), Part::TextEncoder);
        let clip = Clip::new(&weights, &config.clips[0], Projection::None, &Device::Cpu).unwrap();
        let ids: Vec<u32> =
            shape(&tiny::golden("sd1")["tokens"]["tokenizer"]["a red star"]).into_iter().map(|id| id as u32).collect();
        return clip.forward(&ids).unwrap().last.transpose(1, 2).unwrap();
    }
    let weights = part(model, Part::Unet).overlaid(Arc::new(loras), Part::Unet);
    let DenoiserConfig::Unet(unet) = &config.denoiser else { panic!("a UNet") };
    let unet = Unet::new(&weights, unet, &Device::Cpu, DType::F32).unwrap();
    let latents = (tiny::tensor("latents", &[1, 4, 8, 8]) * 20.0).unwrap();
    unet.forward(&latents, &[981.0], &tiny::tensor("context", &[1, 16, 77]), None).unwrap()
}

#[test]
fn every_format_computes_what_diffusers_computes() {
    let model = tiny::model("sd1");
    let directory = tempfile::tempdir().unwrap();
    let base = base(model.path());
    for case in golden()["cases"].as_array().unwrap() {
        let mut loras = Vec::new();
        for lora in case["loras"].as_array().unwrap() {
            let path = write(directory.path(), lora[0].as_str().unwrap(), |_| {});
            loras.push((Arc::new(Lora::read(&path, &base).unwrap()), lora[1].as_f64().unwrap() as f32));
        }
        let ours = output(model.path(), case, LoraSet::new(loras));
        // Every third channel of the UNet, every third token of the text encoder.
        let kept: Vec<u32> = (0..ours.dim(1).unwrap() as u32).step_by(3).collect();
        let ours = ours.contiguous().unwrap().index_select(&Tensor::new(kept, &Device::Cpu).unwrap(), 1).unwrap();
        let ours: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
        let theirs: Vec<f32> =
            case["output"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect();
        assert_eq!(ours.len(), theirs.len());
        let largest = theirs.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let worst = ours.iter().zip(&theirs).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f32::max) / largest;
        assert!(worst <= 1e-5, "{} differs by {worst} from diffusers", case["loras"]);
    }
}

#[test]
fn a_lora_of_weight_zero_and_no_lora_leave_the_model_as_it_is() {
    let model = tiny::model("sd1");
    let directory = tempfile::tempdir().unwrap();
    let lora = Lora::read(&write(directory.path(), "peft", |_| {}), &base(model.path())).unwrap();
    let case = json!({ "part": "unet" });
    let flat = |loras: Vec<(Arc<Lora>, f32)>| -> Vec<f32> {
        output(model.path(), &case, LoraSet::new(loras)).flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(flat(Vec::new()), flat(vec![(Arc::new(lora), 0.0)]));
}

#[test]
fn only_what_a_lora_changes_is_copied_out_of_the_mapped_file() {
    let model = tiny::model("sd1");
    let directory = tempfile::tempdir().unwrap();
    let config = PipelineConfig::read(model.path()).unwrap();
    let lora = Lora::read(&write(directory.path(), "text-old", |_| {}), &base(model.path())).unwrap();
    let bytes = |loras: &LoraSet| {
        let tally = Arc::new(Tally::default());
        let weights = part(model.path(), Part::TextEncoder).counted(&tally);
        let weights = weights.overlaid(Arc::new(loras.clone()), Part::TextEncoder);
        Clip::new(&weights, &config.clips[0], Projection::None, &Device::Cpu).unwrap();
        (tally.copied(), tally.mapped())
    };
    let merged = LoraSet::new(vec![(Arc::new(lora), 1.0)]);
    let changed = merged.changed_bytes();
    assert_eq!(changed, 8 * 16 * 16 * 4, "queries, keys, values and outputs of two layers");
    let (copied, mapped) = bytes(&LoraSet::default());
    assert_eq!(bytes(&merged), (copied + changed, mapped - changed));
}

#[test]
fn the_order_of_loras_decides_no_bit() {
    let model = tiny::model("sd1");
    let (directory, base) = (tempfile::tempdir().unwrap(), base(model.path()));
    let read = |name| Arc::new(Lora::read(&write(directory.path(), name, |_| {}), &base).unwrap());
    let (one, two, three) = ((read("peft"), 0.7), (read("kohya"), -0.3), (read("metadata"), 0.1));
    let delta = |loras| -> Vec<f32> {
        let tensor = "mid_block.attentions.0.proj_in.weight";
        let delta = LoraSet::new(loras).delta(Part::Unet, tensor, &[16, 16, 1, 1], &Device::Cpu).unwrap().unwrap();
        assert_eq!(delta.dims(), [16, 16, 1, 1]);
        delta.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(delta(vec![one.clone(), two.clone(), three.clone()]), delta(vec![three, one, two]));
}

#[test]
fn a_lora_says_what_it_is() {
    let model = tiny::model("sd1");
    let directory = tempfile::tempdir().unwrap();
    let lora = Lora::read(&write(directory.path(), "peft", |_| {}), &base(model.path())).unwrap();
    assert_eq!(lora.name(), "peft");
}

/// Why the LoRA `name`, changed, cannot be read for the tiny model `sd1`.
fn refusal(name: &str, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> LoraError {
    let model = tiny::model("sd1");
    let directory = tempfile::tempdir().unwrap();
    Lora::read(&write(directory.path(), name, change), &base(model.path())).unwrap_err()
}

fn insert(key: &'static str, dims: &'static [usize]) -> impl FnOnce(&mut HashMap<String, Tensor>) {
    move |tensors| {
        tensors.insert(key.into(), tiny::tensor(key, dims));
    }
}

#[test]
fn other_kinds_are_refused_by_name() {
    for (key, expected) in [
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "DoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "LoKr"),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", "LoCon with a Tucker decomposition"),
        ("lora_unet_mid_block_attentions_0_norm.diff", "a full difference of weights"),
        ("unet.mid_block.attentions.0.proj_in.lora_B.bias", "a LoRA with biases"),
    ] {
        let error = refusal("peft", insert(key, &[2, 2]));
        let LoraError::Unsupported { key: named, kind, .. } = &error else { panic!("{error}") };
        assert_eq!((named.as_str(), *kind), (key, expected));
    }
}

#[test]
fn the_first_key_without_a_layer_is_named() {
    for key in [
        "unet.down_blocks.2.attentions.0.proj_in.lora_A.weight",
        "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "lora_unet_input_blocks_7_1_proj_in.lora_down.weight",
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "lora_te_text_model_embeddings_token_embedding.lora_down.weight",
        "lora_unet_.alpha",
    ] {
        let error = refusal("kohya", insert(key, &[2, 2]));
        assert!(matches!(&error, LoraError::UnknownLayer { key: named, .. } if named == key), "{error}");
        assert!(error.to_string().contains("is for another architecture"), "{error}");
    }
}

#[test]
fn a_key_of_another_shape_is_named_with_both_shapes() {
    const DOWN: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight";
    const UP: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_B.weight";
    let cases: [(&'static str, &'static [usize], &[usize]); 6] = [
        // Another width of the text encoder.
        (DOWN, &[2, 24], &[2, 16]),
        (DOWN, &[2, 16, 3, 3], &[2, 16, 1, 1]),
        (DOWN, &[2], &[2, 16]),
        (UP, &[24, 2], &[16, 2]),
        (UP, &[16, 3], &[16, 2]),
        (UP, &[16, 2, 3, 3], &[16, 2, 1, 1]),
    ];
    for (key, found, expected) in cases {
        let error = refusal("peft", insert(key, found));
        let LoraError::WrongShape { key: named, expected: wanted, found: had, .. } = &error else { panic!("{error}") };
        assert_eq!((named.as_str(), wanted.as_slice(), had.as_slice()), (key, expected, found));
        assert!(error.to_string().contains("is for another architecture"), "{error}");
    }
}

#[test]
fn files_that_are_no_loras_are_refused() {
    const CONV: &str = "lora_unet_mid_block_resnets_0_conv1";
    type Change = fn(&mut HashMap<String, Tensor>);
    let cases: [(&str, Change, &str); 6] = [
        ("peft", |tensors| tensors.retain(|_, _| false), "is empty"),
        ("peft", |tensors| insert("emb_params", &[2, 2])(tensors), "no key of a LoRA"),
        ("convolutions", |tensors| drop(tensors.remove(&format!("{CONV}.lora_up.weight"))), "no counterpart"),
        (
            "convolutions",
            |tensors| drop(tensors.insert(format!("{CONV}.alpha"), Tensor::new(f32::NAN, &Device::Cpu).unwrap())),
            "not one finite number",
        ),
        (
            "convolutions",
            |tensors| insert("lora_unet_mid_block_resnets_0_conv1.lora_A.weight", &[2, 16, 3, 3])(tensors),
            "is there twice",
        ),
        (
            "convolutions",
            |tensors| {
                insert("unet.mid_block.resnets.0.conv1.lora_A.weight", &[2, 16, 3, 3])(tensors);
                insert("unet.mid_block.resnets.0.conv1.lora_B.weight", &[16, 2, 1, 1])(tensors);
            },
            "another key names as well",
        ),
    ];
    for (name, change, expected) in cases {
        let error = refusal(name, change).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "peft", |_| {});
    let bytes = std::fs::read(&path).unwrap();
    for keep in [0, 4, 8, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        assert!(matches!(Lora::read(&path, &Base::default()), Err(LoraError::Incomplete { .. })), "{keep}");
    }
    assert!(matches!(Lora::read(Path::new("/nowhere"), &Base::default()), Err(LoraError::Io { .. })));
}

#[test]
fn kohyas_names_for_sdxl_mean_the_layers_that_diffusers_takes_them_for() {
    let sdxl = &golden()["sdxl"];
    let mut pairs = Vec::new();
    for block in sdxl["blocks"].as_array().unwrap() {
        let [kohya, ours, kind] = [0, 1, 2].map(|index| block[index].as_str().unwrap());
        for (their_name, our_name) in sdxl["kinds"][kind].as_object().unwrap() {
            let join = |parts: [&str; 2], by: &str| {
                parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(by)
            };
            let name = format!("lora_unet_{}", join([kohya, their_name], "_"));
            pairs.push((name, join([ours, our_name.as_str().unwrap()], ".")));
        }
    }
    assert_eq!(pairs.len(), 794);
    let base = Base::of_shapes(pairs.iter().map(|(_, layer)| (Part::Unet, format!("{layer}.weight"), vec![1, 1])));
    for (name, layer) in pairs {
        let expected = Target { part: Part::Unet, layer: layer.clone() };
        assert_eq!(base.resolve(&name), Some(vec![expected.clone()]), "{name}");
        // The same layer by its path with underscores, which is what kohya's trainer writes for Stable Diffusion 1.
        let plain = format!("lora_unet_{}", layer.replace('.', "_"));
        assert_eq!(base.resolve(&plain), Some(vec![expected]), "{plain}");
    }
}

#[test]
fn text_encoders_are_found_with_and_without_the_prefix_of_older_versions() {
    let fc1 = "encoder.layers.0.mlp.fc1.weight";
    let base = Base::of_shapes([
        (Part::TextEncoder, format!("text_model.{fc1}"), vec![2, 2]),
        (Part::TextEncoder2, fc1.into(), vec![2, 2]),
        (Part::TextEncoder2, "text_projection.weight".into(), vec![2, 2]),
        (Part::TextEncoder3, "encoder.block.0.layer.0.SelfAttention.q.weight".into(), vec![2, 2]),
    ]);
    for (name, part) in [
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", Part::TextEncoder),
        ("text_encoder.encoder.layers.0.mlp.fc1", Part::TextEncoder),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", Part::TextEncoder),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", Part::TextEncoder),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", Part::TextEncoder2),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", Part::TextEncoder2),
        ("lora_te2_text_projection", Part::TextEncoder2),
        ("text_encoder_2.text_projection", Part::TextEncoder2),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q", Part::TextEncoder3),
    ] {
        let found = base.resolve(name).unwrap_or_default();
        assert_eq!(found.iter().map(|target| target.part).collect::<Vec<_>>(), [part], "{name}");
    }
}

#[test]
fn kohyas_names_for_flux_mean_the_layers_that_diffusers_takes_them_for() {
    let golden = golden();
    let meanings: Vec<(String, Vec<&str>)> = golden["flux"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, layers)| {
            let layers = layers.as_array().unwrap().iter().map(|layer| layer.as_str().unwrap());
            (format!("lora_unet_{name}"), layers.collect())
        })
        .collect();
    assert_eq!(meanings.len(), 13);
    // What was recorded for the second block holds for all.
    let of_block = |text: &str, block: usize| {
        text.replace("blocks_1", &format!("blocks_{block}")).replace("blocks.1", &format!("blocks.{block}"))
    };
    let layers = || meanings.iter().flat_map(|(_, layers)| layers);
    let base = Base::of_shapes((0..3).flat_map(|block| {
        layers().map(move |layer| (Part::Transformer, format!("{}.weight", of_block(layer, block)), vec![1, 1]))
    }));
    for block in 0..3 {
        for (name, layers) in &meanings {
            let targets = base.resolve(&of_block(name, block)).unwrap_or_default();
            let found: Vec<String> = targets.into_iter().map(|target| target.layer).collect();
            let expected: Vec<String> = layers.iter().map(|layer| of_block(layer, block)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }
    assert_eq!(base.resolve("lora_unet_double_blocks_3_img_attn_qkv"), None);
}

#[test]
fn fused_layers_of_flux_are_taken_apart() {
    let layers = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"];
    let outputs = |layer: &str| if layer == "proj_mlp" { 8 } else { 2 };
    let tensors = layers.map(|layer| {
        (Part::Transformer, format!("single_transformer_blocks.0.{layer}.weight"), vec![outputs(layer), 3])
    });
    let base = Base::of_shapes(tensors);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flux.safetensors");
    let (down, up) = (tiny::tensor("down", &[2, 3]), tiny::tensor("up", &[14, 2]));
    let file = HashMap::from([
        ("lora_unet_single_blocks_0_linear1.lora_down.weight", down.clone()),
        ("lora_unet_single_blocks_0_linear1.lora_up.weight", up.clone()),
        ("lora_unet_single_blocks_0_linear1.alpha", Tensor::new(1.0_f32, &Device::Cpu).unwrap()),
    ]);
    candle_core::safetensors::save(&file, &path).unwrap();
    let set = LoraSet::new(vec![(Arc::new(Lora::read(&path, &base).unwrap()), 2.0)]);
    let deltas = layers.map(|layer| {
        let tensor = format!("single_transformer_blocks.0.{layer}.weight");
        set.delta(Part::Transformer, &tensor, &[outputs(layer), 3], &Device::Cpu).unwrap().unwrap()
    });
    let ours: Vec<Vec<f32>> = Tensor::cat(&deltas, 0).unwrap().to_vec2().unwrap();
    // 2.0 * alpha / rank is 1.
    assert_eq!(ours, up.matmul(&down).unwrap().to_vec2::<f32>().unwrap());
}

#[test]
fn a_lora_that_is_not_there_is_answered_with_those_that_are() {
    let directory = tempfile::tempdir().unwrap();
    let name = |text: &str| text.parse().unwrap();
    let message = |text: &str| find(directory.path(), &name(text)).unwrap_err().to_string();
    assert!(message("a").ends_with("there is: none"), "{}", message("a"));
    for file in ["b.safetensors", "a.safetensors", "not a token.safetensors", "c.bin", ".safetensors"] {
        std::fs::write(directory.path().join(file), "").unwrap();
    }
    std::fs::create_dir(directory.path().join("d.safetensors")).unwrap();
    assert_eq!(find(directory.path(), &name("a")).unwrap(), directory.path().join("a.safetensors"));
    assert!(message("c").ends_with("there is: a, b"), "{}", message("c"));
    for index in 0..10 {
        std::fs::write(directory.path().join(format!("x{index}.safetensors")), "").unwrap();
    }
    assert!(message("c").ends_with("x7, and 2 more"), "{}", message("c"));
    assert_eq!(list(directory.path()).len(), 12);
    assert!(list(Path::new("/nowhere")).is_empty());
}
