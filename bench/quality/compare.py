"""How far an engine's next-token distributions are from the float32 reference's, and how far llama.cpp's are.

    python compare.py STEM ... [--run 'LABEL=COMMAND'] [--top 256] [--json]

A STEM names a text that has been through reference.py: STEM.ids.json and STEM.ref.npy exist. Beside them each engine
has one file, found by its name:

    STEM.LABEL.npy    float32 logits [tokens, vocab] (llama.cpp's, say, from a small program that calls llama_decode)
    STEM.LABEL.json   what `kvik score STEM.ids.json --ids --top N --json` printed

--run makes the second kind: COMMAND is run for each STEM, with {ids} and {top} replaced, and what it prints is kept
as STEM.LABEL.json. For instance

    compare.py ref/gemma3/wiki ref/gemma3/war \\
        --run 'kvik=target/release/kvik score {ids} --ids --top {top} --json --model gemma3-270m'

All positions that have a next token count. For each engine one row:

    kl        mean KL(reference || engine) in nats over the engine's own N likeliest tokens and one bucket for the rest;
              logits files are cut to the same N, so that all engines are treated alike. Never more than kl_full.
    kl_p99    the 99th percentile of that over positions
    kl_full   over the whole vocabulary; logits files only
    top1      share of positions with the same likeliest token
    miss_gap  the largest lead, in nats, that the reference's likeliest token has over the engine's, where they differ:
              small means that only near ties were missed
    dlogp     mean absolute difference of the next token's log-probability
    ppl, ppl_ref, ppl_pct   perplexities, and the engine's deviation in percent

Needs numpy.
"""
import argparse
import glob
import json
import shlex
import subprocess

import numpy as np

CHUNK = 64  # rows of logits in float64 at once
LEAST = 1e-8  # of a rest's mass: below it, float32 sums say nothing


def log_softmax(rows):
    """Float64 log-probabilities of logits [rows, vocab]."""
    rows = rows.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def kl(logp, logq):
    """KL(p || q) of two log-distributions that are given on the same outcomes."""
    return float((np.exp(logp) * (logp - logq)).sum())


def kl_with_rest(logp, logq):
    """KL on some outcomes and the rest as one more."""
    rest_p, rest_q = (max(LEAST, 1.0 - float(np.exp(x).sum())) for x in (logp, logq))
    return max(0.0, kl(logp, logq) + rest_p * np.log(rest_p / rest_q))


class Logits:
    """An engine known by all its logits."""

    def __init__(self, path, ids, top):
        self.rows, self.ids, self.top = np.load(path, mmap_mode="r"), ids, top
        assert len(self.rows) == len(ids), f"{path}: {len(self.rows)} rows for {len(ids)} ids"

    def positions(self, start, reference):
        """Per position from `start`: (next token's log-probability, likeliest ids and their log-probabilities, full KL)."""
        chunk = log_softmax(self.rows[start:start + len(reference)])
        for at, (row, ref) in enumerate(zip(chunk, reference)):
            best = np.argpartition(-row, self.top)[:self.top]
            best = best[np.argsort(-row[best], kind="stable")]
            yield row[self.ids[start + at + 1]], best, row[best], kl(ref, row)


class Scores:
    """An engine known by its scores of the text: top[i], like logprobs[i], is about token i and null for the first."""

    def __init__(self, path, ids, top):
        with open(path) as f:
            said = json.load(f)
        assert said["token_ids"] == ids, f"{path}: scored other tokens"
        self.logprobs, self.top, self.keep = said["logprobs"], said["top"], top
        if len(self.top) == len(ids) - 1:
            self.top = [None] + self.top
        assert len(self.top) == len(ids) and not self.top[0], f"{path}: `top` has {len(self.top)} entries"
        for token, logprob, top in list(zip(ids, self.logprobs, self.top))[1:]:
            same = [p for i, p in top if i == token]
            assert not same or abs(same[0] - logprob) < 1e-3, f"{path}: `top` and `logprobs` are about different tokens"

    def positions(self, start, reference):
        for at in range(start, start + len(reference)):
            best = sorted(self.top[at + 1], key=lambda pair: -pair[1])[:self.keep]
            yield (self.logprobs[at + 1], np.array([i for i, _ in best]),
                   np.array([p for _, p in best], dtype=np.float64), np.nan)


def compare(reference, ids, engines):
    """One dict of figures for each engine."""
    columns = {label: [] for label in engines}
    for start in range(0, len(ids) - 1, CHUNK):
        block = log_softmax(reference[start:min(start + CHUNK, len(ids) - 1)])
        for label, engine in engines.items():
            for at, (logp, best, logq, full) in enumerate(engine.positions(start, block)):
                ref = block[at]
                columns[label].append((kl_with_rest(ref[best], logq), full, ref.argmax() == best[0],
                                       ref.max() - ref[best[0]], logp, ref[ids[start + at + 1]]))
    out = {}
    for label, rows in columns.items():
        near, full, same, gap, logp, ref = np.array(rows, dtype=np.float64).T
        ppl, ppl_ref = np.exp(-logp.mean()), np.exp(-ref.mean())
        out[label] = {"positions": len(rows), "kl": near.mean(), "kl_p99": np.quantile(near, 0.99),
                      "kl_full": full.mean(), "top1": same.mean(), "miss_gap": gap.max(),
                      "dlogp": abs(logp - ref).mean(), "ppl": ppl, "ppl_ref": ppl_ref,
                      "ppl_pct": 100 * (ppl / ppl_ref - 1)}
    return out


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("stem", nargs="+")
    arguments.add_argument("--run", action="append", default=[])
    arguments.add_argument("--top", type=int, default=256)
    arguments.add_argument("--json", action="store_true", help="one JSON line per text and engine")
    arguments = arguments.parse_args()
    for stem in arguments.stem:
        with open(stem + ".ids.json") as f:
            ids = json.load(f)
        for run in arguments.run:
            label, command = run.split("=", 1)
            command = shlex.split(command.format(ids=shlex.quote(stem + ".ids.json"), top=arguments.top))
            with open(f"{stem}.{label}.json", "w") as f:
                subprocess.run(command, stdout=f, check=True)
        engines = {}
        for kind, suffix in ((Logits, ".npy"), (Scores, ".json")):
            for path in sorted(glob.glob(f"{glob.escape(stem)}.*{suffix}")):
                label = path[len(stem) + 1:-len(suffix)]
                if label not in ("ids", "ref"):
                    engines[label] = kind(path, ids, arguments.top)
        figures = compare(np.load(stem + ".ref.npy", mmap_mode="r"), ids, engines)
        for label, row in figures.items():
            if arguments.json:
                print(json.dumps({"text": stem, "engine": label, "top": arguments.top, **row}), flush=True)
            else:
                print(f"{stem:30} {label:16} kl {row['kl']:.6f}  p99 {row['kl_p99']:.5f}  full {row['kl_full']:.6f}  "
                      f"top1 {100 * row['top1']:6.2f} %  miss_gap {row['miss_gap']:.3f}  dlogp {row['dlogp']:.5f}  "
                      f"ppl {row['ppl']:.4f} / {row['ppl_ref']:.4f} ({row['ppl_pct']:+.3f} %)", flush=True)


if __name__ == "__main__":
    main()
