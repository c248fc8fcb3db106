#!/usr/bin/env python3
"""Write the golden data that the engine's tests compare with.

Why: the only fair judge of a Qwen2 engine is another one. This makes a few
tiny Qwen2 models with random weights that differ in what can go wrong (head
size, grouped heads, tied head, file types, shards, odd sizes), runs them and
models/demo through Hugging Face Transformers in float32, and stores the
logits after the prompt and 64 greedy tokens.

For each model: tests/golden/NAME/golden.json, and caseI.f32 beside it (raw
little-endian float32 logits of the prompt's last position). `margins` holds
the gap between the two largest logits of each greedy step, so that a test can
tell a wrong token from a near tie; `max_abs` the largest |logit| of the step.
Greedy decoding ignores end-of-text tokens and uses no penalties.

Needs torch, transformers and safetensors; uses a GPU where there is one.
"""
import argparse
import json
import os

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# name: hidden, heads, kv heads, layers, intermediate, vocabulary, tied, theta, stored as, files
SETS = {
    "small": {  # less than 8 MB together: what the repository holds
        "hd64_tied": (256, 4, 2, 2, 192, 384, True, 1e4, torch.bfloat16, 1),
        "hd128_untied": (256, 2, 1, 2, 96, 160, False, 1e6, torch.float16, 1),
        "mha_deep": (128, 2, 2, 6, 96, 150, False, 1e6, torch.bfloat16, 3),
        "hd128_wide": (384, 3, 1, 1, 96, 200, True, 1e6, torch.float32, 1),
        "gqa6_odd": (384, 6, 1, 1, 160, 131, True, 1e4, torch.bfloat16, 1)},
    "large": {  # about 31 MB together
        "hd64_tied": (256, 4, 2, 3, 512, 512, True, 1e4, torch.bfloat16, 1),
        "hd128_untied": (256, 2, 1, 2, 704, 512, False, 1e6, torch.float16, 1),
        "mha_deep": (128, 2, 2, 8, 352, 300, False, 1e6, torch.bfloat16, 3),
        "hd128_wide": (512, 4, 2, 2, 672, 1000, True, 1e6, torch.float32, 1),
        "gqa6_odd": (384, 6, 1, 2, 544, 257, True, 1e4, torch.bfloat16, 1)},
}
STEPS = 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def write_json(path, value, **style):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, **style)
        f.write("\n")


def random_weights(shape, seed):
    """Weights, exact in bfloat16 and float16, that make attention pick a few places and logits spread well."""
    hidden, heads, kv, layers, wide, vocab, tied, _, _, _ = shape
    hd = hidden // heads
    gen = torch.Generator().manual_seed(seed)

    def exact(w):
        w = w.to(torch.bfloat16).float()
        return torch.where(w.abs() < 1e-4, torch.zeros(()), w)  # below 6.1e-5 float16 is no longer exact

    normal = lambda std, *size: exact(torch.randn(*size, generator=gen) * std)
    linear = lambda gain, rows, cols: normal(gain / cols ** 0.5, rows, cols)
    norm = lambda: exact(1 + 0.2 * torch.randn(hidden, generator=gen))
    # A tied head on large embeddings would repeat the last token for ever, so those are small.
    w = {"model.embed_tokens.weight": linear(2.0, vocab, hidden) if tied else normal(1.0, vocab, hidden)}
    for i in range(layers):
        p = f"model.layers.{i}."
        w[p + "input_layernorm.weight"] = norm()
        for name, rows, bias in (("q", heads * hd, 1.0), ("k", kv * hd, 1.0), ("v", kv * hd, 0.3)):
            w[p + f"self_attn.{name}_proj.weight"] = linear(1.3, rows, hidden)
            w[p + f"self_attn.{name}_proj.bias"] = normal(bias, rows)
        w[p + "self_attn.o_proj.weight"] = linear(1.2, hidden, heads * hd)
        w[p + "post_attention_layernorm.weight"] = norm()
        w[p + "mlp.gate_proj.weight"] = linear(1.3, wide, hidden)
        w[p + "mlp.up_proj.weight"] = linear(1.3, wide, hidden)
        w[p + "mlp.down_proj.weight"] = linear(1.5, hidden, wide)
    w["model.norm.weight"] = norm()
    if not tied:
        w["lm_head.weight"] = linear(3.0, vocab, hidden)
    return w


def write_model(folder, shape, weights):
    """A folder as Qwen publishes it: config.json and safetensors, in one file or in shards."""
    hidden, heads, kv, layers, wide, vocab, tied, theta, dtype, files = shape
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "config.json"), {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1, "hidden_act": "silu", "hidden_size": hidden, "initializer_range": 0.02,
        "intermediate_size": wide, "max_position_embeddings": 2048, "max_window_layers": layers,
        "model_type": "qwen2", "num_attention_heads": heads, "num_hidden_layers": layers,
        "num_key_value_heads": kv, "rms_norm_eps": 1e-06, "rope_theta": theta, "sliding_window": 2048,
        "tie_word_embeddings": tied, "torch_dtype": str(dtype).removeprefix("torch."), "use_cache": True,
        "use_sliding_window": False, "vocab_size": vocab}, indent=2)
    stored = {k: v.to(dtype) for k, v in weights.items()}
    assert all(torch.equal(v.float(), weights[k]) for k, v in stored.items()), "the file type is not exact"
    size = lambda names: sum(stored[k].numel() * stored[k].element_size() for k in names)
    if files == 1:
        save_file(stored, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return
    total, names, shards = size(stored), list(stored), [[] for _ in range(files)]
    done = 0
    for k in names:
        shards[min(files - 1, done * files // total)].append(k)
        done += size([k])
    where = {}
    for i, part in enumerate(shards, 1):
        name = f"model-{i:05}-of-{files:05}.safetensors"
        save_file({k: stored[k] for k in part}, os.path.join(folder, name), metadata={"format": "pt"})
        where.update({k: name for k in part})
    write_json(os.path.join(folder, "model.safetensors.index.json"),
               {"metadata": {"total_size": total}, "weight_map": where}, indent=2)


def load(folder, attention, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    hd = config["hidden_size"] // config["num_attention_heads"]
    got = model.model.rotary_emb.inv_freq[1].item()
    assert abs(got / config["rope_theta"] ** (-2 / hd) - 1) < 1e-5, "rope_theta was not read"
    return model.to(DEVICE).eval()


@torch.no_grad()
def golden(name, source, out, prompts, seed):
    """Run one model on its prompts, write golden.json and the logits, and print a line."""
    model, other = load(source, "eager"), load(source, "sdpa")
    os.makedirs(out, exist_ok=True)
    cases, worst, kinds = [], 0.0, []
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt], device=DEVICE)
        result = model(ids, use_cache=True)
        logits = result.logits[0, -1]
        worst = max(worst, (logits - other(ids).logits[0, -1]).abs().max().item())
        logits.cpu().numpy().astype("<f4").tofile(os.path.join(out, f"case{i}.f32"))
        case = {"prompt": prompt, "logits_file": f"case{i}.f32", "greedy": [], "margins": [], "max_abs": []}
        for step in range(STEPS):
            top, best = logits.topk(2)
            case["greedy"].append(best[0].item())
            case["margins"].append(round((top[0] - top[1]).item(), 6))
            case["max_abs"].append(round(logits.abs().max().item(), 6))
            if step < STEPS - 1:
                result = model(best[:1].view(1, 1), past_key_values=result.past_key_values, use_cache=True)
                logits = result.logits[0, -1]
        cases.append(case)
        kinds.append(len(set(case["greedy"])))
    write_json(os.path.join(out, "golden.json"), {
        "model": name, "transformers": transformers.__version__, "torch": torch.__version__, "dtype": "float32",
        "seed": seed, "cases": cases})
    margins = sorted(m for c in cases for m in c["margins"])
    sharp = torch.stack([a[0, :, -1].max(-1).values.mean() for a in model(ids, output_attentions=True).attentions]).mean()
    print(f"{name}: |eager - sdpa| <= {worst:.1e}; max |logit| {max(max(c['max_abs']) for c in cases):.1f}; least margin "
          f"{margins[0]:.4f}, median {margins[len(margins) // 2]:.2f}; distinct greedy tokens {kinds}; mean largest "
          f"attention weight after {len(ids[0])} tokens {sharp:.2f}", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="tests/golden")
    p.add_argument("--set", choices=SETS, default="small", help="sizes of the random models")
    p.add_argument("--demo", default="models/demo", help="model folder; left out if it does not exist")
    p.add_argument("--seed", type=int, default=2024)
    args = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    transformers.utils.logging.disable_progress_bar()
    gen = torch.Generator().manual_seed(args.seed)
    tokens = lambda count, vocab: torch.randint(0, vocab, (count,), generator=gen).tolist()

    for number, (name, shape) in enumerate(SETS[args.set].items()):
        folder = os.path.join(args.out, name)
        write_model(folder, shape, random_weights(shape, args.seed + number))
        golden(name, folder, folder, [tokens(n, shape[5]) for n in (1, 7, 33, 300)], args.seed + number)

    if os.path.exists(os.path.join(args.demo, "config.json")):
        chat = AutoTokenizer.from_pretrained(args.demo)
        prompts = []
        for q in ("What does lucid mean?", "What is the opposite of happy?", "Use river in a sentence."):
            ids = chat.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True)
            prompts.append(list(getattr(ids, "input_ids", ids)))
        golden("demo", args.demo, os.path.join(args.out, "demo"), prompts + [tokens(600, 8189)], args.seed)


if __name__ == "__main__":
    main()
