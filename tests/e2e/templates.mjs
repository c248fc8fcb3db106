// The chat templates of tests/data/templates, random conversations to render with them, and the two oracles.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';

import { Template } from '@huggingface/jinja';

import { root } from './helpers.mjs';
import { makeRandom } from './strings.mjs';

const folder = path.join(root, 'tests/data/templates');
// Not the first python3 of the path: Debian installs python3-jinja2 for this one.
const python = process.env.QWEN2_PYTHON ?? '/usr/bin/python3';

// [{name: 'published/qwen3', text}]
export const templates = ['published', 'own'].flatMap((kind) =>
  readdirSync(path.join(folder, kind))
    .filter((file) => file.endsWith('.jinja'))
    .sort()
    .map((file) => ({
      name: `${kind}/${path.basename(file, '.jinja')}`,
      text: readFileSync(path.join(folder, kind, file), 'utf8'),
    })),
);

// What a template is likely to get wrong: other templates' marks, Jinja's own syntax, white space at the ends,
// what JSON, HTML and Python's repr() escape.
const pieces = [
  '', ' ', '\n', '\n\n', '\t', '\r\n', '\u00a0', '\u3000', 'Hello', 'What is 2 + 2?', 'The answer is 4.', 'naïve café',
  'Straße', 'ÉCOLE', 'Привет, мир', '你好，世界', 'こんにちは', 'שלום', 'e\u0301', '😀', '👩🏿‍🚀', '🇩🇪', '\u200b',
  '<|im_start|>', '<|im_end|>', '<|endoftext|>', '</s>', '[INST]', '[/INST]', '<｜User｜>', '<think>', '</think>',
  '<think>\nFirst this.\n</think>\n\n', '<tool_call>', '</tool_call>', '<tool_response>', '</tool_response>',
  '{{ x }}', '{% if x %}', '{# x #}', '{%', '%}', '{{', '}}', "it's", '"quoted"', '\'both\' "kinds"', 'a\\b', '\\n',
  '\\', '<b>&amp;</b>', '< > & \' "', 'a, b', '{"a": [1, null]}', '1.0', '0', 'None', '%s', 'x'.repeat(60),
  'def f(x):\n    return x  # comment\n', 'one\ntwo\n\n  three',
];

const properties = {
  city: { type: 'string', description: 'The city, e.g. "Zürich" <or> \'Genf\' & more' },
  days: { type: 'integer', description: 'How many', minimum: 1, default: 3 },
  unit: { type: 'string', enum: ['°C', '°F'], description: ' The unit ' },
  exact: { type: 'boolean', description: 'Exact' },
  limit: { type: ['number', 'null'], description: 'A limit of 1.5' },
  tags: { type: 'array', description: 'Tags', items: { type: 'string' } },
  options: {
    type: 'object',
    description: 'Options\nin two lines',
    properties: { depth: { type: 'integer', description: 'Depth' }, 名前: { type: 'string', description: '名前' } },
    required: ['depth'],
  },
  map: { type: 'object', description: 'A map', additionalProperties: { type: 'number' } },
};

function randomTool(r) {
  const names = Object.keys(properties).filter(() => r.int(0, 2) === 0);
  const parameters = { type: 'object', properties: Object.fromEntries(names.map((name) => [name, properties[name]])) };
  if (r.int(0, 3)) parameters.required = names.filter(() => r.int(0, 1) === 0);
  const tool = {
    type: 'function',
    function: {
      name: r.pick(['get_weather', 'search', 'run-code', 'brave_search', 'f']),
      description: r.pick(['Gets the weather.', 'Finds "things" & <more>\nin pages', 'Prüft 天気 😀', '']),
      parameters,
    },
  };
  if (r.int(0, 5) === 0) tool.function.return = { type: 'string', description: 'What was found' };
  if (r.int(0, 5) === 0) tool.function.strict = true;
  return tool;
}

function randomArguments(r) {
  const values = {
    city: () => r.pick(['Zürich', 'Paris', '北京', 'a "b" <c> & \'d\'', '']),
    days: () => r.int(-3, 14),
    exact: () => r.int(0, 1) === 1,
    limit: () => r.pick([null, 1.5, 0.1, 100]),
    tags: () => r.pick([[], ['a'], ['b', 'é\n']]),
    options: () => r.pick([{}, { depth: 2, 名前: '太郎' }]),
  };
  const names = Object.keys(values).filter(() => r.int(0, 2) === 0);
  return Object.fromEntries(names.map((name) => [name, values[name]()]));
}

const letters = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789';
const randomId = (r) => r.times(9, 9, () => r.pick(letters));

function randomContent(r) {
  const kind = r.int(0, 99);
  if (kind === 0) return null;
  if (kind <= 2) return '';
  return r.times(1, 4, () => r.pick(pieces));
}

const randomParts = (r) =>
  Array.from({ length: r.int(1, 3) }, () => ({ type: 'text', text: r.times(1, 4, () => r.pick(pieces)) }));

function randomMessages(r, content, withTools) {
  const messages = [];
  const add = (role, more = {}) => messages.push({ role, content: content(r), ...more });
  if (r.int(0, 9) < 4) add('system');
  if (r.int(0, 9) === 0) {
    // An order that strict templates refuse.
    for (let n = r.int(1, 6); n > 0; --n) add(r.pick(['user', 'assistant', 'system', 'tool', 'developer']));
    return messages;
  }
  for (let turn = r.int(1, 4); turn > 0; --turn) {
    add('user');
    if (withTools && r.int(0, 1)) {
      const calls = Array.from({ length: r.pick([1, 1, 1, 2, 3]) }, () => {
        const call = { name: r.pick(['get_weather', 'search']), arguments: randomArguments(r) };
        if (r.int(0, 2) === 0) call.arguments = JSON.stringify(call.arguments);
        return r.int(0, 5) ? { id: randomId(r), type: 'function', function: call } : call;
      });
      const more = { tool_calls: calls };
      const kind = r.int(0, 7);
      if (kind < 4) more.content = kind % 2 ? '' : null;
      add('assistant', more);
      if (kind === 4) delete messages.at(-1).content;
      for (const call of calls.slice(0, r.pick([1, 9]))) {
        add('tool', r.int(0, 5) ? { tool_call_id: call.id ?? randomId(r), name: 'get_weather' } : {});
      }
      if (r.int(0, 3) === 0) continue;
    }
    if (turn > 1 || r.int(0, 4) === 0) {
      add('assistant', r.int(0, 7) ? {} : { reasoning_content: r.pick(['', 'Let me think.\n', '\nhm\n</think>']) });
    }
  }
  return messages;
}

// The variables of `count` renderings; `content(r)` makes the content of a message.
export function randomConversations(seed, count, { content = randomContent, tools = true } = {}) {
  const r = makeRandom(seed);
  return Array.from({ length: count }, () => {
    const withTools = tools && r.int(0, 9) < 4;
    // A client sends either texts or lists of parts.
    const kind = content === randomContent && r.int(0, 9) === 0 ? randomParts : content;
    const conversation = {
      messages: randomMessages(r, kind, withTools),
      tools: withTools ? Array.from({ length: r.int(0, 3) }, () => randomTool(r)) : null,
      documents: r.int(0, 2) ? null : [{ title: 'Ünïts & "more"', text: 'One.\nTwo.' }, { title: 'b', text: '' }],
      add_generation_prompt: r.int(0, 2) > 0,
      bos_token: '<s>',
      eos_token: '</s>',
      pad_token: '<pad>',
      unk_token: '<unk>',
      now: 1_700_000_000 + 86_400 * r.int(0, 400),
    };
    if (r.int(0, 3) === 0) conversation.enable_thinking = r.int(0, 1) === 1;
    // What single templates need or know.
    if (r.int(0, 1)) {
      const more = { functions: '[]', datetime: '1 May 2025', date_string: '02 May 2025', guideline: 'Be "nice".' };
      Object.assign(conversation, more);
    }
    return conversation;
  });
}

// One process answers all lines, which are written as it takes them: together they may be too large for a string.
export async function renderWithProgram(program, args, lines) {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const closed = once(child, 'close');
  child.stdin.on('error', () => {}); // one that ends early is told by its number of answers
  Readable.from(lines, { objectMode: true }).map((line) => JSON.stringify(line) + '\n').pipe(child.stdin);
  const answers = [];
  for await (const line of createInterface({ input: child.stdout })) answers.push(JSON.parse(line));
  const [code, signal] = await closed;
  if ((signal ?? code) !== 0) throw new Error(`${program} ended with ${signal ?? code}`);
  return answers;
}

// Hugging Face Transformers' way.
export const renderWithPython = (lines) =>
  renderWithProgram(python, [path.join(root, 'tests/tools/render_templates.py')], lines);

const names = (kind) => (date) => date.toLocaleDateString('en-US', { ...kind, timeZone: 'UTC' });
const directives = {
  Y: (date) => date.getUTCFullYear(),
  m: (date) => date.toISOString().slice(5, 7),
  d: (date) => date.toISOString().slice(8, 10),
  H: (date) => date.toISOString().slice(11, 13),
  M: (date) => date.toISOString().slice(14, 16),
  S: (date) => date.toISOString().slice(17, 19),
  b: names({ month: 'short' }),
  B: names({ month: 'long' }),
  A: names({ weekday: 'long' }),
};

// @huggingface/jinja.
export function renderWithHuggingFace(lines) {
  const compiled = new Map();
  return Array.from(lines, ({ template, now, ...variables }) => {
    try {
      // Its own strftime_now cannot be replaced: the template calls ours by another name.
      if (!compiled.has(template)) {
        compiled.set(template, new Template(template.replaceAll('strftime_now', 'strftime_then')));
      }
      const date = new Date(now * 1000);
      const strftime_then = (format) => format.replace(/%(\w)/g, (all, letter) => directives[letter]?.(date) ?? all);
      return { text: compiled.get(template).render({ ...variables, strftime_then }) };
    } catch (error) {
      return { error: String(error) };
    }
  });
}
