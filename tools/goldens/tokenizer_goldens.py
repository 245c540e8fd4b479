"""Golden files for tokenizers: what llama.cpp's server answers to /tokenize.

    pip install gguf numpy sentencepiece tokenizers
    python tools/goldens/tokenizer_goldens.py tiny path/to/llama-server crates/kvik-model/tests/goldens/tokenizers.json
    python tools/goldens/tokenizer_goldens.py real http://127.0.0.1:8080 crates/kvik/tests/goldens/tokenizer_NAME.json

`tiny` trains two vocabularies of a few hundred tokens on a text of this repository, byte-level BPE without any cut
(so that its merges cross every place where a pre-tokenizer may cut) and SentencePiece, puts them into throw-away
models, one for each pre-tokenizer, and asks a server about each. `real` asks a server that runs a real model.
"""

import hashlib
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TEXTS = REPOSITORY / "data" / "text"

WORDS = """the of and I'm don't DON'T we'll They'RE 'S 'tis he'd '' 's 123 4567 89 3.14 1,000 x1y2 foo_bar fooBar HTTPServer
e=mc^2 $5 €7 (a) [b] {c} <d> // /* # ## --- ... ?! @user http://a.b/c?d=e naïve café Ünïcödé привет мир 你好世界 こんにちは
カタカナ 한국어 مرحبا שלום नमस्ते ไทย ½ Ⅷ ٣٤ 👍 👩‍👩‍👧‍👦 🇩🇪 ❤️ 1️⃣ é ẍ̧ ﬁ ʰ µ ſ K Å ß İı ǅ ▁ ▁▁""".split()
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2003", "\u3000", "\u0085", "\u200b", "\u2028", "\x0b", "    ", "\n\n", " \n", "\n "]
SPECIALS = """<|endoftext|> <|im_start|> <|im_end|> <repo_name> <|im_ im_end|> <bos> <eos> <start_of_turn> <end_of_turn>
<table> </s> <s> <b> </code> <unused5> <mask> [multimodal] <0x0A> <unk>""".split()
BLOCKS = [
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0x00, 0x1F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0xE7F),
    (0x1100, 0x11FF), (0x1E00, 0x218F), (0x2190, 0x2BFF), (0x2E80, 0x9FFF), (0xA000, 0xD7FF), (0xE000, 0xFFFF),
    (0x10000, 0x1FFFF), (0x1F300, 0x1FAFF), (0x20000, 0x323AF), (0xE0000, 0xE01FF), (0x0, 0xD7FF), (0xE000, 0x10FFFF),
]  # fmt: skip


def random_text(rng: random.Random, pieces: int) -> str:
    """Words, white space, special tokens, runs and characters of all planes."""
    out = []
    for _ in range(pieces):
        kind = rng.random()
        if kind < 0.35:
            out.append(rng.choice(WORDS))
        elif kind < 0.55:
            out.append(rng.choice(SPACES))
        elif kind < 0.65:
            out.append(rng.choice(SPECIALS))
        elif kind < 0.75:
            out.append(rng.choice([" ", "\n", "\t", "a", "=", "-", "0", "_", "!", "<", " \n"]) * rng.randint(1, 40))
        else:
            low, high = rng.choice(BLOCKS)
            out += [chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5))]
    return "".join(out)


def tokenize(url: str, text: str, add_special: bool, parse_special: bool) -> list[int]:
    body = json.dumps({"content": text, "add_special": add_special, "parse_special": parse_special}).encode()
    request = urllib.request.Request(url + "/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["tokens"]


def cases(url: str, texts: list[tuple[str, bool, bool]]) -> list:
    return [[text, add, parse, tokenize(url, text, add, parse)] for text, add, parse in texts]


def write(path: Path, golden: dict) -> None:
    """One line for each entry of the second level."""
    line = lambda value: json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    parts = []
    for key, value in golden.items():
        if isinstance(value, list):
            parts.append(f"{line(key)}:[\n" + ",\n".join(map(line, value)) + "\n]")
        elif isinstance(value, dict):
            inner = ",\n".join(f"{line(k)}:{line(v)}" for k, v in value.items())
            parts.append(f"{line(key)}:{{\n{inner}\n}}")
        else:
            parts.append(f"{line(key)}:{line(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{" + ",\n".join(parts) + "}\n")


def real(url: str, path: Path) -> None:
    rng = random.Random(20240607)
    texts = [("", False, False), ("", True, True)]
    texts += [(" ".join(WORDS), False, False), ("".join(WORDS), True, False)]
    texts += [("".join(word + space for word in WORDS for space in SPACES), False, True)]
    texts += [(" ".join(SPECIALS), False, False), (" ".join(SPECIALS), False, True), ("".join(SPECIALS), True, True)]
    texts += [(space * n, False, False) for space in SPACES for n in (1, 2, 5)]
    texts += [(random_text(rng, rng.choice([1, 3, 8, 20, 40])), rng.random() < 0.5, rng.random() < 0.5) for _ in range(120)]
    files = {}
    for file in ["wikitext2-test-head.txt", "war-and-peace-head.txt"]:
        ids = tokenize(url, (TEXTS / file).read_text(), False, False)
        digest = hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()
        files[file] = {"tokens": len(ids), "sha256": digest}
    write(path, {"files": files, "cases": cases(url, texts)})


# One name for each family of pre-tokenizers.
PRE_TOKENIZERS = """smollm llama-bpe qwen2 gpt-2 default dbrx glm4 tekken gpt-4o granite-embed-multi-97m qwen35 deepseek-v3
deepseek-llm deepseek-coder falcon bloom viking bailingmoe exaone-moe seed-coder ufakzeka minicpm5 laguna youtu""".split()
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<table>", "\n\n\n"]


def train_bpe(lines: list[str]) -> dict:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet))
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens + CONTROL + USER_DEFINED,
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(CONTROL) + [4] * len(USER_DEFINED),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 2,
    }


def train_sentence_piece(lines: list[str]) -> dict:
    import sentencepiece as spm

    with tempfile.TemporaryDirectory() as folder:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=f"{folder}/m", model_type="bpe", vocab_size=600, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
            user_defined_symbols=USER_DEFINED[:1], control_symbols=CONTROL, num_threads=1,
        )  # fmt: skip
        model = spm.SentencePieceProcessor(model_file=f"{folder}/m.model")
    ids = range(model.vocab_size())
    kind = lambda i: 2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
    tokens = [model.id_to_piece(i) for i in ids]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [4 if token in USER_DEFINED else kind(i) for i, token in enumerate(tokens)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def write_model(path: Path, vocabulary: dict) -> None:
    """The smallest model that the server loads: one layer of zeros."""
    import gguf
    import numpy as np

    width, count = 32, len(vocabulary["tokenizer.ggml.tokens"])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in vocabulary.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    for name in ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]:
        writer.add_tensor(name + ".weight", np.ones(width, np.float32))
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((count, width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask(server: str, vocabulary: dict, texts: list[tuple[str, bool, bool]]) -> list[list[int]]:
    url = "http://127.0.0.1:18907"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.gguf"
        write_model(model, vocabulary)
        command = [server, "-m", model, "-t", "1", "-c", "512", "--no-warmup", "--host", "127.0.0.1", "--port", url[-5:]]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(200):
                try:
                    urllib.request.urlopen(url + "/health", timeout=5)
                    break
                except OSError:
                    time.sleep(0.1)
            return [ids for *_, ids in cases(url, texts)]
        finally:
            process.terminate()
            process.wait()


def tiny(server: str, path: Path) -> None:
    rng = random.Random(20240607)
    prose = (TEXTS / "war-and-peace-head.txt").read_text()[:20000].split("\n")
    noise = [random_text(rng, 40) for _ in range(400)]
    for special in SPECIALS:
        noise = [line.replace(special, "") for line in noise]
    bpe, sentence_piece = train_bpe(prose + noise), train_sentence_piece(prose)
    texts = [(" ".join(WORDS), False, False), ("I'LL don't we've\n\n \n x  y\t\tz  1234567 \r\n!!\n/a/\n", True, True)]
    texts += [(random_text(rng, rng.choice([5, 12, 25])), rng.random() < 0.5, rng.random() < 0.5) for _ in range(16)]
    families = {}
    for name in PRE_TOKENIZERS:
        families[name] = ask(server, bpe | {"tokenizer.ggml.pre": name}, texts)
    prefix = "tokenizer.ggml.add_space_prefix"
    families["sentencepiece"] = ask(server, sentence_piece | {prefix: False}, texts)
    families["sentencepiece with a space before the text"] = ask(server, sentence_piece | {prefix: True}, texts)
    write(path, {"bpe": bpe, "sentencepiece": sentence_piece, "texts": texts, "families": families})


if __name__ == "__main__":
    {"tiny": tiny, "real": real}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
