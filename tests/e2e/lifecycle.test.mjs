// Connections, cancellation, shutdown, and clients that do not speak HTTP.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import {
  endless,
  eventsOf,
  model,
  post,
  rawExchange,
  run,
  runProgram,
  serverFor,
  startServer,
  waitUntil,
  waitUntilIdle,
} from './helpers.mjs';

const aborted = (request) => assert.rejects(request, { name: 'AbortError' });
const isBusy = (server, running, waiting) => async () => {
  const stats = await server.stats();
  return stats.running === running && stats.waiting === waiting;
};

const postHead = (path, length, ...lines) =>
  [`POST ${path} HTTP/1.1`, 'Host: a', `Content-Length: ${length}`, ...lines, '', ''].join('\r\n');

// Starts an endless stream and waits for its first event.
async function startStream(server, options = {}) {
  const abort = new AbortController();
  const body = { ...endless, stream: true, ...options };
  const response = await post(server, '/v1/completions', body, { signal: abort.signal });
  assert.equal(response.status, 200);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = (await reader.read()).value;
  return {
    abort: () => abort.abort(),
    async rest() {
      for (let part; !(part = await reader.read()).done; ) text += part.value;
      return text;
    },
  };
}

describe('a client that goes away', () => {
  test('while it streams', async (t) => {
    const server = await serverFor(t);
    const streams = await Promise.all(Array.from({ length: 3 }, () => startStream(server)));
    const busy = await server.stats();
    assert.ok(busy.running === 3 && busy.kv_pages_free < busy.kv_pages);
    for (const stream of streams) stream.abort();
    await waitUntilIdle(server);
    assert.equal((await server.stats()).cancelled, 3);
  });

  test('while it waits for a whole answer', async (t) => {
    const server = await serverFor(t);
    for (const path of ['/v1/completions', '/generate']) {
      const abort = new AbortController();
      const request = aborted(post(server, path, endless, { signal: abort.signal }));
      await waitUntil(isBusy(server, 1, 0), 'the request runs');
      abort.abort();
      await request;
      await waitUntilIdle(server);
    }
    assert.equal((await server.stats()).cancelled, 2);
  });

  test('after sending its next request too early', async (t) => {
    const server = await serverFor(t);
    const body = JSON.stringify(endless);
    const socket = net.connect(server.port, '127.0.0.1');
    socket.write(`${postHead('/v1/completions', body.length)}${body}`);
    await waitUntil(isBusy(server, 1, 0), 'the request runs');
    socket.write('GET /health HTTP/1.1\r\nHost: a\r\n\r\n');
    await sleep(100);
    socket.destroy();
    await waitUntilIdle(server);
    assert.equal((await server.stats()).cancelled, 1);
  });

  test('while it is queued', async (t) => {
    const server = await serverFor(t, '--max-num-seqs', '1');
    const running = await startStream(server);
    for (const stream of [true, false]) {
      const abort = new AbortController();
      const request = aborted(post(server, '/v1/completions', { ...endless, stream }, { signal: abort.signal }));
      await waitUntil(isBusy(server, 1, 1), 'the request is queued');
      abort.abort();
      await request;
      await waitUntil(isBusy(server, 1, 0), 'the request has left the queue');
    }
    assert.equal((await server.stats()).cancelled, 2);
    running.abort();
    await waitUntilIdle(server);
    assert.equal((await server.stats()).cancelled, 3);
  });

  test('during a long prompt', async (t) => {
    const server = await serverFor(t, '--prefill-chunk', '16');
    const abort = new AbortController();
    const prompt = Array(4000).fill(5);
    const request = aborted(post(server, '/v1/completions', { prompt, max_tokens: 90 }, { signal: abort.signal }));
    await waitUntil(isBusy(server, 1, 0), 'the request runs');
    abort.abort();
    await request;
    await waitUntilIdle(server);
    const { cancelled, prompt_tokens: computed } = await server.stats();
    assert.equal(cancelled, 1);
    assert.ok(computed < prompt.length, `all ${computed} prompt tokens were computed`);
  });
});

describe('shutdown', () => {
  test('SIGTERM lets a running stream end and refuses new requests', async (t) => {
    const server = await serverFor(t);
    const stream = await startStream(server, { max_tokens: 600 });
    server.signal('SIGTERM');
    // A connection that was just accepted gets its 503, a later one is refused.
    const isRefused = () =>
      post(server, '/v1/completions', { prompt: 'A' }).then(
        (answer) => answer.status === 503,
        (error) => error.message === 'fetch failed',
      );
    await waitUntil(isRefused, 'refused');
    const events = eventsOf(await stream.rest());
    assert.equal(events.pop(), '[DONE]');
    assert.equal(events.length, 600);
    assert.equal(events.at(-1).choices[0].finish_reason, 'length');
    assert.deepEqual(await server.exited, { code: 0, signal: null });
  });

  test('SIGINT does the same for a whole answer', async (t) => {
    const server = await serverFor(t);
    const request = post(server, '/v1/completions', { ...endless, max_tokens: 400 });
    await waitUntil(isBusy(server, 1, 0), 'the request runs');
    server.signal('SIGINT');
    assert.equal((await (await request).json()).usage.completion_tokens, 400);
    assert.deepEqual(await server.exited, { code: 0, signal: null });
  });

  test('requests in the queue get 503', async (t) => {
    const server = await serverFor(t, '--max-num-seqs', '1');
    const running = await startStream(server, { max_tokens: 600 });
    const waiting = [true, false].map((stream) => post(server, '/v1/completions', { ...endless, stream }));
    await waitUntil(isBusy(server, 1, 2), 'two requests wait');
    server.signal('SIGTERM');
    for (const request of waiting) {
      const response = await request;
      assert.equal(response.status, 503);
      assert.equal((await response.json()).error.code, 'shutting_down');
    }
    assert.equal(eventsOf(await running.rest()).length, 601);
    assert.deepEqual(await server.exited, { code: 0, signal: null });
  });

  test('a second signal ends running requests too', async (t) => {
    const server = await serverFor(t);
    const stream = await startStream(server, { max_tokens: 4000 });
    server.signal('SIGTERM');
    await sleep(200);
    server.signal('SIGTERM');
    await stream.rest().catch(() => {}); // cut
    assert.deepEqual(await server.exited, { code: 0, signal: null });
  });

  test('does not wait for connections without a request', async (t) => {
    const server = await serverFor(t);
    const sockets = [];
    for (const bytes of ['', 'POST /v1/compl', 'GET /health HTTP/1.1\r\nHost: a\r\n\r\n']) {
      const socket = net.connect(server.port, '127.0.0.1');
      await once(socket, 'connect');
      socket.write(bytes);
      if (bytes.endsWith('\r\n\r\n')) await once(socket, 'data');
      sockets.push(socket.on('error', () => {}));
    }
    await sleep(100);
    const start = Date.now();
    assert.deepEqual(await server.stop(), { code: 0, signal: null });
    assert.ok(Date.now() - start < 5000);
    for (const socket of sockets) socket.destroy();
  });
});

test('a second server on the same port', async (t) => {
  const server = await serverFor(t);
  const result = await run('serve', '--model', model, '--port', String(server.port), '--quiet');
  assert.equal(result.code, 1);
  assert.equal(result.stdout, '');
  const lines = result.stderr.split('\n').filter((line) => line.startsWith('qwen2:'));
  assert.equal(lines.length, 1);
  assert.match(lines[0], new RegExp(`\\b${server.port}\\b`));
  assert.equal((await fetch(`${server.url}/health`)).status, 200);
});

test('the serial policy runs one request at a time and answers all', async (t) => {
  const server = await serverFor(t, '--policy', 'serial');
  const ask = async (prompt) => {
    const response = await post(server, '/v1/completions', { ...endless, prompt, max_tokens: 60 });
    return (await response.json()).choices[0].text;
  };
  const prompts = 'one two three four five six seven eight'.split(' ');
  const alone = [];
  for (const prompt of prompts) alone.push(await ask(prompt));
  const seen = [];
  const watch = setInterval(async () => seen.push(await server.stats()), 10);
  const together = await Promise.all(prompts.map(ask));
  clearInterval(watch);
  assert.deepEqual(together, alone);
  assert.ok(seen.length > 5 && seen.every((stats) => stats.running <= 1));
  assert.ok(seen.some((stats) => stats.running === 1 && stats.waiting >= 3));
});

describe('bytes that are no request', () => {
  let server;
  before(async () => (server = await startServer()));
  after(() => server?.stop());

  const bad = /^HTTP\/1.1 400 /;
  const tooLarge = /^HTTP\/1.1 431 /;
  const answered = /^HTTP\/1.[01] 200 .*"finish_reason":"length"/s;
  const chunked = 'POST /generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n';
  const body = JSON.stringify({ prompt: 'A', max_new_tokens: 2, ignore_eos: true });
  const endOfHead = (answer) => answer.includes('\r\n\r\n');
  for (const [name, bytes, expected] of [
    ['garbage', '\x00\xff\x16\x03\x01 garbage\r\n\r\n', bad],
    ['a TLS handshake', Buffer.from('1603010200010001fc0303' + '00'.repeat(200), 'hex'), bad],
    ['no method', ' / HTTP/1.1\r\n\r\n', bad],
    ['an unknown version', 'GET / HTTP/9.9\r\n\r\n', bad],
    ['a header without a colon', 'GET / HTTP/1.1\r\nnonsense\r\n\r\n', bad],
    ['a negative Content-Length', postHead('/generate', -5), bad],
    ['two Content-Lengths', postHead('/generate', 5, 'Content-Length: 6'), bad],
    ['a bad chunk', `${chunked}zz\r\n`, bad],
    ['huge headers', `GET /health HTTP/1.1\r\nX: ${'a'.repeat(100_000)}\r\n\r\n`, tooLarge],
    ['a huge target', `GET /${'a'.repeat(100_000)} HTTP/1.1\r\n\r\n`, tooLarge],
    ['the announcement of a huge body', postHead('/generate', 2 ** 30), /^HTTP\/1.1 413 /],
    ['an unknown method', 'BREW /generate HTTP/1.1\r\nHost: a\r\n\r\n', /^HTTP\/1.1 405 /],
    ['a body in chunks (which is one)', `${chunked}${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`, answered],
    ['HTTP/1.0 (which is one)', `POST /generate HTTP/1.0\r\nContent-Length: ${body.length}\r\n\r\n${body}`, answered],
  ]) {
    test(name, async () => {
      assert.match(await rawExchange(server.port, bytes, endOfHead), expected);
      assert.equal((await fetch(`${server.url}/health`)).status, 200);
    });
  }

  test('half a request', async () => {
    for (const bytes of ['', 'P', 'POST /generate HTTP/1.1\r\nContent-Le', `${postHead('/generate', 500)}{"prompt"`]) {
      const socket = net.connect(server.port, '127.0.0.1');
      await once(socket, 'connect');
      socket.end(bytes);
      await once(socket.resume().on('error', () => {}), 'close');
    }
    const crowd = Array.from({ length: 200 }, () => net.connect(server.port, '127.0.0.1').on('error', () => {}));
    await Promise.all(crowd.map((socket) => once(socket, 'connect')));
    assert.equal((await fetch(`${server.url}/health`)).status, 200);
    for (const socket of crowd) socket.resetAndDestroy();
  });

  test('an endless body', async () => {
    const chunk = `100000\r\n${'a'.repeat(1 << 20)}\r\n`;
    assert.match(await rawExchange(server.port, chunked + chunk.repeat(20), endOfHead), /^HTTP\/1.1 413 /);
  });

  test('leave nothing behind', async () => {
    await waitUntilIdle(server);
    assert.equal((await post(server, '/generate', { prompt: 'A', max_new_tokens: 2 })).status, 200);
  });
});

describe('connections', () => {
  let server;
  before(async () => (server = await startServer()));
  after(() => server?.stop());

  test('are kept alive across answers, streams and errors', async (t) => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    t.after(() => agent.destroy());
    const ports = new Set();
    const ask = (method, path, body = '') =>
      new Promise((resolve, reject) => {
        const request = http.request(server.url + path, { method, agent }, async (response) => {
          ports.add(request.socket.localPort);
          let text = '';
          for await (const part of response) text += part;
          resolve({ status: response.statusCode, text });
        });
        request.on('error', reject).end(body);
      });
    const body = (options) => JSON.stringify({ prompt: 'A', max_tokens: 3, ...options });
    for (let round = 0; round < 2; ++round) {
      assert.equal((await ask('GET', '/health')).status, 200);
      assert.match((await ask('POST', '/v1/completions', body({ stream: true }))).text, /\[DONE\]\n\n$/);
      assert.equal((await ask('POST', '/v1/completions', 'no JSON')).status, 400);
      assert.equal((await ask('POST', '/v1/completions', body())).status, 200);
      assert.equal((await ask('GET', '/nothing')).status, 404);
      assert.equal((await ask('HEAD', '/health')).text, '');
      assert.equal((await ask('HEAD', '/nothing')).text, '');
    }
    assert.equal(ports.size, 1);
  });

  test('take requests before the last one is answered', async () => {
    const body = JSON.stringify({ prompt: 'A', max_tokens: 3 });
    const request = `${postHead('/generate', body.length)}${body}`;
    const close = 'GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n';
    const answer = await rawExchange(server.port, request.repeat(3) + close);
    assert.deepEqual(answer.match(/finish_reason|"ok"/g), ['finish_reason', 'finish_reason', 'finish_reason', '"ok"']);
  });

  test('stream to curl as the tokens come', async () => {
    const body = JSON.stringify({ ...endless, max_tokens: 300, stream: true });
    const curl = spawn('curl', ['-sSN', '--max-time', '30', '-d', body, `${server.url}/v1/completions`]);
    const parts = [];
    curl.stdout.setEncoding('utf8').on('data', (part) => parts.push(part));
    const [code] = await once(curl, 'close');
    assert.equal(code, 0);
    const events = eventsOf(parts.join(''));
    assert.equal(events.pop(), '[DONE]');
    assert.equal(events.length, 300);
    assert.ok(parts.length > 30, `only ${parts.length} parts`);
  });

  test('are told to go on when they expect it', async () => {
    const head = postHead('/generate', 5, 'Expect: 100-continue');
    assert.match(await rawExchange(server.port, head, (answer) => answer !== ''), /^HTTP\/1.1 100 /);
  });

  test('curl sees errors', async () => {
    const options = ['-sS', '--max-time', '30', '-w', '\\n%{http_code}'];
    const status = async (args, input) => (await runProgram('curl', [...options, ...args], { input })).stdout.slice(-3);
    assert.equal(await status([`${server.url}/nothing`]), '404');
    assert.equal(await status(['--head', `${server.url}/nothing`]), '404');
    assert.equal(await status(['--data-binary', '@-', `${server.url}/generate`], 'a'.repeat(17 << 20)), '413');
  });
});

// Sanitizers have memory of their own.
test('the whole process stays inside its memory budget', { skip: process.env.QWEN2_BUILD !== undefined }, async (t) => {
  const budget = 212; // MiB: less than the pool that these flags would fill
  const flags = ['--memory-budget', `${budget}MiB`, '--max-num-seqs', '64', '--max-model-len', '2048'];
  const server = await serverFor(t, ...flags);
  const prompt = ' good'.repeat(700);
  const ask = (i) => post(server, '/v1/completions', { ...endless, prompt: `${i}${prompt}`, max_tokens: 8 });
  const answers = await Promise.all(Array.from({ length: 48 }, (_, i) => ask(i)));
  assert.ok(answers.every((answer) => answer.status === 200));
  const status = readFileSync(`/proc/${server.pid}/status`, 'utf8');
  const resident = Number(/VmHWM:\s+(\d+) kB/.exec(status)[1]) / 1024;
  t.diagnostic(`peak resident size ${resident.toFixed(0)} MiB of ${budget} MiB`);
  assert.ok(resident <= budget, `${resident} MiB`);
});
