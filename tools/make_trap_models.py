#!/usr/bin/env python3
"""Write the trap models: small random Qwen2s with the family's numeric traps.

Why: Qwen2 checkpoints carry numbers that break 16-bit arithmetic, and random weights of ordinary size carry none
of them, so an engine can match every other golden and still fail on the real models. The traps:

  keys      key biases of norm 800 on the slowest RoPE pairs of the first and the last layer (20 in the others).
            Queries that point the same way give q.k above 65504 before it is scaled (one token of each prompt does).
            All keys share the bias, so softmax drops it, but what tells the keys apart is rounded away with it.
  swiglu    channels where silu(gate) * up reaches 2e5, above fp16's largest number. Their columns of the down
            projection are small, so that what is added to the residual stream is of ordinary size.
  residual  one channel of the residual stream of about 2e3 after the first layer (its square does not fit fp16).
            The norms behind it weigh that channel low and the others high, as trained ones do.

For each of trap_keys, trap_swiglu, trap_residual and trap_all: the model in Hugging Face layout and golden.json as
make_goldens.py writes it, with one more member, `transformers_errors`: for fp16 and bf16, eager and sdpa, the error
of Transformers' own logits after each prompt (largest |difference| / largest |float32 logit|), null where not finite.

Fails if a model would be a poor test: if float32 is not within 1e-4 of float64 (a plain forward pass below), if the
logits do not depend on the keys, or if the traps are not of the size said above. The seeds are ones that pass; with
the key trap, about half of all seeds are too ill-conditioned.

    python3 tools/make_trap_models.py --out tests/golden

Needs torch, transformers and safetensors; uses a GPU where there is one.
"""
import argparse
import json
import os

import torch
import transformers

from make_goldens import DEVICE, golden, load, random_weights, write_json, write_model

BF16 = torch.bfloat16
# name: seed; traps; hidden, heads, kv heads, layers, intermediate, vocabulary, tied, theta, stored as, files
MODELS = {
    "trap_keys": (840, ("keys",), (128, 2, 1, 3, 64, 200, False, 1e6, BF16, 1)),
    "trap_swiglu": (801, ("swiglu",), (128, 2, 1, 2, 96, 200, True, 1e6, BF16, 1)),
    "trap_residual": (862, ("residual",), (128, 2, 1, 2, 64, 200, True, 1e6, BF16, 1)),
    "trap_all": (813, ("keys", "swiglu", "residual"), (256, 2, 1, 2, 64, 200, True, 1e6, BF16, 1))}
PROMPTS = (40, 64, 110, 170)
SLOW_PAIRS = (0.2, 0.3, 1.0)  # how the bias is spread over the slowest pairs, the slowest last
KEY_NORM, ORDINARY_KEY_NORM = 800.0, 20.0
LOUD = 0  # the token whose queries are long enough to overflow fp16, in one head of the first layer
PRODUCTS = range(3)  # the channels of the MLP with the large products
CARRIER, MASSIVE = 3, 17  # channels of the residual stream: one that is the same for all tokens, the large one
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def trap_keys(w, shape, gen):
    hidden, heads, kv, layers = shape[:4]
    hd = hidden // heads
    pairs = torch.arange(hd // 2)
    for i in range(layers):
        p = f"model.layers.{i}.self_attn."
        trapped = i in (0, layers - 1)
        slow = pairs[-len(SLOW_PAIRS):] if trapped else pairs[hd // 4:]
        share = torch.tensor(SLOW_PAIRS) if trapped else 0.5 + torch.rand(len(slow), generator=gen)
        slow = torch.cat([slow, slow + hd // 2])
        for h in range(kv):
            way = torch.randn(len(slow), generator=gen).sign() * share.repeat(2)
            way /= way.norm()
            w[p + "k_proj.bias"][h * hd + slow] = way * (KEY_NORM if trapped else ORDINARY_KEY_NORM)
            if not trapped:
                continue
            w[p + "k_proj.weight"][h * hd + slow] *= 0.25
            # The queries' length along the keys' bias: a mean, and a part that depends on the token.
            for q in range(h * heads // kv, (h + 1) * heads // kv):
                along = torch.randn(hidden, generator=gen) * 4 / hidden ** 0.5
                if i == 0 and q == h * heads // kv:
                    x = w["model.embed_tokens.weight"][LOUD]
                    x = x * torch.rsqrt((x * x).mean()) * w["model.layers.0.input_layernorm.weight"]
                    along = 86 * x / (x @ x)
                w[p + "q_proj.weight"][q * hd + slow] += torch.outer(way, along)
                w[p + "q_proj.bias"][q * hd + slow] += way * 6


def trap_swiglu(w, shape, scale):
    for i in range(shape[3]):
        p = f"model.layers.{i}.mlp."
        for j in PRODUCTS:
            w[p + "gate_proj.weight"][j] *= scale
            w[p + "up_proj.weight"][j] *= scale
            w[p + "down_proj.weight"][:, j] *= 2 / scale ** 2


def trap_residual(w, shape, gen, product):
    """A channel of the MLP makes `product` out of a carrier channel, and the residual channel out of that."""
    hidden, layers, vocab = shape[0], shape[3], shape[5]
    probe = torch.randint(0, vocab, (100,), generator=gen).tolist()
    carried = 2 * hidden ** 0.5
    w["model.embed_tokens.weight"][:, CARRIER] = carried
    w["model.layers.0.self_attn.o_proj.weight"][CARRIER] = 0
    norms = [f"model.layers.{i}.{n}_layernorm.weight" for i in range(layers) for n in ("input", "post_attention")]
    for i, name in enumerate(norms + ["model.norm.weight"]):
        # The large channels make this norm shrink the others, so their weights are raised as much.
        rms, lift = forward(w, shape, probe)[1]["norms"][i]
        w[name] *= lift * (0.6 if 1 < i < len(norms) else 1)  # less where it varies from token to token
        w[name][[CARRIER, MASSIVE]] = 0.05
        if i == 1:
            w[name][CARRIER] = 1
            for side in ("gate", "up"):
                matrix = w[f"model.layers.0.mlp.{side}_proj.weight"]
                matrix[:, CARRIER] = 0
                matrix[-1] = 0
                matrix[-1, CARRIER] = product ** 0.5 / (carried / rms)
            down = w["model.layers.0.mlp.down_proj.weight"]
            down[:, -1] = 0
            down[MASSIVE, -1] = 2000 / product


def trap_weights(traps, shape, seed):
    w = random_weights(shape, seed)
    gen = torch.Generator().manual_seed(seed + 1000)
    if "keys" in traps:
        trap_keys(w, shape, gen)
    if "swiglu" in traps:
        trap_swiglu(w, shape, 100 if "residual" in traps else 160)
    if "residual" in traps:
        trap_residual(w, shape, gen, 2e5 if "swiglu" in traps else 1.6e3)
    return {k: v.to(BF16).float() for k, v in w.items()}


def forward(weights, shape, prompt, key=lambda part, bias: part + bias, product=lambda p: p):
    """Qwen2 in float64, by the book: the logits of the last position, and what the traps look like on the way.

    `key` and `product` let a caller spoil the keys and the MLP's products, to see how much the logits mind.
    """
    hidden, heads, kv, layers, _, _, tied, theta, _, _ = shape
    hd, n = hidden // heads, len(prompt)
    w = {k: v.double() for k, v in weights.items()}
    seen = {"score": 0.0, "product": 0.0, "residual": 0.0, "median": [], "norms": [], "largest": [], "keys": []}
    rest = [c for c in range(hidden) if c not in (CARRIER, MASSIVE)]

    def norm(x, gain):
        rms = ((x * x).mean(-1, keepdim=True) + 1e-6) ** 0.5
        usual = (x[:, rest] ** 2).mean(-1, keepdim=True) ** 0.5
        seen["norms"].append((rms.median().item(), (rms / usual).median().item()))
        return x / rms * gain

    angles = torch.outer(torch.arange(n).double(), theta ** (-torch.arange(0, hd, 2).double() / hd)).repeat(1, 2)
    turn = lambda x: x * angles.cos() + torch.cat([-x[..., hd // 2:], x[..., :hd // 2]], -1) * angles.sin()
    split = lambda x: x.view(-1, hd).view(x.shape[0], -1, hd).transpose(0, 1)
    mask = torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1)
    x = w["model.embed_tokens.weight"][torch.tensor(prompt)]
    for i in range(layers):
        p = f"model.layers.{i}."
        a = norm(x, w[p + "input_layernorm.weight"])
        part = lambda c: a @ w[p + f"self_attn.{c}_proj.weight"].T
        bias = lambda c: w[p + f"self_attn.{c}_proj.bias"]
        q, v = turn(split(part("q") + bias("q"))), split(part("v") + bias("v"))
        k = turn(split(key(part("k"), bias("k"))))
        k, v = (t.repeat_interleave(heads // kv, 0) for t in (k, v))
        raw = q @ k.transpose(1, 2)
        seen["score"] = max(seen["score"], raw.tril().abs().max().item())
        s = torch.softmax(raw / hd ** 0.5 + mask, -1)
        late = s[:, -16:]
        seen["largest"].append(late.max(-1).values.mean().item())
        seen["keys"].append(torch.special.entr(late).sum(-1).exp().mean().item())
        x = x + (s @ v).transpose(0, 1).reshape(n, -1) @ w[p + "self_attn.o_proj.weight"].T
        a = norm(x, w[p + "post_attention_layernorm.weight"])
        m = torch.nn.functional.silu(a @ w[p + "mlp.gate_proj.weight"].T) * (a @ w[p + "mlp.up_proj.weight"].T)
        seen["product"] = max(seen["product"], m.abs().max().item())
        x = x + product(m) @ w[p + "mlp.down_proj.weight"].T
        seen["median"].append(x.abs().median().item())
        seen["residual"] = max(seen["residual"], x.abs().max().item())
    head = w["model.embed_tokens.weight" if tied else "lm_head.weight"]
    return norm(x, w["model.norm.weight"])[-1] @ head.T, seen


def relative(got, want):
    got, want = got.double().cpu(), want.double().cpu()
    return ((got - want).abs().max() / want.abs().max()).item()


def check(name, traps, shape, weights, prompt, float32):
    """Hold one case against float64, and see that the traps are there and matter."""
    exact, seen = forward(weights, shape, prompt)
    other = lambda **spoilt: relative(forward(weights, shape, prompt, **spoilt)[0], exact)
    off = relative(float32, exact)
    rounded = {t: other(key=lambda part, bias: (part + bias).to(d).double()) for t, d in DTYPES.items()}
    no_keys = other(key=lambda part, bias: 0 * part + bias)
    clamped = other(product=lambda p: p.clamp(-65504, 65504))
    show = lambda values: " ".join(f"{v:.2f}" for v in values)
    print(f"{name}, {len(prompt)} tokens: float32 is {off:.1e} from float64; largest |q.k| {seen['score']:.3g}, "
          f"product {seen['product']:.3g}, residual {seen['residual']:.3g} (medians {show(seen['median'])}); largest "
          f"attention weight {show(seen['largest'])}, effective keys {show(seen['keys'])}; logit errors: keys in fp16 "
          f"{rounded['fp16']:.2g}, in bf16 {rounded['bf16']:.2g}, without their token's part {no_keys:.2g}, "
          f"products clamped {clamped:.2g}", flush=True)
    wrong = {
        "is too ill-conditioned for a reference in float32": off > 1e-4,
        "does not depend on its keys": no_keys < 0.1 or max(seen["largest"]) > 0.9,
        "has no overflow in q.k": "keys" in traps and seen["score"] < 7e4,
        "has products of another size": "swiglu" in traps and not 1e5 < seen["product"] < 5e5,
        "has a residual of another size": "residual" in traps and not 1e3 < seen["residual"] < 4e3}
    return [f"{name} {what} ({len(prompt)} tokens)" for what, is_so in wrong.items() if is_so]


@torch.no_grad()
def transformers_errors(folder, cases):
    """Transformers' own 16-bit errors, for each case."""
    errors = {}
    for kind, dtype in DTYPES.items():
        for attention in ("eager", "sdpa"):
            model, row = load(folder, attention, dtype), []
            for case in cases:
                want = torch.from_file(os.path.join(folder, case["logits_file"]), size=model.config.vocab_size)
                got = model(torch.tensor([case["prompt"]], device=DEVICE)).logits[0, -1]
                row.append(float(f"{relative(got, want):.3g}") if got.isfinite().all() else None)
            errors[f"{kind}_{attention}"] = row
    return errors


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="tests/golden")
    p.add_argument("--reseed", type=int, default=0, help="added to every seed: other models with the same traps")
    args = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {DEVICE}", flush=True)
    wrong = []
    for name, (seed, traps, shape) in MODELS.items():
        seed += args.reseed
        folder = os.path.join(args.out, name)
        weights = trap_weights(traps, shape, seed)
        write_model(folder, shape, weights)
        gen = torch.Generator().manual_seed(seed)
        prompts = [torch.randint(0, shape[5] - 2, (n,), generator=gen).tolist() for n in PROMPTS]
        for prompt in prompts:
            prompt[3] = prompt[len(prompt) // 2] = LOUD
        golden(name, folder, folder, prompts, seed)
        for i, prompt in enumerate(prompts):
            float32 = torch.from_file(os.path.join(folder, f"case{i}.f32"), size=shape[5])
            wrong += check(name, traps, shape, weights, prompt, float32)
        path = os.path.join(folder, "golden.json")
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
        content["transformers_errors"] = transformers_errors(folder, content["cases"])
        write_json(path, content)
        for kind, row in content["transformers_errors"].items():
            print(f"  {kind}: {row}", flush=True)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
