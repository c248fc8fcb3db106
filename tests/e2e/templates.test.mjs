// The Jinja interpreter and the parts of its output that are the messages', over the templates of
// tests/data/templates. Python's Jinja, set up as by Hugging Face Transformers, says what is right.
import assert from 'node:assert/strict';
import path from 'node:path';
import { before, describe, test } from 'node:test';

import { build } from './helpers.mjs';
import {
  randomConversations, renderWithHuggingFace, renderWithProgram, renderWithPython, templates,
} from './templates.mjs';

const render = (lines) => renderWithProgram(path.join(build, 'template_pipe'), [], lines);
const conversations = randomConversations(20250801, 200);

// Every template with every conversation.
function* lines(conversations) {
  for (const { text } of templates) {
    for (const conversation of conversations) yield { template: text, ...conversation };
  }
}

// Answers in the order of lines(), by template.
function byTemplate(answers, perTemplate) {
  assert.equal(answers.length, templates.length * perTemplate, 'an answer to each line');
  return Object.fromEntries(
    templates.map(({ name }, i) => [name, answers.slice(i * perTemplate, (i + 1) * perTemplate)]),
  );
}

// Template -> what ours refuses where Python renders.
const exceptions = {
  'own/loop-nested-recursive': /'recursive' of a {% for %} is not supported/,
  'own/loop-recursive': /'recursive' of a {% for %} is not supported/,
  'own/rare-filters': /the filter '\w+' is not supported/,
  'own/rare-globals': /'joiner' is undefined/,
  'own/rare-methods': /a str has no attribute 'partition'/,
};

// What @huggingface/jinja hardly renders: in Python a text is a sequence of its characters, there it is none.
const notOfHuggingFace = ['published/llama-guard3-1b', 'published/llama3.2-vision', 'published/llama3.2-vision-90b'];

describe('templates', () => {
  let ours, python;
  before(async () => {
    const answers = await Promise.all([render(lines(conversations)), renderWithPython(lines(conversations))]);
    [ours, python] = answers.map((list) => byTemplate(list, conversations.length));
  });

  for (const { name } of templates) {
    test(`${name} renders as in Python`, () => {
      const differences = [];
      python[name].forEach((expected, i) => {
        const found = ours[name][i];
        // What an error says is each implementation's own.
        const same = 'error' in expected ? 'error' in found : found.text === expected.text;
        if (!same) differences.push({ conversation: conversations[i], expected, found });
      });
      if (name in exceptions) {
        assert.notEqual(differences.length, 0, `no exception any more: ${exceptions[name]}`);
        for (const { found } of differences) assert.match(found.error, exceptions[name]);
        return;
      }
      assert.deepEqual(differences.slice(0, 2), [], `${differences.length} of ${conversations.length} differ`);
    });
  }

  test('the conversations are such that most render', () => {
    for (const kind of ['published', 'own']) {
      const answers = Object.entries(python).filter(([name]) => name.startsWith(kind)).flatMap(([, list]) => list);
      const rendered = answers.filter((answer) => 'text' in answer).length / answers.length;
      assert.ok(rendered > 0.65, `${kind}: ${rendered}`);
    }
  });

  // A check of the oracle: where it renders, an implementation of other hands comes to the same text.
  test('Python agrees with @huggingface/jinja', () => {
    const some = 50;
    const other = byTemplate(renderWithHuggingFace(lines(conversations.slice(0, some))), some);
    let rendered = 0;
    let same = 0;
    for (const { name } of templates) {
      if (!name.startsWith('published/')) continue;
      let sameHere = 0;
      python[name].slice(0, some).forEach((expected, i) => {
        if (!('text' in expected)) return;
        rendered++;
        if (other[name][i].text === expected.text) sameHere++;
      });
      same += sameHere;
      if (!notOfHuggingFace.includes(name)) assert.notEqual(sameHere, 0, name);
    }
    assert.ok(same / rendered > 0.9, `${same} of ${rendered}`);
  });
});

// Contents are made of private use characters, which no template has.
describe('marks', () => {
  const isPrivate = (text) => /^[\ue000-\uf8ff]+$/.test(text);
  // Roles, too, are the messages', as is what tojson puts around a content.
  const mayBeMarked = (name, text) => {
    const rest = text.replace(/[\ue000-\uf8ff]|user|assistant|system|tool|developer/gi, '');
    const writesJson = templates.find((template) => template.name === name).text.includes('tojson');
    return rest === '' || (writesJson && /^[[\]{}":, ]+$/.test(rest));
  };

  // [{conversation, bytes, marks}] of each template, for contents that `content(r)` makes.
  async function marked(seed, content) {
    const conversations = randomConversations(seed, 30, { content, tools: false });
    for (const conversation of conversations) {
      conversation.documents = null;
      for (const message of conversation.messages) delete message.reasoning_content;
    }
    const answers = byTemplate(await render(lines(conversations)), conversations.length);
    return Object.entries(answers).map(([name, list]) => ({
      name,
      renderings: list.flatMap(({ text, marks }, i) =>
        text === undefined ? [] : [{ conversation: conversations[i], bytes: Buffer.from(text), marks }],
      ),
    }));
  }

  test('cover the contents, and nothing of the template', async () => {
    const privateText = (r) => r.times(1, 8, () => String.fromCodePoint(r.int(0xe000, 0xf8ff)));
    let found = 0;
    for (const { name, renderings } of await marked(1, privateText)) {
      for (const { conversation, bytes, marks } of renderings) {
        const what = () => `${name} ${JSON.stringify({ conversation, text: bytes.toString(), marks })}`;
        let end = 0;
        let outside = '';
        for (const mark of marks) {
          assert.ok(end <= mark[0] && mark[0] < mark[1] && mark[1] <= bytes.length, what());
          outside += bytes.subarray(end, mark[0]);
          end = mark[1];
          const text = bytes.subarray(...mark).toString();
          // Our own print whole messages, as Python's repr().
          assert.ok(name.startsWith('own/') || mayBeMarked(name, text), `${text} is marked: ${what()}`);
          if (isPrivate(text)) found++;
        }
        outside += bytes.subarray(end);
        assert.doesNotMatch(outside, /[\ue000-\uf8ff]/, what());
      }
    }
    assert.ok(found > 3000, `${found}`);
  });

  test("cover special tokens' texts in contents", async () => {
    const first = '\ue000';
    const last = '\ue001';
    const special = ['<|im_start|>', '<|im_end|>', '<|endoftext|>', '</s>', '<s>', 'x'];
    const content = (r) => first + r.times(1, 4, () => r.pick(special)) + last;
    let found = 0;
    for (const { name, renderings } of await marked(2, content)) {
      if (!name.startsWith('published/')) continue;
      for (const { bytes, marks } of renderings) {
        for (let begin = 0; (begin = bytes.indexOf(first, begin)) >= 0; ) {
          const end = bytes.indexOf(last, begin);
          if (end < 0) break; // cut by the template
          const covered = marks.reduce((at, mark) => (mark[0] <= at && at < mark[1] ? mark[1] : at), begin);
          const text = JSON.stringify({ text: bytes.toString(), marks });
          assert.ok(covered > end, `${name}: bytes ${begin} to ${end} of ${text}`);
          begin = end;
          found++;
        }
      }
    }
    assert.ok(found > 3000, `${found}`);
  });
});
