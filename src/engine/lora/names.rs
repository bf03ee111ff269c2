//! Which layers of a base model the keys of LoRA files mean.
//!
//! diffusers, transformers and peft call a layer by its path. kohya's trainer replaces dots by underscores, calls the
//! layers of SDXL's UNet as Stability's own code does, and fuses layers of FLUX. None of that can be taken apart again by
//! rules, so all names are made from the base model's layers and looked up.

use std::collections::{BTreeMap, BTreeSet};

use super::Part;
use crate::engine::weights::Weights;

/// Tables that are looked up, not multiplied with: no layers of a LoRA.
const TABLES: [&str; 5] =
    ["token_embedding", "position_embedding", "shared", "embed_tokens", "relative_attention_bias"];

/// A weight of the base model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) part: Part,
    /// As diffusers calls it, without `.weight`.
    pub(super) layer: String,
}

/// The layers of a base model.
#[derive(Debug, Default)]
pub(crate) struct Base {
    /// Shapes of weights.
    shapes: BTreeMap<Target, Vec<usize>>,
    /// What kohya's trainer calls them. One name means several layers where it fuses them.
    kohya: BTreeMap<String, Vec<Target>>,
}

impl Base {
    /// The layers that LoRAs can change in `parts`.
    pub(crate) fn new<'a>(parts: impl IntoIterator<Item = (Part, &'a Weights)>) -> Self {
        Self::of_shapes(
            parts.into_iter().flat_map(|(part, weights)| {
                weights.shapes().into_iter().map(move |(tensor, shape)| (part, tensor, shape))
            }),
        )
    }

    /// The same from names and shapes of tensors.
    pub(super) fn of_shapes(tensors: impl IntoIterator<Item = (Part, String, Vec<usize>)>) -> Self {
        let shapes: BTreeMap<Target, Vec<usize>> = tensors
            .into_iter()
            .filter(|(_, _, shape)| matches!(shape.len(), 2 | 4))
            .filter_map(|(part, tensor, shape)| {
                let layer = tensor.strip_suffix(".weight")?;
                let is_table = layer.rsplit('.').next().is_some_and(|name| TABLES.contains(&name));
                (!is_table).then(|| (target(part, layer), shape))
            })
            .collect();
        let kohya = kohya_names(&shapes);
        Self { shapes, kohya }
    }

    /// The shape of a weight.
    pub(super) fn shape(&self, target: &Target) -> Option<&[usize]> {
        self.shapes.get(target).map(Vec::as_slice)
    }

    /// The layers that `name`, a key without its ending, means; none when the model has no such layer.
    pub(super) fn resolve(&self, name: &str) -> Option<Vec<Target>> {
        if let Some(targets) = self.kohya.get(name) {
            return Some(targets.clone());
        }
        // The oldest files leave the part out when there is but one.
        let denoiser = [Part::Unet, Part::Transformer].into_iter().map(|part| (part, name));
        let prefixed = Part::ALL.into_iter().filter_map(|part| {
            let path = name.strip_prefix(part.as_str())?.strip_prefix('.')?;
            Some((part, path))
        });
        prefixed
            .chain(denoiser)
            .map(|(part, path)| target(part, &current_path(part, path)))
            .find(|target| self.shapes.contains_key(target))
            .map(|target| vec![target])
    }
}

/// The layer `path` of `part`. transformers 5 leaves out the `text_model` that transformers 4 puts first.
pub(super) fn target(part: Part, path: &str) -> Target {
    Target { part, layer: path.strip_prefix("text_model.").unwrap_or(path).to_owned() }
}

/// A path as the first versions of diffusers wrote it, in today's words.
fn current_path(part: Part, path: &str) -> String {
    let path = path.replace(".processor.", ".");
    let Some((layer, projection)) = path.strip_suffix("_lora").and_then(|path| path.rsplit_once(".to_")) else {
        return path;
    };
    match (part, projection) {
        (Part::Unet | Part::Transformer, "out") => format!("{layer}.to_out.0"),
        (Part::Unet | Part::Transformer, _) => format!("{layer}.to_{projection}"),
        (Part::TextEncoder | Part::TextEncoder2 | Part::TextEncoder3, _) => format!("{layer}.{projection}_proj"),
    }
}

fn kohya_names(shapes: &BTreeMap<Target, Vec<usize>>) -> BTreeMap<String, Vec<Target>> {
    let mut names: BTreeMap<String, Vec<Target>> = BTreeMap::new();
    let paths: BTreeSet<&str> =
        shapes.keys().filter(|target| target.part == Part::Unet).map(|target| target.layer.as_str()).collect();
    for target in shapes.keys() {
        let prefixes: &[&str] = match target.part {
            Part::Unet => &["lora_unet_"],
            Part::Transformer => &["lora_transformer_"],
            Part::TextEncoder => &["lora_te_", "lora_te1_", "lora_te_text_model_", "lora_te1_text_model_"],
            // FLUX's second encoder is the third of Stable Diffusion 3.
            Part::TextEncoder2 => &["lora_te2_", "lora_te2_text_model_", "lora_te3_"],
            Part::TextEncoder3 => &["lora_te3_"],
        };
        let stability = if target.part == Part::Unet { stability_path(&target.layer, &paths) } else { None };
        for path in [Some(target.layer.clone()), stability].into_iter().flatten() {
            for prefix in prefixes {
                names.entry(format!("{prefix}{}", path.replace('.', "_"))).or_insert_with(|| vec![target.clone()]);
            }
        }
    }
    names.extend(flux_names(shapes));
    names
}

/// What Stability's code for Stable Diffusion 1 to XL calls a layer of the UNet.
///
/// Its way down is one list, of which each level has its residual blocks, with transformers, and then its downsampler;
/// so is its way up. `paths` has all layers.
fn stability_path(path: &str, paths: &BTreeSet<&str>) -> Option<String> {
    let has = |prefix: &str| paths.range(prefix..).next().is_some_and(|path| path.starts_with(prefix));
    let per_level = 1 + (0..).take_while(|layer| has(&format!("down_blocks.0.resnets.{layer}."))).count();
    let words: Vec<&str> = path.split('.').collect();
    let number = |index: usize| words.get(index).and_then(|word| word.parse::<usize>().ok());
    let rest = |from: usize| words.get(from..).map(|words| words.join("."));
    Some(match words.as_slice() {
        ["conv_in"] => "input_blocks.0.0".into(),
        ["conv_out"] => "out.2".into(),
        ["time_embedding", "linear_1"] => "time_embed.0".into(),
        ["time_embedding", "linear_2"] => "time_embed.2".into(),
        ["add_embedding", "linear_1"] => "label_emb.0.0".into(),
        ["add_embedding", "linear_2"] => "label_emb.0.2".into(),
        ["down_blocks", _, "resnets", ..] => {
            format!("input_blocks.{}.0.{}", 1 + number(1)? * per_level + number(3)?, residual_path(&rest(4)?)?)
        }
        ["down_blocks", _, "attentions", ..] => {
            format!("input_blocks.{}.1.{}", 1 + number(1)? * per_level + number(3)?, rest(4)?)
        }
        ["down_blocks", _, "downsamplers", ..] => format!("input_blocks.{}.0.op", (number(1)? + 1) * per_level),
        ["mid_block", "resnets", ..] => format!("middle_block.{}.{}", 2 * number(2)?, residual_path(&rest(3)?)?),
        ["mid_block", "attentions", ..] => format!("middle_block.1.{}", rest(3)?),
        ["up_blocks", _, "resnets", ..] => {
            format!("output_blocks.{}.0.{}", number(1)? * per_level + number(3)?, residual_path(&rest(4)?)?)
        }
        ["up_blocks", _, "attentions", ..] => {
            format!("output_blocks.{}.1.{}", number(1)? * per_level + number(3)?, rest(4)?)
        }
        ["up_blocks", level, "upsamplers", ..] => {
            let place = if has(&format!("up_blocks.{level}.attentions.")) { 2 } else { 1 };
            format!("output_blocks.{}.{place}.conv", (number(1)? + 1) * per_level - 1)
        }
        _ => return None,
    })
}

fn residual_path(path: &str) -> Option<&'static str> {
    Some(match path {
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    })
}

/// Layers of Black Forest Labs' code for FLUX, and what they are in diffusers' model, in the order of their outputs.
const FLUX_DOUBLE: [(&str, &[&str]); 10] = [
    ("img_attn_proj", &["attn.to_out.0"]),
    ("img_attn_qkv", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("img_mlp_0", &["ff.net.0.proj"]),
    ("img_mlp_2", &["ff.net.2"]),
    ("img_mod_lin", &["norm1.linear"]),
    ("txt_attn_proj", &["attn.to_add_out"]),
    ("txt_attn_qkv", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("txt_mlp_0", &["ff_context.net.0.proj"]),
    ("txt_mlp_2", &["ff_context.net.2"]),
    ("txt_mod_lin", &["norm1_context.linear"]),
];
const FLUX_SINGLE: [(&str, &[&str]); 3] = [
    ("linear1", &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
    ("linear2", &["proj_out"]),
    ("modulation_lin", &["norm.linear"]),
];

fn flux_names(shapes: &BTreeMap<Target, Vec<usize>>) -> BTreeMap<String, Vec<Target>> {
    let mut names = BTreeMap::new();
    // Stable Diffusion 3 has blocks of the same name, but no others.
    let first = Target { part: Part::Transformer, layer: "single_transformer_blocks.0.proj_mlp".into() };
    if !shapes.contains_key(&first) {
        return names;
    }
    for (ours, theirs, table) in [
        ("transformer_blocks", "double_blocks", &FLUX_DOUBLE[..]),
        ("single_transformer_blocks", "single_blocks", &FLUX_SINGLE[..]),
    ] {
        for block in 0.. {
            let named = table.iter().map(|(name, layers)| {
                let targets = layers.iter().map(|layer| target(Part::Transformer, &format!("{ours}.{block}.{layer}")));
                (format!("lora_unet_{theirs}_{block}_{name}"), targets.collect::<Vec<_>>())
            });
            let there: Vec<_> =
                named.filter(|(_, targets)| targets.iter().all(|target| shapes.contains_key(target))).collect();
            if there.is_empty() {
                break;
            }
            names.extend(there);
        }
    }
    names
}
