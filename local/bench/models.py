"""Models of real size with random weights, as diffusers directories: the time that a step takes depends on shapes, not
on what was learnt, so nothing has to be fetched to measure it.

    python models.py sd15 DIRECTORY [--dtype f32] [--seed 0]

Configurations are those that the models are published with. Tokenizers are the tiny ones of the goldens: prompts are
filled up to one length whatever the vocabulary, and the text encoders have the vocabulary of the real ones.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile

import diffusers
import torch
import transformers

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "tests/golden"))
from dit import t5_tokenizer
from tiny import END, MERGES, START, alphabet

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SHARD_MAX = "10GB"

CLIP = {
    "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "initializer_factor": 1.0,
    "initializer_range": 0.02, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "pad_token_id": 1, "vocab_size": 49408,
}
CLIP_L = {
    **CLIP, "architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu", "hidden_size": 768,
    "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768,
}
CLIP_L_PROJECTED = {**CLIP_L, "architectures": ["CLIPTextModelWithProjection"]}
CLIP_G = {
    **CLIP, "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 1280,
    "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280,
}
T5_XXL = {
    "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64, "d_model": 4096,
    "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True, "is_gated_act": True,
    "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24,
    "output_past": True, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "use_cache": True, "vocab_size": 32128,
}
UNET = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "center_input_sample": False, "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
}
VAE = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024, "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# The two families of transformers came with VAEs that differ in these numbers only.
VAE_16 = {
    **VAE, "force_upcast": True, "latent_channels": 16, "latents_mean": None, "latents_std": None,
    "mid_block_add_attention": True, "use_post_quant_conv": False, "use_quant_conv": False,
}
BETAS = {
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None,
}
FLOW = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
    "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "use_dynamic_shifting": False,
}
CLIP_TOKENIZER = {"class": "CLIPTokenizer"}
# Newer CLIPs fill short prompts up with another token than the one that ends them.
CLIP_G_TOKENIZER = {"class": "CLIPTokenizer", "pad_token": "!"}

# Of each model: what `model_index.json` says besides its parts, then the parts.
MODELS = {
    "sd15": {
        "index": {
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "feature_extractor": [None, None],
            "requires_safety_checker": False, "safety_checker": [None, None],
        },
        "scheduler": {"_class_name": "PNDMScheduler", **BETAS},
        "tokenizer": CLIP_TOKENIZER,
        "text_encoder": CLIP_L,
        "unet": {
            **UNET, "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "sample_size": 64,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        },
        "vae": {**VAE, "sample_size": 512},
    },
    "sdxl": {
        "index": {
            "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.19.0.dev0",
            "force_zeros_for_empty_prompt": True,
        },
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler", **BETAS, "interpolation_type": "linear",
            "prediction_type": "epsilon", "sample_max_value": 1.0, "timestep_spacing": "leading",
            "use_karras_sigmas": False,
        },
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_G_TOKENIZER,
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
        "unet": {
            **UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "projection_class_embeddings_input_dim": 2816, "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10], "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
            "use_linear_projection": True,
        },
        "vae": {**VAE, "force_upcast": True, "scaling_factor": 0.13025},
    },
    "sd35-medium": {
        "index": {"_class_name": "StableDiffusion3Pipeline", "_diffusers_version": "0.31.0.dev0"},
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": CLIP_G_TOKENIZER,
        "tokenizer_3": {"class": "T5TokenizerFast"},
        "text_encoder": CLIP_L_PROJECTED,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
        "transformer": {
            "_class_name": "SD3Transformer2DModel", "attention_head_dim": 64, "caption_projection_dim": 1536,
            "dual_attention_layers": list(range(13)), "in_channels": 16, "joint_attention_dim": 4096,
            "num_attention_heads": 24, "num_layers": 24, "out_channels": 16, "patch_size": 2,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "sample_size": 128,
        },
        "vae": {**VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
    },
    "flux-schnell": {
        "index": {"_class_name": "FluxPipeline", "_diffusers_version": "0.30.0.dev0"},
        "scheduler": {**FLOW, "shift": 1.0},
        "tokenizer": CLIP_TOKENIZER,
        "tokenizer_2": {"class": "T5TokenizerFast"},
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "transformer": {
            "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": False,
            "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
            "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768,
        },
        "vae": {**VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    },
}


def write(name, directory, dtype="f32", seed=0):
    """Makes the model `name` in `directory`, unless it is there already.

    The same weights come of the same seed on the same kind of device.
    """
    directory = pathlib.Path(directory)
    if (directory / "model_index.json").exists():
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    index = dict(MODELS[name]["index"])
    for part, document in parts(name):
        if part == "scheduler":
            write_json(directory / part / "scheduler_config.json", document)
        elif part.startswith("tokenizer"):
            build_tokenizer(document).save_pretrained(str(directory / part))
        else:
            write_weights(document, directory / part, DTYPES[dtype], generator)
        index[part] = [library(document).__name__, class_name(document)]
    # Last, because it says that the model is complete.
    write_json(directory / "model_index.json", dict(sorted(index.items())))


def parts(name):
    return [(part, document) for part, document in MODELS[name].items() if part != "index"]


def class_name(document):
    return document.get("class") or document.get("_class_name") or document["architectures"][0]


def library(document):
    """Where the class of a part comes from."""
    return diffusers if "_class_name" in document else transformers


def is_module(part):
    return part != "scheduler" and not part.startswith("tokenizer")


def build(document):
    """The module that `document` describes, with shapes but without memory."""
    module_class = getattr(library(document), class_name(document))
    with torch.device("meta"):
        if library(document) is diffusers:
            return module_class.from_config(document)
        return module_class(module_class.config_class.from_dict(document))


def size(name, dtype):
    """Bytes of the weights."""
    modules = [build(document) for part, document in parts(name) if is_module(part)]
    return sum(value.numel() for module in modules for value in module.parameters()) * DTYPES[dtype].itemsize


def write_weights(document, directory, dtype, generator):
    module = build(document).to(dtype).to_empty(device=generator.device)
    if hasattr(module, "tie_weights"):  # memory was given to both names of an embedding that has two
        module.tie_weights()
    fill(module, generator)
    module.save_pretrained(str(directory), max_shard_size=SHARD_MAX)
    written = {} if "_class_name" in document else {"torch_dtype": str(dtype).removeprefix("torch.")}
    # As it was published, without what this version of the library has by default.
    write_json(directory / "config.json", {**document, **written})


def fill(module, generator):
    """Draws weights with which a layer's outputs are about as large as its inputs, so that nothing overflows in f16."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.dim() > 1:
                value.normal_(std=1 / math.sqrt(math.prod(value.shape[1:])), generator=generator)
            else:
                value.fill_(1.0 if name.endswith("weight") else 0.0)


def build_tokenizer(document):
    if document["class"] != "CLIPTokenizer":
        return t5_tokenizer()[0]
    tokens = alphabet() + [c + "</w>" for c in alphabet()] + [m.replace(" ", "") for m in MERGES] + [START, END]
    with tempfile.TemporaryDirectory() as directory:
        write_json(pathlib.Path(directory) / "vocab.json", {token: index for index, token in enumerate(tokens)})
        (pathlib.Path(directory) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
        pad = {"pad_token": document["pad_token"]} if "pad_token" in document else {}
        return transformers.CLIPTokenizer.from_pretrained(directory, model_max_length=77, **pad)


def write_json(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description="Makes a model of real size with random weights.")
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.name, options.directory, options.dtype, options.seed)


if __name__ == "__main__":
    main()
