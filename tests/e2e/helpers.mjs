// What the test files share: the paths, running the program, and a server of its own for each test.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));
export const build = path.resolve(process.env.QWEN2_BUILD ?? path.join(root, 'build/release'));
export const qwen2 = path.resolve(process.env.QWEN2_BIN ?? path.join(build, 'qwen2'));
export const model = path.resolve(process.env.QWEN2_MODEL ?? path.join(root, 'models/demo'));
export const modelName = path.basename(model);
export const goldens = path.join(root, 'tests/golden');

// Runs a program to its end, with `input` on its stdin.
export async function runProgram(program, args, { input, timeout = 60_000 } = {}) {
  const child = spawn(program, args, { timeout, killSignal: 'SIGKILL' });
  const out = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr']) {
    child[name].setEncoding('utf8').on('data', (text) => (out[name] += text));
  }
  child.stdin.on('error', () => {}).end(input); // a program may end without reading
  const [code, signal] = await once(child, 'close');
  return { code, signal, ...out };
}

export const run = (...args) => runProgram(qwen2, args);

// Starts `qwen2 serve` with the given flags on a free port and waits until it listens.
export async function startServer(...flags) {
  const child = spawn(qwen2, ['serve', '--model', model, '--port', '0', '--quiet', ...flags]);
  const exited = once(child, 'exit').then(([code, signal]) => ({ code, signal }));
  let log = '';
  child.stderr.setEncoding('utf8').on('data', (text) => (log += text));
  const lines = createInterface({ input: child.stdout });
  const [line] = await Promise.race([once(lines, 'line'), exited.then(() => [''])]);
  const url = /^listening on (http:\S+)$/.exec(line)?.[1];
  if (!url) throw new Error(`the server did not start: ${line}\n${log}`);
  return {
    url,
    port: Number(new URL(url).port),
    pid: child.pid,
    exited,
    signal: (name) => child.kill(name),
    log: () => log,
    stats: async () => (await fetch(`${url}/stats`)).json(),
    async stop() {
      child.kill('SIGTERM');
      const kill = setTimeout(() => child.kill('SIGKILL'), 10_000);
      const result = await exited;
      clearTimeout(kill);
      return result;
    },
  };
}

// For one test: the server stops when the test ends.
export async function serverFor(t, ...flags) {
  const server = await startServer(...flags);
  t.after(() => server.stop());
  return server;
}

export async function waitUntil(condition, what, timeout = 30_000) {
  for (const end = Date.now() + timeout; Date.now() < end; await sleep(10)) {
    if (await condition()) return;
  }
  throw new Error(`not within ${timeout} ms: ${what}`);
}

// No request runs or waits, and every page of the KV cache is free.
export const waitUntilIdle = (server) =>
  waitUntil(async () => {
    const s = await server.stats();
    return s.running === 0 && s.waiting === 0 && s.kv_pages_free === s.kv_pages;
  }, 'the server is idle');

export const post = (server, path, body, options = {}) =>
  fetch(server.url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    ...options,
  });

// A completion that takes seconds, unless it is cancelled or `max_tokens` is set again.
export const endless = { prompt: 'What', max_tokens: 4000, temperature: 0, ignore_eos: true };

// The data of the events in the text of a stream; `[DONE]` stays a string.
export const eventsOf = (text) =>
  text
    .split('\n\n')
    .filter((event) => event !== '')
    .map((event) => {
      const data = event.slice('data: '.length);
      return data === '[DONE]' ? data : JSON.parse(data);
    });

// Sends bytes as they are and returns everything that comes back until the server closes the connection, or
// until `enough` holds.
export async function rawExchange(port, bytes, enough = () => false) {
  const socket = net.connect(port, '127.0.0.1');
  let answer = '';
  const ended = new Promise((resolve) => {
    socket.on('error', resolve).on('close', resolve);
    socket.setEncoding('latin1').on('data', (text) => {
      answer += text;
      if (enough(answer)) resolve();
    });
    socket.setTimeout(10_000, resolve);
  });
  socket.write(bytes);
  await ended;
  socket.destroy();
  return answer;
}

// A folder that is removed when the test ends.
export function temporaryFolder(t) {
  const folder = mkdtempSync(path.join(tmpdir(), 'qwen2-e2e-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
