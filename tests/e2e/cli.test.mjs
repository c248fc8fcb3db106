// The command line: answers, measurements, and what it says when something is wrong.
import assert from 'node:assert/strict';
import { cpSync, existsSync, readFileSync, readdirSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';

import { Tokenizer } from '@huggingface/tokenizers';

import { goldens, model, root, run, temporaryFolder } from './helpers.mjs';

const readJson = (...names) => JSON.parse(readFileSync(path.join(...names), 'utf8'));
// 'info --model DEMO' as arguments.
const split = (line) => line.split(' ').map((word) => word.replace('DEMO', model));

async function succeed(...args) {
  const result = await run(...args);
  assert.equal(result.code, 0, `${args.join(' ')}: ${result.signal ?? ''}\n${result.stderr}`);
  return result.stdout;
}

// Exit code 1 and one line that holds all of `messages`; a server may have logged before.
async function assertFails(args, ...messages) {
  const { code, signal, stderr } = await run(...args);
  assert.equal(signal, null);
  assert.equal(code, 1, stderr);
  const lines = stderr.trimEnd().split('\n');
  if (!args.includes('serve')) assert.equal(lines.length, 1, stderr);
  assert.match(lines.at(-1), /^qwen2: /);
  for (const message of messages) assert.ok(lines.at(-1).includes(message), `${lines.at(-1)} does not name ${message}`);
}

describe('generate', () => {
  const generate = (...args) => succeed('generate', '--model', model, '--temperature', '0', ...args);
  const question = ['--prompt', 'What does river mean?'];
  const tokenizer = new Tokenizer(readJson(model, 'tokenizer.json'), readJson(model, 'tokenizer_config.json'));

  test('answers a prompt', async () => {
    const answer = await generate(...question);
    assert.match(answer, /water|stream/);
    assert.equal(await generate(question.join('='), '--max_new_tokens', '256'), answer);
  });

  test('writes the new tokens', async (t) => {
    const file = path.join(temporaryFolder(t), 'tokens.json');
    const answer = await generate(...question, '--tokens-out', file);
    const tokens = readJson(file);
    assert.equal(tokens.at(-1), tokenizer.token_to_id('<|im_end|>'));
    assert.equal(tokenizer.decode(tokens, { skip_special_tokens: true }), answer.trimEnd());

    await generate(...question, '--tokens-out', file, '--max-new-tokens', '90', '--ignore-eos');
    assert.equal(readJson(file).length, 90);
    assert.deepEqual(readJson(file).slice(0, tokens.length), tokens);
  });

  test('--raw is the prompt without a chat around it', async (t) => {
    const folder = temporaryFolder(t);
    const [promptFile, tokensFile] = ['prompt.json', 'tokens.json'].map((name) => path.join(folder, name));
    const tokensOf = async (...prompt) => {
      await generate(...prompt, '--max-new-tokens', '20', '--ignore-eos', '--tokens-out', tokensFile);
      return readJson(tokensFile);
    };
    const { ids } = tokenizer.encode('The river', { add_special_tokens: false });
    writeFileSync(promptFile, JSON.stringify(ids));
    const raw = await tokensOf('--prompt', 'The river', '--raw');
    assert.deepEqual(await tokensOf('--prompt-tokens', promptFile), raw);
    assert.notDeepEqual(await tokensOf('--prompt', 'The river'), raw);
  });

  test('a seed fixes sampled answers', async () => {
    const options = split('generate --model DEMO --temperature 1 --top-p 1 --top-k 0 --seed');
    const sample = (seed) => succeed(...options, seed, '--prompt', 'Use whisper in a sentence.');
    const answers = [await sample('1'), await sample('2'), await sample('3')];
    assert.equal(await sample('1'), answers[0]);
    assert.ok(new Set(answers).size > 1);
  });
});

// Small models with random weights; what they must answer was computed with Hugging Face's Transformers.
for (const name of readdirSync(goldens)) {
  const folder = path.join(goldens, name);
  if (!existsSync(path.join(folder, 'config.json'))) continue; // the answers of a model that lies elsewhere
  if (name.startsWith('trap_')) continue; // made to be hard: the unit tests have bounds of their own for these
  test(`golden ${name}`, async (t) => {
    const out = temporaryFolder(t);
    const [promptFile, tokensFile, logitsFile] = ['prompt', 'tokens', 'logits'].map((file) => path.join(out, file));
    const floats = (file) => new Float32Array(new Uint8Array(readFileSync(file)).buffer);
    const norm = (values) => Math.hypot(...values);
    for (const golden of readJson(folder, 'golden.json').cases) {
      writeFileSync(promptFile, JSON.stringify(golden.prompt));
      const files = ['--prompt-tokens', promptFile, '--tokens-out', tokensFile, '--logits-out', logitsFile];
      const options = split('--ignore-eos --temperature 0 --max-new-tokens 64');
      await succeed('generate', '--model', folder, ...files, ...options);

      const [logits, expected] = [floats(logitsFile), floats(path.join(folder, golden.logits_file))];
      assert.equal(logits.length, expected.length);
      const error = norm(expected.map((value, i) => value - logits[i])) / norm(expected);
      assert.ok(error <= 1e-2, `relative error of the logits: ${error}`);

      // Behind a near tie of the two best tokens anything may follow.
      const tie = golden.margins.findIndex((margin, i) => margin <= 0.01 * golden.max_abs[i]);
      const sure = tie < 0 ? golden.greedy.length : tie;
      const tokens = readJson(tokensFile);
      assert.equal(tokens.length, golden.greedy.length);
      assert.deepEqual(tokens.slice(0, sure), golden.greedy.slice(0, sure));
    }
  });
}

test('info', async () => {
  const config = readJson(model, 'config.json');
  const text = await succeed('info', '--model', model);
  assert.match(text, new RegExp(`\\b${config.num_hidden_layers} layers\\b`));
  assert.match(text, new RegExp(`\\bhidden ${config.hidden_size}\\b`));
  assert.match(text, /memory plan/);
});

test('bench engine', async (t) => {
  const file = path.join(temporaryFolder(t), 'engine.json');
  const options = split('--prompt 64 --generate 8 --batch 2 --runs 3 --output');
  assert.match(await succeed('bench', 'engine', '--model', model, ...options, file), /tok\/s/);
  const result = readJson(file);
  for (const name of ['prefill_tokens_per_second', 'decode_tokens_per_second', 'read_bandwidth_spread']) {
    const { median, min, max } = result[name];
    assert.ok(0 < min && min <= median && median <= max, name);
  }
  for (const name of ['bandwidth_fraction', 'read_bandwidth_bytes_per_second', 'bytes_per_decode_step', 'peak_memory_bytes', 'weight_bytes']) {
    assert.ok(result[name] > 0, name);
  }
  const config = readJson(model, 'config.json');
  const headSize = config.hidden_size / config.num_attention_heads;
  const values = 2 * config.num_hidden_layers * config.num_key_value_heads * headSize; // keys and values
  assert.equal(result.kv_bytes_per_token, 2 * values);
  const { environment } = result;
  assert.ok(environment.cores > 0 && environment.threads > 0);
  for (const name of ['cpu', 'isa', 'kernel', 'host', 'compiler', 'flags', 'commit', 'version'])
    assert.equal(typeof environment[name], 'string', name);
  assert.equal(typeof environment.dirty, 'boolean');
  assert.equal(environment.gpu === null, environment.clocks === null);
  assert.equal(environment.model, model);
  assert.match(environment.model_hash, /^fnv1a64:[0-9a-f]{16}$/);
  assert.match(environment.command, /bench engine --model .* --runs 3 --output .*engine\.json$/);
  assert.equal(environment.seed, 0);
  assert.match(environment.date, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
  assert.ok(Math.abs(Date.parse(environment.date) - Date.now()) < 60_000);
  assert.equal(result.memory_plan.weights, result.weight_bytes);
});

test('evaluate', async (t) => {
  const file = path.join(temporaryFolder(t), 'evaluation.json');
  const text = path.join(model, 'evaluation.txt');
  const compare = async (...flags) => {
    const options = ['--reference', model, '--text', text, '--chats', '--max-windows', '20', '--quiet', ...flags];
    assert.match(await succeed('evaluate', '--model', model, ...options, '--output', file), /mean KL/);
    return readJson(file);
  };
  const same = await compare();
  assert.equal(same.mean_kl, 0);
  assert.equal(same.same_top1, 1);
  assert.ok(same.perplexity > 1 && same.perplexity < 2, `${same.perplexity}`); // words of its training
  const int8 = await compare('--precision', 'int8', '--kv', 'int8');
  assert.ok(int8.mean_kl > 0 && int8.mean_kl < 0.01, `${int8.mean_kl}`);
  assert.ok(int8.weight_bytes < 0.6 * same.weight_bytes);
  assert.ok(int8.kv_bytes_per_token < 0.55 * same.kv_bytes_per_token);
  const int4 = await compare('--precision', 'int4');
  assert.ok(int4.mean_kl > int8.mean_kl && int4.weight_bytes < int8.weight_bytes);
  assert.equal(int4.positions, same.positions);
  const plain = await succeed('evaluate', '--model', model, '--text', text, '--window', '64', '--max-windows', '3', '--quiet');
  assert.match(plain, /189 positions/);
});

test('a GGUF file brings its configuration and tokeniser', async () => {
  const file = path.join(root, 'tests/fixtures/gguf/mixed.gguf');
  assert.match(await succeed('info', '--model', file), /memory plan/);
  await succeed(...split('generate --max-new-tokens 8 --temperature 0 --raw --prompt abc --model'), file);
});

for (const name of ['gptq4_asym_g32_act', 'awq_g64', 'bnb8']) {
  test(`quantised folder ${name} answers`, async () => {
    const folder = path.join(root, 'tests/fixtures/quantized', name);
    await succeed(...split('generate --max-new-tokens 8 --temperature 0 --raw --prompt abc --model'), folder);
  });
}

test('quantize writes GGUF files that answer', async (t) => {
  const folder = temporaryFolder(t);
  const question = split('generate --max-new-tokens 12 --temperature 0 --prompt lake --model');
  const expected = await succeed(...question, model);
  for (const bits of [8, 4]) {
    const file = path.join(folder, `${bits}.gguf`);
    await succeed(...split(`quantize --method rtn --format gguf --bits ${bits} --model`), model, '--output', file);
    assert.equal((await succeed(...question, file)).length > 0, true);
    if (bits === 8) assert.equal(await succeed(...question, file), expected);
    assert.match(await succeed('info', '--model', file), /memory plan/);
  }
  const again = await run(...split('quantize --method rtn --format gguf --model'), model, '--output', path.join(folder, '8.gguf'));
  assert.notEqual(again.code, 0);
  assert.match(again.stderr, /8\.gguf' exists/);
});

describe('plan', () => {
  const plan = async (t, ...args) => {
    const file = path.join(temporaryFolder(t), 'plan.json');
    const stdout = await succeed('plan', '--gpu', 'rtx2060', '--output', file, ...args);
    return { stdout, json: JSON.parse(readFileSync(file, 'utf8')) };
  };

  test('what fits a small card, in every precision', async (t) => {
    const resident = {};
    for (const [precision, kv] of [['fp16', 'fp16'], ['int8', 'fp16'], ['int4', 'fp16'], ['int4', 'int8']]) {
      const { stdout, json } = await plan(t, '--precision', precision, '--kv', kv);
      assert.equal(json.fits, true);
      const { total, budget, ...parts } = json.bytes;
      assert.equal(total, Object.values(parts).reduce((sum, bytes) => sum + bytes, 0));
      assert.ok(total <= budget);
      assert.equal(json.kv_tokens, Math.floor(json.bytes.kv_pool / json.kv_bytes_per_token));
      assert.equal(json.resident_requests, Math.floor(json.kv_tokens / 64 / Math.ceil((2048 + 64) / 64)));
      assert.match(stdout, new RegExp(`fits: ${json.resident_requests} requests`));
      resident[`${precision} ${kv}`] = json.resident_requests;
      // At best: the bytes of a step over the card's bandwidth.
      const kvBytes = json.kv_bytes_per_token * (2048 + 32);
      const weights = json.roofline.tpot_seconds * 336e9 - kvBytes;
      assert.ok(weights > 0.9 * json.bytes.weights && weights < 1.01 * json.bytes.weights, `${weights}`);
    }
    assert.ok(resident['fp16 fp16'] >= 33 && resident['int4 fp16'] >= 70 && resident['int4 int8'] >= 140);
    assert.ok(resident['int8 fp16'] > resident['fp16 fp16'] && resident['int8 fp16'] < resident['int4 fp16']);
  });

  test('what does not fit says what would', async (t) => {
    const { stdout, json } = await plan(t, '--memory-budget', '2GiB');
    assert.equal(json.fits, false);
    assert.equal(json.resident_requests, 0);
    assert.match(stdout, /does not fit: a budget of at least 3\.\d+ GiB/);
    const larger = /at least ([\d.]+ GiB)/.exec(json.cure)[1].replace(' ', '');
    assert.equal((await plan(t, '--memory-budget', `${parseFloat(larger) + 0.01}GiB`)).json.fits, true);
  });

  test('a card from a file', async (t) => {
    const file = path.join(temporaryFolder(t), 'card.json');
    writeFileSync(file, JSON.stringify({ name: 'mine', memory_bytes: 16e9, bandwidth_bytes_per_second: 5e11, fp16_flops: 5e13, context_bytes: 3e8 }));
    const stdout = await succeed('plan', '--gpu', file, '--model', model);
    assert.match(stdout, /demo on mine/);
  });
});

test('--device cuda without a GPU is an error, auto is the CPU', async () => {
  const { code, stderr } = await run('generate', '--model', model, '--prompt', 'a', '--device', 'cuda');
  if (code === 0) return; // there is a GPU
  assert.equal(code, 1);
  assert.match(stderr, /--device cuda: (no usable GPU|this program was built without CUDA)/);
  await succeed('generate', '--model', model, '--prompt', 'a', '--max-new-tokens', '1', '--device', 'auto');
});

describe('wrong usage: exit code 2', () => {
  for (const line of [
    '',
    'dance',
    'bench',
    'serve',
    'info --model DEMO --unknown 1',
    'generate --model DEMO --temprature 0',
    'generate --model DEMO --prompt a --prompt-tokens b',
    'generate --model DEMO --prompt a --max-model-len long',
    'serve --model DEMO --policy fair',
    'serve --model DEMO --port http',
    'serve --model DEMO --port 70000',
    'info --model DEMO --device abacus',
    'bench serve --model DEMO --endpoint chats',
  ]) {
    test(line || 'no command', async () => {
      const { code, stdout, stderr } = await run(...split(line).filter(Boolean));
      assert.equal(code, 2, stderr);
      assert.equal(stdout, '');
      assert.notEqual(stderr, '');
    });
  }

  test('--help is right', async () => {
    for (const line of ['--help', 'serve --help', 'bench serve --help']) await succeed(...split(line));
  });
});

describe('what cannot work: exit code 1 and one line', () => {
  for (const [line, ...messages] of [
    ['serve --model /no/model', '/no/model'],
    ['info --model /no/model', '/no/model'],
    ['generate --prompt a --model /no/model', '/no/model'],
    ['bench engine --model /no/model', '/no/model'],
    ['bench serve --model /no/model', '/no/model'],
    ['generate --model DEMO --prompt a --memory-budget much', '--memory-budget'],
    ['generate --model DEMO --prompt a --precision int5', '--precision', 'int5'],
    ['generate --model DEMO --prompt a --precision int4 --group-size 20', '--group-size'],
    ['generate --model DEMO --prompt a --precision int4 --head-precision fp8', '--head-precision'],
    ['generate --model DEMO --prompt a --activations int8', '--activations', '--precision'],
    ['evaluate --model DEMO --text /no/text', '/no/text'],
    ['evaluate --model DEMO --text DEMO/config.json --chats', '--chats'],
    ['evaluate --model DEMO --text DEMO/config.json --window 1', '--window'],
    [`evaluate --model ${goldens}/gqa6_odd --tokenizer DEMO --text DEMO/config.json`, 'vocabulary of 131'],
    ['generate --model DEMO --prompt a --max-model-len -1', '--max-model-len'],
    ['generate --model DEMO --prompt a --max-model-len 100000', '--max-model-len'],
    ['generate --model DEMO --prompt a --prefill-chunk 0', '--prefill-chunk'],
    ['generate --model DEMO --prompt a --isa mmx', '--isa'],
    // Holds where there is a GPU too: the CUDA backend multiplies in fp16.
    ['generate --model DEMO --prompt a --device cuda --precision int8 --activations int8', '--device'],
    ['plan --gpu gtx9999', '--gpu', 'rtx2060'],
    ['plan --gpu DEMO/config.json', 'name'],
    ['plan --gpu rtx2060 --ctx-len 40000', '--max-model-len'],
    ['plan --gpu rtx2060 --ctx-len 0', '--ctx-len'],
    ['generate --model DEMO --prompt a --temperature -1', 'temperature'],
    ['generate --model DEMO --prompt a --max-new-tokens 0', 'max'],
    ['generate --model DEMO --prompt a --tokenizer /no/tokenizer', '/no/tokenizer'],
    ['generate --model DEMO --prompt-tokens /no/tokens.json', '/no/tokens.json'],
    ['serve --model DEMO --max-num-seqs 0', '--max-num-seqs'],
    ['serve --model DEMO --max-queue-requests -1', '--max-queue-requests'],
    ['serve --model DEMO --host nowhere', 'nowhere'],
    ['bench engine --model DEMO --runs 0', '--runs'],
    ['bench serve --model DEMO --requests 0', '--requests'],
    ['bench serve --model DEMO --endpoint chat --ctx-len 3', '--ctx-len'],
    ['bench serve --url ftp://127.0.0.1 --tokenizer DEMO', '--url'],
    ['bench serve', '--url', '--model'],
    ['bench serve --model DEMO --ctx-len uniform:9:5', '--ctx-len'],
    ['bench serve --model DEMO --max-new-tokens 0', '--max-new-tokens'],
    ['bench serve --model DEMO --rate 0', '--rate'],
    ['bench serve --model DEMO --slo ttft=2', '--slo', 'ttft=2'],
    ['bench serve --model DEMO --search rate', '--slo'],
    ['bench serve --model DEMO --ladder rate=2,1', '--ladder'],
    ['bench serve --model DEMO --ladder rate=1 --search rate --slo ttft=1s', '--search'],
    ['bench serve --model DEMO --ladder rate=1,2 --rate 3', '--rate'],
    ['bench serve --model DEMO --trace /no/trace', '/no/trace'],
    ['bench serve --model DEMO --trace DEMO/config.json', 'config.json', 'line'],
    ['bench serve --model DEMO --trace a --rate 1', '--trace', '--rate'],
    ['bench serve --model DEMO --prompts DEMO/config.json', 'config.json'],
    ['bench serve --model DEMO --resume /no/run.json', '/no/run.json'],
    ['bench serve --url http://127.0.0.1:9 --tokenizer DEMO --backend tgi --served-model m --ignore-eos', '--ignore-eos'],
  ]) {
    test(line, () => assertFails(split(line), ...messages));
  }

  test('a memory budget that is too small: the plan follows', async () => {
    const { code, stderr } = await run(...split('generate --model DEMO --prompt a --memory-budget 8MiB'));
    assert.equal(code, 1);
    assert.match(stderr, /^qwen2: .*budget of at least [\d.]+ MiB/);
    assert.match(stderr, /^ +budget +8.00 MiB/m);
  });

  test('a file that holds no prompt', async (t) => {
    const file = path.join(temporaryFolder(t), 'tokens.json');
    for (const content of ['', '{}', '[1, "a"]', '[-1]', '[1e99]', '[99999999]', '[]']) {
      writeFileSync(file, content);
      await assertFails(['generate', '--model', model, '--prompt-tokens', file]);
    }
  });

  // Each damage is done to a copy of a golden model, whose path it gets.
  function testDamaged(golden, cases) {
    for (const [name, damage, ...messages] of cases) {
      test(`${golden} with ${name}`, async (t) => {
        const folder = path.join(temporaryFolder(t), golden);
        cpSync(path.join(goldens, golden), folder, { recursive: true });
        const prompt = path.join(folder, 'prompt.json');
        writeFileSync(prompt, '[1, 2]');
        damage(folder);
        const args = ['generate', '--model', folder, '--prompt-tokens', prompt, '--max-new-tokens', '1'];
        await assertFails(args, ...messages);
      });
    }
  }
  const editJson = (name, edit) => (folder) => {
    const value = readJson(folder, name);
    edit(value);
    writeFileSync(path.join(folder, name), JSON.stringify(value));
  };
  const config = (edit) => editJson('config.json', edit);
  const cut = (size) => (folder) => truncateSync(path.join(folder, 'model.safetensors'), size);
  const replace = (name, content) => (folder) => writeFileSync(path.join(folder, name), content);
  // A safetensors file: the header's size in eight bytes, the header as JSON, the data.
  const header = (edit) => (folder) => {
    const file = path.join(folder, 'model.safetensors');
    const bytes = readFileSync(file);
    const end = 8 + Number(bytes.readBigUInt64LE());
    const value = JSON.parse(bytes.subarray(8, end));
    edit(value);
    const json = Buffer.from(JSON.stringify(value));
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt(json.length));
    writeFileSync(file, Buffer.concat([size, json, bytes.subarray(end)]));
  };
  const move = (entry, bytes) => (entry.data_offsets = entry.data_offsets.map((offset) => offset + bytes));

  const weights = 'model.safetensors';
  const down = 'model.layers.0.mlp.down_proj.weight';
  testDamaged('gqa6_odd', [
    ['truncated data', cut(500_000), weights],
    ['a truncated header', cut(100), weights],
    ['an empty file', cut(0), weights],
    ['a header of 2^64 bytes', replace(weights, Buffer.alloc(1000, 0xff)), weights],
    ['a header that is no JSON', replace(weights, '\x08\0\0\0\0\0\0\0{"a":1]}'), weights],
    ['an unsupported dtype', header((h) => (h[down].dtype = 'I16')), weights, down, 'I16'],
    ['an unknown dtype', header((h) => (h[down].dtype = 'BF17')), weights, down, 'BF17'],
    ['a dtype of another size', header((h) => (h[down].dtype = 'F32')), weights, down],
    ['another shape', header((h) => h[down].shape.reverse()), down],
    ['an impossible shape', header((h) => (h[down].shape = [2 ** 40, 2 ** 40])), weights, down],
    ['a tensor that the header lacks', header((h) => delete h[down]), weights],
    ['a renamed tensor', header((h) => ((h.other = h[down]), delete h[down])), down],
    ['offsets behind the end', header((h) => move(h[down], 10_000_000)), weights],
    ['offsets that overlap', header((h) => move(h[down], -64)), weights],
    ['another model type', config((c) => (c.model_type = 'llama')), 'config.json', 'model_type', 'llama'],
    ['more layers than tensors', config((c) => ++c.num_hidden_layers), 'model.layers.1.'],
    ['another hidden size', config((c) => (c.hidden_size = 192)), 'tensor', 'shape'],
    ['no hidden size', config((c) => delete c.hidden_size), 'config.json', 'hidden_size'],
    ['an absurd hidden size', config((c) => (c.hidden_size = 2 ** 31)), 'config.json', 'hidden_size'],
    ['heads that do not divide', config((c) => (c.num_key_value_heads = 5)), 'config.json', 'num_key_value_heads'],
    ['RoPE scaling', config((c) => (c.rope_scaling = { type: 'yarn' })), 'config.json', 'rope_scaling'],
    ['a configuration that is no JSON', replace('config.json', '{'), 'config.json'],
    ['a configuration that is no object', replace('config.json', '[]'), 'config.json'],
    ['another kind of tokeniser', replace('tokenizer.json', '{"model": {"type": "Unigram"}}'), 'tokenizer.json', 'BPE'],
  ]);

  const indexName = 'model.safetensors.index.json';
  const index = (edit) => editJson(indexName, ({ weight_map: map }) => edit(map));
  const norm = 'model.norm.weight';
  testDamaged('mha_deep', [
    ['a missing file', index((map) => (map[norm] = 'gone.safetensors')), 'gone.safetensors'],
    ['a file of another folder', index((map) => (map[norm] = '../model.safetensors')), indexName, norm],
    ['a tensor in another file', index((map) => (map[norm] = map['model.embed_tokens.weight'])), norm],
    ['a file that is no string', index((map) => (map[norm] = 1)), indexName, norm],
    ['a tensor that the index lacks', index((map) => delete map[norm]), norm],
    ['no map', replace(indexName, '{}'), indexName],
  ]);
});
