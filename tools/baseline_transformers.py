#!/usr/bin/env python3
"""Measure the plainest service of the same model: Transformers' generate() in threads behind a semaphore.

Why: a server is worth its code only against what a few lines of Python do. This
loads a model once, lets --concurrency threads each send one request at a time,
and at most --parallel of them be inside generate(). There is no HTTP here, so
its latencies flatter it. The result has the names and units of `qwen2 bench
serve --output` where they mean the same.

  python3 tools/baseline_transformers.py --synthetic --memory-budget 6GiB --concurrency 4 --output F.json
  python3 tools/baseline_transformers.py --model FOLDER --output F.json

--memory-budget bounds PyTorch's allocator to the budget less what the card
holds before the model is loaded (the context; other processes on the card would
be counted in). Needs torch and transformers, no network: prompts are random
token ids, and --synthetic makes random weights in Qwen2-1.5B's shape.
"""
import argparse
import datetime
import json
import platform
import queue
import random
import shlex
import statistics
import sys
import threading
import time

import torch
import transformers
from transformers import StoppingCriteria, StoppingCriteriaList

# From the config.json of Qwen/Qwen2-1.5B-Instruct.
SHAPE = dict(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
             intermediate_size=8960, vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=32768,
             rope_theta=1e6, rms_norm_eps=1e-6, bos_token_id=151643, eos_token_id=151645)
FIRST_SPECIAL = 151643
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_bytes(text):
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(float(text[:-len(unit)]) * factor)
    return int(text)


class TokenTimes(StoppingCriteria):
    """Called after each token; waits for it, notes the time and never stops."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **kwargs):
        input_ids[0, -1].item()
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def bound_memory(budget):
    """Returns the bytes that the card holds before anything is loaded."""
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    if budget:
        share = (parse_bytes(budget) - context) / total
        if share <= 0:
            sys.exit(f"--memory-budget {budget}: the card already holds {context / 2**30:.2f} GiB")
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    return context


def load(args, device):
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    if args.synthetic:
        config = transformers.Qwen2Config(**SHAPE)
        torch.manual_seed(args.seed)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = transformers.Qwen2ForCausalLM(config)
        finally:
            torch.set_default_dtype(default)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(args.model, local_files_only=True)
        model = model.to(device=device, dtype=dtype)
    model.eval()
    return model


class Load:
    """Threads that each send their next request when the last has ended."""

    def __init__(self, model, args, device):
        self.model, self.args, self.device = model, args, device
        self.slots = threading.Semaphore(args.parallel or args.concurrency)
        self.records = []

    def request(self, index, prompt):
        record = {"index": index, "failure": None, "prompt_tokens": len(prompt), "times": [], "tokens": 0}
        record["sent"] = time.perf_counter()
        times = TokenTimes()
        try:
            with self.slots, torch.inference_mode():
                record["admitted"] = time.perf_counter()
                ids = torch.tensor([prompt], device=self.device)
                least = {"min_new_tokens": self.args.max_new_tokens} if self.args.ignore_eos else {}
                out = self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1, pad_token_id=0,
                    max_new_tokens=self.args.max_new_tokens, stopping_criteria=StoppingCriteriaList([times]), **least)
                record["tokens"] = out.shape[1] - len(prompt)
        except torch.cuda.OutOfMemoryError as error:
            record["failure"], record["detail"] = "out_of_memory", str(error)
            torch.cuda.empty_cache()
        except Exception as error:  # one request's failure is a result, whatever it is
            record["failure"], record["detail"] = "error", f"{type(error).__name__}: {error}"
        record["end"] = time.perf_counter()
        record["times"] = times.times
        return record

    def worker(self, waiting):
        while True:
            try:
                index, prompt = waiting.get_nowait()
            except queue.Empty:
                return
            self.records.append(self.request(index, prompt))

    def run(self, prompts, concurrency):
        self.records = []
        waiting = queue.Queue()
        for item in enumerate(prompts):
            waiting.put(item)
        threads = [threading.Thread(target=self.worker, args=(waiting,)) for _ in range(concurrency)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return start, sorted(self.records, key=lambda r: r["index"])


def percentile(values, p):
    """Linear interpolation between the closest ranks."""
    position = p / 100 * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (position - below) * (values[above] - values[below])


def statistics_of(name, seconds):
    values = sorted(1000 * s for s in seconds)
    result = {f"n_{name}": len(values)}
    for key in ("mean", "median", "std", "p50", "p90", "p95", "p99"):
        result[f"{key}_{name}_ms"] = None
    if values:
        result.update({f"mean_{name}_ms": statistics.fmean(values), f"median_{name}_ms": statistics.median(values),
                       f"std_{name}_ms": statistics.pstdev(values)})
        result.update({f"p{p}_{name}_ms": percentile(values, p) for p in (50, 90, 95, 99)})
    return result


def summarise(args, model, device, context, start, records):
    good = [r for r in records if r["failure"] is None]
    duration = max(r["end"] for r in records) - start
    prompt_tokens = sum(r["prompt_tokens"] for r in good)
    output_tokens = sum(r["tokens"] for r in good)
    gaps = [[b - a for a, b in zip(r["times"], r["times"][1:])] for r in good]
    failures = {}
    for r in records:
        if r["failure"]:
            failures[r["failure"]] = failures.get(r["failure"], 0) + 1
    result = {
        "schema": "qwen2-bench-serve/1",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "endpoint_type": "in-process", "backend": "transformers", "label": "transformers",
        "model_id": "synthetic:qwen2-1.5b" if args.synthetic else args.model, "tokenizer_id": None, "mode": "closed",
        "num_prompts": len(records), "request_rate": "inf", "max_concurrency": args.concurrency, "duration": duration,
        "completed": len(good), "failed": len(records) - len(good), "failures": failures, "interrupted": False,
        "total_input_tokens": prompt_tokens, "total_output_tokens": output_tokens,
        "request_throughput": len(good) / duration, "request_goodput": None,
        "output_throughput": output_tokens / duration,
        "total_token_throughput": (prompt_tokens + output_tokens) / duration,
    }
    result.update(statistics_of("ttft", [r["times"][0] - r["sent"] for r in good]))
    result.update(statistics_of("tpot", [(r["times"][-1] - r["times"][0]) / (len(r["times"]) - 1)
                                         for r in good if len(r["times"]) > 1]))
    result.update(statistics_of("itl", [gap for row in gaps for gap in row]))
    result.update(statistics_of("e2el", [r["end"] - r["sent"] for r in good]))
    result["input_lens"] = [r["prompt_tokens"] for r in records]
    result["output_lens"] = [r["tokens"] for r in records]
    result["ttfts"] = [r["times"][0] - r["sent"] for r in good]
    result["itls"] = gaps
    result["errors"] = [r.get("detail", "") for r in records]
    on_card = device == "cuda"
    result["peak_vram_bytes"] = context + torch.cuda.max_memory_reserved() if on_card else None
    result["parameters"] = {key: value for key, value in vars(args).items() if key != "output"}
    result["environment"] = {
        "host": platform.node(), "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if on_card else None,
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_card else None,
        "dtype": str(next(model.parameters()).dtype), "attention": getattr(model.config, "_attn_implementation", None),
        "seed": args.seed, "command": shlex.join([sys.executable, *sys.argv]), "date": result["date"]}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="folder in Hugging Face layout")
    which.add_argument("--synthetic", action="store_true", help="random weights in Qwen2-1.5B's shape")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--memory-budget", help="such as 6GiB; of the process on the card")
    parser.add_argument("--concurrency", type=int, default=1, help="threads, each with one request at a time")
    parser.add_argument("--parallel", type=int, help="requests inside generate() at once (default: all threads)")
    parser.add_argument("--requests", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--ctx-len", type=int, default=2048)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="JSON file")
    args = parser.parse_args()
    for name in ("concurrency", "requests", "ctx_len", "max_new_tokens"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.parallel is not None and args.parallel < 1:
        parser.error("--parallel must be at least 1")
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if args.memory_budget and device != "cuda":
        parser.error("--memory-budget needs --device cuda")
    context = bound_memory(args.memory_budget) if device == "cuda" else 0
    started = time.perf_counter()
    model = load(args, device)
    print(f"loaded in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    draw = random.Random(args.seed)
    limit = min(model.config.vocab_size, FIRST_SPECIAL)
    prompts = [[draw.randrange(limit) for _ in range(args.ctx_len)] for _ in range(args.warmup + args.requests)]
    test = Load(model, args, device)
    test.run(prompts[:args.warmup], 1)
    start, records = test.run(prompts[args.warmup:], args.concurrency)
    result = summarise(args, model, device, context, start, records)
    show = lambda key: "-" if result[key] is None else f"{result[key]:.1f}"
    print(f"{result['completed']} of {len(records)} completed, failures {result['failures']}, "
          f"{show('output_throughput')} output tok/s, "
          f"TTFT median {show('median_ttft_ms')} p99 {show('p99_ttft_ms')} ms, "
          f"TPOT median {show('median_tpot_ms')} p99 {show('p99_tpot_ms')} ms")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file)
            file.write("\n")
    if result["completed"] == 0:
        sys.exit(f"no request was completed: {result['errors'][0]}")


if __name__ == "__main__":
    main()
