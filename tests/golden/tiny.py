"""Records what diffusers and transformers do with tiny Stable Diffusion models, into tiny.json.

    python tiny.py        # needs torch, diffusers and transformers

Weights are a function of tensor name and index that `tests/engine/tiny.rs` has too, so only names and shapes are stored.
"""

import hashlib
import json
import pathlib
import tempfile

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPTS = ["a red star", "", "Red  STAR\tand 12 é<|endoftext|>!?it's", "and " * 100]
MERGES = ["a n", "an d</w>", "r e", "re d</w>", "s t", "st a", "sta r</w>"]
START, END = "<|startoftext|>", "<|endoftext|>"

VARIANTS = {
    "sd1": {
        "text": {"hidden_act": "quick_gelu"},
        "unet": {
            "attention_head_dim": 2, "layers_per_block": 1, "use_linear_projection": False,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        },
        "scheduler": {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1},
    },
    "sd2": {
        "text": {"hidden_act": "gelu"},
        "unet": {
            "attention_head_dim": [2, 4], "layers_per_block": 2, "use_linear_projection": True,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2], "flip_sin_to_cos": False, "freq_shift": 1,
        },
        "scheduler": {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    },
}


def uniform(name, count):
    """`count` values from -1 to 1 that depend on `name` alone: splitmix64."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0).astype(np.float32)


def tensor(name, shape):
    values = torch.from_numpy(uniform(name, int(np.prod(shape)))).reshape(tuple(shape))
    if len(shape) > 1:
        return values * np.float32(1.7 / np.sqrt(np.prod(shape[1:])))
    # Weights of normalisations lie around one, biases around zero.
    return values * np.float32(0.1) + np.float32("norm" in name and name.endswith("weight"))


def fill(module):
    """Gives `module` its weights, and returns their names and shapes."""
    shapes = {}
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("position_ids"):
                continue
            shapes[name] = list(value.shape)
            value.copy_(tensor(name, value.shape))
    return shapes


def numbers(value):
    return [float(f"{v:.6g}") for v in value.flatten().tolist()]


def alphabet():
    """The printable stand-ins of the 256 bytes, as in GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def record(variant):
    torch.manual_seed(0)
    tokens = alphabet() + [c + "</w>" for c in alphabet()] + [m.replace(" ", "") for m in MERGES] + [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    directory = pathlib.Path(tempfile.mkdtemp())
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(directory), model_max_length=77)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=vocabulary[START], eos_token_id=vocabulary[END], **variant["text"])).eval()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=[8, 16], cross_attention_dim=16, norm_num_groups=4, **variant["unet"]).eval()
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16], norm_num_groups=4, scaling_factor=0.5, sample_size=16).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        **variant["scheduler"])
    shapes = {"text_encoder": fill(text), "unet": fill(unet), "vae": fill(vae)}

    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    saved = pathlib.Path(tempfile.mkdtemp())
    pipeline.save_pretrained(str(saved))
    configs = {}
    for name in ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
                 "scheduler/scheduler_config.json"]:
        configs[name] = json.loads((saved / name).read_text())
        configs[name].pop("_name_or_path", None)

    latents = tensor("latents", [2, 4, 8, 8]) * 20.0
    with torch.no_grad():
        ids = [tokenizer(p, padding="max_length", truncation=True, max_length=77).input_ids for p in PROMPTS]
        embeddings = text(torch.tensor(ids))[0]
        outputs = unet(latents, torch.tensor([981.0, 37.5]), embeddings[:2]).sample
        decoded = vae.decode(latents[:1] / vae.config.scaling_factor).sample
        final = pipeline(
            PROMPTS[0], negative_prompt="and", num_inference_steps=4, guidance_scale=3.0, latents=latents[:1],
            width=16, height=16, output_type="latent").images
        picture = pipeline(
            PROMPTS[0], negative_prompt="and", num_inference_steps=4, guidance_scale=3.0, latents=latents[:1],
            width=16, height=16, output_type="np").images
    return {
        "configs": configs, "shapes": shapes, "vocabulary": vocabulary, "merges": MERGES,
        "tokens": {prompt: list_ for prompt, list_ in zip(PROMPTS, ids)},
        "embedding": numbers(embeddings[0]), "unet": numbers(outputs), "decoded": numbers(decoded),
        "final_latents": numbers(final), "picture": (picture * 255).round().astype(int).flatten().tolist(),
    }


def main():
    document = {"diffusers": diffusers.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    for name, variant in VARIANTS.items():
        document[name] = record(variant)
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
