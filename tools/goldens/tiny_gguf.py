"""The tiny random models once more, as GGUF files laid out the way llama.cpp's converter lays them out.

    python tiny_gguf.py OUT [--only CASE,CASE]

For each case of CASES a folder OUT/<case>/ is written with model.gguf, golden.json and golden.f32; the last two are
what tiny_models.py describes: transformers' float32 logits of the weights as the file stores them, dequantised.

What GGUF does differently from a Hugging Face folder, and what these files therefore test:

  * Llama's Q and K rows are permuted, so that the two numbers which RoPE rotates together lie side by side;
  * Gemma's norm weights hold the 1 that the model adds; where the file names neither the pattern of its windows nor
    the local RoPE base, they are every sixth layer global, and 10000;
  * GPT-NeoX's fused projection is [all Q, all K, all V] in place of [Q, K, V] by head;
  * Llama 3's and Phi-3's scalings of RoPE come as tensors (`rope_freqs`, `rope_factors_long`, `rope_factors_short`)
    that each frequency is divided by;
  * tensors come in block-quantised types. `llama-mixed` has one of each that we read. There is no reference quantiser
    for the K types in Python, so those are blocks of random bits with a fitting scale, which also visits every bit.

The tokenizer is byte-level BPE of 96 tokens: three special ones, the space, the newline, 90 characters, one merge.

Needs torch, transformers 5.2, gguf and numpy.
"""
import argparse
import json
import os
import zlib

import gguf
import numpy as np
import torch
import transformers

import tiny_models
from tiny_models import BASE, GEMMA, LLAMA3, LONG, LONGROPE, NEOX, PHI3, SHORT, YARN, case, rope

TYPE = gguf.GGMLQuantizationType
WIDE = {**BASE, "hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 1}
GEMMA6 = {**GEMMA, "num_hidden_layers": 6, "query_pre_attn_scalar": 16, "layer_types": None}

# each: the model as tiny_models has it, and the type of its matrices (a list is dealt out over them in turn)
CASES = {
    "llama": (case("llama", BASE, rope_parameters=rope()), "F32"),
    "llama-tied-bf16": (case("llama", BASE, tie_word_embeddings=True, rope_parameters=rope(1e5)), "BF16"),
    "llama-rope-llama3": (case("llama", BASE, rope_parameters=rope(kind="llama3", **LLAMA3)), "F16"),
    "llama-rope-linear": (case("llama", BASE, rope_parameters=rope(kind="linear", factor=2.5)), "F16"),
    "llama-rope-yarn": (case("llama", BASE, max_position_embeddings=128,
                             rope_parameters=rope(kind="yarn", **YARN)), "F16"),
    "llama-mixed": (case("llama", WIDE, rope_parameters=rope()),
                    ["Q6_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
                     "Q8_0", "Q5_K", "BF16", "Q4_K", "Q5_1", "Q8_0", "Q4_K", "Q6_K"]),
    "qwen2": (case("qwen2", BASE, rope_parameters=rope()), "F16"),
    "qwen3": (case("qwen3", BASE, head_dim=16, rope_parameters=rope()), "F16"),
    "gemma3": (case("gemma3_text", GEMMA6, rope_parameters=dict(
        full_attention=rope(1e6), sliding_attention=rope(10000.0))), "F16"),
    "gemma3-linear": (case("gemma3_text", GEMMA6, sliding_window_pattern=2, num_hidden_layers=4, rope_parameters=dict(
        full_attention=rope(200.0, "linear", factor=8.0), sliding_attention=rope(100.0))), "F16"),
    "phi3": (case("phi3", PHI3, rope_parameters=rope(partial_rotary_factor=1.0)), "F16"),
    "phi3-longrope": (case("phi3", PHI3, original_max_position_embeddings=16, rope_parameters=rope(
        kind="longrope", partial_rotary_factor=1.0, **LONGROPE)), "F16"),
    "gpt-neox": (case("gpt_neox", NEOX, rope_parameters=rope(10000.0)), "F16"),
    "gpt-neox-sequential": (case("gpt_neox", NEOX, use_parallel_residual=False, rotary_pct=0.5,
                                 rope_parameters=rope(10000.0)), "F16"),
}
ARCHITECTURE = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3", "phi3": "phi3",
                "gpt_neox": "gptneox"}


def quantise(weight, kind, generator):
    """A matrix as the bytes of a type, and the float32 matrix that these mean."""
    if kind == "F32":
        return weight, weight
    if kind.endswith("_K"):
        data = random_blocks(weight.shape, kind, generator, weight.std())
    else:
        data = gguf.quants.quantize(weight, TYPE[kind])
    return data, gguf.quants.dequantize(data, TYPE[kind]).astype(np.float32)


def random_blocks(shape, kind, generator, std):
    """Random bits for every field of a K type's blocks but the scales, which centre the values and give them `std`."""
    size, nbytes = gguf.GGML_QUANT_SIZES[TYPE[kind]]
    blocks = generator.integers(0, 256, (shape[0], shape[1] // size, nbytes), dtype=np.uint8)

    def scaled(d):
        if kind == "Q6_K":  # values are symmetric; the scale comes last
            fields = {nbytes - 2: d}
        else:  # d * scale * q - dmin * min: the mean of q makes up for min's
            fields = {0: d, 2: d * (7.5 if kind == "Q4_K" else 15.5)}
        for at, value in fields.items():
            blocks[..., at:at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        data = blocks.reshape(shape[0], -1)
        return data, gguf.quants.dequantize(data, TYPE[kind]).std()

    d = 2.0 ** -6
    return scaled(d * std / scaled(d)[1])[0]


def to_gguf(model_type, config, name, weight):
    """A Hugging Face tensor in GGUF's layout."""
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if model_type == "llama" and ("q_proj" in name or "k_proj" in name):
        n = heads if "q_proj" in name else kv_heads
        return weight.reshape(n, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    if model_type == "gemma3_text" and name.endswith("norm.weight"):
        return weight + 1.0
    if model_type == "gpt_neox" and "query_key_value" in name:
        return weight.reshape(heads, 3, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)
    return weight


def from_gguf(model_type, config, name, weight):
    """The inverse of to_gguf, for matrices that had to be quantised in GGUF's layout."""
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    if model_type == "llama" and ("q_proj" in name or "k_proj" in name):
        n = heads if "q_proj" in name else kv_heads
        return weight.reshape(n, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    if model_type == "gpt_neox" and "query_key_value" in name:
        return weight.reshape(3, heads, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)
    return weight


def write_vocabulary(out):
    """96 tokens of byte-level BPE; ids 0 to 2 are special."""
    tokens = ["<unk>", "<s>", "</s>", "\u0120", "\u010a"] + [chr(c) for c in range(33, 123)] + ["th"]
    assert len(tokens) == 96
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 93)
    out.add_token_merges(["t h"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_bos_token(False)


def write_settings(out, model_type, config):
    """The architecture's metadata, and the tensors by which RoPE's scalings are given."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(heads)
    out.add_vocab_size(config.vocab_size)
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    scaling = config.rope_parameters.get("full_attention", config.rope_parameters)
    out.add_rope_freq_base(scaling["rope_theta"])
    out.add_rope_dimension_count(int(head_dim * scaling.get("partial_rotary_factor", 1.0)))
    if model_type == "gpt_neox":
        out.add_layer_norm_eps(config.layer_norm_eps)
        out.add_parallel_residual(config.use_parallel_residual)
    else:
        out.add_layer_norm_rms_eps(config.rms_norm_eps)
        out.add_head_count_kv(config.num_key_value_heads)
    if head_dim != config.hidden_size // heads:
        out.add_key_length(head_dim)
        out.add_value_length(head_dim)
    if model_type == "gemma3_text":
        out.add_sliding_window(config.sliding_window)
        if config.layer_types.index("full_attention") != 5:
            out.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
            out.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if model_type == "phi3":
        out.add_sliding_window(0)

    kind = scaling["rope_type"]
    if kind in ("linear", "yarn"):
        out.add_rope_scaling_type(gguf.RopeScalingType(kind))
        out.add_rope_scaling_factor(scaling["factor"])
    if kind in ("yarn", "longrope"):
        out.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if kind == "longrope":
        stretch = config.max_position_embeddings / scaling["original_max_position_embeddings"]
        out.add_rope_scaling_attn_factors(
            (1 + np.log(stretch) / np.log(scaling["original_max_position_embeddings"])) ** 0.5)
        for length in ("long", "short"):
            out.add_tensor(f"rope_factors_{length}.weight", np.array(scaling[f"{length}_factor"], np.float32))
    if kind == "llama3":
        scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config)
        plain = scaling["rope_theta"] ** -(np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
        out.add_tensor("rope_freqs.weight", (plain / scaled.numpy()).astype(np.float32))


def write(path, name, spec, kinds, seed):
    """Writes the file and returns the model that it means, in float32."""
    model_type = spec["model_type"]
    model = tiny_models.build(model_type, spec["config"])
    tiny_models.randomise(model, seed, torch.float32)
    config = model.config
    architecture = ARCHITECTURE[model_type]
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture],
                                     config.num_hidden_layers)
    out = gguf.GGUFWriter(path, architecture)
    out.add_name("tiny random model")  # llama.cpp expects a certain vocabulary of what is called phi3
    write_vocabulary(out)
    write_settings(out, model_type, config)
    generator = np.random.default_rng(seed)
    matrices = 0
    for hf_name, p in model.named_parameters():
        gguf_name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        weight = np.ascontiguousarray(to_gguf(model_type, config, hf_name, p.detach().numpy()))
        if weight.ndim == 1:
            out.add_tensor(gguf_name, weight)
            continue
        kind = kinds if isinstance(kinds, str) else kinds[matrices]
        matrices += 1
        data, means = quantise(weight, kind, generator)
        out.add_tensor(gguf_name, data, raw_dtype=TYPE[kind])
        with torch.no_grad():
            p.copy_(torch.from_numpy(np.ascontiguousarray(from_gguf(model_type, config, hf_name, means))))
    assert isinstance(kinds, str) or matrices == len(kinds)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("out")
    arguments.add_argument("--only", default="")
    arguments = arguments.parse_args()
    for name, (spec, kinds) in CASES.items():
        if arguments.only and name not in arguments.only.split(","):
            continue
        seed = zlib.crc32(f"gguf {name}".encode())
        folder = os.path.join(arguments.out, name)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "model.gguf")
        model = write(path, name, spec, kinds, seed)
        g = torch.Generator().manual_seed(seed + 1)
        prompts = [torch.randint(3, 96, (n,), generator=g).tolist() for n in (SHORT, LONG)]
        want = tiny_models.logits(model, prompts)
        tiny_models.check(name, spec, model, prompts, want)
        tiny_models.save_golden(folder, prompts, want, seed)
        print(f"{name:24} {os.path.getsize(path) / 1024:7.1f} KiB   logits' std {want.std():.2f}", flush=True)


if __name__ == "__main__":
    main()
