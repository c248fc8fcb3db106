#!/usr/bin/env python3
"""Writes tests/fixtures/gguf and tests/fuzz/corpus/gguf: small random Qwen2 models in GGUF, and beside each its
twin, a Hugging Face folder with the same weights in float32.

Written from the public descriptions of the formats and not from this project's reader, so that each checks the
other:
  https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
  https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (the blocks)
  https://github.com/huggingface/safetensors#format
Every place in a block is computed from the element's number. The twin's values are computed in double, where the
products and sums are exact, and rounded once to float, as ggml's float arithmetic does for these types.

Usage: python3 tests/tools/make_gguf_fixtures.py   (standard library only; the same bytes on every run)
"""

import json
import pathlib
import random
import struct

ROOT = pathlib.Path(__file__).resolve().parents[1]

# --- values ---------------------------------------------------------------------------------------------------


def f16_bytes(value):
    return struct.pack("<e", value)


def random_half(rng, scale):
    """A random value near `scale` that fp16 holds exactly."""
    return struct.unpack("<e", f16_bytes(rng.choice([-1, 1]) * scale * rng.uniform(0.5, 1.5)))[0]


def float_bytes(value):
    return struct.pack("<f", value)


def bf16_bytes(value):
    """The upper half of the float: truncated, which is exact for the values used here."""
    return float_bytes(value)[2:]


# --- blocks: each returns (bytes, values) of one random block -------------------------------------------------


def block_f32(rng):
    data = float_bytes(rng.gauss(0, 0.05))
    return data, list(struct.unpack("<f", data))


def block_f16(rng):
    value = random_half(rng, 0.05)
    return f16_bytes(value), [value]


def block_bf16(rng):
    data = bf16_bytes(rng.gauss(0, 0.05))
    return data, list(struct.unpack("<f", b"\0\0" + data))


def block_q8_0(rng):
    d = random_half(rng, 0.001)
    codes = [rng.randint(-128, 127) for _ in range(32)]
    return f16_bytes(d) + struct.pack("<32b", *codes), [d * q for q in codes]


def nibbles(codes, piece):
    """Packs 4-bit codes: in each piece, the first half of the codes are low halves, the second half high ones."""
    out = bytearray(len(codes) // 2)
    for e, q in enumerate(codes):
        byte = e // piece * (piece // 2) + e % (piece // 2)
        out[byte] |= (q & 15) << (4 if e % piece >= piece // 2 else 0)
    return bytes(out)


def block_q4_0(rng):
    d = random_half(rng, 0.01)
    codes = [rng.randint(0, 15) for _ in range(32)]
    return f16_bytes(d) + nibbles(codes, 32), [d * (q - 8) for q in codes]


def block_q4_1(rng):
    d, m = random_half(rng, 0.01), random_half(rng, 0.08)
    codes = [rng.randint(0, 15) for _ in range(32)]
    return f16_bytes(d) + f16_bytes(m) + nibbles(codes, 32), [d * q + m for q in codes]


def fifth_bits(codes):
    """32 bits: bit j is the fifth bit of code j."""
    return struct.pack("<I", sum((q >> 4 & 1) << j for j, q in enumerate(codes)))


def block_q5_0(rng):
    d = random_half(rng, 0.005)
    codes = [rng.randint(0, 31) for _ in range(32)]
    return f16_bytes(d) + fifth_bits(codes) + nibbles(codes, 32), [d * (q - 16) for q in codes]


def block_q5_1(rng):
    d, m = random_half(rng, 0.005), random_half(rng, 0.08)
    codes = [rng.randint(0, 31) for _ in range(32)]
    return f16_bytes(d) + f16_bytes(m) + fifth_bits(codes) + nibbles(codes, 32), [d * q + m for q in codes]


LEVELS = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


def block_iq4_nl(rng):
    d = random_half(rng, 0.0008)
    codes = [rng.randint(0, 15) for _ in range(32)]
    return f16_bytes(d) + nibbles(codes, 32), [d * LEVELS[q] for q in codes]


def block_iq4_xs(rng):
    """Factors of 6 bits: low halves in four bytes, a byte for two; top two bits in a number of 16 bits."""
    d = random_half(rng, 0.00004)
    factors = [rng.randint(0, 63) for _ in range(8)]
    codes = [rng.randint(0, 15) for _ in range(256)]
    upper = sum((f >> 4) << (2 * i) for i, f in enumerate(factors))
    lower = bytes((factors[i] & 15) | (factors[i + 1] & 15) << 4 for i in range(0, 8, 2))
    values = [d * (factors[e // 32] - 32) * LEVELS[q] for e, q in enumerate(codes)]
    return f16_bytes(d) + struct.pack("<H", upper) + lower + nibbles(codes, 32), values


def two_bits(codes):
    """64 bytes: each half of 128 codes takes 32 bytes, a byte for every 32nd code, the first lowest."""
    out = bytearray(64)
    for e, q in enumerate(codes):
        half, i = divmod(e, 128)
        out[half * 32 + i % 32] |= (q & 3) << (2 * (i // 32))
    return bytes(out)


def block_q2_k(rng):
    d, dmin = random_half(rng, 0.004), random_half(rng, 0.006)
    scales = [rng.randint(0, 15) for _ in range(16)]
    minima = [rng.randint(0, 15) for _ in range(16)]
    codes = [rng.randint(0, 3) for _ in range(256)]
    values = [d * scales[e // 16] * q - dmin * minima[e // 16] for e, q in enumerate(codes)]
    factors = bytes(s | m << 4 for s, m in zip(scales, minima))
    return factors + two_bits(codes) + f16_bytes(d) + f16_bytes(dmin), values


def block_q3_k(rng):
    """Factors of 6 bits in 12 bytes: the first eight give the low halves of factor i and, above it, of factor
    i + 8; the last four the top two bits, byte j those of the factors j, j + 4, j + 8, j + 12."""
    d = random_half(rng, 0.001)
    factors = [rng.randint(0, 63) for _ in range(16)]
    codes = [rng.randint(0, 7) for _ in range(256)]
    third, packed = bytearray(32), bytearray(12)
    for e, q in enumerate(codes):
        third[e % 32] |= (q >> 2) << (e // 32)
    for i, f in enumerate(factors):
        packed[i % 8] |= (f & 15) << (4 * (i // 8))
        packed[8 + i % 4] |= (f >> 4) << (2 * (i // 4))
    values = [d * (factors[e // 16] - 32) * (q - 4) for e, q in enumerate(codes)]
    return bytes(third) + two_bits(codes) + bytes(packed) + f16_bytes(d), values


def six_bit_factors(scales, minima):
    """12 bytes: low six bits of bytes 0-3 scales 0-3, of 4-7 minima 0-3; bytes 8-11 the low halves of scales 4-7
    and, above them, of minima 4-7; the top two bits of bytes 0-3 those of scales 4-7, of bytes 4-7 of minima."""
    out = bytearray(12)
    for i in range(4):
        out[i] = scales[i] | (scales[i + 4] >> 4) << 6
        out[i + 4] = minima[i] | (minima[i + 4] >> 4) << 6
        out[i + 8] = (scales[i + 4] & 15) | (minima[i + 4] & 15) << 4
    return bytes(out)


def k_block(rng, largest):
    d, dmin = random_half(rng, 0.0002), random_half(rng, 0.001)
    scales = [rng.randint(0, 63) for _ in range(8)]
    minima = [rng.randint(0, 63) for _ in range(8)]
    codes = [rng.randint(0, largest) for _ in range(256)]
    head = f16_bytes(d) + f16_bytes(dmin) + six_bit_factors(scales, minima)
    values = [d * scales[e // 32] * q - dmin * minima[e // 32] for e, q in enumerate(codes)]
    return head, codes, values


def block_q4_k(rng):
    head, codes, values = k_block(rng, 15)
    return head + nibbles(codes, 64), values


def block_q5_k(rng):
    head, codes, values = k_block(rng, 31)
    fifth = bytearray(32)
    for e, q in enumerate(codes):
        fifth[e % 32] |= (q >> 4) << (e // 32)
    return head + bytes(fifth) + nibbles(codes, 64), values


def block_q6_k(rng):
    d = random_half(rng, 0.0001)
    factors = [rng.randint(-128, 127) for _ in range(16)]
    codes = [rng.randint(0, 63) for _ in range(256)]
    lower, upper = bytearray(128), bytearray(64)
    for e, q in enumerate(codes):
        half, i = divmod(e, 128)
        lower[half * 64 + i % 64] |= (q & 15) << (4 * (i // 64))
        upper[half * 32 + i % 32] |= (q >> 4) << (2 * (i // 32))
    values = [d * factors[e // 16] * (q - 32) for e, q in enumerate(codes)]
    return bytes(lower) + bytes(upper) + struct.pack("<16b", *factors) + f16_bytes(d), values


# name: number, elements of a block, writer
TYPES = {
    "F32": (0, 1, block_f32),
    "F16": (1, 1, block_f16),
    "Q4_0": (2, 32, block_q4_0),
    "Q4_1": (3, 32, block_q4_1),
    "Q5_0": (6, 32, block_q5_0),
    "Q5_1": (7, 32, block_q5_1),
    "Q8_0": (8, 32, block_q8_0),
    "Q2_K": (10, 256, block_q2_k),
    "Q3_K": (11, 256, block_q3_k),
    "Q4_K": (12, 256, block_q4_k),
    "Q5_K": (13, 256, block_q5_k),
    "Q6_K": (14, 256, block_q6_k),
    "IQ4_NL": (20, 32, block_iq4_nl),
    "IQ4_XS": (23, 256, block_iq4_xs),
    "BF16": (30, 1, block_bf16),
}


def random_tensor(rng, kind, rows, cols):
    elements, write = TYPES[kind][1:]
    data, values = bytearray(), []
    for _ in range(rows * cols // elements):
        block, part = write(rng)
        data += block
        values += part
    return bytes(data), b"".join(map(float_bytes, values))


# --- GGUF -----------------------------------------------------------------------------------------------------

NUMBERS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
           "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}


def gguf_string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_element(kind, value):
    return gguf_string(value) if kind == "str" else struct.pack("<" + NUMBERS[kind][1], value)


def gguf_value(kind, value):
    """`kind` is a number's name, "str", or [kind] for an array."""
    number = lambda k: 8 if k == "str" else NUMBERS[k][0]
    if isinstance(kind, list):
        element = kind[0]
        return struct.pack("<IIQ", 9, number(element), len(value)) + b"".join(
            gguf_element(element, v) for v in value)
    return struct.pack("<I", number(kind)) + gguf_element(kind, value)


def padded(data, alignment):
    return data + bytes(-len(data) % alignment)


def write_gguf(metadata, tensors, alignment=32):
    """`metadata`: (key, kind, value); `tensors`: (name, shape fastest first, type's name, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, kind, value in metadata:
        head += gguf_string(key) + gguf_value(kind, value)
    data = b""
    for name, shape, kind, content in tensors:
        head += gguf_string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", TYPES[kind][0], len(data))
        data += padded(content, alignment)
    return padded(head, alignment) + data


def write_shards(folder, stem, metadata, tensors, alignment, count):
    """As gguf-split does it: the metadata is in the first shard, whose alignment the others need not have."""
    for i in range(count):
        part = tensors[len(tensors) * i // count:len(tensors) * (i + 1) // count]
        split = [("split.no", "u16", i), ("split.count", "u16", count), ("split.tensors.count", "i32", len(tensors))]
        (folder / f"{stem}-{i + 1:05}-of-{count:05}.gguf").write_bytes(
            write_gguf([*metadata, *split], part, alignment) if i == 0 else write_gguf(split, part))


# --- the tokeniser --------------------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER = "<tool_call>"
PATTERN = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
           "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+")
CHAT_TEMPLATE = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
                 "{{ '<|im_start|>system\\nYou are a fixture.<|im_end|>\\n' }}{% endif %}"
                 "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
                 "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def byte_alphabet():
    """The character of each byte: printable ones stand for themselves, the others for U+0100 upwards."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in own]
    return {**{b: chr(b) for b in own}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def tokenizer(vocab_size):
    """Tokens by id, merges, and types: 1 normal, 3 control, 4 user defined, 5 unused."""
    alphabet = byte_alphabet()
    text = lambda s: "".join(alphabet[b] for b in s.encode())
    merges = [(text(a), text(b)) for a, b in [
        (" ", "t"), ("h", "e"), ("i", "n"), (" ", "a"), (" t", "he"), ("e", "r"), ("o", "n"), ("\n", "\n"),
        ("a", "n"), (" a", "n"), ("in", "g"), ("o", "u"), (" ", " ")]]
    tokens = [alphabet[b] for b in range(256)] + [a + b for a, b in merges]
    types = [1] * len(tokens)
    tokens += SPECIAL + [USER]
    types += [3] * len(SPECIAL) + [4]
    while len(tokens) < vocab_size:
        tokens.append(f"[PAD{len(tokens)}]")
        types.append(5)
    return tokens, [f"{a} {b}" for a, b in merges], types


def tokenizer_json(tokens, merges, types):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": t, **flags, "special": types[i] == 3}
                         for i, t in enumerate(tokens) if types[i] in (3, 4)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens) if types[i] == 1}, "merges": merges},
    }


# --- the models -----------------------------------------------------------------------------------------------

LAYER = [  # GGUF, Hugging Face, shape in terms of the sizes
    ("attn_norm.weight", "input_layernorm.weight", "hidden"),
    ("attn_q.weight", "self_attn.q_proj.weight", "q hidden"),
    ("attn_q.bias", "self_attn.q_proj.bias", "q"),
    ("attn_k.weight", "self_attn.k_proj.weight", "kv hidden"),
    ("attn_k.bias", "self_attn.k_proj.bias", "kv"),
    ("attn_v.weight", "self_attn.v_proj.weight", "kv hidden"),
    ("attn_v.bias", "self_attn.v_proj.bias", "kv"),
    ("attn_output.weight", "self_attn.o_proj.weight", "hidden q"),
    ("ffn_norm.weight", "post_attention_layernorm.weight", "hidden"),
    ("ffn_gate.weight", "mlp.gate_proj.weight", "ffn hidden"),
    ("ffn_up.weight", "mlp.up_proj.weight", "ffn hidden"),
    ("ffn_down.weight", "mlp.down_proj.weight", "hidden ffn"),
]


def tensor_list(model):
    names = [("token_embd.weight", "model.embed_tokens.weight", "vocab hidden")]
    for i in range(model["layers"]):
        names += [(f"blk.{i}.{g}", f"model.layers.{i}.{h}", shape) for g, h, shape in LAYER]
    names.append(("output_norm.weight", "model.norm.weight", "hidden"))
    if "output.weight" in model["types"]:
        names.append(("output.weight", "lm_head.weight", "vocab hidden"))
    return names


def metadata(model, tokens, merges, types):
    entries = [
        ("general.architecture", "str", "qwen2"), ("general.name", "str", model["name"]),
        ("qwen2.block_count", "u32", model["layers"]), ("qwen2.context_length", "u32", 512),
        ("qwen2.embedding_length", "u32", model["hidden"]), ("qwen2.feed_forward_length", "u32", model["ffn"]),
        ("qwen2.attention.head_count", "u32", model["heads"]),
        ("qwen2.attention.head_count_kv", "u32", model["kv_heads"]),
        ("qwen2.attention.layer_norm_rms_epsilon", "f32", 1e-6), ("qwen2.rope.freq_base", "f32", 1e6),
        ("tokenizer.ggml.model", "str", "gpt2"), ("tokenizer.ggml.pre", "str", "qwen2"),
        ("tokenizer.ggml.tokens", ["str"], tokens), ("tokenizer.ggml.token_type", ["i32"], types),
        ("tokenizer.ggml.merges", ["str"], merges),
        ("tokenizer.ggml.eos_token_id", "u32", tokens.index("<|im_end|>")),
        ("tokenizer.ggml.add_bos_token", "bool", False), ("tokenizer.chat_template", "str", CHAT_TEMPLATE),
        # One of each type that no key above has.
        ("test.u8", "u8", 200), ("test.i8", "i8", -100), ("test.u16", "u16", 60000), ("test.i16", "i16", -30000),
        ("test.i32", "i32", -2000000000), ("test.u64", "u64", 2**64 - 1), ("test.i64", "i64", -(2**63)),
        ("test.f64", "f64", 0.1), ("test.bools", ["bool"], [True, False]), ("test.floats", ["f32"], [0.5, 1.5]),
        ("test.empty", ["u64"], []), ("test.u8s", ["u8"], [1, 255]),
    ]
    if model["alignment"] != 32:
        entries.append(("general.alignment", "u32", model["alignment"]))
    return entries


def config(model, tokens):
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "vocab_size": model["vocab"], "hidden_size": model["hidden"], "intermediate_size": model["ffn"],
        "num_hidden_layers": model["layers"], "num_attention_heads": model["heads"],
        "num_key_value_heads": model["kv_heads"], "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": "output.weight" not in model["types"],
        "eos_token_id": [tokens.index("<|im_end|>"), tokens.index("<|endoftext|>")],
    }


def write_safetensors(path, tensors):
    header, data = {}, b""
    for name, shape, content in tensors:
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def make_model(folder, model):
    rng = random.Random(model["name"])
    head = model["hidden"] // model["heads"]
    sizes = {"hidden": model["hidden"], "ffn": model["ffn"], "vocab": model["vocab"], "q": model["hidden"],
             "kv": model["kv_heads"] * head}
    stored, twin = [], []
    for gguf_name, hf_name, shape_text in tensor_list(model):
        shape = [sizes[word] for word in shape_text.split()]
        kind = model["types"].get(gguf_name, "F32") if len(shape) == 2 else "F32"
        data, values = random_tensor(rng, kind, shape[0] if len(shape) == 2 else 1, shape[-1])
        stored.append((gguf_name, shape[::-1], kind, data))
        twin.append((hf_name, shape, values))
    tokens, merges, types = tokenizer(model["vocab"])
    (folder / f"{model['name']}.gguf").write_bytes(
        write_gguf(metadata(model, tokens, merges, types), stored, model["alignment"]))
    if model["shards"] > 1:
        write_shards(folder, f"{model['name']}_split", metadata(model, tokens, merges, types), stored,
                     model["alignment"], model["shards"])
    twin_folder = folder / model["name"]
    twin_folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(twin_folder / "model.safetensors", twin)
    for name, content in [("config.json", config(model, tokens)),
                          ("tokenizer.json", tokenizer_json(tokens, merges, types)),
                          ("tokenizer_config.json", {"chat_template": CHAT_TEMPLATE})]:
        (twin_folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


MODELS = [
    {
        "name": "mixed", "hidden": 256, "ffn": 256, "heads": 8, "kv_heads": 1, "layers": 1, "vocab": 280,
        "alignment": 32, "shards": 1,
        "types": {"token_embd.weight": "Q6_K", "output.weight": "Q8_0", "blk.0.attn_q.weight": "Q4_K",
                  "blk.0.attn_k.weight": "F32", "blk.0.attn_v.weight": "F16", "blk.0.attn_output.weight": "Q5_K",
                  "blk.0.ffn_gate.weight": "Q4_0", "blk.0.ffn_up.weight": "Q4_1", "blk.0.ffn_down.weight": "BF16"},
    },
    {  # tied, another alignment, rows that are no multiple of 256, also split
        "name": "tied", "hidden": 64, "ffn": 96, "heads": 2, "kv_heads": 2, "layers": 2, "vocab": 273,
        "alignment": 64, "shards": 3,
        "types": {"token_embd.weight": "Q8_0",
                  **{f"blk.{i}.{name}.weight": kind for i in range(2) for name, kind in {
                      "attn_q": "Q8_0", "attn_k": "Q4_0", "attn_v": "Q4_1", "attn_output": "Q4_0",
                      "ffn_gate": "Q4_1", "ffn_up": "Q8_0", "ffn_down": "Q4_0"}.items()}},
    },
    {  # blocks of 32, in rows that are no multiple of 256
        "name": "small_blocks", "hidden": 96, "ffn": 160, "heads": 3, "kv_heads": 1, "layers": 1, "vocab": 273,
        "alignment": 32, "shards": 1,
        "types": {"token_embd.weight": "Q5_0", "output.weight": "IQ4_NL", "blk.0.attn_q.weight": "Q5_1",
                  "blk.0.attn_k.weight": "Q5_0", "blk.0.attn_v.weight": "Q5_1", "blk.0.attn_output.weight": "Q5_0",
                  "blk.0.ffn_gate.weight": "IQ4_NL", "blk.0.ffn_up.weight": "Q5_1", "blk.0.ffn_down.weight": "IQ4_NL"},
    },
    {  # blocks of 256, tied
        "name": "super_blocks", "hidden": 256, "ffn": 256, "heads": 4, "kv_heads": 1, "layers": 1, "vocab": 273,
        "alignment": 32, "shards": 1,
        "types": {"token_embd.weight": "Q3_K", "blk.0.attn_q.weight": "Q2_K", "blk.0.attn_k.weight": "IQ4_XS",
                  "blk.0.attn_v.weight": "Q3_K", "blk.0.attn_output.weight": "Q3_K", "blk.0.ffn_gate.weight": "Q2_K",
                  "blk.0.ffn_up.weight": "IQ4_XS", "blk.0.ffn_down.weight": "Q2_K"},
    },
]

# --- the fuzzers' corpus --------------------------------------------------------------------------------------


def make_corpus(folder):
    folder.mkdir(parents=True, exist_ok=True)
    model = {"name": "seed", "hidden": 32, "ffn": 32, "heads": 1, "kv_heads": 1, "layers": 1, "vocab": 4,
             "alignment": 32}
    tokens, types, merges = ["a", "b", "ab", "<|im_end|>"], [1, 1, 1, 3], ["a b"]
    # The chat template and the keys of other types are in the models; seeds are short.
    entries = [e for e in metadata(model, [*tokens, "<|endoftext|>"], merges, types)
               if not e[0].startswith("test.")]
    entries = [(k, kind, tokens if k == "tokenizer.ggml.tokens" else v) for k, kind, v in entries]
    rng = random.Random("corpus")
    tensors = [("token_embd.weight", [32, 4], "Q8_0", random_tensor(rng, "Q8_0", 4, 32)[0]),
               ("output_norm.weight", [32], "F32", random_tensor(rng, "F32", 1, 32)[0])]
    good = write_gguf(entries, tensors)

    def of_type(kind):
        elements = TYPES[kind][1]
        return write_gguf([], [("a", [elements, 2], kind, random_tensor(rng, kind, 2, elements)[0])])

    def with_entry(*entry):
        return write_gguf([*entries, entry], tensors)

    def damaged(find, replacement):
        at = good.index(find)
        return good[:at] + replacement + good[at + len(replacement):]

    name = gguf_string("output_norm.weight")
    nested = struct.pack("<QQ", 1, 1)
    seeds = {
        "good": good,
        "empty": b"",
        "no_entries": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        "truncated": good[:len(good) // 2],
        "counts": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + good[24:],
        "version": good[:4] + struct.pack(">I", 3) + good[8:],
        "nested_array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("a") + struct.pack("<II", 9, 9) + nested,
        "array_length": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("a") + struct.pack("<IIQ", 9, 8, 2**61),
        "string_length": damaged(gguf_string("qwen2"), struct.pack("<Q", 2**63 + 1)),
        "alignment": with_entry("general.alignment", "u32", 48),
        "twice": with_entry("general.name", "str", "again"),
        "dimensions": damaged(name, name + struct.pack("<I", 2**31)),
        "shape": damaged(name, name + struct.pack("<IQ", 1, 2**62)),
        "type": damaged(name, name + struct.pack("<IQI", 1, 32, 99)),
        "offset": damaged(name, name + struct.pack("<IQIQ", 1, 32, 0, 2**63)),
        "overlap": damaged(name, name + struct.pack("<IQIQ", 1, 32, 0, 0)),
        "rope_scaling": with_entry("qwen2.rope.scaling.type", "str", "yarn"),
        "retired_type": damaged(name, name + struct.pack("<IQI", 1, 32, 31)),
        **{f"type_{kind.lower()}": of_type(kind) for kind in TYPES if TYPES[kind][1] > 1},
        "not_utf8": damaged(b"<|im_end|>", b"\xff\xfe"),
    }
    for seed, data in seeds.items():
        (folder / seed).write_bytes(data)


if __name__ == "__main__":
    fixtures = ROOT / "fixtures" / "gguf"
    fixtures.mkdir(parents=True, exist_ok=True)
    for entry in MODELS:
        make_model(fixtures, entry)
    make_corpus(ROOT / "fuzz" / "corpus" / "gguf")
