#!/usr/bin/python3
"""Logits of a Qwen2 folder in float64, for tests of what no golden of Transformers covers.

    tests/tools/float64_logits.py FOLDER '{"rope_scaling": {...}}' PROMPT...

The second argument changes fields of config.json; a PROMPT is token ids with commas. Prints
{"config": ..., "cases": [{"prompt": [...], "logits": [...]}]}, the logits of the last position.
Reads one model.safetensors in F32, F16 or BF16 with Hugging Face's names. Biases of every
linear layer are added where the file has them. Shares no code with the program.
"""
import json
import math
import sys

import numpy


def read_tensors(path):
    data = open(path, "rb").read()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            values = (numpy.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        else:
            values = numpy.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[entry["dtype"]])
        tensors[name] = values.astype("f8").reshape(entry["shape"])
    return tensors


def rotation(config, size):
    """Frequencies of the pairs and the factor of cosines and sines (arXiv 2309.00071 for YaRN)."""
    base = config.get("rope_theta", 10000.0)
    frequencies = base ** (-2.0 * numpy.arange(size // 2) / size)
    scaling = config.get("rope_scaling")
    if not scaling:
        return frequencies, 1.0
    factor, context = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair(turns):
        return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair(32)), 0)
    high = min(math.ceil(pair(1)), size - 1)
    ramp = numpy.clip((numpy.arange(size // 2) - low) / max(high - low, 0.001), 0, 1)
    return frequencies * ((1 - ramp) + ramp / factor), 0.1 * math.log(factor) + 1


def logits(config, tensors, prompt):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    frequencies, magnitude = rotation(config, size)
    angles = numpy.outer(numpy.arange(len(prompt)), frequencies)
    cosines, sines = numpy.cos(angles) * magnitude, numpy.sin(angles) * magnitude

    def linear(x, name):
        return x @ tensors[name + ".weight"].T + tensors.get(name + ".bias", 0.0)

    def norm(x, name):
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * tensors[name + ".weight"]

    def rotate(x):
        a, b = x[..., : size // 2], x[..., size // 2 :]
        c, s = cosines[:, None], sines[:, None]
        return numpy.concatenate([a * c - b * s, b * c + a * s], -1)

    x = tensors["model.embed_tokens.weight"][prompt]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        y = norm(x, name + "input_layernorm")
        split = [linear(y, name + f"self_attn.{p}_proj").reshape(len(prompt), -1, size) for p in "qkv"]
        q, k, v = rotate(split[0]), rotate(split[1]), split[2]
        out = numpy.zeros_like(q)
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, group].T / math.sqrt(size)
            scores[numpy.triu_indices(len(prompt), 1)] = -numpy.inf
            weights = numpy.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
        x = x + linear(out.reshape(len(prompt), -1), name + "self_attn.o_proj")
        y = norm(x, name + "post_attention_layernorm")
        gate = linear(y, name + "mlp.gate_proj")
        x = x + linear(gate / (1 + numpy.exp(-gate)) * linear(y, name + "mlp.up_proj"), name + "mlp.down_proj")
    head = tensors["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return norm(x[-1], "model.norm") @ head.T


def main():
    folder, changes, prompts = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
    config = json.load(open(folder + "/config.json")) | changes
    tensors = read_tensors(folder + "/model.safetensors")
    cases = []
    for text in prompts:
        prompt = [int(token) for token in text.split(",")]
        row = logits(config, tensors, prompt)
        cases.append({"prompt": prompt, "logits": [float(f"{value:.7g}") for value in row]})
    print(json.dumps({"config": changes, "cases": cases}))


main()
