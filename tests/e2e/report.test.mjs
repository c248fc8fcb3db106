// The report in a browser: both colour schemes, a phone, paper.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { pathToFileURL } from 'node:url';

import { chromium } from 'playwright-core';

import { root, run, temporaryFolder } from './helpers.mjs';

const experiment = path.join(root, 'tests/data/experiment');
const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';

// Text that lies outside of its chart, and pairs of texts in one chart that lie on each other.
function misplacedTexts() {
  const problems = [];
  const visible = (element) => element.getBoundingClientRect().width > 0;
  for (const svg of [...document.querySelectorAll('svg.chart')].filter(visible)) {
    const frame = svg.getBoundingClientRect();
    const name = svg.getAttribute('aria-label');
    const texts = [...svg.querySelectorAll('text')].map((text) => ({ text: text.textContent, box: text.getBoundingClientRect() }));
    texts.forEach(({ text, box }, i) => {
      const inside = box.left >= frame.left - 1 && box.right <= frame.right + 1 && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
      if (!inside) problems.push(`${name}: '${text}' leaves the chart`);
      for (const other of texts.slice(0, i)) {
        // Boxes of text are as high as a line; glyphs are not.
        const across = Math.min(box.right, other.box.right) - Math.max(box.left, other.box.left);
        const down = Math.min(box.bottom, other.box.bottom) - Math.max(box.top, other.box.top);
        if (across > 0.5 && down > 0.3 * box.height) problems.push(`${name}: '${text}' lies on '${other.text}'`);
      }
    });
  }
  return problems;
}

// Texts whose contrast to what is behind them is below 4.5 (WCAG AA).
function faintTexts() {
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = parse(color)
      .slice(0, 3)
      .map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if ((parse(color)[3] ?? 1) > 0) return color;
    }
    return 'rgb(255, 255, 255)';
  };
  const faint = new Set();
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== '');
    if (!own || element.localName === 'title' || element.getBoundingClientRect().width === 0) continue;
    const style = getComputedStyle(element);
    const color = element instanceof SVGElement ? style.fill : style.color;
    const [light, dark] = [luminance(color), luminance(background(element))].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faint.add(`${element.localName}.${element.getAttribute('class')}: ${contrast.toFixed(2)}`);
  }
  return [...faint];
}

describe('report', () => {
  let browser;
  before(async () => {
    browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  });
  after(() => browser?.close());

  // Writes a report and opens it; requests and complaints of the browser are collected.
  async function open(t, options) {
    const html = path.join(temporaryFolder(t), 'report.html');
    const { code, stderr } = await run('report', experiment, '--output', html);
    assert.equal(code, 0, stderr);
    const page = await browser.newPage(options);
    t.after(() => page.close());
    const [requests, complaints] = [[], []];
    page.on('request', (request) => requests.push(request.url()));
    page.on('console', (message) => complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(String(error)));
    const url = pathToFileURL(html).href;
    await page.goto(url);
    const others = () => requests.filter((request) => request !== url && !request.startsWith('data:'));
    return { page, html, others, complaints };
  }

  test('the checks find what is wrong', async (t) => {
    const page = await browser.newPage();
    t.after(() => page.close());
    const texts = (...places) => places.map(([x, y]) => `<text x="${x}" y="${y}">word</text>`).join('');
    const chart = (content) => `<p style="color:#999">x</p><svg class="chart" width="200" height="100">${content}</svg>`;
    await page.setContent(chart(texts([10, 50], [60, 50], [10, 80])));
    assert.deepEqual(await page.evaluate(misplacedTexts), []);
    assert.equal((await page.evaluate(faintTexts)).length, 1);
    await page.setContent(chart(texts([10, 50], [15, 52], [190, 50])));
    assert.equal((await page.evaluate(misplacedTexts)).length, 2);
  });

  for (const colorScheme of ['light', 'dark']) {
    test(`in ${colorScheme}`, async (t) => {
      const { page, others, complaints } = await open(t, { colorScheme, viewport: { width: 1280, height: 900 } });
      assert.equal(await page.title(), 'Example of a report');
      await page.locator('details').evaluateAll((all) => all.forEach((details) => (details.open = true)));
      const ground = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
      assert.equal(ground === 'rgb(255, 255, 255)', colorScheme === 'light');
      assert.deepEqual(await page.evaluate(faintTexts), []);
      assert.deepEqual(await page.evaluate(misplacedTexts), []);
      const boxes = await page.locator('figure .wide svg').evaluateAll((all) => all.map((svg) => svg.getBoundingClientRect().toJSON()));
      assert.ok(boxes.length >= 14, `${boxes.length} charts`);
      for (const box of boxes) assert.ok(box.width > 300 && box.height > 100, JSON.stringify(box));
      assert.deepEqual(others(), []);
      assert.deepEqual(complaints, []);
    });
  }

  for (const width of [390, 720]) {
    test(`${width} pixels wide`, async (t) => {
      const { page } = await open(t, { viewport: { width, height: 844 } });
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), width);
      assert.deepEqual(await page.evaluate(misplacedTexts), []);
      const sizes = await page.locator('svg.chart:visible').evaluateAll((all) =>
        all.map((svg) => (12 * svg.getBoundingClientRect().width) / svg.viewBox.baseVal.width),
      );
      assert.ok(sizes.length >= 14);
      for (const size of sizes) assert.ok(size >= 10.5, `chart text of ${size} pixels`);
    });
  }

  test('on paper', async (t) => {
    const { page } = await open(t, { colorScheme: 'dark', viewport: { width: 688, height: 1000 } });
    await page.emulateMedia({ media: 'print', colorScheme: 'dark' });
    const ground = await page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    assert.equal(ground, 'rgb(255, 255, 255)');
    assert.deepEqual(await page.evaluate(faintTexts), []);
    assert.deepEqual(await page.evaluate(misplacedTexts), []);
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 688);
    assert.equal(await page.locator('nav').isVisible(), false);
  });

  test('plots stand alone', async (t) => {
    const { page, html } = await open(t, {});
    const folder = path.join(path.dirname(html), 'plots');
    const files = readdirSync(folder);
    assert.ok(files.length >= 14);
    const markdown = readFileSync(html.replace(/html$/, 'md'), 'utf8');
    for (const file of files) {
      assert.ok(markdown.includes(`](plots/${file})`), file);
      // An image, as Markdown shows it.
      await page.goto('about:blank');
      await page.setContent(`<img src="data:image/svg+xml;base64,${readFileSync(path.join(folder, file)).toString('base64')}">`);
      const size = await page.locator('img').evaluate(async (img) => (await img.decode(), [img.naturalWidth, img.naturalHeight]));
      assert.equal(size[0], 720, file);
      assert.ok(size[1] > 100, file);
      await page.goto(pathToFileURL(path.join(folder, file)).href);
      assert.deepEqual(await page.evaluate(misplacedTexts), []);
    }
  });
});

test('report says what is wrong', async (t) => {
  const fails = async (...args) => {
    const { code, stderr } = await run('report', ...args);
    assert.equal(code, 1, stderr);
    assert.equal(stderr.trimEnd().split('\n').length, 1, stderr);
    return stderr;
  };
  assert.match(await fails(temporaryFolder(t)), /^qwen2: .*manifest\.json/);
  assert.match(await fails(experiment, '--output', path.join(temporaryFolder(t), 'report.txt')), /--output .* \.html/);
});
