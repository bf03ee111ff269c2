"""Records what diffusers and transformers do with tiny transformer-based models, into dit.json.

    python dit.py         # needs torch, diffusers, transformers and sentencepiece

Weights are those of tiny.py, so only configurations, names, shapes, the T5 tokenizer and outputs are stored.
"""

import io
import json
import pathlib
import tempfile

import diffusers
import sentencepiece
import torch
import transformers
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel, StableDiffusion3Pipeline
from sentencepiece import sentencepiece_model_pb2
from tiny import fill, numbers, tensor, versions
from transformers import T5Config, T5EncoderModel, T5TokenizerFast
from transformers.models.clip.modeling_clip import CLIPTextModelOutput
from transformers.models.t5.modeling_t5 import T5Attention

LENGTH = 24
PROMPTS = [
    "a red star", "", "A  red\tstar,\n above   the sea ", "ﬁfty ｒｅｄ stars… é e\u0301 漢字 🌟",
    "</s> red <pad> star <extra_id_0>", "red star " * 30,
]
CORPUS = """
a red star above the blue sea
a green circle beside a small yellow square
two black cats and one white dog under the old tree
an oil painting of a stormy sea at night, highly detailed
a photograph of a café with fifty red stars on the wall
whatever was here before, nothing remains of the starry weather but a reddish glow over the water
the photographer painted greenish squares, circled them in blue and named the series "at the seaside"
standing beside twenty-one yellowish stones, the smallest dog barked at another cat; underneath lay an older tree
""".strip().split("\n")
# What the normalisation replaces, as T5's own does for all of Unicode.
NORMALISED = [
    ("e\u0301", "é"), ("ﬁ", "fi"), ("…", "..."), ("\t", " "), ("\n", " "), ("\u00a0", " "), ("ｒ", "r"), ("ｅ", "e"),
    ("ｄ", "d"),
]

T5 = {
    "gated": {"feed_forward_proj": "gated-gelu"},
    "relu": {"feed_forward_proj": "relu"},
}
SD3 = {
    "sd3": {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 16, "pos_embed_max_size": 7},
    "sd3.5": {
        "num_layers": 3, "num_attention_heads": 3, "caption_projection_dim": 24, "pos_embed_max_size": 6,
        "qk_norm": "rms_norm", "dual_attention_layers": [0, 1],
    },
}
FLUX = {
    "schnell": {
        "num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": [4, 6, 6], "guidance_embeds": False,
    },
    "dev": {"num_attention_heads": 3, "attention_head_dim": 8, "axes_dims_rope": [2, 2, 4], "guidance_embeds": True},
}
TIMESTEPS = [981.0, 37.5]
GUIDANCE = 3.5


def pieces():
    """The pieces and scores of a small unigram model, and its normalisation."""
    directory = pathlib.Path(tempfile.mkdtemp())
    rules = directory / "rules.tsv"
    rules.write_text("".join(
        " ".join(f"{ord(c):X}" for c in source) + "\t" + " ".join(f"{ord(c):X}" for c in target) + "\n"
        for source, target in NORMALISED))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=model, vocab_size=160, model_type="unigram",
        hard_vocab_limit=False, character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        normalization_rule_tsv=str(rules), minloglevel=2, num_threads=1)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return [(p.piece, round(p.score, 4)) for p in proto.pieces], proto.normalizer_spec.precompiled_charsmap


def config_of(model):
    """What `save_pretrained` writes, as far as it is the same tomorrow."""
    directory = pathlib.Path(tempfile.mkdtemp())
    model.save_pretrained(str(directory))
    config = json.loads((directory / "config.json").read_text())
    config.pop("_name_or_path", None)
    return config


def t5_tokenizer():
    """A small tokenizer, and its `tokenizer.json`."""
    vocabulary, charsmap = pieces()
    extra = [(f"<extra_id_{i}>", 0.0) for i in (1, 0)]
    tokenizer = T5TokenizerFast(vocab=vocabulary + extra, _spm_precompiled_charsmap=charsmap, extra_ids=2)
    directory = pathlib.Path(tempfile.mkdtemp())
    tokenizer.save_pretrained(str(directory))
    document = json.loads((directory / "tokenizer.json").read_text())
    return T5TokenizerFast.from_pretrained(str(directory)), document


def record_t5():
    tokenizer, tokenizer_json = t5_tokenizer()
    ids = [
        tokenizer(p, padding="max_length", truncation=True, add_special_tokens=True, max_length=LENGTH).input_ids
        for p in PROMPTS
    ]
    assert all(len(row) == LENGTH for row in ids)
    variants = {}
    for name, options in T5.items():
        model = T5EncoderModel(T5Config(
            vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=4,
            relative_attention_num_buckets=8, relative_attention_max_distance=16, **options)).eval()
        shapes = fill(model)
        # The embedding has two names, of which files hold one.
        shapes.pop("encoder.embed_tokens.weight", None)
        with torch.no_grad():
            model.shared.weight.copy_(tensor("shared.weight", model.shared.weight.shape))
            output = model(torch.tensor(ids[2:3]))[0]
        variants[name] = {"config": config_of(model), "shapes": shapes, "output": numbers(output)}
    distances = torch.arange(-300, 301)
    return {
        "length": LENGTH, "tokenizer": tokenizer_json, "tokens": dict(zip(PROMPTS, ids)), "prompt": PROMPTS[2],
        "buckets": T5Attention._relative_position_bucket(distances, True, 32, 128).tolist(), "variants": variants,
    }


def record_sd3(options):
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, attention_head_dim=8, joint_attention_dim=20,
        pooled_projection_dim=12, **options).eval()
    shapes = fill(model)
    with torch.no_grad():
        output = model(
            hidden_states=tensor("latents", [2, 4, 8, 12]) * 20.0,
            encoder_hidden_states=tensor("context", [2, 9, 20]) * 10.0,
            pooled_projections=tensor("pooled", [2, 12]) * 3.0, timestep=torch.tensor(TIMESTEPS)).sample
    return {"config": config_of(model), "shapes": shapes, "output": numbers(output)}


def record_context(has_t5):
    """What the pipeline makes of the outputs of its text encoders, which are made up here."""

    class Tokenizer:
        def __call__(self, prompt, **_):
            return transformers.BatchEncoding({"input_ids": torch.zeros(1, 6, dtype=torch.long)})

    class Encoder:
        dtype = torch.float32

        def __init__(self, name, width):
            self.name, self.width = name, width

        def __call__(self, ids, **_):
            state = tensor(self.name, [1, 6, self.width])
            return CLIPTextModelOutput(
                text_embeds=tensor(f"{self.name}.pooled", [1, self.width]),
                hidden_states=(state + 2.0, state, state + 1.0))

    class Pipeline:
        _get_clip_prompt_embeds = StableDiffusion3Pipeline._get_clip_prompt_embeds
        _get_t5_prompt_embeds = StableDiffusion3Pipeline._get_t5_prompt_embeds
        _execution_device = "cpu"
        tokenizer_max_length = 6
        tokenizer = tokenizer_2 = tokenizer_3 = Tokenizer()
        text_encoder, text_encoder_2 = Encoder("clip_l", 4), Encoder("clip_g", 5)
        text_encoder_3 = None
        transformer = SD3Transformer2DModel(
            num_layers=1, joint_attention_dim=12, caption_projection_dim=16, num_attention_heads=2,
            attention_head_dim=8)

    if has_t5:
        Pipeline.text_encoder_3 = type("T5", (), {
            "dtype": torch.float32, "__call__": lambda self, ids: (tensor("t5", [1, 3, 12]),)})()
    context, _, pooled, _ = StableDiffusion3Pipeline.encode_prompt(
        Pipeline(), "", "", "", do_classifier_free_guidance=False, max_sequence_length=2)
    return {"context": numbers(context), "pooled": numbers(pooled)}


def record_flux(options):
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, joint_attention_dim=20,
        pooled_projection_dim=12, **options).eval()
    shapes = fill(model)
    latents = tensor("latents", [2, 4, 8, 12]) * 20.0
    with torch.no_grad():
        output = model(
            hidden_states=FluxPipeline._pack_latents(latents, 2, 4, 8, 12),
            encoder_hidden_states=tensor("context", [2, 9, 20]) * 10.0,
            pooled_projections=tensor("pooled", [2, 12]) * 3.0, timestep=torch.tensor(TIMESTEPS) / 1000,
            img_ids=FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32), txt_ids=torch.zeros(9, 3),
            guidance=torch.tensor([GUIDANCE] * 2) if options["guidance_embeds"] else None).sample
    output = FluxPipeline._unpack_latents(output, 8 * 8, 12 * 8, 8)
    return {"config": config_of(model), "shapes": shapes, "output": numbers(output)}


def main():
    document = {
        "versions": versions(diffusers, transformers, torch), "timesteps": TIMESTEPS, "guidance": GUIDANCE, "t5": record_t5(),
        "sd3_context": {"t5": record_context(True), "no_t5": record_context(False)},
        "sd3": {name: record_sd3(options) for name, options in SD3.items()},
        "flux": {name: record_flux(options) for name, options in FLUX.items()},
    }
    text = json.dumps(document, ensure_ascii=False)
    pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
