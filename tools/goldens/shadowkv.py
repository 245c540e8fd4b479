"""Golden file of ShadowKV, from a plain numpy model of the paper (Sun et al., ICML 2025, arXiv 2410.21465).

    pip install numpy
    python tools/goldens/shadowkv.py data/goldens/methods/shadowkv.json

One layer's rotated keys, its values and some queries, and for several settings which chunks stay exact, which chunks each decoded
token visits in each KV head, what it attends to, and how much of the keys the factors miss. Keys and values are multiples of
1/32, exact in bf16; landmarks are rounded to bf16, the factors here are not. Numbers with which a chunk's place in an order is
nearly a tie are thrown away, so that rounding cannot decide.
"""

import json
import sys
from pathlib import Path

import numpy as np

TOKENS, STEPS, KV_HEADS, HEADS, DIM = 330, 4, 2, 4, 16
TILE = 64
FREQUENCIES = 10.0 ** -np.linspace(0, 3, DIM // 2)
SCALE = DIM**-0.5
SETTINGS = [
    {"rank": 16, "chunk": 8, "budget": 64, "outliers": 4, "local": 4},
    {"rank": 8, "chunk": 8, "budget": 96, "outliers": 3, "local": 1},
    {"rank": 10, "chunk": 4, "budget": 40, "outliers": 6, "local": 9},
    {"rank": 32, "chunk": 16, "budget": 128, "outliers": 1, "local": 2},
]


def rotate(x: np.ndarray, positions: np.ndarray, sign: float = 1.0) -> np.ndarray:
    """Turns `[tokens, heads, DIM]`: dim i with dim i + DIM/2."""
    angle = sign * positions[:, None, None] * FREQUENCIES
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class NearlyATie(Exception):
    pass


def bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def best(scores: np.ndarray, count: int, gap: float) -> np.ndarray:
    """The `count` indices with the largest scores, which no rounding may change."""
    order = np.argsort(-scores, kind="stable")
    if 0 < count < len(scores):
        if scores[order[count - 1]] - scores[order[count]] < gap:
            raise NearlyATie
    return np.sort(order[:count])


def run(setting: dict, keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> dict:
    chunk = setting["chunk"]
    prompt_keys = keys[:TOKENS]
    positions = np.arange(TOKENS)
    rows = (TOKENS - setting["local"] * chunk) // TILE * TILE

    before = rotate(prompt_keys[:rows], positions[:rows], -1.0).reshape(rows, KV_HEADS * DIM)
    u, sigma, vt = np.linalg.svd(before, full_matrices=False)
    rank = setting["rank"]
    low_rank = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
    missed = np.sqrt((sigma[rank:] ** 2).sum())
    rebuilt = rotate(low_rank.reshape(rows, KV_HEADS, DIM), positions[:rows])

    heads = []
    for head in range(KV_HEADS):
        chunks = prompt_keys[:rows, head].reshape(-1, chunk, DIM)
        landmarks = chunks.mean(1)
        cosines = (chunks * landmarks[:, None]).sum(-1)
        cosines /= np.linalg.norm(chunks, axis=-1) * np.linalg.norm(landmarks, axis=-1)[:, None]
        outliers = best(-cosines.min(1), setting["outliers"], 1e-5)
        landmarks = bf16(landmarks)
        candidates = np.setdiff1d(np.arange(len(chunks)), outliers)
        steps = []
        for step in range(STEPS):
            length = TOKENS + step + 1
            group = slice(head * HEADS // KV_HEADS, (head + 1) * HEADS // KV_HEADS)
            query = queries[step, group]
            probability = softmax(query @ landmarks[candidates].T * SCALE).max(0)
            chosen = candidates[best(np.log(probability), setting["budget"] // chunk, 0.004)]
            of = lambda some: np.concatenate([np.arange(c * chunk, (c + 1) * chunk) for c in some])
            exact = np.concatenate([of(outliers), np.arange(rows, length)])
            k = np.concatenate([rebuilt[of(chosen), head], keys[exact, head]])
            v = np.concatenate([values[of(chosen), head], values[exact, head]])
            out = softmax(query @ k.T * SCALE) @ v
            steps.append({"chosen": chosen.tolist(), "out": out.round(4).tolist()})
        heads.append({"outliers": outliers.tolist(), "steps": steps})
    return {**setting, "rows": rows, "missed": round(float(missed), 4), "heads": heads}


def inputs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    total = TOKENS + STEPS
    # Few directions before rotation, along which tokens wander, and a little of everything.
    latent = rng.normal(0, 1, (total, 8))
    for token in range(1, total):
        latent[token] = 0.9 * latent[token - 1] + 0.44 * latent[token]
    before = latent @ rng.normal(0, 0.5, (8, KV_HEADS * DIM)) + rng.normal(0, 0.1, (total, KV_HEADS * DIM))
    keys = rotate(before.reshape(total, KV_HEADS, DIM), np.arange(total))
    values, queries = rng.normal(0, 1, (total, KV_HEADS, DIM)), rng.normal(0, 1, (STEPS, HEADS, DIM))
    return tuple(np.round(32 * np.clip(x, -3.9, 3.9)) / 32 for x in (keys, values, queries))


def main(path: Path) -> None:
    for seed in range(10_000):
        try:
            keys, values, queries = inputs(seed)
            cases = [run(setting, keys, values, queries) for setting in SETTINGS]
            break
        except NearlyATie:
            continue
    golden = {
        "tokens": TOKENS,
        "kv_heads": KV_HEADS,
        "heads": HEADS,
        "dim": DIM,
        "frequencies": FREQUENCIES.tolist(),
        "unit": 1 / 32,
        "keys": np.round(keys * 32).astype(int).ravel().tolist(),
        "values": np.round(values * 32).astype(int).ravel().tolist(),
        "queries": np.round(queries * 32).astype(int).ravel().tolist(),
        "cases": cases,
    }
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
