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

from make_quantized_fixtures import (VOCABULARY, Tensors, base_tensors, bfloat16_bits, config, float32, matrices,
                                     tokenizer)

SMALL = {"hidden": 64, "heads": 2, "head": 32, "kv_heads": 1, "ffn": 80, "tied": True}
TINY = {"hidden": 32, "heads": 1, "head": 32, "kv_heads": 1, "ffn": 48, "tied": True}


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


# --- compressed-tensors -----------------------------------------------------------------------------------------

def signed_codes(bits):
    return range(-(1 << bits - 1), 1 << bits - 1)


def draw_signed(rng, outputs, inputs, spec):
    """Signed codes and zeros, and the values they mean; scales are exact in 16 bits of either kind."""
    bits, size = spec["bits"], spec["group"] or inputs
    groups, levels = inputs // size, signed_codes(spec["bits"])
    g_idx = [k // size for k in range(inputs)]
    if spec.get("actorder"):
        random.Random(inputs).shuffle(g_idx)  # modules with the same inputs have the same order
    codes = [[rng.choice(levels) for _ in range(inputs)] for _ in range(outputs)]
    zeros = [[rng.choice(levels) if spec.get("asymmetric") else 0 for _ in range(groups)] for _ in range(outputs)]
    if spec.get("asymmetric"):
        zeros[0][0], zeros[1][0] = levels[0], levels[-1]
    scales = [[simple_scale(rng) * 2.0**(4 - bits) for _ in range(groups)] for _ in range(outputs)]
    values = [[scales[n][g_idx[k]] * (codes[n][k] - zeros[n][g_idx[k]]) for k in range(inputs)] for n in range(outputs)]
    return codes, zeros, scales, g_idx, values


def packed_along_rows(zeros, bits):
    """[outputs, groups] -> [ceil(outputs / per), groups]: `per` neighbouring outputs a word."""
    columns = [list(column) for column in zip(*zeros)]
    return [list(row) for row in zip(*bit_stream(columns, bits))]


def pack_quantized(spec):
    def write(rng, tensors, name, outputs, inputs):
        codes, zeros, scales, g_idx, values = draw_signed(rng, outputs, inputs, spec)
        bits, half = spec["bits"], 1 << spec["bits"] - 1
        old = spec.get("of_2024", False)
        weight = name + ".weight"
        tensors.add_rows(weight + "_packed", "I32", bit_stream([[q + half for q in row] for row in codes], bits))
        add_floats(tensors, weight + "_scale", "F16" if old else "BF16", [outputs, len(scales[0])], flat(scales))
        tensors.add(weight + "_shape", "I32" if old else "I64", [2], [outputs, inputs])
        if old:
            tensors.add_rows(weight + "_zero_point", "I8", zeros)
            tensors.add(weight + "_g_idx", "I32", [inputs], [0xffffffff] * inputs)
        elif spec.get("asymmetric"):
            words = packed_along_rows([[z + half for z in row] for row in zeros], bits)
            tensors.add_rows(weight + "_zero_point", "I32", words)
        if spec.get("actorder"):
            tensors.add(weight + "_g_idx", "I32", [inputs], g_idx)
        return values
    return write


def int_quantized(spec):
    def write(rng, tensors, name, outputs, inputs):
        codes, zeros, scales, _, values = draw_signed(rng, outputs, inputs, spec)
        tensors.add_rows(name + ".weight", "I8", codes)
        add_floats(tensors, name + ".weight_scale", "BF16", [outputs, 1], flat(scales))
        tensors.add(name + ".input_scale", "F32", [1], [0.02])
        return values
    return write


def compressed_config(layout, field="quantization_config", **weights):
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"],
             "weights": {"actorder": None, "block_structure": None, "dynamic": False, "group_size": None, "num_bits": 4,
                         "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": True,
                         "type": "int"} | weights}
    return {field: {"config_groups": {"group_0": group}, "format": layout, "global_compression_ratio": 1.5,
                    "ignore": ["lm_head", "model.layers.0.mlp.down_proj"], "kv_cache_scheme": None,
                    "quant_method": "compressed-tensors", "quantization_status": "compressed"}}


# --- FP8 --------------------------------------------------------------------------------------------------------

def e4m3(code):
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    size = mantissa * 2.0**-9 if exponent == 0 else (1 + mantissa / 8) * 2.0**(exponent - 7)
    return -size if sign else size


def fp8(scale_of, block=None):
    """scale_of: "tensor", "scalar", "row", or "block" of `block` rows and columns."""
    def write(rng, tensors, name, outputs, inputs):
        rows, cols = {"row": (1, inputs), "block": block}.get(scale_of, (outputs, inputs))
        codes = [[rng.choice([c for c in range(256) if c & 127 != 127]) for _ in range(inputs)] for _ in range(outputs)]
        shape = [-(-outputs // rows), -(-inputs // cols)]
        scales = [[float32(rng.uniform(1e-4, 1e-3)) for _ in range(shape[1])] for _ in range(shape[0])]
        if scale_of == "row":
            scales = [[bfloat16(value) for value in row] for row in scales]
        tensors.add_rows(name + ".weight", "F8_E4M3", codes)
        suffix = ".weight_scale_inv" if scale_of == "block" else ".weight_scale"
        shape = {"tensor": [1], "scalar": []}.get(scale_of, shape)
        add_floats(tensors, name + suffix, "BF16" if scale_of == "row" else "F32", shape, flat(scales))
        if scale_of == "scalar":
            tensors.add(name + ".input_scale", "F32", [], [0.02])
        return [[float32(e4m3(codes[n][k]) * scales[n // rows][k // cols]) for k in range(inputs)]
                for n in range(outputs)]
    return write


# --- MLX --------------------------------------------------------------------------------------------------------

def mlx(bits, group, dtype, tiny_bias=False):
    def write(rng, tensors, name, outputs, inputs):
        codes = [[rng.randrange(1 << bits) for _ in range(inputs)] for _ in range(outputs)]
        shape = [outputs, inputs // group]
        step = 2.0**-bits
        scales = [[bfloat16(rng.uniform(0.2, 1) * step) for _ in range(shape[1])] for _ in range(outputs)]
        biases = [[bfloat16(rng.uniform(-0.3, -0.05)) for _ in range(shape[1])] for _ in range(outputs)]
        biases[0][0] = 0.0
        if tiny_bias:
            biases[1][0] = 2.0**-30  # bf16 has it, fp16 does not
        tensors.add_rows(name + ".weight", "U32", bit_stream(codes, bits))
        add_floats(tensors, name + ".scales", dtype, shape, flat(scales))
        add_floats(tensors, name + ".biases", dtype, shape, flat(biases))
        # One rounding to float32: the product of a 16-bit scale and a code is exact there.
        return [[float32(scales[n][k // group] * codes[n][k] + biases[n][k // group]) for k in range(inputs)]
                for n in range(outputs)]
    return write


# --- GPTQ -------------------------------------------------------------------------------------------------------

def gptq(bits, group):
    """AutoGPTQ's layout with bf16 scales."""
    def write(rng, tensors, name, outputs, inputs):
        levels, groups = 1 << bits, inputs // group
        codes = [[rng.randrange(levels) for _ in range(inputs)] for _ in range(outputs)]
        zeros = [[rng.randint(1, levels - 1) for _ in range(outputs)] for _ in range(groups)]
        scales = [[bfloat16(rng.uniform(0.1, 0.3) / levels) for _ in range(outputs)] for _ in range(groups)]
        by_input = bit_stream(codes, bits)  # [outputs, inputs / per]
        tensors.add_rows(name + ".qweight", "I32", [list(column) for column in zip(*by_input)])
        tensors.add_rows(name + ".qzeros", "I32", bit_stream([[zero - 1 for zero in row] for row in zeros], bits))
        add_floats(tensors, name + ".scales", "BF16", [groups, outputs], flat(scales))
        return [[scales[k // group][n] * (codes[n][k] - zeros[k // group][n]) for k in range(inputs)]
                for n in range(outputs)]
    return write


# --- models -----------------------------------------------------------------------------------------------------

def plain(rng, tensors, name, outputs, inputs):
    values = [[bfloat16(rng.gauss(0, 0.1)) for _ in range(inputs)] for _ in range(outputs)]
    add_floats(tensors, name + ".weight", "BF16", [outputs, inputs], flat(values))
    return values


def write_folder(folder, tensors, shape, settings):
    folder.mkdir(parents=True, exist_ok=True)
    tensors.write(folder / "model.safetensors")
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
        if embedding:
            del base.entries["model.embed_tokens.weight"]
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


def down_plain(module, layout):
    return plain if module == "mlp.down_proj" else layout


def every(module, layout):
    return layout


def write_bitsandbytes(root):
    for name, shape, kind, nested in [("bnb4_nf4_nested", SMALL, "nf4", 16), ("bnb4_fp4", TINY, "fp4", 0)]:
        settings = {"quantization_config": bitsandbytes_config(kind, nested > 0)}
        write_models(root, shape, down_plain, {name: (settings, bitsandbytes(kind, nested))})


def write_compressed(root):
    def name_of(spec):
        return {"group_size": spec["group"], "num_bits": spec["bits"], "symmetric": not spec.get("asymmetric", False),
                "strategy": "group" if spec["group"] else "channel"}
    symmetric = {"bits": 4, "group": 16}
    write_models(root, TINY, every, {
        "ct4_sym_g16": (compressed_config("pack-quantized", **name_of(symmetric)), pack_quantized(symmetric)),
        "ct4_sym_g16_2024": (compressed_config("pack-quantized", "compression_config", **name_of(symmetric)),
                             pack_quantized(symmetric | {"of_2024": True})),
    })
    asymmetric = {"bits": 4, "group": 16, "asymmetric": True, "actorder": True}
    write_models(root, SMALL, every, {
        "ct4_asym_g16_act": (compressed_config("pack-quantized", actorder="group", **name_of(asymmetric)),
                             pack_quantized(asymmetric))})
    unpacked = {"bits": 4, "group": 32, "asymmetric": True, "of_2024": True}
    write_models(root, TINY | {"ffn": 64}, every, {
        "ct4_asym_g32_2024": (compressed_config("pack-quantized", **name_of(unpacked)), pack_quantized(unpacked))})
    channel = {"bits": 8, "group": 0}
    write_models(root, TINY, down_plain, {
        "ct8_sym_row": (compressed_config("pack-quantized", **name_of(channel)), pack_quantized(channel)),
        "ct_int8": (compressed_config("int-quantized", **name_of(channel)), int_quantized(channel)),
    })
    eight = {"bits": 8, "group": 16, "asymmetric": True}
    write_models(root, TINY, down_plain, {
        "ct8_asym_g16": (compressed_config("pack-quantized", **name_of(eight)), pack_quantized(eight))})


def write_fp8(root):
    def fp8_config(**fields):
        return {"quantization_config": {"quant_method": "fp8"} | fields}
    static = fp8_config(activation_scheme="static", ignored_layers=["lm_head", "model.layers.0.mlp.down_proj"])
    floats = {"num_bits": 8, "type": "float"}
    write_models(root, TINY, down_plain, {
        "fp8_tensor": (static, fp8("scalar")),
        "ct_fp8_tensor": (compressed_config("float-quantized", strategy="tensor", **floats), fp8("tensor")),
    })
    write_models(root, TINY, down_plain, {
        "ct_fp8_row": (compressed_config("float-quantized", strategy="channel", **floats), fp8("row"))})
    write_models(root, TINY, every, {
        "fp8_block": (fp8_config(activation_scheme="dynamic", fmt="e4m3", weight_block_size=[20, 24]),
                      fp8("block", (20, 24)))})


def write_mlx(root):
    def four(module, _):
        exceptions = {"mlp.down_proj": plain, "self_attn.v_proj": mlx(4, 32, "BF16", tiny_bias=True)}
        return exceptions.get(module, mlx(4, 32, "BF16"))

    def mixed(module, _):
        exceptions = {"mlp.down_proj": mlx(6, 32, "F16"), "mlp.up_proj": mlx(5, 32, "F16"),
                      "mlp.gate_proj": mlx(2, 32, "F16"), "self_attn.o_proj": mlx(3, 64, "F16")}
        return exceptions.get(module, mlx(8, 32, "F16"))

    overrides = {"model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 6},
                 "model.layers.0.mlp.up_proj": {"group_size": 32, "bits": 5},
                 "model.layers.0.mlp.gate_proj": {"group_size": 32, "bits": 2},
                 "model.layers.0.self_attn.o_proj": {"group_size": 64, "bits": 3}}
    settings = {"group_size": 32, "bits": 4, "mode": "affine", "model.layers.0.mlp.down_proj": False}
    write_models(root, TINY | {"ffn": 64}, four, {
        "mlx4_g32": ({"quantization": settings, "quantization_config": settings}, None)}, embedding=mlx(4, 32, "BF16"))
    write_models(root, SMALL | {"ffn": 96}, mixed, {
        "mlx_mixed": ({"quantization": {"group_size": 32, "bits": 8} | overrides}, None)}, embedding=mlx(8, 32, "F16"))


def write_gptq(root):
    def by_module(module, _):
        return {"mlp.down_proj": gptq(8, 256), "self_attn.v_proj": plain}.get(module, gptq(4, 16))

    settings = {"bits": 4, "group_size": 16, "desc_act": False, "sym": False, "lm_head": False,
                "dynamic": {"+:.*down_proj": {"bits": 8, "group_size": 256}, "-:.*v_proj": {}}}
    name = "gptq_dynamic"
    write_models(root, TINY | {"ffn": 256}, by_module, {name: ({}, None)})
    # The names of AutoGPTQ: settings in a file of their own, weights called by bits and group.
    (root / name / "model.safetensors").rename(root / name / "gptq_model-4bit-16g.safetensors")
    (root / name / "quantize_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "fixtures" / "quantized"
    write_bitsandbytes(root)
    write_compressed(root)
    write_fp8(root)
    write_mlx(root)
    write_gptq(root)


if __name__ == "__main__":
    main()
