// scripts/check words: that it fails where a phrase of scripts/words.txt is used, and only there.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');

// The exit status and output of `scripts/check words` in a new repository with these files.
function checkWords(files) {
  const folder = mkdtempSync(path.join(tmpdir(), 'qwen2-words-'));
  try {
    cpSync(path.join(root, 'scripts'), path.join(folder, 'scripts'), { recursive: true });
    for (const [name, text] of Object.entries(files)) {
      mkdirSync(path.dirname(path.join(folder, name)), { recursive: true });
      writeFileSync(path.join(folder, name), text);
    }
    execFileSync('git', ['init', '-q'], { cwd: folder });
    execFileSync('git', ['add', '-A'], { cwd: folder });
    const run = spawnSync('bash', ['scripts/check', 'words'], { cwd: folder, encoding: 'utf8' });
    return { status: run.status, output: run.stdout + run.stderr };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test('plain words pass', () => {
  const { status, output } = checkWords({ 'docs/a.md': 'Kernels trigger dependents early. Ten digits.\n' });
  assert.equal(status, 0, output);
});

for (const [name, text, instead] of [
  ['docs/a.md', 'The next kernel is let in early.', /trigger dependents/],
  ['docs/a.md', 'QKV lets the attention of long rows in first thing.', /trigger dependents/],
  ['src/a.cpp', 'Let_next_start();', /trigger_dependents/],
  ['src/a.cu', 'settle(x);', /compiler_barrier/],
  ['README.md', 'Nobody waits.', /none/],
  ['src/kernels/cuda/common/a.cuh', '// Activations as digits.', /split int8/],
  ['src/backend/cuda/a.cpp', 'cuda::arrange(x);', /repack/],
]) {
  test(`"${text}" fails in ${name}`, () => {
    const { status, output } = checkWords({ [name]: `${text}\n` });
    assert.equal(status, 1, output);
    assert.ok(output.includes(`${name}:1:`), output);
    assert.match(output, instead);
  });
}
