"""Golden file of DuoAttention, from a plain numpy model of the paper (Xiao, Tang et al., ICLR 2025, arXiv 2410.10819).

    pip install numpy
    python tools/goldens/duo.py data/goldens/methods/duo.json

Gates are given. Heads at or above a quantile of all gates are full, as in the authors' code; the shares here are such that the
number of full heads comes out whole. What a streaming head holds of n tokens and what a query of it sees are closed formulas, not a
simulation of a cache:

- after a chunk or a decoded token: the first `sink` and the last `recent` of the n tokens;
- a query sees the first `sink` tokens, the `recent` ones before its chunk, and its chunk up to itself. A decoded token is a chunk.

The file has the full heads, what each head holds after each chunk and token as runs of positions and, for cases of one layer,
attention outputs of three queries of each chunk and of each decoded token. Queries, keys and values are drawn by `number`, which
the test has as well; the cache rounds keys and scaled queries to bf16, and so does the model.
"""

import json
import sys
from pathlib import Path

import numpy as np

GROUP, DIM, SCALE, SEED = 2, 8, 0.5, 3
MASK = (1 << 64) - 1
CASES = [
    # Several layers: which heads, and what they hold. The last layer has no full head, the first no other.
    {"gates": [[0.9, 0.81, 0.77], [0.3, 0.75, 0.2], [0.1, 0.05, 0.02], [0.31, 0.8, 0.0]], "full": 0.5, "choose": "highest",
     "sink": 4, "recent": 20, "chunks": [70, 50, 7], "steps": 40, "second": [30, 64]},
    {"gates": [[0.9, 0.81, 0.77], [0.3, 0.75, 0.2], [0.1, 0.05, 0.02], [0.31, 0.8, 0.0]], "full": 0.25, "choose": "lowest",
     "sink": 0, "recent": 33, "chunks": [20, 130], "steps": 5, "second": [10]},
    # One layer: what queries see.
    {"gates": [[0.2, 0.9, 0.6, 0.1]], "full": 0.5, "choose": "highest",
     "sink": 4, "recent": 20, "chunks": [90, 64, 33], "steps": 12, "second": [40]},
    {"gates": [[0.2, 0.9, 0.6, 0.1]], "full": 1.0, "choose": "highest",
     "sink": 4, "recent": 20, "chunks": [90, 33], "steps": 3, "second": []},
    {"gates": [[0.2, 0.9, 0.6, 0.1]], "full": 0.25, "choose": "highest",
     "sink": 70, "recent": 1, "chunks": [50, 100], "steps": 6, "second": []},
]


def number(what: int, row: int, column: int) -> float:
    """A multiple of 1/64 in -2..2, exact in bf16."""
    x = (what * 0x9E3779B97F4A7C15 & MASK) ^ (row << 20) ^ column
    for _ in range(3):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    return (x >> 40) % 256 / 64.0 - 2.0


def draw(what: int, rows: int, head: int) -> np.ndarray:
    return np.array([[number(10 * SEED + what, row, head * DIM + d) for d in range(DIM)] for row in range(rows)])


def bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def full_heads(case: dict) -> np.ndarray:
    gates = np.array(case["gates"])
    if case["choose"] == "lowest":
        gates = -gates
    full = gates >= np.quantile(gates, 1 - case["full"])
    assert full.sum() == case["full"] * gates.size
    return full


def held(case: dict, full: bool, tokens: int) -> list[list[int]]:
    """Runs `[start, end]` of the positions that a head holds of so many tokens, the end excluded."""
    if full or tokens <= case["sink"] + case["recent"]:
        return [[0, tokens]]
    runs = [[0, case["sink"]], [tokens - case["recent"], tokens]]
    return [run for run in runs if run[0] < run[1]]


def outputs(case: dict, full: np.ndarray, chunks: list[int]) -> list:
    """Per chunk, for its first, middle and last query: `[query heads, dim]`."""
    total, start, out = sum(chunks), 0, []
    keys, values, queries = ([draw(what, total, head) for head in range(heads)]
                             for what, heads in ((1, full.size), (2, full.size), (3, GROUP * full.size)))
    hidden_matters = False
    for chunk in chunks:
        rows = sorted({0, chunk // 2, chunk - 1})
        out.append([])
        for position in (start + row for row in rows):
            heads = []
            for head, queries_of in enumerate(queries):
                kv_head = head // GROUP
                scores = keys[kv_head][:position + 1] @ bf16(SCALE * queries_of[position])
                j = np.arange(position + 1)
                seen = full[0, kv_head] | (j < case["sink"]) | (j >= start - case["recent"])
                weights = np.where(seen, np.exp(scores - scores[seen].max()), 0)
                everything = np.exp(scores - scores.max())
                output, unmasked = (w / w.sum() @ values[kv_head][:position + 1] for w in (weights, everything))
                hidden_matters |= np.abs(output - unmasked).max() > 0.2
                heads.append([round(float(x), 4) for x in output])
            out[-1].append([position - start, heads])
        start += chunk
    assert hidden_matters or full.all()
    return out


def simulate(case: dict) -> dict:
    full = full_heads(case)
    chunks = case["chunks"] + [1] * case["steps"] + case["second"]
    lengths = np.cumsum(chunks)
    kept = [[[held(case, bool(head), int(n)) for head in layer] for layer in full] for n in lengths]
    result = {**case, "is_full": full.tolist(), "held": kept}
    if len(full) == 1:
        result["outputs"] = outputs(case, full, chunks)
    return result


def main(path: Path) -> None:
    golden = {"group": GROUP, "dim": DIM, "scale": SCALE, "seed": SEED, "cases": [simulate(case) for case in CASES]}
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
