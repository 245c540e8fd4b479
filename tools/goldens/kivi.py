"""Golden file of KIVI, from a plain numpy model of the paper (Liu, Yuan et al., ICML 2024, arXiv 2402.02750).

    pip install numpy
    python tools/goldens/kivi.py data/goldens/methods/kivi.json

One layer; keys and values are drawn by `number`, which the test has as well. Two lists as in the paper's algorithm 1, one of exact
and one of coded rows: of a prompt of l tokens the keys of the first l - l mod R are coded in groups of tokens per channel, and
the values of all but the last R in groups of channels per token. While decoding, the exact keys are coded together when there are
R of them, and the oldest exact value whenever there are more than R. The file has how many rows are coded after each step and, at
the end, what every row reads as, rounded to bf16. A number that lies in the middle between two codes may come back as either:
null.
"""

import json
import sys
from pathlib import Path

import numpy as np

KV_HEADS, DIM = 2, 16
MASK = (1 << 64) - 1
CASES = [
    {"bits": 2, "group": 16, "residual": 32, "prompt": 75, "steps": 40},
    {"bits": 4, "group": 32, "residual": 32, "prompt": 64, "steps": 36},
    {"bits": 8, "group": 16, "residual": 48, "prompt": 20, "steps": 80},
]


def number(what: int, row: int, column: int) -> float:
    """A multiple of 1/64 in -2..2, exact in bf16."""
    x = (what * 0x9E3779B97F4A7C15 & MASK) ^ (row << 20) ^ column
    for _ in range(3):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    return (x >> 40) % 256 / 64.0 - 2.0


def bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)


def coded(numbers: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """`numbers` coded with one scale along `axis`, and decoded; NaN in the middle between two codes."""
    low = numbers.min(axis, keepdims=True)
    scale = (numbers.max(axis, keepdims=True) - low) / (2**bits - 1)
    place = (numbers - low) / np.where(scale > 0, scale, 1)
    back = bf16(low + np.rint(place) * scale)
    return np.where(np.abs(place - np.floor(place) - 0.5) < 1e-4, np.nan, back)


class Head:
    def __init__(self, bits: int, group: int, residual: int):
        self.bits, self.group, self.residual = bits, group, residual
        self.coded_keys, self.exact_keys = np.zeros((0, DIM)), np.zeros((0, DIM))
        self.coded_values, self.exact_values = np.zeros((0, DIM)), np.zeros((0, DIM))

    def code_keys(self, count: int) -> None:
        for start in range(0, count, self.group):
            rows = coded(self.exact_keys[start:start + self.group], self.bits, 0)
            self.coded_keys = np.concatenate([self.coded_keys, rows])
        self.exact_keys = self.exact_keys[count:]

    def code_values(self, count: int) -> None:
        for row in self.exact_values[:count]:
            parts = [coded(row[d:d + self.group], self.bits, 0) for d in range(0, DIM, self.group)]
            self.coded_values = np.concatenate([self.coded_values, [np.concatenate(parts)]])
        self.exact_values = self.exact_values[count:]

    def prompt(self, keys: np.ndarray, values: np.ndarray) -> None:
        self.exact_keys, self.exact_values = keys, values
        self.code_keys(len(keys) - len(keys) % self.residual)
        self.code_values(max(0, len(values) - self.residual))

    def token(self, key: np.ndarray, value: np.ndarray) -> None:
        self.exact_keys = np.concatenate([self.exact_keys, [key]])
        self.exact_values = np.concatenate([self.exact_values, [value]])
        if len(self.exact_keys) == self.residual:
            self.code_keys(self.residual)
        if len(self.exact_values) > self.residual:
            self.code_values(1)


def simulate(case: dict) -> dict:
    total = case["prompt"] + case["steps"]
    planes = np.array([[[[number(what, row, head * DIM + d) for d in range(DIM)] for head in range(KV_HEADS)]
                        for row in range(total)] for what in (1, 2)])
    heads, counts = [], []
    for kv_head in range(KV_HEADS):
        head = Head(case["bits"], case["group"], case["residual"])
        keys, values = planes[0, :, kv_head], planes[1, :, kv_head]
        head.prompt(keys[:case["prompt"]], values[:case["prompt"]])
        counts = [[len(head.coded_keys), len(head.coded_values)]]
        for row in range(case["prompt"], total):
            head.token(keys[row], values[row])
            counts.append([len(head.coded_keys), len(head.coded_values)])
        read = [np.concatenate([head.coded_keys, head.exact_keys]), np.concatenate([head.coded_values, head.exact_values])]
        heads.append([[[None if np.isnan(x) else round(float(x), 4) for x in row] for row in plane] for plane in read])
    return {**case, "coded": counts, "heads": heads}


def main(path: Path) -> None:
    golden = {"kv_heads": KV_HEADS, "dim": DIM, "cases": [simulate(case) for case in CASES]}
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
