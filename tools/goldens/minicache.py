"""Golden file of MiniCache, from a plain numpy model of the paper (Liu et al., NeurIPS 2024, arXiv 2405.14366).

    pip install numpy
    python tools/goldens/minicache.py data/goldens/methods/minicache.json

Two layers' keys and values, `[tokens, heads, dim]`, that agree more or less from token to token, and for several settings
what each layer reads afterwards and which tokens were not merged. Inputs are multiples of 1/32, exact in bf16.
"""

import json
import sys
from pathlib import Path

import numpy as np

TOKENS, HEADS, DIM = 70, 2, 8
MARGIN = 1e-6
SETTINGS = [
    {"t": 0.6, "retain": 0.05, "rule": "share"},
    {"t": 0.5, "retain": 0.2, "rule": "range"},
    {"t": 0.3, "retain": 0.0, "rule": "share"},
    {"t": 0.6, "retain": 1.0, "rule": "share"},
]


def merge(lower: np.ndarray, upper: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Both layers' vectors restored from the common direction, `[2, tokens, dim]`, and angles over pi."""
    lengths = np.linalg.norm(np.stack([lower, upper]), axis=-1, keepdims=True)
    units = np.stack([lower, upper]) / lengths
    omega = np.arccos(np.clip((units[0] * units[1]).sum(-1), -1 + MARGIN, 1 - MARGIN))[:, None]
    direction = (np.sin((1 - t) * omega) * units[0] + np.sin(t * omega) * units[1]) / np.sin(omega)
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    return direction * lengths, omega[:, 0] / np.pi


def retained(distance: np.ndarray, retain: float, rule: str) -> set[int]:
    if retain == 1.0:
        return set(range(len(distance)))
    if rule == "range":
        bound = distance.max() - retain * (distance.max() - distance.min())
        return set(np.nonzero(distance > bound)[0].tolist())
    count = int(np.ceil(retain * len(distance)))
    return set(np.argsort(-distance, kind="stable")[:count].tolist())


def main(path: Path) -> None:
    rng = np.random.default_rng(35)
    shape = (TOKENS, HEADS, DIM)
    planes = {}
    for plane in ["keys", "values"]:
        lower = rng.normal(0, 2, shape)
        upper = 1.3 * lower + rng.normal(0, 1, shape) * rng.uniform(0.1, 2.5, (TOKENS, HEADS, 1))
        planes[plane] = np.round(32 * np.clip(np.stack([lower, upper]), -7.5, 7.5)) / 32
    cases = []
    for setting in SETTINGS:
        heads = []
        for head in range(HEADS):
            keys, key_distance = merge(*planes["keys"][:, :, head], setting["t"])
            values, value_distance = merge(*planes["values"][:, :, head], setting["t"])
            stay = set()
            for distance in [key_distance, value_distance]:
                stay |= retained(distance, setting["retain"], setting["rule"])
            for token in stay:
                keys[:, token] = planes["keys"][:, token, head]
                values[:, token] = planes["values"][:, token, head]
            heads.append({"retained": sorted(stay), "keys": keys.round(5).tolist(), "values": values.round(5).tolist()})
        cases.append({**setting, "heads": heads})
    inputs = {plane: numbers.tolist() for plane, numbers in planes.items()}
    golden = {"tokens": TOKENS, "kv_heads": HEADS, "dim": DIM, **inputs, "cases": cases}
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
