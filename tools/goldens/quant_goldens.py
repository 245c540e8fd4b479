"""Golden files for the decoding of quantised blocks, made with the reference package of the GGUF format.

    pip install gguf
    python tools/goldens/quant_goldens.py crates/kvik-kernels/tests/goldens

Writes one file per format: the number of blocks as a little-endian u32, the blocks, then their elements as f32.
Codes are random; the half-precision scales run through ordinary, extreme, subnormal, zero and negative values.
"""

import sys
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where the half-precision fields of a block start.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "F16": [0], "BF16": [],
}  # fmt: skip
EXTREMES = np.array(
    [65504, -65504, 6.1035e-05, -6.0976e-05, 5.9605e-08, 0.0, -0.0, 1.0, -0.33325, 1.2e-05], dtype=np.float16
)


def main(folder: Path) -> None:
    rng = np.random.default_rng(20240607)
    for name, offsets in HALVES.items():
        kind = GGMLQuantizationType[name]
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = {1: 256, 32: 24, 256: 8}[elements]
        data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
        for offset in offsets:
            halves = rng.normal(0, 0.01, blocks).astype(np.float16)
            extremes = min(len(EXTREMES), blocks // 2)
            halves[:extremes] = rng.permutation(EXTREMES)[:extremes]
            data[:, offset : offset + 2] = halves[:, None].view(np.uint8)
        if name == "BF16":
            data = rng.normal(0, 1, blocks).astype(np.float32).view(np.uint8).reshape(-1, 4)[:, 2:].copy()
        values = dequantize(data.reshape(1, -1), kind).astype("<f4").reshape(-1)
        assert values.size == blocks * elements and np.isfinite(values).all()
        content = np.uint32(blocks).tobytes() + data.tobytes() + values.tobytes()
        (folder / f"{name.lower()}.bin").write_bytes(content)


main(Path(sys.argv[1]))
