"""Golden files of which tokens stay, from another implementation: the presses of NVIDIA's kvpress, on the same weights.

    pip install kvpress gguf
    python tools/goldens/presses.py data/goldens/methods/presses_tiny.json
    python tools/goldens/presses.py data/goldens/methods/presses_smollm2.json --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf

The first takes the random models of data/tiny-models, the second the real model with its dequantised weights, checked tensor by
tensor (bench/quality/reference.py). transformers computes in float32.

For each prompt, press and budget the file has the kept positions of each layer and KV head, found by comparing the keys that the
press returned with those that it was given, and the positions whose score lies within a few percent of the lowest kept one: whether those
stay may depend on rounding. A press without scores to compare (StreamingLLM's are zeros and ones) has none of them.
"""

import argparse
import importlib.util
import json
import os
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from kvpress import ObservedAttentionPress, SnapKVPress, StreamingLLMPress  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ROOT = Path(__file__).parents[2]


def recorded(press_class):
    """The press, which notes what it keeps at each layer."""

    class Recorded(press_class):
        def compress(self, module, hidden_states, keys, values, attentions, kwargs):
            scores = self.score(module, hidden_states, keys, values, attentions, kwargs)[0]
            out, kept_values = super().compress(module, hidden_states, keys, values, attentions, kwargs)
            same = (out[0][:, :, None] == keys[0][:, None]).all(-1)
            assert (same.sum(-1) == 1).all(), "keys differ from each other"
            kept = same.int().argmax(-1).sort(-1).values
            lowest = scores.gather(-1, kept).min(-1, keepdim=True).values
            close = (scores / lowest - 1).abs() < self.margin
            self.heads.append([
                {"kept": k.tolist(), "close": c.nonzero()[:, 0].tolist()} for k, c in zip(kept, close)
            ])
            return out, kept_values

    return Recorded


def run(model, ids: list[int], press_class, kv: str, budget: int, margin: float, **settings) -> dict:
    press = recorded(press_class)(compression_ratio=1 - budget / len(ids), **settings)
    press.heads, press.margin = [], margin
    with torch.inference_mode(), press(model):
        model(torch.tensor([ids]), past_key_values=DynamicCache())
    layers = press.heads
    assert all(len(head["kept"]) == budget for layer in layers for head in layer), budget
    if press_class is StreamingLLMPress:
        for head in (head for layer in layers for head in layer):
            head["close"] = []
    return {"kv": kv, "press": press_class.__name__, "budget": budget, "layers": layers}


def cases(model, ids: list[int], budgets: list[int], window: int, margin: float) -> list[dict]:
    out = []
    for budget in budgets:
        out.append(run(model, ids, SnapKVPress, f"snapkv(budget={budget},window={window})", budget, margin,
                       window_size=window, kernel_size=5))
        out.append(run(model, ids, StreamingLLMPress, f"streaming(budget={budget})", budget, margin))
        out.append(run(model, ids, ObservedAttentionPress, f"h2o(budget={budget},recent=0,score=mean)", budget, margin))
    return out


def tiny() -> list[dict]:
    models = []
    for name in ["llama", "llama-mha-odd-sizes", "qwen3"]:
        model = AutoModelForCausalLM.from_pretrained(
            ROOT / "data/tiny-models" / name, dtype=torch.float32, attn_implementation="eager").eval()
        prompts = []
        for start, length in [(3, 60), (11, 45)]:
            ids = [3 + (start + i * i * 7 + i * 31) % 90 for i in range(length)]
            prompts.append({"ids": ids, "cases": cases(model, ids, [14, 30], 8, 0.02)})
        models.append({"model": name, "prompts": prompts})
    return models


def smollm2(path: str) -> list[dict]:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "bench/quality/reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    model = reference.load(path)
    golden = json.loads((ROOT / "data/goldens/quality/smollm2.json").read_text())["token_ids"]
    prompts = []
    for start, length in [(0, 400), (300, 260)]:
        ids = golden[start:start + length]
        prompts.append({"ids": ids, "cases": cases(model, ids, [64], 32, 0.08)})
    return [{"model": "smollm2", "prompts": prompts}]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--smollm2", metavar="GGUF")
    arguments = parser.parse_args()
    models = smollm2(arguments.smollm2) if arguments.smollm2 else tiny()
    arguments.out.write_text(json.dumps(models, separators=(",", ":")) + "\n")
    print(arguments.out, arguments.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
