#!/usr/bin/env python3
"""Writes tests/fixtures/quantized: tiny random Qwen2 models in GPTQ, AWQ and bitsandbytes' layouts.

Usage: tests/tools/make_quantized_fixtures.py [FOLDER]

Codes, zeros and scales are drawn at random and laid out as the formats' own documents and writers describe them
(safetensors; AutoGPTQ and GPTQModel; AutoAWQ "gemm"; bitsandbytes LLM.int8() as saved by Transformers). Beside
each model lies a twin, NAME_twin, whose matrices are float32 with the values that the codes stand for. Only
Python's standard library is used, and nothing of this repository: what the C++ readers are held against must
not share their mistakes. The same call writes the same bytes.
"""
import json
import pathlib
import random
import struct
import sys

HEAD = 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + len(SPECIAL)


# --- numbers and containers -------------------------------------------------------------------------------------

def float16(value):
    return struct.unpack("<e", struct.pack("<e", value))[0]


def float32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def bfloat16_bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0] >> 16


def pack(code, values):
    return struct.pack(f"<{len(values)}{code}", *values)


class Tensors:
    """Named tensors of one model.safetensors."""

    TYPES = {"F32": "f", "F16": "e", "BF16": "H", "I32": "I", "I8": "b", "U8": "B",
             "I64": "q", "U32": "I", "F8_E4M3": "B"}

    def __init__(self):
        self.entries = {}

    def add(self, name, dtype, shape, values):
        count = 1
        for size in shape:
            count *= size
        assert len(values) == count, (name, shape, len(values))
        self.entries[name] = (dtype, shape, pack(self.TYPES[dtype], values))

    def add_rows(self, name, dtype, rows):
        self.add(name, dtype, [len(rows), len(rows[0])], [value for row in rows for value in row])

    def write(self, path):
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, (dtype, shape, data) in sorted(self.entries.items()):
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
            offset += len(data)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        data = b"".join(self.entries[name][2] for name in sorted(self.entries))
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# --- the three layouts ------------------------------------------------------------------------------------------

def words(fields, bits, order=None):
    """Packs 32 / bits neighbouring fields into one unsigned word; field order[i] goes to place i from below."""
    per = 32 // bits
    order = order or list(range(per))
    assert len(fields) % per == 0
    return [sum(fields[start + order[i]] << (bits * i) for i in range(per)) for start in range(0, len(fields), per)]


def write_gptq(tensors, name, matrix, spec):
    bits, per = spec["bits"], 32 // spec["bits"]
    codes, inputs = matrix["codes"], len(matrix["codes"][0])
    qweight = []
    for start in range(0, inputs, per):  # `per` inputs of one output share a word
        qweight.append([words(row[start:start + per], bits)[0] for row in codes])
    qzeros = [words(zeros, bits) for zeros in matrix["zeros"]]
    if spec["version"] == 1:
        # GPTQModel's writer: one less in each field, by one subtraction from the whole word.
        ones = sum(1 << (bits * i) for i in range(per))
        qzeros = [[(word - ones) % 2**32 for word in row] for row in qzeros]
    tensors.add_rows(name + ".qweight", "I32", qweight)
    tensors.add_rows(name + ".qzeros", "I32", qzeros)
    tensors.add_rows(name + ".scales", "F16", matrix["scales"])
    tensors.add(name + ".g_idx", "I32", [inputs], matrix["g_idx"])


def write_awq(tensors, name, matrix, spec):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    codes = matrix["codes"]
    by_input = [[row[k] for row in codes] for k in range(len(codes[0]))]
    tensors.add_rows(name + ".qweight", "I32", [words(row, 4, order) for row in by_input])
    tensors.add_rows(name + ".qzeros", "I32", [words(row, 4, order) for row in matrix["zeros"]])
    tensors.add_rows(name + ".scales", "F16", matrix["scales"])


def write_bitsandbytes(tensors, name, matrix, spec):
    tensors.add_rows(name + ".weight", "I8", matrix["codes"])
    tensors.add(name + ".SCB", "F32", [len(matrix["codes"])], matrix["scb"])
    tensors.add(name + ".weight_format", "U8", [], [0])


WRITERS = {"gptq": write_gptq, "awq": write_awq, "bitsandbytes": write_bitsandbytes}


def draw_grouped(rng, outputs, inputs, spec, g_idx):
    levels = 1 << spec["bits"]
    groups = max(g_idx) + 1
    if spec["sym"]:
        zeros = [[levels // 2] * outputs for _ in range(groups)]
    else:
        zeros = [[rng.randrange(levels) for _ in range(outputs)] for _ in range(groups)]
        zeros[0][:3] = [0, levels - 1, 0]  # both ends of the range
    scale = 0.3 / levels
    scales = [[float16(rng.uniform(0.2, 1) * scale) for _ in range(outputs)] for _ in range(groups)]
    scales[0][0] = 5 * 2.0**-24  # a subnormal
    codes = [[rng.randrange(levels) for _ in range(inputs)] for _ in range(outputs)]
    # fp16 times a small integer: exact in float32.
    values = [[scales[g_idx[k]][n] * (codes[n][k] - zeros[g_idx[k]][n]) for k in range(inputs)]
              for n in range(outputs)]
    return {"codes": codes, "zeros": zeros, "scales": scales, "g_idx": g_idx}, values


def draw_bitsandbytes(rng, outputs, inputs):
    codes = [[rng.randint(-127, 127) for _ in range(inputs)] for _ in range(outputs)]
    scb = [float32(rng.uniform(0.05, 0.3)) for _ in range(outputs)]
    # The scale is rounded to float32, then the product.
    values = [[float32(float32(scb[n] / 127) * code) for code in codes[n]] for n in range(outputs)]
    return {"codes": codes, "scb": scb}, values


# --- models -----------------------------------------------------------------------------------------------------

def group_indices(rng, inputs, spec):
    size = inputs if spec["group"] == -1 else spec["group"]
    g_idx = [k // size for k in range(inputs)]
    if spec.get("desc_act"):
        rng.shuffle(g_idx)
    return g_idx


def matrices(shape):
    """(module, outputs, inputs, what the inputs are) of the one layer."""
    hidden, ffn = shape["hidden"], shape["ffn"]
    head = shape.get("head", HEAD)
    q, kv = shape["heads"] * head, shape["kv_heads"] * head
    return [("self_attn.q_proj", q, hidden, "norm1"), ("self_attn.k_proj", kv, hidden, "norm1"),
            ("self_attn.v_proj", kv, hidden, "norm1"), ("self_attn.o_proj", hidden, q, "attention"),
            ("mlp.gate_proj", ffn, hidden, "norm2"), ("mlp.up_proj", ffn, hidden, "norm2"),
            ("mlp.down_proj", hidden, ffn, "gated")]


def base_tensors(rng, shape, with_all_biases):
    """What stays unquantised."""
    tensors, hidden = Tensors(), shape["hidden"]
    table = [bfloat16_bits(rng.gauss(0, 0.05)) for _ in range(VOCABULARY * hidden)]
    tensors.add("model.embed_tokens.weight", "BF16", [VOCABULARY, hidden], table)
    if not shape["tied"]:
        head = [float16(rng.gauss(0, 0.1)) for _ in range(VOCABULARY * hidden)]
        tensors.add("lm_head.weight", "F16", [VOCABULARY, hidden], head)
    for name in ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]:
        tensors.add(name + ".weight", "F16", [hidden], [float16(rng.uniform(0.5, 1.5)) for _ in range(hidden)])
    for module, outputs, _, source in matrices(shape):
        if source == "norm1":
            values = [float16(rng.gauss(0, 0.1)) for _ in range(outputs)]
        elif with_all_biases:  # AutoGPTQ writes zeros where Qwen2 has no bias
            values = [0.0] * outputs
        else:
            continue
        tensors.add(f"model.layers.0.{module}.bias", "F16", [outputs], values)
    return tensors


def config(shape, quantization):
    fields = {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 256, "eos_token_id": 258,
        "hidden_act": "silu", "hidden_size": shape["hidden"], "initializer_range": 0.02,
        "intermediate_size": shape["ffn"], "max_position_embeddings": 512, "max_window_layers": 1,
        "model_type": "qwen2", "num_attention_heads": shape["heads"], "num_hidden_layers": 1,
        "num_key_value_heads": shape["kv_heads"], "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 512, "tie_word_embeddings": shape["tied"], "torch_dtype": "float16", "use_cache": True,
        "use_sliding_window": False, "vocab_size": VOCABULARY,
    }
    if quantization is not None:
        fields["quantization_config"] = quantization
    return json.dumps(fields, indent=2) + "\n"


def tokenizer():
    """Byte-level BPE without merges: GPT-2's byte alphabet and Qwen2's special tokens."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    rest = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    added = [{"id": 256 + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, text in enumerate(SPECIAL)]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
             "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {alphabet[byte]: byte for byte in range(256)}, "merges": []}
    return json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                       "normalizer": {"type": "NFC"},
                       "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
                       "post_processor": byte_level, "decoder": byte_level, "model": model},
                      separators=(",", ":")) + "\n"


def gptq_config(spec):
    # The fields of Qwen/Qwen2-1.5B-Instruct-GPTQ-Int4 and -Int8.
    fields = {
        "batch_size": 1, "bits": spec["bits"], "block_name_to_quantize": None, "cache_block_outputs": True,
        "damp_percent": 0.01, "dataset": None, "desc_act": spec.get("desc_act", False),
        "exllama_config": {"version": 1}, "group_size": spec["group"], "max_input_length": None,
        "model_seqlen": None, "module_name_preceding_first_block": None, "modules_in_block_to_quantize": None,
        "pad_token_id": None, "quant_method": "gptq", "sym": spec["sym"], "tokenizer": None,
        "true_sequential": True, "use_cuda_fp16": False, "use_exllama": True,
    }
    if "checkpoint_format" in spec:
        fields["checkpoint_format"] = spec["checkpoint_format"]
    return fields


def awq_config(spec):
    # The fields of Qwen/Qwen2-1.5B-Instruct-AWQ.
    return {"bits": 4, "group_size": spec["group"], "modules_to_not_convert": None, "quant_method": "awq",
            "version": "gemm", "zero_point": True}


def bitsandbytes_config(spec):
    return {"_load_in_4bit": False, "_load_in_8bit": True, "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False,
            "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": ["lm_head"], "llm_int8_threshold": 6.0, "load_in_4bit": False,
            "load_in_8bit": True, "quant_method": "bitsandbytes"}


CONFIGS = {"gptq": gptq_config, "awq": awq_config, "bitsandbytes": bitsandbytes_config}


def write_folder(folder, tensors, config_text):
    folder.mkdir(parents=True, exist_ok=True)
    tensors.write(folder / "model.safetensors")
    (folder / "config.json").write_text(config_text)
    (folder / "tokenizer.json").write_text(tokenizer())


def write_models(root, shape, specs):
    """Models of the same numbers, each in its layout, and the twin of the first one's name."""
    names = list(specs)
    first = specs[names[0]]
    rng = random.Random(names[0])
    base = base_tensors(rng, shape, first.get("all_biases", False))
    folders = {name: Tensors() for name in names}
    twin = Tensors()
    for tensors in [twin, *folders.values()]:
        tensors.entries.update(base.entries)
    indices = {}
    for module, outputs, inputs, source in matrices(shape):
        name = f"model.layers.0.{module}"
        if first["method"] == "bitsandbytes":
            matrix, values = draw_bitsandbytes(rng, outputs, inputs)
        else:
            # Modules with the same activations have the same order of columns.
            if source not in indices:
                indices[source] = group_indices(rng, inputs, first)
            matrix, values = draw_grouped(rng, outputs, inputs, first, indices[source])
        twin.add_rows(name + ".weight", "F32", values)
        for model, spec in specs.items():
            WRITERS[spec["method"]](folders[model], name, matrix, spec)
    for model, spec in specs.items():
        write_folder(root / model, folders[model], config(shape, CONFIGS[spec["method"]](spec)))
    write_folder(root / f"{names[0]}_twin", twin, config(shape, None))


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "fixtures" / "quantized"
    wide = {"hidden": 128, "heads": 2, "kv_heads": 1, "tied": True}
    narrow = {"hidden": 64, "heads": 1, "kv_heads": 1, "tied": True}
    gptq = {"method": "gptq", "version": 1}
    write_models(root, wide | {"ffn": 128}, {
        "gptq4_sym_g128": gptq | {"bits": 4, "group": 128, "sym": True, "all_biases": True},
        "awq_g128": {"method": "awq", "group": 128},
    })
    write_models(root, wide | {"ffn": 96}, {
        "gptq4_asym_g32_act": gptq | {"bits": 4, "group": 32, "sym": False, "desc_act": True,
                                      "checkpoint_format": "gptq"},
    })
    write_models(root, wide | {"ffn": 64}, {
        "gptq8_sym_g64": gptq | {"bits": 8, "group": 64, "sym": True},
    })
    write_models(root, narrow | {"ffn": 80}, {
        "gptq8_asym_row": gptq | {"bits": 8, "group": -1, "sym": False},
    })
    write_models(root, wide | {"ffn": 64}, {
        "awq_g64": {"method": "awq", "bits": 4, "group": 64, "sym": False},
        "gptq4_v2_asym_g64": {"method": "gptq", "version": 2, "bits": 4, "group": 64, "sym": False,
                              "checkpoint_format": "gptq_v2"},
    })
    write_models(root, narrow | {"ffn": 80, "tied": False}, {"bnb8": {"method": "bitsandbytes"}})


if __name__ == "__main__":
    main()
