#!/usr/bin/env python3
"""Writes the rest of tests/fixtures/quantized: the layouts of other writers than make_quantized_fixtures.py has.

Usage: tests/tools/make_folder_fixtures.py [FOLDER]

Each model is drawn at random in the terms of its format (codes, scales, tables), laid out as the format's writer
does, and has a twin in float32 with the values that these mean. Models of the same numbers share a twin. Only
Python's standard library is used, and nothing of the C++ readers. The same call writes the same bytes.
"""
import json
import pathlib
import random
import struct
import sys

from make_quantized_fixtures import (VOCABULARY, Tensors, base_tensors, bfloat16_bits, config, float16, float32, matrices,
                                     tokenizer)

SMALL = {"hidden": 64, "heads": 2, "head": 32, "kv_heads": 1, "ffn": 80, "tied": True}


def bfloat16(value):
    return struct.unpack("<f", struct.pack("<I", bfloat16_bits(value) << 16))[0]


def simple_scale(rng):
    """Exact in bf16 and in fp16."""
    return rng.randint(16, 127) * 2.0**-13


def add_floats(tensors, name, dtype, shape, values):
    tensors.add(name, dtype, shape, [bfloat16_bits(v) for v in values] if dtype == "BF16" else values)


def flat(rows):
    return [value for row in rows for value in row]


def bit_stream(rows, bits):
    """Words of 32 bits; the codes of a row follow each other without gaps, lowest bits first."""
    packed = []
    for row in rows:
        stream = sum(code << (bits * k) for k, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        packed.append([stream >> (32 * i) & 0xffffffff for i in range(count)])
    return packed


# --- bitsandbytes, 4 bits ---------------------------------------------------------------------------------------

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
       0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
FP4_HALF = [0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25]
TABLES = {"nf4": NF4, "fp4": FP4_HALF + [-value for value in FP4_HALF]}


def bitsandbytes(kind, nested_block):
    def write(rng, tensors, name, outputs, inputs):
        n, block = outputs * inputs, 64
        codes = [rng.randrange(16) for _ in range(n)]
        state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [outputs, inputs]}
        weight = name + ".weight"
        if nested_block:
            inner = [rng.randrange(256) for _ in range(n // block)]
            table = [float32((i - 127) / 128.5) for i in range(256)]
            outer = [float32(rng.uniform(0.02, 0.1)) for _ in range(-(-len(inner) // nested_block))]
            offset = float32(0.123)
            absmax = [float32(float32(table[u] * outer[i // nested_block]) + offset) for i, u in enumerate(inner)]
            state |= {"nested_blocksize": nested_block, "nested_dtype": "float32", "nested_offset": offset}
            tensors.add(weight + ".absmax", "U8", [len(inner)], inner)
            tensors.add(weight + ".nested_absmax", "F32", [len(outer)], outer)
            tensors.add(weight + ".nested_quant_map", "F32", [256], table)
        else:
            absmax = [float32(rng.uniform(0.05, 0.3)) for _ in range(n // block)]
            tensors.add(weight + ".absmax", "F32", [len(absmax)], absmax)
        tensors.add(weight, "U8", [n // 2, 1], [codes[i] << 4 | codes[i + 1] for i in range(0, n, 2)])
        tensors.add(weight + ".quant_map", "F32", [16], TABLES[kind])
        text = json.dumps(state).encode()
        tensors.add(f"{weight}.quant_state.bitsandbytes__{kind}", "U8", [len(text)], list(text))
        values = [float32(float32(TABLES[kind][code]) * absmax[i // block]) for i, code in enumerate(codes)]
        return [values[n * inputs:(n + 1) * inputs] for n in range(outputs)]
    return write


def bitsandbytes_config(kind, nested):
    return {"_load_in_4bit": True, "_load_in_8bit": False, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested,
            "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": ["down_proj"], "llm_int8_threshold": 6.0, "load_in_4bit": True,
            "load_in_8bit": False, "quant_method": "bitsandbytes"}


# --- models -----------------------------------------------------------------------------------------------------

def plain(rng, tensors, name, outputs, inputs):
    values = [[bfloat16(rng.gauss(0, 0.1)) for _ in range(inputs)] for _ in range(outputs)]
    add_floats(tensors, name + ".weight", "BF16", [outputs, inputs], flat(values))
    return values


def write_folder(folder, tensors, shape, settings, file_name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    tensors.write(folder / file_name)
    fields = json.loads(config(shape, None)) | settings
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer())


def write_models(root, shape, layout_of, models, embedding=None):
    """`models`: name -> (settings, variant of the layout). layout_of(module, variant) writes a module."""
    twin = None
    for name, (settings, variant) in models.items():
        first = next(iter(models))
        rng = random.Random(first)  # the same numbers for all
        base, own = base_tensors(rng, shape, False), Tensors()
        tensors = Tensors()
        tensors.entries.update(base.entries)
        own.entries.update(base.entries)
        if embedding:
            values = embedding(rng, tensors, "model.embed_tokens", VOCABULARY, shape["hidden"])
            own.add_rows("model.embed_tokens.weight", "F32", values)
        for module, outputs, inputs, _ in matrices(shape):
            path = f"model.layers.0.{module}"
            values = layout_of(module, variant)(rng, tensors, path, outputs, inputs)
            own.add_rows(path + ".weight", "F32", values)
        write_folder(root / name, tensors, shape, settings)
        assert twin is None or twin.entries == own.entries, name
        twin = own
    write_folder(root / f"{next(iter(models))}_twin", twin, shape, {})


def write_bitsandbytes(root):
    for name, kind, nested in [("bnb4_nf4_nested", "nf4", 16), ("bnb4_fp4", "fp4", 0)]:
        write_models(root, SMALL, lambda module, v: plain if module == "mlp.down_proj" else v,
                     {name: ({"quantization_config": bitsandbytes_config(kind, nested > 0)}, bitsandbytes(kind, nested))})


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "fixtures" / "quantized"
    write_bitsandbytes(root)


if __name__ == "__main__":
    main()
