"""The float32 reference: transformers on a GGUF file's dequantised weights, teacher-forced over given token ids.

    python reference.py MODEL.gguf NAME.ids.json ... [--threads 2] [--golden FOLDER]

Each NAME.ids.json is a JSON list of token ids (special tokens and the BOS included, if the model wants one). Beside it
NAME.ref.npy is written: float32 [tokens, vocab], whose row i holds the logits of the token after ids[i]. That is
1 MiB a token for Gemma's vocabulary, so these files are kept out of the repository.

The ids must come from the tokenizer that is being compared (llama-server's /tokenize): the tokenizers that
transformers 5.2 derives from GGUF files add a BOS that SmolLM2's does not ask for, and split Gemma's words wrongly.

Before anything is computed, the weights that transformers made of the file are held against the gguf package's own
dequantisation of the same tensors, so that the reference is of the very numbers that the file means.

--golden FOLDER writes FOLDER/NAME.json as well: the ids, the reference's log-probability of each next token and its
eight likeliest tokens. This is small enough to be committed (data/goldens/quality).

Needs torch, transformers 5.2, gguf and numpy.
"""
import argparse
import json
import os
import re
import warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# the second norm of a block has another name in Gemma, which also normalises each sublayer's output
FFN_NORM = {"llama": {"ffn_norm": "post_attention_layernorm"},
            "gemma3": {"ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
                       "post_ffw_norm": "post_feedforward_layernorm"}}


def load(path):
    """The model in float32, checked tensor by tensor against the file."""
    folder, file = os.path.split(os.path.abspath(path))
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32, attn_implementation="eager").eval()
    reader = gguf.GGUFReader(path)
    architecture = reader.get_field("general.architecture").contents()
    names = {**NAMES, **FFN_NORM[architecture]}
    loaded = dict(model.named_parameters())
    for tensor in reader.tensors:
        layer, part = re.fullmatch(r"(?:blk\.(\d+)\.)?(.+)\.weight", tensor.name).groups()
        name = (f"model.layers.{layer}." if layer else "") + names[part] + ".weight"
        want = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if architecture == "llama" and part in ("attn_q", "attn_k"):  # GGUF keeps rotated pairs side by side
            head = model.config.head_dim
            want = want.reshape(-1, head // 2, 2, want.shape[-1]).swapaxes(1, 2).reshape(want.shape)
        if architecture == "gemma3" and part.endswith("norm"):  # and Gemma's norms with the 1 added
            want = want - 1.0
        assert np.array_equal(loaded.pop(name).detach().numpy(), want), f"{tensor.name} is not {name}"
    assert not loaded, f"not in the file: {sorted(loaded)}"
    return model


def logits(model, ids, out, chunk=64):
    """Writes out, float32 [tokens, vocab], a few rows at a time: the whole would not fit beside the model."""
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        for at in range(0, len(ids), chunk):
            out[at:at + chunk] = model.lm_head(hidden[at:at + chunk]).numpy()


def golden(ids, rows, top=8):
    """The committed extract, laid out like `kvik score --top`: entry i is about token i, and null for the first."""
    logprobs, best = [None], [None]
    for at in range(len(ids) - 1):
        row = rows[at].astype(np.float64)
        row -= row.max() + np.log(np.exp(row - row.max()).sum())
        logprobs.append(round(float(row[ids[at + 1]]), 4))
        first = np.argsort(-row, kind="stable")[:top]
        best.append([[int(i), round(float(row[i]), 4)] for i in first])
    return {"token_ids": ids, "logprobs": logprobs, "perplexity": float(np.exp(-np.mean(logprobs[1:]))), "top": best}


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("model")
    arguments.add_argument("ids", nargs="+")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--golden", default="")
    arguments = arguments.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load(arguments.model)
    for path in arguments.ids:
        stem = path.removesuffix(".ids.json")
        with open(path) as f:
            ids = json.load(f)
        rows = np.lib.format.open_memmap(stem + ".ref.npy", "w+", np.float32, (len(ids), model.config.vocab_size))
        logits(model, ids, rows)
        rows.flush()
        if arguments.golden:
            with open(os.path.join(arguments.golden, os.path.basename(stem) + ".json"), "w") as f:
                json.dump(golden(ids, rows), f, separators=(",", ":"))
        print(f"{stem}.ref.npy: {len(ids)} tokens", flush=True)


if __name__ == "__main__":
    main()
