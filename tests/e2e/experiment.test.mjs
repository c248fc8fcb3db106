// `qwen2 experiment`: runs of small grids on the demo model, their directories, and comparisons of runs.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';

import { model, qwen2, root, run, runProgram, temporaryFolder, waitUntil } from './helpers.mjs';

const readJson = (...names) => JSON.parse(readFileSync(path.join(...names), 'utf8'));

// An experiment's file and the directory for its results.
function fileOf(t, text) {
  const folder = temporaryFolder(t);
  const file = path.join(folder, 'small.toml');
  writeFileSync(file, `name = "small"\nseed = 3\n[flags]\nmodel = '${model}'\ndevice = "cpu"\n${text}`);
  return { folder, file, out: (name) => path.join(folder, name) };
}

const runExperiment = (file, output, ...args) =>
  runProgram(qwen2, ['experiment', 'run', file, '--output', output, ...args], { timeout: 300_000 });
const compare = (...args) => run('experiment', 'compare', ...args);

const engine = `
[[grid]]
name = "engine"
measure = "engine"
repeats = 2
estimate = 1
flags = { prompt = 24, generate = 4, runs = 1 }
axes = { precision = ["fp16", "int4"], batch = [1, 2] }
`;
const all = `${engine}
[[grid]]
name = "load"
measure = "serve"
repeats = 2
flags = { ctx-len = 40, max-new-tokens = 4, ignore-eos = true, requests = 3, warmup = 0, threads = 1 }
axes = { concurrency = [2], no-stream = [false, true] }

[[grid]]
name = "quality"
measure = "evaluate"
flags = { text = '${model}/evaluation.txt', chats = true, max-windows = 2, reference = '${model}' }
axes = { variant = [{ name = "plain" }, { name = "small", precision = "int4", kv = "int8" }] }

[[grid]]
name = "fit"
measure = "plan"
flags = { model = "synthetic:qwen2-1.5b", gpu = "rtx2060" }

[[plot]]
title = "Speed"
x = "batch"
y = "decode_tokens_per_second.median"
series = "precision"
`;

test('every kind of measurement: the directory, and each figure from the command beside it', async (t) => {
  const { file, out } = fileOf(t, all);
  const { code, stdout, stderr } = await runExperiment(file, out('a'));
  assert.equal(code, 0, stderr);
  const manifest = readJson(out('a'), 'manifest.json');
  assert.equal(manifest.schema, 'qwen2-experiment/1');
  assert.equal(manifest.interrupted, false);
  assert.ok(Date.parse(manifest.finished) >= Date.parse(manifest.started));
  assert.equal(manifest.points.length, 4 + 2 + 2 + 1);
  assert.deepEqual(manifest.plots.map((plot) => plot.series), ['precision']);
  assert.equal(readFileSync(out('a/experiment.toml'), 'utf8'), readFileSync(file, 'utf8'));
  for (const point of manifest.points) {
    const repeats = ['engine', 'serve'].includes(point.measure) ? 2 : 1;
    assert.deepEqual(point.repeats.map((r) => [r.repeat, r.status]), [[1, 'ok'], [2, 'ok']].slice(0, repeats));
    for (const repeat of point.repeats) {
      const result = readJson(out('a'), repeat.file);
      assert.ok(result.environment.cores > 0);
      assert.ok(existsSync(out(`a/points/${point.id}/r${repeat.repeat}.log`)));
    }
  }
  const load = manifest.points.find((p) => p.grid === 'load');
  assert.match(load.command, /^OMP_NUM_THREADS=1 qwen2 bench serve .* --concurrency 2 --seed 3 --output /);
  assert.equal(readJson(out('a'), load.repeats[1].file).environment.seed, 4);
  assert.equal(readJson(out('a'), load.repeats[0].file).environment.threads, 1);

  // The stored command measures the same again.
  const quality = manifest.points.find((p) => p.label.endsWith('small'));
  const again = out('again.json');
  const words = quality.command.split(' ').slice(1, -1);
  assert.equal((await run(...words, again)).code, 0, quality.command);
  assert.equal(readJson(again).mean_kl, readJson(out('a'), quality.repeats[0].file).mean_kl);

  const summary = readJson(out('a'), 'summary.json');
  assert.deepEqual(summary.points.map((p) => p.id), manifest.points.map((p) => p.id));
  const speed = summary.points[0].metrics['decode_tokens_per_second.median'];
  assert.equal(speed.n, 2);
  assert.ok(speed.ci_low <= speed.mean && speed.mean <= speed.ci_high);
  assert.ok(Math.abs(speed.mean - (speed.values[0] + speed.values[1]) / 2) < 1e-9 * speed.mean);
  const kl = summary.points.at(-2).metrics.mean_kl;
  assert.deepEqual([kl.n, kl.ci_low, kl.better], [1, null, 'lower']);
  for (const point of manifest.points) assert.ok(stdout.includes(point.label), `${point.label} in\n${stdout}`);
});

describe('compare', () => {
  const exact = ['--metric', 'weight_bytes', '--metric', 'bytes_per_decode_step'];

  test('two runs of the same show no difference, one of a lower precision is worse', async (t) => {
    const { file, out } = fileOf(t, `
[[grid]]
name = "quality"
measure = "evaluate"
flags = { text = '${model}/evaluation.txt', chats = true, max-windows = 2, reference = '${model}', precision = "fp16" }
axes = { window = [512] }
`);
    for (const [name, ...args] of [['a'], ['b'], ['c', '--set', 'precision=int4']])
      assert.equal((await runExperiment(file, out(name), ...args)).code, 0);
    const same = await compare(out('a'), out('b'));
    assert.equal(same.code, 0, same.stdout + same.stderr);
    assert.match(same.stdout, /^0 worse, 0 better, [1-9]\d* without a difference shown/m);

    const refused = await compare(out('a'), out('c'));
    assert.equal(refused.code, 2);
    assert.match(refused.stderr, /^qwen2: .*precision: "fp16" and "int4".*--allow/);
    const quality = ['--metric', 'mean_kl', '--metric', 'perplexity', '--allow', 'precision'];
    const json = out('comparison.json');
    const worse = await compare(out('a'), out('c'), ...quality, '--output', json);
    assert.equal(worse.code, 3, worse.stdout + worse.stderr);
    const kl = readJson(json).comparisons.find((c) => c.metric === 'mean_kl');
    assert.equal(kl.verdict, 'worse');
    assert.ok(kl.difference > 0 && kl.ci_low === kl.difference);
    const back = await compare(out('c'), out('a'), ...quality);
    assert.equal(back.code, 0);
    assert.match(back.stdout, /^0 worse, [1-9]/m);
    // Fewer bytes are better, whatever they cost.
    assert.equal((await compare(out('a'), out('c'), '--allow', 'precision', '--metric', 'weight_bytes')).code, 0);
  });

  test('another number of threads is a difference that has to be allowed', async (t) => {
    const { file, out } = fileOf(t, engine);
    assert.equal((await runExperiment(file, out('a'), '--set', 'threads=2', '--set', 'batch=1')).code, 0);
    assert.equal((await runExperiment(file, out('b'), '--set', 'threads=1', '--set', 'batch=1')).code, 0);
    const refused = await compare(out('a'), out('b'));
    assert.equal(refused.code, 2);
    assert.match(refused.stderr, /threads: 2 and 1/);
    // Speeds on a busy machine may show anything; the bytes are the same.
    assert.equal((await compare(out('a'), out('b'), '--allow', 'threads', ...exact)).code, 0);
    const report = await compare(out('a'), out('b'), '--allow', 'threads');
    assert.ok([0, 3].includes(report.code), report.stderr);
  });

  test('what cannot be compared: exit code 2, or 1 where a directory holds nothing', async (t) => {
    const { file, out } = fileOf(t, engine);
    assert.equal((await runExperiment(file, out('a'), '--set', 'batch=1')).code, 0);
    assert.equal((await runExperiment(file, out('b'), '--set', 'batch=2')).code, 0);
    assert.equal((await compare(out('a'), out('b'))).code, 2);
    const unknown = await compare(out('a'), out('a'), '--metric', 'speed');
    assert.equal(unknown.code, 2);
    assert.match(unknown.stderr, /--metric 'speed'/);
    const missing = await compare(out('a'), out('none'));
    assert.equal(missing.code, 1);
    assert.match(missing.stderr, /manifest\.json/);
  });
});

describe('what goes wrong in a run', () => {
  test('a refusal by the memory plan is a result where the grid allows it, a failure elsewhere', async (t) => {
    const grid = (budgets, line) => `
[[grid]]
name = "tight"
measure = "engine"
flags = { prompt = 24, generate = 4, runs = 1 }
axes = { memory-budget = ${budgets} }
${line}
[[grid]]
name = "loaded"
measure = "serve"
flags = { requests = 1, memory-budget = "8MiB" }
${line}`;
    const allowed = fileOf(t, grid('["8MiB"]', 'may-be-refused = true'));
    const { code, stdout, stderr } = await runExperiment(allowed.file, allowed.out('a'));
    assert.equal(code, 0, stderr);
    assert.match(stdout, /refused: .*budget of at least/);
    for (const point of readJson(allowed.out('a'), 'manifest.json').points) {
      assert.equal(point.repeats[0].status, 'refused');
      assert.match(point.repeats[0].error, /budget of at least/);
    }
    const failing = fileOf(t, grid('["8MiB", "1GiB"]', ''));
    const result = await runExperiment(failing.file, failing.out('a'));
    assert.equal(result.code, 1);
    const [tight, wide] = readJson(failing.out('a'), 'manifest.json').points;
    assert.deepEqual([tight.repeats[0].status, wide.repeats[0].status], ['refused', 'ok']);
  });

  test('a child that fails or takes too long is recorded and the run goes on; --resume tries it again', async (t) => {
    const { file, out } = fileOf(t, `
[[grid]]
name = "wrong"
measure = "engine"
flags = { runs = 0 }
[[grid]]
name = "unknown flag"
measure = "engine"
flags = { nonsense = 1 }
[[grid]]
name = "slow"
measure = "engine"
timeout = 1
flags = { prompt = 2000, generate = 2000, runs = 1000 }
[[grid]]
name = "right"
measure = "engine"
flags = { prompt = 24, generate = 4, runs = 1 }
`);
    const { code, stderr } = await runExperiment(file, out('a'));
    assert.equal(code, 1);
    assert.match(stderr, /3 measurements failed/);
    const status = () => readJson(out('a'), 'manifest.json').points.map((p) => p.repeats.map((r) => [r.status, r.error]));
    const [[wrong], [unknown], [slow], [right]] = status();
    assert.match(wrong.join(), /^failed,--runs must be/);
    assert.match(unknown.join(), /^failed,.*nonsense/);
    assert.match(slow.join(), /^failed,it took more than 1 seconds/);
    assert.deepEqual(right, ['ok', undefined]);

    const occupied = await runExperiment(file, out('a'));
    assert.equal(occupied.code, 1);
    assert.match(occupied.stderr, /--output .*--resume/);
    const before = readFileSync(out('a/points/p004/r1.json'), 'utf8');
    assert.equal((await runExperiment(file, out('a'), '--resume')).code, 1);
    assert.equal(readFileSync(out('a/points/p004/r1.json'), 'utf8'), before);
    const other = await runExperiment(file, out('a'), '--resume', '--set', 'right.prompt=25');
    assert.equal(other.code, 1);
    assert.match(other.stderr, /--resume: its point p004/);
  });

  test('Ctrl-C keeps what there is and says so, --resume continues', async (t) => {
    const { file, out } = fileOf(t, `
[[grid]]
name = "right"
measure = "engine"
repeats = 2
flags = { prompt = 24, generate = 4, runs = 1 }
[[grid]]
name = "long"
measure = "serve"
repeats = 1
flags = { ctx-len = 2000, max-new-tokens = 1000, ignore-eos = true, requests = 100000, concurrency = 2 }
`);
    const first = ['--set', 'long.requests=100000'];
    const child = spawn(qwen2, ['experiment', 'run', file, '--output', out('a'), ...first]);
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
    const closed = once(child, 'close');
    const repeats = () =>
      existsSync(out('a/manifest.json')) ? readJson(out('a'), 'manifest.json').points[0].repeats.length : 0;
    const log = out('a/points/p002/r1.log');
    await waitUntil(() => repeats() >= 1 && existsSync(log), 'one repeat is there and the load test runs', 120_000);
    child.kill('SIGINT');
    const [code] = await closed;
    assert.equal(code, 130, stderr);
    assert.match(stderr, /interrupted: what was measured is kept/);
    const manifest = readJson(out('a'), 'manifest.json');
    assert.equal(manifest.interrupted, true);
    assert.equal(manifest.points[1].repeats.length, 0);
    assert.ok(existsSync(out('a/summary.json')));
    const { code: only } = await runExperiment(file, out('a'), '--resume', '--only', 'right');
    assert.equal(only, 0);
    const later = readJson(out('a'), 'manifest.json');
    assert.equal(later.interrupted, false);
    assert.deepEqual(later.points.map((p) => p.repeats.length), [2]);
  });

  test('a setup command runs once, before the points, and its failure ends the run', async (t) => {
    const { file, out } = fileOf(t, `
[[setup]]
command = ["quantize", "--model", '${model}', "--method", "rtn", "--output", "{output}/rtn"]
creates = "{output}/rtn"
[[grid]]
name = "rtn"
measure = "engine"
flags = { model = "{output}/rtn", prompt = 24, generate = 4, runs = 1 }
`);
    const { code, stderr } = await runExperiment(file, out('a'));
    assert.equal(code, 0, stderr);
    assert.equal(readJson(out('a/points/p001/r1.json')).environment.model, out('a/rtn'));
    writeFileSync(file, readFileSync(file, 'utf8').replaceAll('rtn"', 'gone"').replace('"gone", "--out', '"none", "--out'));
    const failed = await runExperiment(file, out('b'));
    assert.equal(failed.code, 1);
    assert.match(failed.stderr, /the setup command .* failed/);
  });

  test('a file that is wrong', async (t) => {
    const { file, out } = fileOf(t, '[[grid]]\nname = "x"\nmesure = "engine"\n');
    const { code, stderr } = await runExperiment(file, out('a'));
    assert.equal(code, 1);
    assert.match(stderr, /^qwen2: .*small\.toml' line 8: unknown key 'mesure'/);
    assert.ok(!existsSync(out('a')));
    assert.match((await runExperiment('/no/file.toml', out('a'))).stderr, /\/no\/file\.toml/);
  });
});

test("the repository's experiments print their commands and an estimate", async (t) => {
  const folder = path.join(root, 'experiments');
  for (const name of readdirSync(folder)) {
    const { code, stdout, stderr } = await runExperiment(path.join(folder, name), temporaryFolder(t), '--dry-run');
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^qwen2 (bench|plan|evaluate) /m);
    assert.match(stdout, /^\d+ points, \d+ child processes, about /m);
  }
});
