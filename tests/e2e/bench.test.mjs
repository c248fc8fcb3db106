// `qwen2 bench serve`: its loads, its result files, what it says of failures, and how it is interrupted.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import { model, qwen2, run, startServer, temporaryFolder, waitUntil } from './helpers.mjs';

const readJson = (...names) => JSON.parse(readFileSync(path.join(...names), 'utf8'));
const readLines = (file) => readFileSync(file, 'utf8').trimEnd().split('\n').filter(Boolean).map((line) => JSON.parse(line));
// 'info --model DEMO' as arguments.
const split = (line) => line.split(' ').map((word) => word.replace('DEMO', model));

// The table, the flat result, and a line for each request.
async function bench(t, ...args) {
  const folder = temporaryFolder(t);
  const file = path.join(folder, 'result.json');
  const { code, stdout, stderr } = await run('bench', 'serve', ...args, '--output', file);
  assert.equal(code, 0, `${args.join(' ')}\n${stderr}`);
  const result = readJson(file);
  const requests = result.requests_file ? readLines(path.join(folder, result.requests_file)) : [];
  return { table: stdout, folder, file, result, requests };
}

// What vLLM's own result has, with its names.
const flatNames = ['date', 'endpoint_type', 'backend', 'label', 'model_id', 'tokenizer_id', 'num_prompts', 'request_rate',
  'burstiness', 'max_concurrency', 'duration', 'completed', 'failed', 'total_input_tokens', 'total_output_tokens',
  'request_throughput', 'request_goodput', 'output_throughput', 'total_token_throughput', 'input_lens', 'output_lens',
  'ttfts', 'itls', 'generated_texts', 'errors',
  ...['ttft', 'tpot', 'itl', 'e2el'].flatMap((metric) =>
    ['mean', 'median', 'std', 'p50', 'p90', 'p95', 'p99'].map((what) => `${what}_${metric}_ms`))];

describe('against a running server', () => {
  let server;
  before(async () => (server = await startServer()));
  after(() => server?.stop());

  for (const endpoint of ['completions', 'chat', 'generate']) {
    for (const stream of [true, false]) {
      test(`${endpoint}, ${stream ? 'streaming' : 'whole'}`, async (t) => {
        const earlier = await server.stats();
        const target = ['--url', server.url, '--tokenizer', model, '--endpoint', endpoint];
        const size = split('--concurrency 3 --requests 7 --warmup 2 --ctx-len 150 --max-new-tokens 6 --ignore-eos');
        const { table, result, requests } = await bench(t, ...target, ...size, ...(stream ? [] : ['--no-stream']));
        for (const name of flatNames) assert.ok(name in result, name);
        assert.equal(result.schema, 'qwen2-bench-serve/1');
        assert.equal(result.mode, 'closed');
        assert.equal(result.backend, 'qwen2');
        assert.deepEqual(result.failures, {});
        assert.equal(result.completed, 7);
        assert.equal(result.interrupted, false);
        assert.equal(result.total_input_tokens, 7 * 150);
        assert.equal(result.total_output_tokens, 7 * 6);
        assert.deepEqual([result.request_rate, result.max_concurrency], ['inf', 3]);
        assert.deepEqual([result.n_e2el, result.n_ttft], [7, stream ? 7 : 0]);
        assert.equal(result.mean_ttft_ms === null, !stream);
        assert.equal(result.parameters.endpoint, endpoint);
        assert.ok(result.memory_plan.total > result.memory_plan.weights);
        assert.ok(result.timeline.length >= 2);
        assert.ok(result.timeline.every((s) => s.host_bytes > 0 && s.running >= 0 && s.waiting >= 0 && s.kv_pages_used >= 0));
        assert.ok(result.environment.cores > 0);
        assert.ok(result.client_lag_ms.n === 7 && result.event_loop_lag_ms.n >= 0);
        assert.match(table, /failures +0 of 7/);
        assert.deepEqual(requests.map((r) => r.index), [0, 1, 2, 3, 4, 5, 6]);
        for (const [i, request] of requests.entries()) {
          assert.equal(request.status, 200);
          assert.equal(request.failure, null);
          assert.equal(request.prompt_tokens, 150);
          assert.equal(request.completion_tokens, 6);
          assert.ok(request.queue_seconds >= 0);
          assert.ok(request.scheduled <= request.sent && request.sent < request.end);
          // One event a token; a chat's first may announce no more than the role.
          const events = request.content_times.length;
          assert.ok(stream ? events === 6 || (endpoint === 'chat' && events === 5) : events === 0, `${events}`);
          if (!stream) continue;
          assert.equal(result.itls[i].length, events - 1);
          assert.ok(Math.abs(result.ttfts[i] - (request.first_content - request.scheduled)) < 1e-5);
          assert.ok(request.scheduled < request.first_content && request.last_content <= request.end);
        }
        const later = await server.stats();
        assert.equal(later.prompt_tokens - earlier.prompt_tokens, 9 * 150);
        assert.equal(later.generated_tokens - earlier.generated_tokens, 9 * 6);
      });
    }
  }

  const target = () => ['--url', server.url, '--tokenizer', model, '--ignore-eos'];

  test('open loop', async (t) => {
    const load = split('--rate 40 --arrivals constant --requests 12 --ctx-len uniform:20:60 --max-new-tokens uniform:1:4');
    const { result, requests, table } = await bench(t, ...target(), ...load, '--slo', 'ttft=60s,p=90');
    assert.deepEqual([result.mode, result.request_rate, result.max_concurrency], ['open', 40, null]);
    for (const [i, r] of requests.entries()) assert.ok(Math.abs(r.scheduled - i / 40) < 1e-5);
    assert.equal(result.slo_attained, 1);
    assert.ok(Math.abs(result.request_goodput - result.request_throughput) < 1e-9);
    assert.ok(result.input_lens.every((n) => n >= 20 && n <= 60) && new Set(result.input_lens).size > 1);
    assert.match(table, /goodput .*12 of 12 meet ttft/);
    assert.ok(result.kept_up > 0 && result.kept_up <= 1);
  });

  test('a trace, faster than it was', async (t) => {
    const file = path.join(temporaryFolder(t), 'azure.csv');
    writeFileSync(file, 'TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.0,40,3\n' +
      '2023-11-16 18:17:04.0,50,4\n2023-11-16 18:17:05.0,60,0\n2023-11-16 18:17:07.0,70,5\n');
    const { result, requests } = await bench(t, ...target(), '--trace', file, '--speed', '10');
    assert.equal(result.mode, 'trace');
    assert.equal(result.trace_rows_skipped, 1);
    assert.deepEqual(result.input_lens, [40, 50, 70]);
    assert.deepEqual(result.output_lens, [3, 4, 5]);
    for (const [i, at] of [0, 0.1, 0.4].entries()) assert.ok(Math.abs(requests[i].scheduled - at) < 1e-5);
  });

  test('prompts from a file', async (t) => {
    const file = path.join(temporaryFolder(t), 'share.json');
    const talk = (human, gpt) => ({ conversations: [{ from: 'human', value: human }, { from: 'gpt', value: gpt }] });
    writeFileSync(file, JSON.stringify([talk('What does river mean?', 'A large stream.'), talk('And lake?', 'Still water.')]));
    const { result } = await bench(t, ...target(), '--endpoint', 'chat', '--prompts', file);
    assert.deepEqual(result.failures, {});
    assert.equal(result.completed, 2);
    assert.ok(result.output_lens.every((n) => n > 1 && n < 20));
  });

  test('a ladder and a search', async (t) => {
    const size = split('--requests 4 --warmup 0 --ctx-len 20 --max-new-tokens 4');
    const ladder = await bench(t, ...target(), ...size, '--ladder', 'concurrency=1,2');
    assert.equal(ladder.result.schema, 'qwen2-bench-serve-ladder/1');
    assert.deepEqual(ladder.result.steps.slice(0, 2).map((s) => [s.load, s.max_concurrency, s.completed]), [[1, 1, 4], [2, 2, 4]]);
    assert.equal(typeof ladder.result.verdict.saturated, 'boolean');
    for (const step of ladder.result.steps) assert.equal(readLines(path.join(ladder.folder, step.requests_file)).length, 4);
    const search = await bench(t, ...target(), ...size, ...split('--search concurrency --slo ttft=1ms,p=100'));
    assert.equal(search.result.verdict.highest_load_that_meets, null);
    assert.match(search.table, /highest concurrency that meets/);
  });

  test('an interrupted run keeps what it has, and is resumed', async (t) => {
    const file = path.join(temporaryFolder(t), 'run.json');
    const args = ['bench', 'serve', ...target(), ...split('--concurrency 2 --requests 60 --warmup 0 --ctx-len 30 --max-new-tokens 24')];
    const before = (await server.stats()).finished;
    const child = spawn(qwen2, [...args, '--output', file]);
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
    await waitUntil(async () => (await server.stats()).finished > before + 3, 'some requests have ended');
    child.kill('SIGINT');
    assert.deepEqual(await once(child, 'close'), [130, null], stderr);
    assert.match(stderr, /interrupted.*--resume/);
    const kept = readJson(file);
    assert.equal(kept.interrupted, true);
    assert.ok(kept.completed >= 3 && kept.completed < 60);
    const lines = readLines(path.join(path.dirname(file), kept.requests_file));
    assert.equal(lines.length, kept.completed);

    const { code, stderr: log } = await run(...args, '--resume', file);
    assert.equal(code, 0, log);
    const whole = readJson(file);
    assert.deepEqual([whole.interrupted, whole.completed, whole.segments.length], [false, 60, 2]);
    const all = readLines(path.join(path.dirname(file), whole.requests_file));
    assert.deepEqual(all.map((r) => r.index), [...Array(60).keys()]);
    for (const line of lines) assert.deepEqual(all[line.index], line);
    assert.ok(Math.abs(whole.duration - whole.segments[0].duration - whole.segments[1].duration) < 1e-6);
    const other = await run(...args, '--seed', '9', '--resume', file);
    assert.equal(other.code, 1);
    assert.match(other.stderr, /another 'seed'/);
  });
});

test('starts a server itself; flags with underscores', async (t) => {
  const size = split('--concurrency 5 --requests=15 --ctx_len 512 --max_new_tokens=16 --ignore_eos --max_num_seqs 2');
  const { requests, result } = await bench(t, '--model', model, ...size);
  assert.deepEqual(result.failures, {});
  assert.equal(requests.length, 15);
  assert.ok(requests.every((r) => r.prompt_tokens === 512 && r.completion_tokens === 16));
  const { ctx_len, max_new_tokens, concurrency } = result.parameters;
  assert.deepEqual([ctx_len, max_new_tokens, concurrency], [512, 16, 5]);
  assert.ok(result.max_concurrent_requests <= 5);
  assert.ok(result.ramp_seconds > 0);
});

test('hands every flag of the model to the server that it starts', async (t) => {
  const refused = await run(...split('bench serve --model DEMO --requests 1 --activations int8'));
  assert.equal(refused.code, 1); // needs quantised weights, as the server says
  const size = split('--requests 3 --warmup 0 --ctx-len 64 --max-new-tokens 4 --precision int8 --kv int8');
  const { result } = await bench(t, '--model', model, ...size);
  assert.deepEqual(result.failures, {});
  assert.deepEqual([result.service.precision, result.service.kv, result.service.policy], ['int8', 'int8', 'continuous']);
});

// A server that answers every completion with `answer(response, body)`.
async function startFake(t, answer, pages = {}) {
  const fake = http.createServer(async (request, response) => {
    const all = { '/v1/models': { data: [{ id: 'fake' }] }, ...pages };
    if (request.method === 'GET') {
      return request.url in all ? response.end(JSON.stringify(all[request.url])) : response.writeHead(404).end();
    }
    answer(response, JSON.parse(Buffer.concat(await request.toArray())), request.url);
  });
  await once(fake.listen(0, '127.0.0.1'), 'listening');
  t.after(() => {
    fake.close();
    fake.closeAllConnections();
  });
  return `http://127.0.0.1:${fake.address().port}/v1`;
}
const small = split('--tokenizer DEMO --concurrency 2 --requests 3 --warmup 0 --ctx-len 20');
const event = (object) => `data: ${JSON.stringify(object)}\n\n`;
const text = event({ choices: [{ index: 0, text: 'a' }] });
const usage = (prompt, completion) =>
  event({ choices: [], usage: { prompt_tokens: prompt, completion_tokens: completion } });
const done = 'data: [DONE]\n\n';

test('sends different prompts that its seed fixes', async (t) => {
  let bodies = [];
  const url = await startFake(t, (response, body) => {
    bodies.push(body);
    response.end(text + usage(20, 1) + done);
  });
  const promptsOf = async (seed) => {
    bodies = [];
    const { result } = await bench(t, '--url', url, ...small, '--seed', seed, '--max-new-tokens', '9');
    assert.equal(result.completed, 3);
    assert.ok(bodies.every((b) => b.model === 'fake' && b.max_tokens === 9 && b.temperature === 0 && b.stream));
    return bodies.map((b) => b.prompt).sort();
  };
  const [first, again, other] = [await promptsOf('1'), await promptsOf('1'), await promptsOf('2')];
  assert.deepEqual(again, first);
  assert.equal(new Set([...first, ...other]).size, 6);
});

test('counts tokens without text, but not the announcement of a role', async (t) => {
  const delta = (object) => event({ choices: [{ index: 0, delta: object }] });
  const events = [{ role: 'assistant', content: '' }, { content: 'a' }, { content: '' }, { content: 'b' }, {}];
  const url = await startFake(t, (response) => response.end(events.map(delta).join('') + usage(30, 3) + done));
  const target = ['--url', url, ...small.slice(0, -1), '30', '--endpoint', 'chat', '--max-new-tokens', '3'];
  const { requests, result } = await bench(t, ...target);
  assert.deepEqual(result.failures, {});
  assert.ok(requests.every((r) => r.content_times.length === 3));
  assert.deepEqual(result.generated_texts, ['ab', 'ab', 'ab']);
});

describe('finds out what it talks to', () => {
  const owned = (owner) => ({ '/v1/models': { data: [{ id: 'm', owned_by: owner }] } });
  const info = { model_id: 'm', max_total_tokens: 4096 };
  for (const [backend, pages, where] of [
    ['vllm', owned('vllm'), '/v1/completions'],
    ['llamacpp', owned('llamacpp'), '/v1/completions'],
    ['llamacpp', { '/props': { default_generation_settings: {} } }, '/v1/completions'],
    ['tgi', { '/v1/models': {}, '/info': info }, '/generate_stream'],
    ['ollama', owned('library'), '/api/generate'],
    ['ollama', { ...owned('me'), '/api/version': { version: '0.12.0' } }, '/api/generate'],
    ['openai', {}, '/v1/completions'],
  ]) {
    test(`${backend}, by ${Object.keys(pages).at(-1) ?? 'nothing'}`, async (t) => {
      const seen = new Set();
      const answers = {
        '/v1/completions': text + usage(20, 1) + done,
        '/generate_stream': `data:${JSON.stringify({ token: { text: 'a' }, generated_text: 'a', details: { generated_tokens: 1 } })}\n\n`,
        '/api/generate': `{"response":"a","done":false}\n{"response":"","done":true,"eval_count":1}\n`,
      };
      const url = await startFake(t, (response, body, at) => {
        seen.add(at);
        response.end(answers[at]);
      }, pages);
      const { result } = await bench(t, '--url', url, ...small);
      assert.deepEqual(result.failures, {}, JSON.stringify(result.errors));
      assert.equal(result.backend, backend);
      assert.equal(result.completed, 3);
      assert.deepEqual([...seen], [where]);
    });
  }
});

describe('counts failures by kind', () => {
  for (const [name, answer] of Object.entries({
    http_429: (response) => response.writeHead(429, { 'retry-after': '1' }).end('{}'),
    http_5xx: (response) => response.writeHead(500).end('broken'),
    http_4xx: (response) => response.writeHead(400).end('{"error": {"message": "no"}}'),
    timeout: () => {},
    'timeout (in the middle)': (response) => response.write(text),
    bad_response: (response) => response.end('data: no JSON\n\n' + done),
    server_error: (response) => response.end(text + event({ error: { message: 'oh' } })),
    'wrong_length (prompt)': (response) => response.end(text + usage(7, 1) + done),
    'wrong_length (answer)': (response) => response.end(text + usage(20, 1) + done),
    'cut_stream (no [DONE])': (response) => response.end(text + usage(20, 2)),
    'cut_stream (in the middle)': (response) => response.write(text, () => response.destroy()),
    'cut_stream (no answer)': (response) => response.destroy(),
  })) {
    test(name, async (t) => {
      const [kind] = name.split(' ');
      const options = split(`--max-new-tokens 2 --ignore-eos --timeout ${kind === 'timeout' ? 1 : 30}`);
      const { result, requests, table } = await bench(t, '--url', await startFake(t, answer), ...small, ...options);
      assert.deepEqual(result.failures, { [kind]: 3 });
      assert.equal(result.completed, 0);
      assert.equal(result.failed, 3);
      assert.equal(result.mean_e2el_ms, null);
      assert.ok(requests.every((r) => r.failure === kind && r.detail.length > 0));
      assert.ok(result.errors.every((e) => e.startsWith(`${kind}: `)));
      assert.match(table, new RegExp(`failures +3 of 3, 3 ${kind}`));
    });
  }

  test('connect', async (t) => {
    const free = net.createServer().listen(0, '127.0.0.1');
    await once(free, 'listening');
    const url = `http://127.0.0.1:${free.address().port}`;
    await once(free.close(), 'close');
    const { code, stderr } = await run('bench', 'serve', '--url', url, ...small);
    assert.equal(code, 1);
    assert.ok(stderr.includes(url), stderr);
    const { result } = await bench(t, '--url', url, ...small, '--served-model', 'any');
    assert.deepEqual(result.failures, { connect: 3 });
  });
});
