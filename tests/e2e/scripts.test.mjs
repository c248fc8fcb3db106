// scripts/check words fails where a phrase of scripts/words.txt is used, and only there. scripts/build compiles for the
// GPUs of the machine.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');

// Calls use(folder) with a copy of scripts/ in a new folder.
function withScripts(use) {
  const folder = mkdtempSync(path.join(tmpdir(), 'qwen2-scripts-'));
  try {
    cpSync(path.join(root, 'scripts'), path.join(folder, 'scripts'), { recursive: true });
    return use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

// The exit status and output of `scripts/check words` in a new repository with these files.
function checkWords(files) {
  return withScripts((folder) => {
    for (const [name, text] of Object.entries(files)) {
      mkdirSync(path.dirname(path.join(folder, name)), { recursive: true });
      writeFileSync(path.join(folder, name), text);
    }
    execFileSync('git', ['init', '-q'], { cwd: folder });
    execFileSync('git', ['add', '-A'], { cwd: folder });
    const run = spawnSync('bash', ['scripts/check', 'words'], { cwd: folder, encoding: 'utf8' });
    return { status: run.status, output: run.stdout + run.stderr };
  });
}

// The arguments with which `scripts/build PRESET` configures, where nvidia-smi prints `capabilities`.
function configureArguments(preset, capabilities) {
  return withScripts((folder) => {
    const programs = path.join(folder, 'bin');
    mkdirSync(programs);
    const program = (name, text) => {
      writeFileSync(path.join(programs, name), `#!/bin/sh\n${text}\n`);
      chmodSync(path.join(programs, name), 0o755);
    };
    program('cmake', `echo "$@" >> ${folder}/calls`);
    program('nvidia-smi', capabilities === null ? 'exit 9' : `printf '${capabilities}'`);
    const env = { ...process.env, PATH: `${programs}:${process.env.PATH}` };
    execFileSync('bash', ['scripts/build', preset], { cwd: folder, env });
    return readFileSync(path.join(folder, 'calls'), 'utf8').split('\n')[0];
  });
}

for (const [name, preset, capabilities, expected] of [
  ['one GPU', 'release', '9.0\n', '--preset release -DCMAKE_CUDA_ARCHITECTURES=90'],
  ['two kinds, one too old', 'release', '9.0\n8.6\n9.0\n6.1\n', '--preset release -DCMAKE_CUDA_ARCHITECTURES=86;90'],
  ['only a GPU that is too old', 'release', '6.1\n', '--preset release'],
  ['a driver without a GPU', 'release', null, '--preset release'],
  ['a preset that names its GPUs', 'cuda-turing', '9.0\n', '--preset cuda-turing'],
]) {
  test(`scripts/build ${preset}: ${name}`, () => assert.equal(configureArguments(preset, capabilities), expected));
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
