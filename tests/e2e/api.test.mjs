// The HTTP interface as clients use it: OpenAI's own library, and plain requests where that cannot go.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import { Tokenizer } from '@huggingface/tokenizers';
import OpenAI, { APIError, BadRequestError, NotFoundError, RateLimitError } from 'openai';

import {
  endless,
  eventsOf,
  model,
  modelName,
  post,
  rawExchange,
  run,
  serverFor,
  startServer,
  waitUntil,
  waitUntilIdle,
} from './helpers.mjs';

const contextLength = 512;
const question = (word) => [{ role: 'user', content: `What does ${word} mean?` }];
const readJson = (name) => JSON.parse(readFileSync(path.join(model, name), 'utf8'));
const clientOf = (server) => new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'unused', maxRetries: 0 });

let server;
let client;
before(async () => {
  server = await startServer('--max-model-len', String(contextLength));
  client = clientOf(server);
});
after(() => server?.stop());

const chat = (word, options = {}) =>
  client.chat.completions.create({ model: modelName, messages: question(word), temperature: 0, ...options });
const complete = (prompt, options = {}) =>
  client.completions.create({ model: modelName, prompt, temperature: 0, ...options });

async function collect(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

describe('answers', () => {
  test('are readable English', async () => {
    for (const [word, expected] of [['river', /water|stream/], ['teacher', /teach/], ['happy', /joy|pleasure/]]) {
      const { choices, usage } = await chat(word);
      assert.match(choices[0].message.content, expected);
      assert.equal(choices[0].message.role, 'assistant');
      assert.equal(choices[0].finish_reason, 'stop');
      assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    }
  });

  test('are the same from the API and the command line', async () => {
    for (const word of ['river', 'music', 'earth']) {
      const { content } = question(word)[0];
      const { stdout } = await run('generate', '--model', model, '--prompt', content, '--temperature', '0');
      assert.equal(stdout.trimEnd(), (await chat(word)).choices[0].message.content);
    }
  });

  test('take the system message, several turns and text parts into account', async () => {
    const turns = [
      { role: 'system', content: 'You are a helpful assistant.' },
      ...question('happy'),
      { role: 'assistant', content: (await chat('happy')).choices[0].message.content },
      { role: 'user', content: [{ type: 'text', text: 'What does ' }, { type: 'text', text: 'river mean?' }] },
    ];
    const explicit = await chat('', { messages: turns.slice(0, 2) });
    assert.deepEqual(explicit.usage, (await chat('happy')).usage); // the default system message
    const two = await chat('', { messages: turns });
    assert.match(two.choices[0].message.content, /water|stream/);
    assert.ok(two.usage.prompt_tokens > explicit.usage.total_tokens);
  });

  test('survive odd content', async () => {
    for (const content of ['', '\0', '<|im_end|>', '👩🏿‍🚀\u0301\u200d', ' \r\n\t ', '"\\u0000\\']) {
      const { choices } = await chat('', { messages: [{ role: 'user', content }], max_tokens: 4 });
      assert.equal(typeof choices[0].message.content, 'string');
    }
  });
});

test('lists its model', async () => {
  const { data } = await client.models.list();
  assert.deepEqual(data.map(({ id, object }) => ({ id, object })), [{ id: modelName, object: 'model' }]);
});

describe('streaming', () => {
  test('chat: one event a token, the same text, usage at the end', async () => {
    for (const word of ['river', 'music', 'courage']) {
      const whole = await chat(word);
      const events = await collect(await chat(word, { stream: true, stream_options: { include_usage: true } }));
      const last = events.pop();
      assert.deepEqual(last.choices, []);
      assert.deepEqual(last.usage, whole.usage);
      assert.ok(last.timings.prefill_seconds > 0);
      assert.equal(events.length, last.usage.completion_tokens);
      assert.equal(events[0].choices[0].delta.role, 'assistant');
      assert.notEqual(events[0].choices[0].delta.content, '');
      assert.equal(events.map((e) => e.choices[0].delta.content).join(''), whole.choices[0].message.content);
      assert.deepEqual(events.map((e) => e.choices[0].finish_reason).filter(Boolean), ['stop']);
      assert.equal(new Set(events.map((e) => e.id)).size, 1);
      assert.ok(events.every((e) => e.object === 'chat.completion.chunk' && e.usage === null));
    }
  });

  test('completions, without usage', async () => {
    const whole = await complete('The river', { max_tokens: 20 });
    const events = await collect(await complete('The river', { max_tokens: 20, stream: true }));
    assert.equal(events.length, whole.usage.completion_tokens);
    assert.equal(events.map((e) => e.choices[0].text).join(''), whole.choices[0].text);
    assert.ok(events.every((e) => e.object === 'text_completion' && !e.usage));
  });

  test('of random bytes gives the text of all tokens together', async () => {
    const random = { temperature: 100, top_p: 1, top_k: 0, seed: 5, ignore_eos: true };
    const body = { prompt: 'A', max_new_tokens: 400, stream: true, ...random };
    const events = eventsOf(await (await post(server, '/generate', body)).text()).slice(0, -2);
    const tokenizer = new Tokenizer(readJson('tokenizer.json'), readJson('tokenizer_config.json'));
    const text = tokenizer.decode(events.map((e) => e.token), { skip_special_tokens: true });
    assert.match(text, /\ufffd/);
    assert.equal(events.map((e) => e.text).join(''), text);
  });

  test('is an event stream that ends with [DONE]', async () => {
    const response = await post(server, '/v1/completions', { prompt: 'A', max_tokens: 3, stream: true });
    assert.match(response.headers.get('content-type'), /^text\/event-stream/);
    const events = eventsOf(await response.text());
    assert.equal(events.length, 4);
    assert.equal(events.at(-1), '[DONE]');
  });
});

describe('the end of an answer', () => {
  test('max_tokens', async () => {
    for (const name of ['max_tokens', 'max_completion_tokens']) {
      const { choices, usage } = await chat('river', { [name]: 7 });
      assert.equal(usage.completion_tokens, 7);
      assert.equal(choices[0].finish_reason, 'length');
    }
  });

  test('ignore_eos goes on behind the end of the sequence', async () => {
    const { choices, usage } = await chat('river', { ignore_eos: true, max_tokens: 100 });
    assert.equal(usage.completion_tokens, 100);
    assert.equal(choices[0].finish_reason, 'length');
    assert.ok(choices[0].message.content.startsWith((await chat('river')).choices[0].message.content));
  });

  test('stop strings, also across tokens', async () => {
    const pieces = (await collect(await chat('river', { stream: true }))).map((e) => e.choices[0].delta.content);
    const text = pieces.join('');
    // The end of one token and the start of the next, where this does not occur earlier.
    let before = '';
    const across = [];
    pieces.slice(0, -1).forEach((piece, i) => {
      before += piece;
      const stop = piece.slice(-2) + pieces[i + 1].slice(0, 2);
      if (stop.length === 4 && text.indexOf(stop) === before.length - 2) across.push(stop);
    });
    assert.ok(across.length >= 5, `only ${across.length} stop strings: ${across}`);
    const edges = [text.slice(0, 3), text.slice(-3)];
    for (const stop of [...across.slice(0, 8), ...edges, [across[3], 'never', across[1]]]) {
      const end = Math.min(...[stop].flat().map((s) => text.indexOf(s)).filter((at) => at >= 0));
      const { choices } = await chat('river', { stop });
      assert.equal(choices[0].message.content, text.slice(0, end));
      assert.equal(choices[0].finish_reason, 'stop');
      const options = { stream: true, stream_options: { include_usage: true } };
      const events = await collect(await chat('river', { stop, ...options }));
      const { usage } = events.pop();
      assert.equal(events.map((e) => e.choices[0].delta.content).join(''), text.slice(0, end));
      assert.equal(events.length, usage.completion_tokens);
    }
    const { choices } = await chat('river', { stop: ['never', `${text.slice(-2)}!`] });
    assert.equal(choices[0].message.content, text); // held back, then shown
  });
});

describe('prompts', () => {
  test('of text and of token ids', async () => {
    const ids = [1, 2, 3, 50, 800];
    for (const prompt of [ids, [ids]]) {
      const { usage, choices } = await complete(prompt, { max_tokens: 5, ignore_eos: true });
      assert.equal(usage.prompt_tokens, ids.length);
      assert.equal(usage.completion_tokens, 5);
      assert.equal(choices[0].finish_reason, 'length');
    }
    const [one, list] = [await complete('The river'), await complete(['The river'])];
    assert.equal(one.choices[0].text, list.choices[0].text);
  });

  test('fill the context to its last token and no further', async () => {
    const prompt = Array(contextLength - 1).fill(5);
    const { usage } = await complete(prompt, { max_tokens: 1 });
    assert.equal(usage.total_tokens, contextLength);
    await assert.rejects(complete(prompt, { max_tokens: 2 }), BadRequestError);
  });

  test('that are too long are refused, not cut', async () => {
    const text = 'water '.repeat(contextLength);
    for (const request of [
      () => complete(Array(contextLength).fill(5)),
      () => complete(text),
      () => chat(text),
      () => chat(text, { stream: true }),
    ]) {
      await assert.rejects(request, (error) => {
        assert.ok(error instanceof BadRequestError);
        assert.match(error.message, new RegExp(`\\b${contextLength}\\b`));
        return true;
      });
    }
  });

  test('of a chat leave the rest of the context to the answer', async () => {
    const { usage } = await chat('water '.repeat(contextLength - 60), { ignore_eos: true });
    assert.equal(usage.total_tokens, contextLength);
  });
});

describe('sampling', () => {
  test('a seed fixes the answer', async () => {
    const messages = [{ role: 'user', content: 'Use whisper in a sentence.' }];
    const ask = async (seed) => {
      const { choices } = await chat('', { messages, temperature: 1, top_p: 1, top_k: 0, seed });
      return choices[0].message.content;
    };
    const seeds = [1, 2, 3, 4, 5];
    const texts = await Promise.all(seeds.map(ask));
    assert.deepEqual(await Promise.all(seeds.map(ask)), texts);
    assert.ok(new Set(texts).size > 1);
  });

  test('the most likely token alone is the greedy answer', async () => {
    const greedy = (await chat('river', { repetition_penalty: 1 })).choices[0].message.content;
    for (const options of [{ top_k: 1 }, { top_p: 1e-6 }]) {
      const { choices } = await chat('river', { temperature: 1, repetition_penalty: 1, ...options });
      assert.equal(choices[0].message.content, greedy);
    }
  });
});

test('answers together are the same as alone', async () => {
  const words = 'river happy computer courage freedom music teacher forgive beautiful quickly'.split(' ');
  const requests = words.flatMap((word, i) => [
    () => chat(word, { max_tokens: 120, ignore_eos: true }),
    () => chat(word, { temperature: 1, seed: i, max_tokens: 30 + 9 * i }),
    () => complete(`${word} `.repeat(30 * (i + 1)), { max_tokens: 30 }),
  ]);
  const textOf = ({ choices: [choice] }) => choice.message?.content ?? choice.text;
  const alone = [];
  for (const request of requests) alone.push(textOf(await request()));
  let mostRunning = 0;
  const watch = setInterval(async () => (mostRunning = Math.max(mostRunning, (await server.stats()).running)), 20);
  const together = await Promise.all(requests.map((request) => request()));
  clearInterval(watch);
  assert.deepEqual(together.map(textOf), alone);
  assert.ok(mostRunning > 2, `at most ${mostRunning} ran at once`);
  await waitUntilIdle(server);
});

test('/generate', async () => {
  const body = { prompt: 'The river', max_new_tokens: 12, temperature: 0, ignore_eos: true };
  const response = await post(server, '/generate', body);
  assert.equal(response.status, 200);
  const answer = await response.json();
  const reference = await complete(body.prompt, { max_tokens: 12, ignore_eos: true });
  assert.equal(answer.text, reference.choices[0].text);
  assert.equal(answer.finish_reason, 'length');
  assert.equal(answer.prompt_tokens, reference.usage.prompt_tokens);
  assert.equal(answer.completion_tokens, 12);
  for (const name of ['queue_seconds', 'prefill_seconds', 'decode_seconds']) {
    assert.equal(typeof answer[name], 'number', name);
  }

  const events = eventsOf(await (await post(server, '/generate', { ...body, stream: true })).text());
  assert.equal(events.pop(), '[DONE]');
  assert.equal(events.pop().usage.completion_tokens, 12);
  assert.equal(events.length, 12);
  assert.equal(events.map((e) => e.text).join(''), answer.text);
});

test('/health and /stats', async () => {
  assert.equal((await fetch(`${server.url}/health`)).status, 200);
  const stats = await server.stats();
  for (const name of ['running', 'waiting', 'kv_pages', 'kv_pages_free', 'cancelled', 'rejected', 'finished']) {
    assert.ok(Number.isInteger(stats[name]), name);
  }
});

describe('errors', () => {
  async function assertError(response, status, param) {
    assert.equal(response.status, status);
    assert.match(response.headers.get('content-type'), /^application\/json/);
    const { error } = await response.json();
    assert.deepEqual(Object.keys(error).sort(), ['code', 'message', 'param', 'type']);
    assert.ok(error.message.length > 0);
    assert.equal(typeof error.type, 'string');
    if (param !== undefined) assert.equal(error.param, param);
    return error;
  }

  test('an unknown model', async () => {
    await assert.rejects(chat('river', { model: 'gpt-4' }), (error) => {
      assert.ok(error instanceof NotFoundError && error instanceof APIError);
      assert.equal(error.code, 'model_not_found');
      assert.equal(error.param, 'model');
      assert.equal(error.type, 'invalid_request_error');
      return true;
    });
  });

  for (const [name, value] of Object.entries({
    n: 2,
    logprobs: true,
    top_logprobs: 3,
    tools: [{ type: 'function', function: { name: 'f', parameters: {} } }],
    functions: [{ name: 'f' }],
    logit_bias: { 5: 10 },
    frequency_penalty: 0.5,
    presence_penalty: 1,
    response_format: { type: 'json_object' },
  })) {
    test(`${name} is not supported in chats`, () =>
      assert.rejects(chat('river', { [name]: value }), (error) => {
        assert.ok(error instanceof BadRequestError);
        assert.equal(error.param, name);
        return true;
      }));
  }

  for (const [name, value] of Object.entries({ n: 2, best_of: 2, logprobs: 1, echo: true, suffix: 'end' })) {
    test(`${name} is not supported in completions`, () =>
      assert.rejects(complete('A', { [name]: value }), BadRequestError));
  }

  test('the values that turn such features off are fine', async () => {
    const off = { n: 1, logprobs: false, tools: [], frequency_penalty: 0, presence_penalty: 0, logit_bias: {} };
    await chat('river', { ...off, stop: null, response_format: { type: 'text' }, max_tokens: 1 });
  });

  for (const [name, body] of Object.entries({
    'no JSON': '{"prompt": "a"',
    'an empty body': '',
    'a lone surrogate': '{"prompt": "\\ud800"}',
    'ill-formed UTF-8': Buffer.from('{"prompt": "\xff"}', 'latin1'),
    'deep nesting': `{"prompt": ${'['.repeat(100_000)}`,
    'an array': '[]',
    'a string': '"prompt"',
  })) {
    test(`the body is ${name}`, async () => {
      const response = await post(server, '/v1/completions', body, { body });
      await assertError(response, 400);
    });
  }

  for (const [param, ...values] of [
    ['prompt', undefined, '', [], [''], [[]], ['a', 'b'], [[1], [2]], 5, {}, true],
    ['prompt', [1, 'a'], [-1], [1.5], [2 ** 31], [99_999_999]],
    ['max_tokens', 0, -1, 1.5, '5', 1e6, 2 ** 53, true],
    ['temperature', -1, 1e6, 'hot', [1]],
    ['top_p', 0, -0.1, 1.1, '1'],
    ['top_k', -5, 1.5, 'all'],
    ['repetition_penalty', 0, -1, 'none'],
    ['seed', 'x', 1.5],
    ['stop', '', [''], [1], 5, {}, Array(17).fill('x')],
    ['stream', 'yes', 1],
    ['stream_options', true, { include_usage: 'yes' }],
    ['ignore_eos', 1],
    ['model', 5],
  ]) {
    test(`a bad ${param}`, async () => {
      for (const value of values) {
        const response = await post(server, '/v1/completions', { prompt: 'A', max_tokens: 1, [param]: value });
        assert.equal(response.status, 400, `${param}: ${JSON.stringify(value)}`);
        await assertError(response, 400);
      }
    });
  }

  test('bad messages', async () => {
    const withContent = (content) => [{ role: 'user', content }];
    for (const messages of [
      undefined,
      [],
      'hi',
      {},
      [5],
      [{}],
      [{ content: 'a' }],
      [{ role: 'alien', content: 'a' }],
      [{ role: 5, content: 'a' }],
      withContent(undefined),
      withContent(null),
      withContent(5),
      withContent(['a']),
      withContent([{ type: 'text' }]),
      withContent([{ type: 'image_url', image_url: { url: 'x' } }]),
    ]) {
      const response = await post(server, '/v1/chat/completions', { messages });
      assert.equal(response.status, 400, JSON.stringify(messages));
      assert.match((await assertError(response, 400)).param, /^messages/);
    }
  });

  test('paths and methods', async () => {
    await assertError(await fetch(`${server.url}/v1/nothing`), 404);
    await assertError(await post(server, '/', {}), 404);
    for (const [method, path, allow] of [
      ['GET', '/v1/chat/completions', 'POST'],
      ['PUT', '/v1/completions', 'POST'],
      ['DELETE', '/generate', 'POST'],
      ['POST', '/v1/models', 'GET, HEAD'],
      ['POST', '/health', 'GET, HEAD'],
      ['PATCH', '/stats', 'GET, HEAD'],
    ]) {
      const response = await fetch(server.url + path, { method });
      assert.equal(response.headers.get('allow'), allow, `${method} ${path}`);
      await assertError(response, 405);
    }
    assert.equal((await fetch(`${server.url}/health?a=b`)).status, 200);
  });

  test('HEAD has the headers of GET and no body', async () => {
    const expected = { '/health': 200, '/v1/models': 200, '/v1/completions': 405, '/nothing': 404 };
    for (const [path, status] of Object.entries(expected)) {
      const answer = await rawExchange(server.port, `HEAD ${path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`);
      const [head, body] = answer.split('\r\n\r\n');
      assert.match(head, new RegExp(`^HTTP/1.1 ${status} `), path);
      assert.equal(body, '', `the body of HEAD ${path}`);
    }
  });

  test('a body that is too large', async () => {
    await assertError(await post(server, '/v1/completions', { prompt: 'a'.repeat(17 << 20) }), 413);
  });

  test('a full queue', async (t) => {
    const small = await serverFor(t, '--max-num-seqs', '1', '--max-queue-requests', '1');
    const abort = new AbortController();
    t.after(() => abort.abort());
    const cancelled = [0, 1].map(() =>
      assert.rejects(post(small, '/v1/completions', endless, { signal: abort.signal }), { name: 'AbortError' }),
    );
    await waitUntil(async () => {
      const { running, waiting } = await small.stats();
      return running === 1 && waiting === 1;
    }, 'one request runs and one waits');
    await assert.rejects(clientOf(small).completions.create({ model: modelName, prompt: 'A' }), (error) => {
      assert.ok(error instanceof RateLimitError);
      assert.match(error.headers.get('retry-after'), /^[1-9]\d*$/);
      assert.equal(error.code, 'queue_full');
      return true;
    });
    assert.equal((await small.stats()).rejected, 1);
    abort.abort();
    await Promise.all(cancelled);
    await waitUntilIdle(small);
    assert.equal((await post(small, '/v1/completions', { prompt: 'A', max_tokens: 1 })).status, 200);
  });

  test('leave nothing behind', () => waitUntilIdle(server));
});

test('--served-model-name', async (t) => {
  const named = await serverFor(t, '--served-model-name', 'my/model');
  const other = clientOf(named);
  assert.equal((await other.models.list()).data[0].id, 'my/model');
  assert.equal((await other.completions.create({ model: 'my/model', prompt: 'A' })).model, 'my/model');
  await assert.rejects(other.completions.create({ model: modelName, prompt: 'A' }), NotFoundError);
});
