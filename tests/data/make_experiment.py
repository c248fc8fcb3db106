#!/usr/bin/env python3
"""Writes tests/data/experiment: a small experiment for the report's tests. Its numbers come from a toy model of a
server and mean nothing."""
import json
import math
import random
import shutil
from pathlib import Path

OUT = Path(__file__).parent / "experiment"
T975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t by degrees of freedom
GIB = 2**30
WEIGHTS = {"fp16": 3.09e9, "int8": 1.78e9, "int4": 1.13e9}
KV_TOKEN = 28672
BUDGET = 6 * GIB
random.seed(7)

ENVIRONMENT = {
    "cpu": "Example CPU, 8 cores", "cores": 8, "memory_bytes": 32 * GIB, "isa": "avx2", "kernel": "Linux 6.1.0",
    "host": "example", "compiler": "g++ 12.2.0", "flags": "-O3", "commit": "0123456789ab", "dirty": False,
    "gpu": "Example GPU with 6 GB", "gpu_memory_bytes": BUDGET, "driver": "580.00", "cuda": "13.0",
    "clocks": {"sm_mhz": 1680, "memory_mhz": 7000}, "model": "synthetic:qwen2-1.5b", "model_hash": "sha256:0f3a",
    "command": "qwen2 experiment run experiment.toml --output experiment", "seed": 1, "date": "2026-11-20T10:00:00Z",
    "version": "0.1.0",
}
TIMES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2E"}
METRICS = {  # name -> label, unit, better
    "output_throughput": ("output", "tok/s", "higher"), "request_throughput": ("requests", "req/s", "higher"),
    **{f"{p}_{m}_ms": (f"{TIMES[m]} {p}", "ms", "lower") for m in TIMES for p in ("mean", "median", "p90", "p99")},
    "failed": ("failed", "", "lower"),
    "prefill_tokens_per_second.median": ("prefill", "tok/s", "higher"),
    "decode_tokens_per_second.median": ("decode", "tok/s", "higher"),
    "device_memory_bytes": ("held on the GPU", "B", "lower"), "weight_bytes": ("weights", "B", "lower"),
    "perplexity": ("perplexity", "", "lower"), "mean_kl": ("KL", "nats", "lower"),
    "same_top1": ("same top token", "fraction", "higher"), "bytes.total": ("planned", "B", "lower"),
    "resident_requests": ("requests at once", "", "higher"),
}


def noise(scale=0.02):
    return 1 + random.gauss(0, scale)


def rounded(value):
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return value


def plan_bytes(precision, tokens):
    parts = {"weights": WEIGHTS[precision], "kv_pool": KV_TOKEN * tokens * 4.0, "workspace": 0.21 * GIB,
             "graphs": 64.0 * 2**20, "runtime": 0.3 * GIB}
    return {k: int(v) for k, v in parts.items()}


def percentile(values, p):
    values = sorted(values)
    at = p / 100 * (len(values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def simulate(concurrency, serial, tokens=12, requests=16):
    """Requests of a closed loop: (sent, admitted, content times)."""
    free = [0.0] * concurrency
    server = 0.0
    out = []
    for index in range(requests):
        client = min(range(concurrency), key=lambda c: free[c])
        sent = free[client]
        admitted = max(sent, server)
        first = admitted + 0.11 * noise(0.08)
        tpot = 0.012 * (1 if serial else 1 + 0.06 * concurrency) * noise()
        times = [first]
        for _ in range(tokens - 1):
            times.append(times[-1] + tpot * noise(0.05))
        server = times[-1] if serial else first
        free[client] = times[-1] + 0.001
        out.append((index, sent, admitted, times))
    return out


def latency_keys(values, name):
    ms = [v * 1e3 for v in values]
    mean = sum(ms) / len(ms)
    out = {f"mean_{name}_ms": mean, f"median_{name}_ms": percentile(ms, 50),
           f"std_{name}_ms": math.sqrt(sum((v - mean) ** 2 for v in ms) / len(ms))}
    out |= {f"p{p}_{name}_ms": percentile(ms, p) for p in (50, 90, 95, 99)}
    return out


def serve(file, axes, failing=0):
    records = simulate(axes["concurrency"], axes["policy"] == "serial")
    lines, ttfts, itls, tpots, e2els = [], [], [], [], []
    end = max(r[3][-1] for r in records)
    for index, sent, admitted, times in records:
        failed = index >= len(records) - failing
        line = {"index": index, "scheduled": sent, "sent": sent, "first_content": None if failed else times[0],
                "last_content": None if failed else times[-1], "end": times[-1] + 0.001, "status": 504 if failed else 200,
                "failure": "timeout" if failed else None, "prompt_tokens": -1 if failed else 512,
                "completion_tokens": -1 if failed else len(times), "queue_seconds": admitted - sent,
                "content_times": [] if failed else times}
        lines.append(line)
        if failed:
            continue
        ttfts.append(times[0] - sent)
        itls.append([b - a for a, b in zip(times, times[1:])])
        tpots.append((times[-1] - times[0]) / (len(times) - 1))
        e2els.append(times[-1] + 0.001 - sent)
    done = len(ttfts)
    plan = plan_bytes("fp16", 2048)
    total = sum(plan.values())
    timeline = []
    for i in range(21):
        t = end * i / 20
        running = sum(r[2] <= t < r[3][-1] for r in records)
        waiting = sum(r[1] <= t < r[2] for r in records)
        timeline.append({"t": t, "vram_bytes": int(total * (0.962 + 0.001 * running)),
                         "host_bytes": int(0.9 * GIB + 3e6 * running), "running": running, "waiting": waiting,
                         "kv_pages_used": running * 9})
    result = {
        "schema": "qwen2-bench-serve/1", "mode": "closed", "date": "20261120-100000", "backend": "qwen2",
        "model_id": "qwen2-1.5b", "num_prompts": 16, "request_rate": "inf", "burstiness": 1.0,
        "max_concurrency": axes["concurrency"], "duration": end, "completed": done, "failed": failing,
        "failures": {"timeout": failing} if failing else {}, "interrupted": False,
        "total_input_tokens": 512 * done, "total_output_tokens": 12 * done, "request_throughput": done / end,
        "output_throughput": 12 * done / end, "total_token_throughput": 524 * done / end,
        **latency_keys(ttfts, "ttft"), **latency_keys(tpots, "tpot"),
        **latency_keys([g for gaps in itls for g in gaps], "itl"), **latency_keys(e2els, "e2el"),
        "ttfts": ttfts, "itls": itls, "timeline": timeline, "memory_plan": {**plan, "total": total, "budget": BUDGET},
        "requests_file": file.with_suffix("").name + ".requests.jsonl", "environment": ENVIRONMENT,
    }
    (file.parent / result["requests_file"]).write_text("".join(json.dumps(rounded(line)) + "\n" for line in lines))
    return result


def engine(axes):
    speed = {"fp16": 92, "int8": 141, "int4": 187}[axes["precision"]]
    ctx = axes["ctx-len"]
    decode = speed / (1 + ctx / 30000) * noise(0.01)
    prefill = 7200 / (1 + ctx / 20000) * noise(0.01)
    total = sum(plan_bytes(axes["precision"], ctx).values())
    return {"parameters": {"prompt": ctx, "generate": 32, "batch": 1, "runs": 5, "precision": axes["precision"]},
            "prefill_tokens_per_second": {"median": prefill, "min": prefill * 0.99, "max": prefill * 1.01},
            "decode_tokens_per_second": {"median": decode, "min": decode * 0.99, "max": decode * 1.01},
            "device_memory_bytes": int(total * (0.955 + 0.01 * random.random())),
            "peak_memory_bytes": int(1.1 * GIB), "weight_bytes": int(WEIGHTS[axes["precision"]]),
            "kv_bytes_per_token": KV_TOKEN, "environment": ENVIRONMENT}


def plan(axes):
    parts = plan_bytes(axes["precision"], axes["ctx-len"])
    total = sum(parts.values())
    fits = total <= BUDGET
    return {"parameters": {"ctx_len": axes["ctx-len"]}, "fits": fits, "cure": "" if fits else "--precision int8 would fit",
            "resident_requests": 4 if fits else 0, "bytes": {**parts, "total": total, "budget": BUDGET},
            "environment": ENVIRONMENT}


def evaluate(axes):
    kl = {"fp16": 0.00002, "int8": 0.0011, "int4": 0.0412}[axes["precision"]]
    return {"perplexity": 9.61 * math.exp(kl), "mean_kl": kl, "mean_kl_standard_error": kl / 20, "same_top1": 1 - kl ** 0.5,
            "weight_bytes": int(WEIGHTS[axes["precision"]]), "positions": 32640, "environment": ENVIRONMENT}


MEASURES = {"engine": engine, "plan": plan, "evaluate": evaluate}
COMMANDS = {"serve": "qwen2 bench serve --model synthetic:qwen2-1.5b --requests 16 --ctx-len 512 --max-new-tokens 12 --ignore-eos",
            "engine": "qwen2 bench engine --model synthetic:qwen2-1.5b --device cuda",
            "plan": "qwen2 plan --gpu rtx2060 --max-new-tokens 1", "evaluate": "qwen2 evaluate --model m --reference m --text t.txt"}


def grid():
    for policy in ("continuous", "serial"):
        for concurrency in (1, 4, 16):
            yield "serve", {"policy": policy, "concurrency": concurrency}, 3
    yield "serve", {"policy": "continuous", "concurrency": 64}, 2
    for precision in ("fp16", "int8", "int4"):
        for ctx in (512, 2048, 8192):
            yield "engine", {"precision": precision, "ctx-len": ctx}, 3
    yield "engine", {"precision": "fp16", "ctx-len": 32768}, 1
    for ctx in (512, 2048, 8192, 32768):
        yield "plan", {"precision": "fp16", "ctx-len": ctx}, 1
    for precision in ("fp16", "int8", "int4"):
        yield "evaluate", {"precision": precision}, 1


def write_repeat(point, k, axes):
    """Measures one repeat of a point; its status is the manifest's."""
    name = f"points/{point['id']}/r{k}.json"
    repeat = {"file": name, "status": "ok", "seconds": round(4 * noise(), 2)}
    if axes.get("concurrency") == 64:
        return repeat | {"file": "", "status": "failed", "error": "qwen2: the service did not start within 600 s"}
    if point["measure"] == "engine" and axes["ctx-len"] == 32768:
        return repeat | {"status": "refused", "error": "qwen2: the memory plan does not fit: 7.30 GiB of a budget of 6.00 GiB"}
    if axes == {"policy": "serial", "concurrency": 4} and k == 3:
        return repeat | {"status": "failed", "error": "qwen2: <the server> closed the connection & left"}
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if point["measure"] == "serve":
        result = serve(path, axes, 2 if axes == {"policy": "serial", "concurrency": 16} else 0)
    else:
        result = MEASURES[point["measure"]](axes)
    path.write_text(json.dumps(rounded(result), separators=(",", ":")) + "\n")
    return repeat


def look_up(result, name):
    for key in name.split("."):
        result = result.get(key) if isinstance(result, dict) else None
    return result


def summarise(point):
    results = [json.loads((OUT / r["file"]).read_text()) for r in point["repeats"] if r["status"] == "ok"]
    metrics = {}
    for name, (label, unit, better) in METRICS.items():
        values = [v for v in (look_up(r, name) for r in results) if isinstance(v, (int, float))]
        if not values:
            continue
        n, mean = len(values), sum(values) / len(values)
        half = None
        if n > 1:
            half = T975[n - 1] * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
        metrics[name] = {"n": n, "mean": mean, "ci_low": None if half is None else mean - half,
                         "ci_high": None if half is None else mean + half, "median": percentile(values, 50),
                         "min": min(values), "max": max(values), "values": values, "label": label, "unit": unit, "better": better}
    return {"id": point["id"], "label": point["label"], "axes": point["axes"], "metrics": metrics}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    points = []
    for number, (measure, axes, repeats) in enumerate(grid(), 1):
        flags = " ".join(f"--{k} {v}" for k, v in axes.items())
        point = {"id": f"p{number:03}", "label": " ".join(str(v) for v in axes.values()), "axes": axes,
                 "grid": measure, "measure": measure, "command": f"{COMMANDS[measure]} {flags}"}
        point["repeats"] = [write_repeat(point, k, axes) for k in range(1, repeats + 1)]
        points.append(point)
    manifest = {
        "schema": "qwen2-experiment/1", "name": "example", "title": "Example of a report",
        "question": "How do load, precision and context change speed, memory & quality? (Made-up numbers for the tests.)",
        "started": "2026-11-20T10:00:00Z", "finished": None, "interrupted": True, "seed": 1, "environment": ENVIRONMENT,
        "points": points,
        "plots": [{"title": "Prompt speed against context", "x": "ctx-len", "y": "prefill_tokens_per_second.median",
                   "series": "precision", "log_x": True},
                  {"title": "Top token kept", "x": "precision", "y": "same_top1"},
                  {"title": "A metric that nobody measured", "x": "ctx-len", "y": "joules_per_token"}],
    }
    summary = {"points": [summarise(p) for p in points]}
    (OUT / "experiment.toml").write_text('name = "example"\ntitle = "Example of a report"\n')
    (OUT / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


main()
