"""Measures one figure of OpenVINO GenAI and prints it as `llama-bench -o json` would.

usage: openvino_bench.py --model FILE.gguf --prompt N --gen N --depth N --threads N [--kv f16|u8|u4] [--chunk TOKENS]

Needs the package openvino-genai; `bench/peers.sh DIR openvino` installs it. FILE is a GGUF file that OpenVINO can read
(SmolLM2's; not Gemma's), or a folder with an OpenVINO model.

A prompt of N tokens is timed by the pipeline's own time to the first token, decoding by its mean time for each token
after the first, behind a prompt of the given depth (a depth of 0 is a prompt of one token). Prompts are random token
ids, computed from nothing each time: the prefix cache is off. Loading, several seconds, is not timed.
"""

import argparse
import json

import numpy as np
import openvino
import openvino_genai


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--gen", type=int, default=0)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--kv", choices=["f16", "u8", "u4"], default="f16", help="how keys and values are cached")
    parser.add_argument("--chunk", type=int, default=512, help="prompt tokens computed at once")
    args = parser.parse_args()
    if (args.prompt > 0) == (args.gen > 0):
        parser.error("give --prompt for a prefill or --gen for decoding, one of them above 0")
    return args


def load(args):
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = args.chunk
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": args.threads, "scheduler_config": scheduler}
    if args.kv == "u4":  # four bits are set for keys and values apart
        properties |= {"KEY_CACHE_PRECISION": "u4", "VALUE_CACHE_PRECISION": "u4"}
    else:
        properties["KV_CACHE_PRECISION"] = args.kv
    return openvino_genai.LLMPipeline(args.model, "CPU", **properties)


def generate(pipeline, prompt_tokens, new_tokens):
    """Performance counters of one request."""
    # Below any vocabulary's size, above the special tokens at its beginning.
    ids = np.random.default_rng(1).integers(100, 30000, size=(1, prompt_tokens), dtype=np.int64)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    return pipeline.generate(inputs, config).perf_metrics


def main():
    args = arguments()
    pipeline = load(args)
    generate(pipeline, 16, 4)  # the first request sets things up
    if args.prompt > 0:
        # One more token than the first, so that the counters are complete.
        speed = 1000 * args.prompt / generate(pipeline, args.prompt, 2).get_ttft().mean
    else:
        speed = 1000 / generate(pipeline, max(args.depth, 1), args.gen).get_tpot().mean
    figure = {"n_prompt": args.prompt, "n_gen": args.gen, "n_depth": args.depth}
    setting = {"engine": "openvino-genai", "version": openvino_genai.__version__, "n_threads": args.threads}
    print(json.dumps([setting | {"type_kv": args.kv} | figure | {"avg_ts": speed}]))


main()
