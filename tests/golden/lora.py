"""Records what diffusers and peft make of LoRA files on the tiny model `sd1`, and which layers of SDXL and FLUX they name.

    python lora.py        # needs torch, diffusers, transformers and peft

Weights of LoRAs are a function of tensor name and shape as those of the models are, so only names, shapes and alphas are
stored. What is recorded is the output of the UNet, or of the text encoder, while the LoRAs are active.
"""

import json
import pathlib
import re
import tempfile

import diffusers
import peft
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux_lora_to_diffusers,
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

from make import FAMILIES, build
from tiny import numbers, tensor, versions

ATTENTION = r"attn\d\.to_(q|k|v|out\.0)$"
TRANSFORMERS = ATTENTION + r"|ff\.net|proj_in$|proj_out$"
CONVOLUTIONS = r"conv1$|conv2$|conv_shortcut$|(down|up)samplers\.0\.conv$|conv_in$|conv_out$"
TEXT = r"(q|k|v|out)_proj$|fc\d$"


def pipeline():
    return build(FAMILIES["sd1"])[0]


def old_diffusers(part, module, role):
    """`unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight`"""
    at, name = re.fullmatch(r"(.*)\.(to_q|to_k|to_v|to_out|q_proj|k_proj|v_proj|out_proj)(?:\.0)?", module).groups()
    name = name if name.startswith("to_") else "to_" + name.removesuffix("_proj")
    return f"{part}.{at}{'.processor' if part == 'unet' else ''}.{name}_lora.{role}.weight"


def lora(model, part, style, pattern, rank, alpha=None):
    """Shapes and alphas of a LoRA file for the layers of `model` whose names match `pattern`."""
    shapes, alphas = {}, {}
    for module, layer in model.named_modules():
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) or not re.search(pattern, module):
            continue
        path = module if part == "unet" else "text_model." + module
        r = rank(module)
        down = [r, *layer.weight.shape[1:]]
        up = [layer.weight.shape[0], r, *[1] * (len(down) - 2)]
        if style == "peft":
            names = [f"{part}.{path}.lora_A.weight", f"{part}.{path}.lora_B.weight"]
        elif style == "old":
            names = [old_diffusers(part, path, "down"), old_diffusers(part, path, "up")]
        elif style == "linear":
            names = [f"{part}.{path}.lora_linear_layer.{role}.weight" for role in ["down", "up"]]
        else:
            at = ("lora_unet_" if part == "unet" else "lora_te_") + path.replace(".", "_")
            names = [f"{at}.lora_down.weight", f"{at}.lora_up.weight"]
            alphas[f"{at}.alpha"] = alpha
        shapes.update(zip(names, [down, up]))
    return {"shapes": shapes, "alphas": alphas}


def write(file, path):
    tensors = {name: tensor(name, shape) for name, shape in file["shapes"].items()}
    tensors.update({name: torch.tensor(alpha) for name, alpha in file["alphas"].items()})
    metadata = {"lora_adapter_metadata": json.dumps(file["adapter_metadata"])} if "adapter_metadata" in file else None
    safetensors.torch.save_file(tensors, str(path), metadata=metadata)


def files(pipe):
    unet, text = pipe.unet, pipe.text_encoder
    mixed = {"rank": lambda module: 3 if module.endswith("to_k") else 2}
    two = {"rank": lambda module: 2}
    described = lora(unet, "unet", "peft", TRANSFORMERS, **two)
    described["adapter_metadata"] = {
        "unet.r": 2, "unet.lora_alpha": 3, "unet.alpha_pattern": {"attn2.to_v": 5, "ff.net.2": 1},
        "unet.target_modules": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"],
    }
    rank_stable = lora(unet, "unet", "peft", ATTENTION, rank=lambda module: 3)
    rank_stable["adapter_metadata"] = {
        "unet.r": 3, "unet.lora_alpha": 2, "unet.use_rslora": True,
        "unet.target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
    }
    return {
        "peft": lora(unet, "unet", "peft", TRANSFORMERS, **mixed),
        "metadata": described,
        "rank-stable": rank_stable,
        "old-diffusers": lora(unet, "unet", "old", ATTENTION, **two),
        "kohya": lora(unet, "unet", "kohya", TRANSFORMERS, rank=lambda module: 4, alpha=1.5),
        "convolutions": lora(unet, "unet", "kohya", CONVOLUTIONS + "|time_emb", **two, alpha=0.5),
        "text-peft": lora(text, "text_encoder", "peft", TEXT, **two),
        "text-linear": lora(text, "text_encoder", "linear", "mlp|proj$", **two),
        "text-old": lora(text, "text_encoder", "old", "proj$", **two),
        "text-kohya": lora(text, "text_encoder", "kohya", TEXT, **two, alpha=1.0),
    }


CASES = [
    [["peft", 1.0]],
    [["metadata", 1.0]],
    [["rank-stable", 1.0]],
    [["old-diffusers", 0.8]],
    [["kohya", 1.0]],
    [["convolutions", 1.0]],
    [["peft", 0.7], ["kohya", -0.3]],
    [["text-peft", 1.0]],
    [["text-linear", 1.0]],
    [["text-old", 1.0]],
    [["text-kohya", 0.6]],
]


def outputs(part, pipe):
    with torch.no_grad():
        if part == "text_encoder":
            ids = pipe.tokenizer(
                "a red star", padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
            return ids[0].tolist(), pipe.text_encoder(ids)[0]
        context = tensor("context", [1, 16, 77]).transpose(1, 2)
        return None, pipe.unet(tensor("latents", [1, 4, 8, 8]) * 20.0, torch.tensor([981.0]), context).sample


def record_cases():
    names = files(pipeline())
    directory = pathlib.Path(tempfile.mkdtemp())
    for name, file in names.items():
        write(file, directory / f"{name}.safetensors")
    cases = []
    for loras in CASES:
        pipe = pipeline()
        part = "text_encoder" if loras[0][0].startswith("text") else "unet"
        _, before = outputs(part, pipe)
        for name, _ in loras:
            pipe.load_lora_weights(str(directory), weight_name=f"{name}.safetensors", adapter_name=name)
        pipe.set_adapters([name for name, _ in loras], [weight for _, weight in loras])
        ids, after = outputs(part, pipe)
        assert (after - before).abs().max() > 0.01 * before.abs().max(), loras
        cases.append({"loras": loras, "part": part, "ids": ids, "output": numbers(after[:, ::3])})
    return {"files": names, "cases": cases}


SDXL = {
    "sample_size": 128, "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}


def kohya_sdxl_names():
    """The layers of SDXL's UNet as Stability's own code calls them, which kohya's trainer keeps."""
    def residual(shortcut):
        inner = ["in_layers_2", "emb_layers_1", "out_layers_3"]
        return inner + ["skip_connection"] if shortcut else inner

    def transformer(layers):
        attention = [f"{attn}_{to}" for attn in ["attn1", "attn2"] for to in ["to_q", "to_k", "to_v", "to_out_0"]]
        inner = attention + ["ff_net_0_proj", "ff_net_2"]
        return ["proj_in", "proj_out"] + [f"transformer_blocks_{i}_{name}" for i in range(layers) for name in inner]

    blocks = {"input_blocks_0_0": [""], "time_embed_0": [""], "time_embed_2": [""], "label_emb_0_0": [""],
              "label_emb_0_2": [""], "out_2": [""]}
    for level, layers in enumerate([0, 2, 10]):
        for layer in range(2):
            at = f"input_blocks_{1 + 3 * level + layer}"
            blocks[f"{at}_0"] = residual(layer == 0 and level > 0)
            if layers:
                blocks[f"{at}_1"] = transformer(layers)
        if level < 2:
            blocks[f"input_blocks_{3 + 3 * level}_0"] = ["op"]
    blocks |= {"middle_block_0": residual(False), "middle_block_1": transformer(10), "middle_block_2": residual(False)}
    for level, layers in enumerate([10, 2, 0]):
        for layer in range(3):
            at = f"output_blocks_{3 * level + layer}"
            blocks[f"{at}_0"] = residual(True)
            if layers:
                blocks[f"{at}_1"] = transformer(layers)
        if level < 2:
            blocks[f"output_blocks_{3 * level + 2}_{2 if layers else 1}"] = ["conv"]
    return blocks


def record_sdxl():
    """Which layer of diffusers' UNet each of kohya's names means: blocks, and the names within each kind of block."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
    layers = {name for name, layer in unet.named_modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))}
    blocks, kinds, reached = [], {}, set()
    for block, inner in kohya_sdxl_names().items():
        pairs, base = {}, None
        for name in inner:
            kohya = "_".join(part for part in ["lora_unet", block, name] if part)
            state = {f"{kohya}.lora_down.weight": torch.zeros(1, 1), f"{kohya}.lora_up.weight": torch.zeros(1, 1)}
            state = _maybe_map_sgm_blocks_to_diffusers(state, unet.config)
            state, _ = _convert_non_diffusers_lora_to_diffusers(state)
            state = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in state.items()})
            module = next(key for key in state if key.endswith("lora_A.weight")).removesuffix(".lora_A.weight")
            assert module in layers and module not in reached, (kohya, module)
            reached.add(module)
            depth = 4 if re.match(r"(down|up)_blocks", module) else 3 if module.startswith("mid_block") else 9
            base, suffix = ".".join(module.split(".")[:depth]), ".".join(module.split(".")[depth:])
            pairs[name] = suffix
        kind = next((kind for kind, known in kinds.items() if known == pairs), None) or f"kind {len(kinds)}"
        kinds[kind] = pairs
        blocks.append([block, base, kind])
    assert reached == layers, layers - reached
    return {"blocks": blocks, "kinds": kinds}


def record_flux():
    """Which layers of diffusers' model each of kohya's names for a block of FLUX means, in the order of their outputs."""
    def streams(*names):
        return [f"{stream}_{name}" for stream in ["img", "txt"] for name in names]

    names = [f"double_blocks_1_{name}" for name in streams("attn_proj", "attn_qkv", "mlp_0", "mlp_2", "mod_lin")]
    names += [f"single_blocks_1_{name}" for name in ["linear1", "linear2", "modulation_lin"]]
    meanings = {}
    for name in names:
        outputs = 3 * 3072 + 12288 if name.endswith("linear1") else 3
        state = {f"lora_unet_{name}.lora_down.weight": torch.zeros(1, 1),
                 f"lora_unet_{name}.lora_up.weight": torch.zeros(outputs, 1)}
        state = _convert_kohya_flux_lora_to_diffusers(state)
        down = [key for key in state if key.endswith(".lora_A.weight")]
        meanings[name] = [key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in down]
    return meanings


def main():
    document = {"versions": versions(diffusers, peft, torch)}
    document |= record_cases()
    document["sdxl"] = record_sdxl()
    document["flux"] = record_flux()
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
