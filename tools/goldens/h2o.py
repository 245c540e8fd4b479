"""Golden file of H2O, from a plain numpy model of the paper (Zhang et al., NeurIPS 2023, arXiv 2306.14048).

    pip install numpy
    python tools/goldens/h2o.py data/goldens/methods/h2o.json

One layer with two KV heads that serve two query heads each. Queries, keys and values are drawn by `number`, which the test has
as well. The prompt attends in full, with the whole matrix of probabilities and its column sums; then tokens are decoded one by
one by a list-based simulator: the new row comes with a sum of zero, the probabilities over the retained rows are added, and the
row with the smallest sum outside the recent ones goes. For every step the file has the retained positions of each head, the sums
after the last step, and the attention output of the last token.

The cache rounds keys and scaled queries to bf16, and so does the model. With `positions: slot` cached keys were rotated by their
positions; a row is read as if it stood at its place in the list, which is checked against keys and queries that are rotated by
their places from the start. For each case the first draw is taken in which no two candidates for eviction ever lie so close that
rounding could swap them.
"""

import json
import sys
from pathlib import Path

import numpy as np

HEADS, KV_HEADS, DIM, SCALE = 4, 2, 8, 0.5
PROMPT, STEPS = 150, 200
FREQUENCIES = np.array([1.0, 0.25, 0.0625, 0.015625])
MASK = (1 << 64) - 1
# Relative distance of two candidates' scores.
CLOSEST = {"original": 3e-4, "slot": 6e-4}
CASES = [
    {"budget": 40, "recent": 0.5, "score": "sum", "positions": "original"},
    {"budget": 40, "recent": 0.5, "score": "sum", "positions": "slot"},
    {"budget": 70, "recent": 0.2, "score": "sum", "positions": "original"},
    {"budget": 30, "recent": 0.0, "score": "sum", "positions": "original"},
    {"budget": 33, "recent": 1.0, "score": "sum", "positions": "original"},
    {"budget": 48, "recent": 0.25, "score": "mean", "positions": "original"},
    {"budget": 500, "recent": 0.5, "score": "sum", "positions": "original"},
]


def number(what: int, row: int, column: int) -> float:
    """A multiple of 1/64 in -2..2, exact in bf16."""
    x = (what * 0x9E3779B97F4A7C15 & MASK) ^ (row << 20) ^ column
    for _ in range(3):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    return (x >> 40) % 256 / 64.0 - 2.0


def draw(what: int, row: int, head: int) -> np.ndarray:
    return np.array([number(what, row, head * DIM + d) for d in range(DIM)])


def bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


def rotate(x: np.ndarray, position: int) -> np.ndarray:
    cos, sin = np.cos(position * FREQUENCIES), np.sin(position * FREQUENCIES)
    a, b = x[: DIM // 2], x[DIM // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class Head:
    """One KV head: a list of rows."""

    def __init__(self, case: dict, kv_head: int, seed: int):
        self.case, self.kv_head, self.seed = case, kv_head, 10 * seed
        self.slots = case["positions"] == "slot"
        self.queries = range(kv_head * HEADS // KV_HEADS, (kv_head + 1) * HEADS // KV_HEADS)
        # Position, key before rotation, value.
        self.rows: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.sums = np.zeros(0)
        self.closest = np.inf

    def scores(self, queries: list[tuple[int, np.ndarray]]) -> np.ndarray:
        """`[queries, rows]`; the queries are those of the last rows of the list."""
        positions = [position for position, _, _ in self.rows]
        if not self.slots:
            keys = np.stack([key for _, key, _ in self.rows])
            return np.stack([keys @ bf16(SCALE * query) for _, query in queries])
        # The last row stands at its own position, those before it follow each other up to it.
        first = positions[-1] + 1 - len(positions)
        keys = []
        for place, (position, key, _) in enumerate(self.rows, first):
            stored = bf16(rotate(key, position))
            keys.append(bf16(rotate(stored, place - position)) if place > position else stored)
        got = np.stack([np.stack(keys) @ bf16(SCALE * rotate(query, position)) for position, query in queries])
        start = len(self.rows) - len(queries)
        slots = np.stack([rotate(key, place) for place, (_, key, _) in enumerate(self.rows)])
        want = np.stack([slots @ (SCALE * rotate(query, start + i)) for i, (_, query) in enumerate(queries)])
        assert np.abs(got - want).max() < 0.1, np.abs(got - want).max()
        return got

    def probabilities(self, queries: list[tuple[int, np.ndarray]]) -> np.ndarray:
        """`[queries, rows]`; a query sees the rows at or before its position."""
        positions = np.array([position for position, _, _ in self.rows])
        seen = positions[None] <= np.array([position for position, _ in queries])[:, None]
        return softmax(np.where(seen, self.scores(queries), -np.inf))

    def read(self, positions: range) -> np.ndarray:
        """Adds rows and their attention; returns the outputs of the last one, `[group, dim]`."""
        for position in positions:
            key, value = (draw(self.seed + what, position, self.kv_head) for what in (1, 2))
            self.rows.append((position, key, value))
        self.sums = np.concatenate([self.sums, np.zeros(len(positions))])
        values = np.stack([value for _, _, value in self.rows])
        outputs = []
        for head in self.queries:
            p = self.probabilities([(position, draw(self.seed + 3, position, head)) for position in positions])
            self.sums += p.sum(0)
            outputs.append(p[-1] @ values)
        self.cut(positions.stop)
        return np.stack(outputs)

    def cut(self, tokens: int) -> None:
        budget = self.case["budget"]
        recent = round(self.case["recent"] * budget)
        if len(self.rows) <= budget:
            return
        old = [i for i, (position, _, _) in enumerate(self.rows) if position < tokens - recent]
        score = self.sums.copy()
        if self.case["score"] == "mean":
            score /= np.array([tokens - position for position, _, _ in self.rows])
        heavy = budget - (len(self.rows) - len(old))
        ranked = sorted(old, key=lambda i: (-score[i], i))
        if 0 < heavy < len(ranked):
            best_gone = score[ranked[heavy]]
            self.closest = min(self.closest, (score[ranked[heavy - 1]] - best_gone) / best_gone)
        gone = set(ranked[heavy:])
        keep = [i for i in range(len(self.rows)) if i not in gone]
        self.rows = [self.rows[i] for i in keep]
        self.sums = self.sums[keep]


def simulate(case: dict, seed: int) -> dict | None:
    """The case with this draw, if it is clear throughout."""
    heads = [Head(case, kv_head, seed) for kv_head in range(KV_HEADS)]
    for head in heads:
        head.read(range(PROMPT))
    kept = [[position for position, _, _ in head.rows] for head in heads]
    gone = []
    for position in range(PROMPT, PROMPT + STEPS):
        before = [{position, *(p for p, _, _ in head.rows)} for head in heads]
        out = np.concatenate([head.read(range(position, position + 1)) for head in heads])
        gone.append([sorted(b - {p for p, _, _ in head.rows}) for b, head in zip(before, heads)])
        if min(head.closest for head in heads) < CLOSEST[case["positions"]]:
            return None
    return {
        **case,
        "seed": seed,
        "kept_after_prompt": kept,
        "gone": gone,
        "positions_at_end": [[position for position, _, _ in head.rows] for head in heads],
        "sums": [np.round(head.sums, 6).tolist() for head in heads],
        "out": np.round(out, 6).tolist(),
    }


def clear(case: dict) -> dict:
    draws = (simulate(case, seed) for seed in range(1000))
    return next(found for found in draws if found is not None)


def main(path: Path) -> None:
    golden = {
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "dim": DIM,
        "scale": SCALE,
        "frequencies": FREQUENCIES.tolist(),
        "prompt_tokens": PROMPT,
        "cases": [clear(case) for case in CASES],
    }
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
