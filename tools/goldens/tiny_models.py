"""Tiny random models of every supported architecture, with the logits that transformers computes for them.

    python tiny_models.py OUT [--only CASE,CASE]

For each case of CASES a folder OUT/<case>/ is written:

    config.json          as transformers writes it (the spelling of 2025 on: `rope_parameters`, `layer_types`, `dtype`)
    config_old.json      some cases: the same model in the spelling of the models published up to 2024
                         (`rope_theta` and `rope_scaling`, `sliding_window_pattern`, `rotary_pct`, `torch_dtype`)
    model.safetensors    the weights; or several shards and model.safetensors.index.json
    golden.json          {"prompts": [{"ids": [...], "first_row": r}, ...], "shape": [rows, vocab], ...}
    golden.f32           the logits, raw little-endian float32, [rows, vocab]; each prompt starts at position 0, and its
                         row first_row + i is the distribution of the token after ids[i]

The logits are computed in float32 with eager attention, whatever type the weights are stored in.

Default initialisation would make a poor oracle: zero biases, unit norm weights and flat logits hide mistakes. So every
tensor is drawn at random, wide enough that each one matters, and before a folder is written this script checks that

  * nudging any one parameter tensor moves the logits (INVARIANT names the exceptions, with the reason);
  * changing any one of the settings that the case is about (`matters`) moves them too: a window that is never reached
    or a scaling that never sets in would prove nothing;
  * both spellings of the configuration give the same logits.

Two kinds of RoPE scaling depend on the length of the whole text, not on a token's position: "dynamic" recomputes its
base from the length once that exceeds `max_position_embeddings`, and "longrope" takes its long factors once the length
exceeds `original_max_position_embeddings`. As each prompt is computed in one pass here, all its rows use the factors
for the prompt's full length; an engine has to be told that length (its context) before the first token.

Needs torch, transformers 5.2 and safetensors. Same versions, same bytes; another version of torch may draw other numbers.
"""
import argparse
import copy
import json
import os
import shutil
import tempfile
import warnings
import zlib

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

SHORT, LONG = 5, 33  # lengths of the two prompts, in tokens
WINDOW = 8  # sliding windows: longer than the short prompt, shorter than the long one

# Parameters that cannot change the logits: without rotation the key bias adds the same q.b to every score of a query,
# and the softmax does not see it.
INVARIANT = {"opt": ("k_proj.bias",)}

BASE = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-2, bos_token_id=1, eos_token_id=2)


def rope(theta=500.0, kind="default", **more):
    """`rope_parameters` in the new spelling."""
    return dict(rope_theta=theta, rope_type=kind, **more)


# 32 positions: of the four frequencies one is kept, one is on the ramp and two are scaled, in both of these
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(factor=4.0, original_max_position_embeddings=32)
# one factor for each of the 4 rotated pairs of an 8-wide head
LONGROPE = dict(short_factor=[1.0, 1.1, 1.3, 1.6], long_factor=[1.0, 2.0, 3.5, 6.0],
                original_max_position_embeddings=16)
GEMMA = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=1, head_dim=16, max_position_embeddings=64, rms_norm_eps=1e-2, bos_token_id=2,
             eos_token_id=1, pad_token_id=0, query_pre_attn_scalar=24, sliding_window=WINDOW,
             layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
             rope_parameters=dict(full_attention=rope(20000.0), sliding_attention=rope(100.0)))
OPT = dict(vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
           max_position_embeddings=40, word_embed_proj_dim=32, do_layer_norm_before=True, bos_token_id=2,
           eos_token_id=2, pad_token_id=1)
NEOX = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, layer_norm_eps=1e-2, bos_token_id=0, eos_token_id=0,
            rope_parameters=rope(500.0), rotary_pct=0.25, use_parallel_residual=True)
PHI3 = {**BASE, "pad_token_id": 0}


def case(model_type, base, *, matters=None, old=None, dtype="float32", shard="", **over):
    """One model. `matters`: settings whose change must change the logits. `old`: what the old spelling has in place of
    `rope_parameters` and `layer_types`. `shard`: the largest shard, as save_pretrained wants it."""
    return dict(model_type=model_type, config={**base, **over}, matters=matters or {}, old=old, dtype=dtype, shard=shard)


CASES = {
    # Llama: grouped queries, and its scalings of RoPE
    "llama": case("llama", BASE, rope_parameters=rope(), matters=dict(
        rope_parameters=rope(10000.0), rms_norm_eps=1e-6), old=dict(rope_theta=500.0, rope_scaling=None)),
    "llama-tied": case("llama", BASE, hidden_size=48, num_attention_heads=3, num_key_value_heads=1,
                       rope_parameters=rope(1e5), tie_word_embeddings=True),
    "llama-mha-odd-sizes": case("llama", BASE, vocab_size=97, hidden_size=40, intermediate_size=72,
                                num_key_value_heads=4, rope_parameters=rope()),
    "llama-bias": case("llama", BASE, attention_bias=True, mlp_bias=True, rope_parameters=rope()),
    "llama-bf16": case("llama", BASE, dtype="bfloat16", rope_parameters=rope()),
    "llama-f16": case("llama", BASE, dtype="float16", rope_parameters=rope()),
    "llama-sharded": case("llama", BASE, shard="50KB", rope_parameters=rope()),
    "llama-rope-linear": case("llama", BASE, rope_parameters=rope(kind="linear", factor=2.5), matters=dict(
        rope_parameters=rope()), old=dict(rope_theta=500.0, rope_scaling=dict(type="linear", factor=2.5))),
    "llama-rope-llama3": case("llama", BASE, rope_parameters=rope(kind="llama3", **LLAMA3), matters=dict(
        rope_parameters=rope()), old=dict(rope_theta=500.0, rope_scaling=dict(rope_type="llama3", **LLAMA3))),
    "llama-rope-dynamic": case(
        "llama", BASE, max_position_embeddings=16, rope_parameters=rope(kind="dynamic", factor=2.0),
        matters=dict(rope_parameters=rope()), old=dict(rope_theta=500.0, rope_scaling=dict(type="dynamic", factor=2.0))),
    "llama-rope-yarn": case(
        "llama", BASE, max_position_embeddings=128, rope_parameters=rope(kind="yarn", **YARN),
        matters=dict(rope_parameters=rope()), old=dict(rope_theta=500.0, rope_scaling=dict(type="yarn", **YARN))),
    # Mistral: a sliding window in every layer; heads wider than hidden_size / num_attention_heads
    "mistral": case("mistral", BASE, sliding_window=WINDOW, head_dim=16, rope_parameters=rope(), matters=dict(
        sliding_window=None), old=dict(rope_theta=500.0)),
    # Qwen
    "qwen2": case("qwen2", BASE, rope_parameters=rope(), tie_word_embeddings=True,
                  old=dict(rope_theta=500.0, sliding_window=WINDOW, use_sliding_window=False, max_window_layers=1)),
    "qwen2-window": case(
        "qwen2", BASE, num_hidden_layers=3, rope_parameters=rope(), use_sliding_window=True, sliding_window=WINDOW,
        max_window_layers=1, matters=dict(use_sliding_window=False, max_window_layers=0), old=dict(rope_theta=500.0)),
    "qwen3": case("qwen3", BASE, head_dim=16, rope_parameters=rope(), old=dict(rope_theta=500.0, rope_scaling=None)),
    # Gemma 3: one layer in three sees everything, the others a window; two RoPE bases; one KV head
    "gemma3": case("gemma3_text", GEMMA, matters=dict(
        sliding_window=64, query_pre_attn_scalar=16, layer_types=["sliding_attention"] * 4,
        rope_parameters=dict(full_attention=rope(100.0), sliding_attention=rope(100.0))),
        old=dict(rope_theta=20000.0, rope_local_base_freq=100.0, rope_scaling=None, sliding_window_pattern=3)),
    "gemma3-linear": case("gemma3_text", GEMMA, num_key_value_heads=2, rope_parameters=dict(
        full_attention=rope(200.0, "linear", factor=8.0), sliding_attention=rope(100.0)), matters=dict(
            rope_parameters=dict(full_attention=rope(200.0), sliding_attention=rope(100.0))),
        old=dict(rope_theta=200.0, rope_local_base_freq=100.0, rope_scaling=dict(rope_type="linear", factor=8.0),
                 sliding_window_pattern=3)),
    # Phi-3: fused projections
    "phi3": case("phi3", PHI3, rope_parameters=rope(partial_rotary_factor=1.0),
                 old=dict(rope_theta=500.0, rope_scaling=None)),
    "phi3-window": case("phi3", PHI3, num_key_value_heads=4, sliding_window=WINDOW,
                        rope_parameters=rope(partial_rotary_factor=1.0), matters=dict(sliding_window=None)),
    "phi3-partial": case("phi3", PHI3, partial_rotary_factor=0.75, rope_parameters=rope(
        partial_rotary_factor=0.75), matters=dict(rope_parameters=rope(partial_rotary_factor=1.0)),
        old=dict(rope_theta=500.0, partial_rotary_factor=0.75)),
    "phi3-longrope": case(
        "phi3", PHI3, original_max_position_embeddings=16,
        rope_parameters=rope(kind="longrope", partial_rotary_factor=1.0, **LONGROPE),
        matters=dict(rope_parameters=rope(partial_rotary_factor=1.0), max_position_embeddings=32),
        old=dict(rope_theta=500.0, original_max_position_embeddings=16, rope_scaling=dict(
            type="longrope", short_factor=LONGROPE["short_factor"], long_factor=LONGROPE["long_factor"]))),
    # OPT: learned positions; norms before or after; the 350m's narrow embeddings
    "opt": case("opt", OPT, matters=dict(do_layer_norm_before=False)),
    "opt-post-norm": case("opt", OPT, do_layer_norm_before=False, word_embed_proj_dim=24),
    # GPT-NeoX: one fused projection, heads rotated in part, attention and MLP side by side or in turn
    "gpt-neox": case("gpt_neox", NEOX, matters=dict(
        use_parallel_residual=False, rotary_pct=0.5, rope_parameters=rope(1000.0)),
        old=dict(rotary_pct=0.25, rotary_emb_base=500)),
    "gpt-neox-sequential": case("gpt_neox", NEOX, use_parallel_residual=False, rotary_pct=0.5,
                                matters=dict(use_parallel_residual=True, rotary_pct=0.25)),
}


def build(model_type, settings):
    """A model in float32 with eager attention."""
    config = AutoConfig.for_model(model_type, **copy.deepcopy(settings))
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


def randomise(model, seed, dtype):
    """Draws every parameter, rounded to the type it will be stored in: matrices so that they keep a vector's size about
    the same (1.3 / sqrt(fan-in)), embeddings at 0.6, norms around 1 (Gemma stores them less 1), biases at 0.3."""
    generator = torch.Generator().manual_seed(seed)
    centre = 0.0 if "gemma" in model.config.model_type else 1.0
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() == 2:
                embedding = "embed" in name
                p.copy_(noise * (0.6 if embedding else 1.3 * p.shape[1] ** -0.5))
            elif name.endswith("bias"):
                p.copy_(noise * 0.3)
            else:
                p.copy_(noise * 0.3 + centre)
            p.copy_(p.to(dtype))


def logits(model, prompts):
    """[rows, vocab]: the prompts' logits one below the other, each prompt in one pass."""
    rows = []
    for ids in prompts:
        for module in model.modules():  # "dynamic" would keep the frequencies of a longer text it saw before
            if hasattr(module, "original_inv_freq"):
                module.inv_freq = module.original_inv_freq.clone()
        with torch.inference_mode():
            rows.append(model(torch.tensor([ids]), use_cache=False).logits[0].float())
    return torch.cat(rows)


def check(name, spec, model, prompts, want):
    """The oracle is worth something: see the module's text."""
    assert want.std() > 1.0 and torch.isfinite(want).all(), f"{name}: flat or broken logits"
    exempt = INVARIANT.get(spec["model_type"], ())
    for parameter, p in model.named_parameters():
        if parameter.endswith(exempt):
            continue
        keep = p.detach().clone()
        with torch.no_grad():
            p.add_(0.1 * keep.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(7)))
        moved = (logits(model, prompts) - want).abs().max()
        with torch.no_grad():
            p.copy_(keep)
        assert moved > 0.01, f"{name}: {parameter} hardly matters ({moved:.5f})"
    state = model.state_dict()
    for setting, other in spec["matters"].items():
        variant = build(spec["model_type"], {**spec["config"], setting: other})
        variant.load_state_dict(state, strict=False)
        moved = (logits(variant, prompts) - want).abs().max()
        assert moved > 0.02, f"{name}: {setting} hardly matters ({moved:.5f})"


def old_spelling(config, old):
    """The same configuration as models published up to 2024 spell it."""
    new = ["rope_parameters", "layer_types", "dtype", "_sliding_window_pattern", "ignore_keys_at_rope_validation"]
    if config.get("head_dim") == config["hidden_size"] // config["num_attention_heads"]:
        new.append("head_dim")  # only written where it is not this quotient
    config = {k: v for k, v in config.items() if k not in new}
    return {**config, "torch_dtype": "float32", "transformers_version": "4.44.0", **old}


def save(folder, model, config, spec, prompts, want, seed):
    """Writes one case's folder and checks that what it says can be loaded back to the same logits."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.to(getattr(torch, spec["dtype"])).save_pretrained(
            scratch, **({"max_shard_size": spec["shard"]} if spec["shard"] else {}))
        os.makedirs(folder)
        for file in sorted(os.listdir(scratch)):
            if file != "generation_config.json":
                shutil.copyfile(os.path.join(scratch, file), os.path.join(folder, file))
    with open(os.path.join(folder, "config.json")) as f:
        written = json.load(f)
    if spec["model_type"] == "gpt_neox":  # transformers 5.2 writes the rotated share in rope_parameters, but reads this
        written["rotary_pct"] = written["rope_parameters"]["partial_rotary_factor"]

    def spell(settings):
        """Writes config.json, and loads the folder again."""
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(settings, f, indent=2, sort_keys=True)
        again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        assert torch.equal(logits(again, prompts), want), f"{folder}: loads to other logits"

    if spec["old"] is not None:
        spell(old_spelling(written, spec["old"]))
        os.rename(os.path.join(folder, "config.json"), os.path.join(folder, "config_old.json"))
    spell(written)

    save_golden(folder, prompts, want, seed)


def save_golden(folder, prompts, want, seed):
    """Writes golden.json and golden.f32."""
    rows, entries = 0, []
    for ids in prompts:
        entries.append({"ids": ids, "first_row": rows})
        rows += len(ids)
    with open(os.path.join(folder, "golden.json"), "w") as f:
        json.dump({"prompts": entries, "shape": list(want.shape), "dtype": "float32", "seed": seed,
                   "made_by": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"}, f)
    want.numpy().astype("<f4").tofile(os.path.join(folder, "golden.f32"))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("out")
    arguments.add_argument("--only", default="")
    arguments = arguments.parse_args()
    for name, spec in CASES.items():
        if arguments.only and name not in arguments.only.split(","):
            continue
        seed = zlib.crc32(name.encode())
        model = build(spec["model_type"], spec["config"])
        randomise(model, seed, getattr(torch, spec["dtype"]))
        vocab = spec["config"]["vocab_size"]
        g = torch.Generator().manual_seed(seed + 1)
        prompts = [torch.randint(3, vocab, (n,), generator=g).tolist() for n in (SHORT, LONG)]
        want = logits(model, prompts)
        check(name, spec, model, prompts, want)
        folder = os.path.join(arguments.out, name)
        save(folder, model, model.config, spec, prompts, want, seed)
        size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
        print(f"{name:24} {size / 1024:7.1f} KiB   logits' std {want.std():.2f}", flush=True)


if __name__ == "__main__":
    main()
