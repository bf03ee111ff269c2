"""Records what diffusers does with a tiny model of every family, stage by stage, into <family>.json and .safetensors.

    pip install -r requirements.txt
    python make.py            # numbers only change when the versions in requirements.txt do

Weights are a function of tensor name and shape that `tiny.rs` has too, so only names and shapes are stored.
"""

import inspect
import json
import pathlib
import sys
import tempfile

import diffusers
import numpy as np
import PIL.Image
import safetensors.torch
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
    LatentConsistencyModelImg2ImgPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from dit import t5_tokenizer
from samplers import KINDS
from tiny import END, MERGES, START, alphabet, fill, tensor, versions

HERE = pathlib.Path(__file__).parent
PROMPTS = ["a red star", "", "Red  STAR\tand 12 é<|endoftext|>!?it's", "and " * 100]
WIDTH, HEIGHT = 24, 16
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNET = {"sample_size": 8, "block_out_channels": [8, 16], "norm_num_groups": 4}
SD1_UNET = {
    "attention_head_dim": 2, "layers_per_block": 1, "cross_attention_dim": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}

FAMILIES = {
    "sd1": {
        "class": StableDiffusionPipeline,
        "text": [{"hidden_act": "quick_gelu"}],
        "unet": SD1_UNET,
        "scheduler": PNDMScheduler(**SCALED, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False),
        "starting": [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline],
    },
    "sd2": {
        "class": StableDiffusionPipeline,
        "text": [{"hidden_act": "gelu", "pad_token": "!"}],
        "unet": {
            "attention_head_dim": [2, 4], "layers_per_block": 2, "use_linear_projection": True,
            "cross_attention_dim": 16, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2], "flip_sin_to_cos": False, "freq_shift": 1,
        },
        "scheduler": DDIMScheduler(
            **SCALED, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction",
            timestep_spacing="trailing", rescale_betas_zero_snr=True),
        "starting": [StableDiffusionImg2ImgPipeline],
    },
    "sd1-inpaint": {
        "class": StableDiffusionInpaintPipeline,
        "text": [{"hidden_act": "quick_gelu"}],
        "unet": {**SD1_UNET, "in_channels": 9},
        "scheduler": DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        "starting": [StableDiffusionInpaintPipeline],
    },
    "lcm": {
        "class": LatentConsistencyModelPipeline,
        "text": [{"hidden_act": "quick_gelu"}],
        "unet": {**SD1_UNET, "time_cond_proj_dim": 12},
        "scheduler": LCMScheduler(**SCALED, clip_sample=False),
        "starting": [LatentConsistencyModelImg2ImgPipeline],
    },
    "sdxl": {
        "class": StableDiffusionXLPipeline,
        "text": [
            {"hidden_act": "quick_gelu", "num_hidden_layers": 3},
            {"hidden_act": "gelu", "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3,
             "projection_dim": 20, "pad_token": "!", "eos": 2},
        ],
        "unet": {
            "attention_head_dim": [2, 4], "layers_per_block": 1, "cross_attention_dim": 40,
            "use_linear_projection": True, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2],
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 20 + 6 * 8,
        },
        "scheduler": EulerDiscreteScheduler(**SCALED, steps_offset=1, timestep_spacing="leading"),
        "starting": [StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline],
    },
}
SD3 = {
    "class": StableDiffusion3Pipeline,
    "text": [
        {"hidden_act": "quick_gelu", "num_hidden_layers": 3, "projection_dim": 10},
        {"hidden_act": "gelu", "hidden_size": 24, "num_attention_heads": 3, "projection_dim": 14, "pad_token": "!"},
    ],
    "t5": 3,
    "transformer": (SD3Transformer2DModel, {
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "attention_head_dim": 8,
        "joint_attention_dim": 44, "pooled_projection_dim": 24, "num_layers": 2, "num_attention_heads": 2,
        "caption_projection_dim": 16, "pos_embed_max_size": 9,
    }),
    "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "starting": [StableDiffusion3Img2ImgPipeline],
}
FLUX = {
    "class": FluxPipeline,
    "text": [{"hidden_act": "quick_gelu"}],
    "t5": 2,
    "transformer": (FluxTransformer2DModel, {
        "in_channels": 16, "joint_attention_dim": 44, "pooled_projection_dim": 16, "num_layers": 1,
        "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6],
        "guidance_embeds": False,
    }),
    "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0),
    "starting": [FluxImg2ImgPipeline],
}
FAMILIES |= {
    "sd3": SD3,
    # Without T5, and with what the medium model of 3.5 has; diffusers insists on its 16 channels where there is a mask.
    "sd3.5": {
        **SD3, "t5": None, "latent_channels": 16,
        "starting": [StableDiffusion3Img2ImgPipeline, StableDiffusion3InpaintPipeline],
        "transformer": (SD3Transformer2DModel, {
            **SD3["transformer"][1], "in_channels": 16, "out_channels": 16, "num_layers": 3, "num_attention_heads": 3, "caption_projection_dim": 24,
            "qk_norm": "rms_norm", "dual_attention_layers": [0, 1],
        }),
    },
    "flux-schnell": FLUX,
    "flux-dev": {
        **FLUX, "starting": [FluxImg2ImgPipeline, FluxInpaintPipeline],
        "transformer": (FluxTransformer2DModel, {**FLUX["transformer"][1], "guidance_embeds": True}),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=16,
            max_image_seq_len=64),
    },
}


def t5():
    """A tiny T5, its tokenizer and `tokenizer.json`."""
    tokenizer, document = t5_tokenizer()
    model = T5EncoderModel(T5Config(
        vocab_size=len(tokenizer), d_model=44, d_kv=8, d_ff=40, num_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj="gated-gelu")).eval()
    return tokenizer, document, model


def text_encoder(vocabulary, options):
    options = dict(options)
    options.pop("pad_token", None)
    # An end token of 2 is how old configurations say "the token with the highest id".
    eos = options.pop("eos", vocabulary[END])
    model_class = CLIPTextModelWithProjection if "projection_dim" in options else CLIPTextModel
    config = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **options}
    return model_class(CLIPTextConfig(
        vocab_size=len(vocabulary), bos_token_id=vocabulary[START], eos_token_id=eos, **config)).eval()


def starting_picture():
    """A picture without symmetries, and a mask whose edges lie within latent pixels."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    picture = np.stack([x * 9 + y, 255 - y * 13, (x * y * 7) % 256], axis=2).astype(np.uint8)
    mask = np.where((x > 6) & (x < 19) & (y > 4), 255, 0).astype(np.uint8)
    return PIL.Image.fromarray(picture), PIL.Image.fromarray(mask)


class Recorder:
    """The tensors of one family, and the requests that made them."""

    def __init__(self):
        self.tensors, self.requests = {}, []

    def add(self, name, tensor):
        self.tensors[name] = torch.as_tensor(tensor).detach().contiguous()

    def run(self, name, pipeline, request, stages=False, **inputs):
        """Runs `request` as the pipeline's users would, and keeps its latents and picture."""
        outputs = []
        denoiser = getattr(pipeline, "unet", None) or pipeline.transformer

        def seen(module, inputs, result):
            output = result[0].clone()
            if output.dim() == 3:  # FLUX packs its latents
                output = FluxPipeline._unpack_latents(output, request["height"], request["width"], pipeline.vae_scale_factor)
            outputs.append(output)

        hook = denoiser.register_forward_hook(seen)
        # Pictures are what the pipelines return by themselves; the latents they were decoded from pass by here.
        decoded = []
        original = pipeline.vae.decode
        # This one forgets the shift that it encoded with, which leaves the picture off where the mask keeps it.
        forgotten = pipeline.vae.config.shift_factor if isinstance(pipeline, StableDiffusion3InpaintPipeline) else 0.0

        def decode(latents, *rest, **options):
            decoded.append(latents + forgotten)
            return original(latents + forgotten, *rest, **options)

        pipeline.vae.decode = decode
        known = inspect.signature(type(pipeline).__call__).parameters
        arguments = {key: value for key, value in request.items() if key in known}
        try:
            image = pipeline(
                **arguments, **inputs, generator=torch.Generator("cpu").manual_seed(request["seed"]), output_type="np",
            ).images[0]
        finally:
            hook.remove()
            del pipeline.vae.decode
        assert torch.isfinite(decoded[0]).all(), name
        self.add(f"{name}/vae_latents", decoded[0])
        self.add(f"{name}/image", np.clip(image * 255, 0, 255).round().astype(np.uint8))
        if stages:
            self.add(f"{name}/timesteps", pipeline.scheduler.timesteps.to(torch.float32))
            for step in sorted({0, len(outputs) // 2, len(outputs) - 1}):
                self.add(f"{name}/output/{step}", outputs[step])
        self.requests.append({"name": name, "steps": len(outputs), **request})


def build(options, seed=None):
    """The family's pipeline, and what a test needs to make it again.

    Weights are those that its tests have too or, with a seed, what its classes draw.
    """
    torch.manual_seed(seed or 0)
    tokens = alphabet() + [c + "</w>" for c in alphabet()] + [m.replace(" ", "") for m in MERGES] + [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    parts, pad_tokens = {}, {}
    for index, text in enumerate(options["text"]):
        suffix = "" if index == 0 else f"_{index + 1}"
        directory = pathlib.Path(tempfile.mkdtemp())
        (directory / "vocab.json").write_text(json.dumps(vocabulary))
        (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
        pad = {"pad_token": text["pad_token"]} if "pad_token" in text else {}
        pad_tokens[f"tokenizer{suffix}"] = text.get("pad_token", END)
        parts[f"tokenizer{suffix}"] = CLIPTokenizer.from_pretrained(str(directory), model_max_length=77, **pad)
        parts[f"text_encoder{suffix}"] = text_encoder(vocabulary, text)
    vae = {"scaling_factor": 0.5, "latent_channels": options.get("latent_channels", 4)}
    t5_tokenizers = {}
    if "unet" in options:
        parts["unet"] = UNet2DConditionModel(**{**UNET, **options["unet"]}).eval()
    else:
        transformer_class, transformer = options["transformer"]
        parts["transformer"] = transformer_class(**transformer).eval()
        vae |= {"shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False}
        number = options["t5"] or 3
        tokenizer = encoder = None
        if options["t5"]:
            tokenizer, t5_tokenizers[f"tokenizer_{number}"], encoder = t5()
        parts[f"tokenizer_{number}"], parts[f"text_encoder_{number}"] = tokenizer, encoder
    parts["vae"] = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16], norm_num_groups=4, sample_size=16, **vae).eval()
    modules = {part: module for part, module in parts.items() if isinstance(module, torch.nn.Module)}
    shapes = {} if seed else {part: fill(module) for part, module in modules.items()}
    for part in shapes:  # the embedding of a T5 has two names, of which files hold one
        if shapes[part].pop("encoder.embed_tokens.weight", None):
            embedding = parts[part].shared.weight
            with torch.no_grad():
                embedding.copy_(tensor("shared.weight", embedding.shape))
    if "transformer" in options:
        extra = {}
    elif options["class"].__name__.startswith("StableDiffusionXL"):
        extra = {"force_zeros_for_empty_prompt": True}
        if options["class"] is StableDiffusionXLPipeline:
            extra["add_watermarker"] = False
    else:
        extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = options["class"](**parts, scheduler=options["scheduler"], **extra)
    pipeline.set_progress_bar_config(disable=True)
    made = {
        "shapes": shapes, "vocabulary": vocabulary, "merges": MERGES, "pad_tokens": pad_tokens,
        "t5_tokenizers": t5_tokenizers,
    }
    return pipeline, made


def family(name, options):
    recorder = Recorder()
    pipeline, made = build(options)
    parts = pipeline.components
    saved = pathlib.Path(tempfile.mkdtemp())
    pipeline.save_pretrained(str(saved))
    # From the file, as users have it: what a class has by default is no default any more once it was written.
    pipeline.scheduler = type(options["scheduler"]).from_pretrained(str(saved), subfolder="scheduler")
    configs = {}
    for path in sorted(saved.rglob("*.json")):
        if "tokenizer" not in path.parent.name and not path.name.endswith("index.json") or path.name == "model_index.json":
            configs[str(path.relative_to(saved))] = json.loads(path.read_text())
            configs[str(path.relative_to(saved))].pop("_name_or_path", None)

    ids = {}
    for part in made["pad_tokens"]:
        ids[part] = {prompt: parts[part](prompt, padding="max_length", truncation=True, max_length=77).input_ids for prompt in PROMPTS}
    base = {"prompt": PROMPTS[0], "num_inference_steps": 6, "seed": 5, "guidance_scale": 3.0, "width": WIDTH, "height": HEIGHT}
    picture, mask = starting_picture()
    recorder.add("starting/picture", np.asarray(picture))
    recorder.add("starting/mask", np.asarray(mask))
    with torch.no_grad():
        embeddings(recorder, pipeline)
        channels = parts["vae"].config.latent_channels
        recorder.add("noise", torch.randn((1, channels, HEIGHT // 2, WIDTH // 2), generator=torch.Generator("cpu").manual_seed(5)))
        recorder.add("decoded", parts["vae"].decode(recorder.tensors["noise"] / 0.5 + (parts["vae"].config.shift_factor or 0.0)).sample)
        moments = parts["vae"].encode(pipeline.image_processor.preprocess(picture)).latent_dist
        recorder.add("encoded/mean", moments.mean)
        recorder.add("encoded/std", moments.std)
        if options["class"] is not StableDiffusionInpaintPipeline:
            requests(recorder, name, options, pipeline, base)
        starting(recorder, options, pipeline, base, picture, mask)
    document = {
        "versions": versions(diffusers, torch, transformers), "configs": configs, **made, "prompts": [PROMPTS[0], PROMPTS[3]], "tokens": ids,
        "requests": recorder.requests,
    }
    write(name, document, recorder.tensors)


def embeddings(recorder, pipeline):
    """What the pipeline conditions on, for a prompt and for one that is too long."""
    for index, prompt in enumerate([PROMPTS[0], PROMPTS[3]]):
        encode = pipeline.encode_prompt
        known = inspect.signature(encode).parameters
        asked = {
            "prompt": prompt, "prompt_2": None, "prompt_3": None, "device": "cpu", "num_images_per_prompt": 1,
            "do_classifier_free_guidance": True,
        }
        result = encode(**{key: value for key, value in asked.items() if key in known})
        recorder.add(f"embedding/{index}", result[0].transpose(1, 2))
        if isinstance(pipeline, FluxPipeline):
            recorder.add(f"pooled/{index}", result[1])
        elif len(result) == 4:
            recorder.add(f"pooled/{index}", result[2])
            recorder.add(f"negative/{index}", result[1].transpose(1, 2))


def requests(recorder, name, options, pipeline, base):
    """The pipeline's own sampler stage by stage, then every sampler that the family can use."""
    recorder.run("default", pipeline, base, stages=True)
    if name == "lcm":
        recorder.run("guidance", pipeline, {**base, "guidance_scale": 8.5, "num_inference_steps": 4})
        return
    if "transformer" in options:
        recorder.run("guidance", pipeline, {**base, "guidance_scale": 6.5, "num_inference_steps": 3, "width": 16, "height": 32})
        recorder.run("negative", pipeline, {**base, "negative_prompt": "and", "seed": 2**32 + 9})
        return
    recorder.run("negative", pipeline, {**base, "negative_prompt": "and", "guidance_scale": 7.5, "seed": 2**32 + 9})
    recorder.run("unguided", pipeline, {**base, "guidance_scale": 1.0, "width": 16, "height": 32})
    recorder.run("rescaled", pipeline, {**base, "guidance_scale": 9.0, "guidance_rescale": 0.7})
    if name == "sdxl":
        sizes = {"original_size": [64, 48], "crops_coords_top_left": [4, 8], "target_size": [32, 40]}
        recorder.run("sizes", pipeline, {**base, **sizes})
        turbo = EulerDiscreteScheduler(**SCALED, timestep_spacing="trailing")
        scheduler, pipeline.scheduler = pipeline.scheduler, diffusers.EulerAncestralDiscreteScheduler.from_config(turbo.config)
        recorder.run("turbo", pipeline, {**base, "guidance_scale": 1.0, "num_inference_steps": 2})
        recorder.requests[-1]["scheduler_config"] = {
            "_class_name": "EulerAncestralDiscreteScheduler",
            # The others are in no particular order.
            **{key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")},
        }
        pipeline.scheduler = scheduler
    base_scheduler = pipeline.scheduler
    for kind, (scheduler_class, settings) in KINDS.items():
        if kind.startswith("flow") or kind == "pndm" and name != "sd1":
            continue
        pipeline.scheduler = scheduler_class.from_config({**base_scheduler.config, **settings})
        try:
            recorder.run(f"sampler/{kind}", pipeline, {**base, "scheduler": kind})
        except (AssertionError, IndexError) as error:  # two timesteps of a spacing fall together there
            print(f"{name}: diffusers has no {kind}: {error}")
    pipeline.scheduler = base_scheduler


def starting(recorder, options, pipeline, base, picture, mask):
    """Images that begin with a picture."""
    for pipeline_class in options["starting"]:
        known = inspect.signature(pipeline_class.__init__).parameters
        extra = {"requires_safety_checker": False} if "requires_safety_checker" in known else {}
        other = pipeline_class(**{key: value for key, value in pipeline.components.items() if key in known}, **extra)
        other.set_progress_bar_config(disable=True)
        inpaint = "Inpaint" in pipeline_class.__name__
        kind = "inpaint" if inpaint else "img2img"
        only_its_own = "transformer" in options or "LatentConsistency" in pipeline_class.__name__
        for sampler in [None] if only_its_own else [None, "euler_ancestral", "dpmpp_2m"]:
            if sampler:
                scheduler_class, settings = KINDS[sampler]
                other.scheduler = scheduler_class.from_config({**pipeline.scheduler.config, **settings})
            for strength in [0.3, 0.8, 1.0]:
                request = {**base, "strength": strength, **({"scheduler": sampler} if sampler else {})}
                inputs = {"image": picture, **({"mask_image": mask} if inpaint else {})}
                recorder.run(f"{kind}/{sampler or 'default'}/{strength}", other, request, stages=not sampler, **inputs)
                recorder.requests[-1]["starting"] = kind


def write(name, document, tensors):
    (HERE / f"{name}.json").write_text(json.dumps(document) + "\n")
    safetensors.torch.save_file(tensors, HERE / f"{name}.safetensors")


def main():
    chosen = sys.argv[1:] or list(FAMILIES)
    for name in chosen:
        family(name, FAMILIES[name])
        print(name, (HERE / f"{name}.json").stat().st_size, (HERE / f"{name}.safetensors").stat().st_size)


if __name__ == "__main__":
    main()
