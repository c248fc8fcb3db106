#!/usr/bin/env python3
"""Write the text that quantised forms of models/demo are compared on.

Why: a model is only as good as on the text that it is used for, and the demo
model knows one kind of text: chats about words. This writes chats about common
words of its training data ("What does X mean?" and the like, as in training),
chosen and worded by a seed, as one file with ChatML's special tokens in it, for
`qwen2 evaluate --text`. The words are those whose hash is even, so that a
calibration text can take the odd ones.

  python3 tools/train_demo_model.py prepare --seed 1234
  python3 tools/make_evaluation_text.py --data FILE --output models/demo/evaluation.txt
"""
import argparse
import gzip
import json
import random
import zlib

from train_demo_model import conversation

SYSTEM = "You are a helpful assistant."


def chat(turns):
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    for question, answer in turns:
        text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="what train_demo_model.py's `prepare` wrote")
    parser.add_argument("--output", required=True)
    parser.add_argument("--chats", type=int, default=300)
    parser.add_argument("--hash", type=int, default=0, choices=(0, 1), help="parity of the words' hashes")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with gzip.open(args.data, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    common = [r for r in rows if "heldout" not in r and r["weight"] >= 5 and zlib.crc32(r["word"].encode()) % 2 == args.hash]
    rng = random.Random(args.seed)
    chosen = rng.sample(common, args.chats)
    with open(args.output, "w", encoding="utf-8") as file:
        file.write("".join(chat(conversation(row, rng)) for row in chosen))
    print(f"{args.chats} chats about {len(common)} common words")


if __name__ == "__main__":
    main()
