// Strings that a tokeniser may get wrong, by kind. All come from one seed, so that every run sees the same.

// Mulberry32.
export function makeRandom(seed) {
  const next = () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let x = Math.imul(seed ^ (seed >>> 15), seed | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  const int = (low, high) => low + Math.floor(next() * (high - low + 1));
  return {
    int,
    pick: (list) => list[int(0, list.length - 1)],
    times: (low, high, make) => Array.from({ length: int(low, high) }, make).join(''),
  };
}

// A pattern for one of the code points in a list of hexadecimal ranges.
function unicodeSet(list) {
  const ranges = list.trim().split(/\s+/).map((range) => range.replace(/[\da-f]+/g, '\\u{$&}'));
  return new RegExp(`[${ranges.join('')}]`, 'u');
}

// What Unicode 15 to 17 added (DerivedAge.txt): Node knows these as letters or digits, PCRE2 10.42 (Unicode
// 14) does not yet. No code point that Unicode 14 has became or ceased to be a letter or number since.
const newer = unicodeSet(`
  88f 897 c5c cdc cf3 ece 1acf-1add 1ae0-1aeb 1b4e-1b4f 1b7f 1c89-1c8a 20c1 2427-2429 2b96 2ffc-2fff 31e4-31e5
  31ef a7cb-a7cf a7d2-a7dc a7f1 fbc3-fbd2 fd90-fd91 fdc8-fdce 105c0-105f3 10940-10959 10d40-10d8f 10ec2-10eff
  1123f-11241 11380-113e2 116d0-116e3 11b00-11b67 11bc0-11bf9 11db0-11f5a 1342f 13439-143fa 16100-16139
  16d40-16d79 16ea0-16ed3 16ff2-16ff6 187f8-187ff 18cff 18d09-18df2 1b132 1b155 1cc00-1cef0 1d2c0-1d2d3
  1df25-1df2a 1e030-1e08f 1e4d0-1e6ff 1f6d8-1f6dc 1f774-1f77f 1f7d9 1f8b2-1f8d8 1fa54-1fa8f 1faad-1fadf
  1fae8-1faf8 1fbcb-1fbef 1fbfa 2b739-2b73f 2cea2-2cead 2ebf0-2ee5d 31350-33479
`);
const isKnown = (text) => /\P{Cn}/u.test(text) && !/\p{Cs}/u.test(text) && !newer.test(text);

// A known code point from one of the ranges [first, last].
function character(r, ranges) {
  for (;;) {
    const text = String.fromCodePoint(r.int(...r.pick(ranges)));
    if (isKnown(text)) return text;
  }
}

const marks = [[0x300, 0x36f], [0x1dc0, 0x1dff], [0x20d0, 0x20f0], [0xfe20, 0xfe2f]];
const scripts = {
  Latin: [[0x41, 0x5a], [0x61, 0x7a], [0xc0, 0x24f], [0x1e00, 0x1eff], [0x2c60, 0x2c7f], [0xff21, 0xff5a]],
  Greek: [[0x370, 0x3ff], [0x1f00, 0x1fff]],
  Cyrillic: [[0x400, 0x52f], [0x1c80, 0x1c88], [0xa640, 0xa69f]],
  Armenian: [[0x531, 0x58f]],
  Hebrew: [[0x591, 0x5f4], [0xfb1d, 0xfb4f]],
  Arabic: [[0x600, 0x6ff], [0x750, 0x77f], [0xfb50, 0xfdff], [0xfe70, 0xfefc]],
  Devanagari: [[0x900, 0x97f], [0xa8e0, 0xa8ff]],
  Bengali: [[0x980, 0x9fe]],
  Tamil: [[0xb82, 0xbfa]],
  Thai: [[0xe01, 0xe5b]],
  Tibetan: [[0xf00, 0xfda]],
  Georgian: [[0x10a0, 0x10ff], [0x1c90, 0x1cbf]],
  'Hangul jamo': [[0x1100, 0x1112], [0x1161, 0x1175], [0x11a8, 0x11c2], [0x1100, 0x11ff], [0xa960, 0xa97c]],
  'Hangul syllables': [[0xac00, 0xd7a3], [0xac00, 0xd7a3], [0x1161, 0x11c2]],
  Ethiopic: [[0x1200, 0x139f]],
  Khmer: [[0x1780, 0x17f9]],
  Mongolian: [[0x1800, 0x18aa]],
  Kana: [[0x3041, 0x30ff], [0x31f0, 0x31ff], [0xff65, 0xff9f], [0x1b000, 0x1b122]],
  CJK: [[0x4e00, 0x9fff], [0x3000, 0x303f], [0xf900, 0xfad9], [0x20000, 0x2a6df], [0x2f800, 0x2fa1d]],
  Mathematical: [[0x1d400, 0x1d7ff], [0x2070, 0x20bf], [0x2100, 0x218b], [0x2460, 0x24ff]],
  Musical: [[0x1d100, 0x1d1ea]],
};

const everywhere = [[0, 0x7f], [0, 0x7ff], [0, 0x2fff], [0, 0xffff], [0x10000, 0x1ffff], [0, 0x10ffff]];
const punctuation = [
  [0x21, 0x2f], [0x3a, 0x40], [0x5b, 0x60], [0x7b, 0x7e], [0xa1, 0xbf], [0x2010, 0x205e], [0x3001, 0x301f],
];

const spaces = [
  ' ', ' ', ' ', '\t', '\n', '\n', '\r\n', '\r', '\v', '\f', '\u0085', '\u00a0', '\u1680', '\u180e', '\u2000',
  '\u2003', '\u2009', '\u200a', '\u200b', '\u2028', '\u2029', '\u202f', '\u205f', '\u2060', '\u3000', '\ufeff',
];
const zeros = [0x30, 0x30, 0x660, 0x6f0, 0x966, 0x9e6, 0xe50, 0xff10, 0x104a0, 0x1d7ce, 0x1d7d8, 0x1e950];
const numbers = ['½', '²', '₃', '①', 'Ⅷ', '〇', '५', '٣', '፲', '𐄇', '㊿', '零', '1,000.50', '0x1F', '1e-9', '3.14'];
const words = (
  'the quick brown fox Jumps over LAZY dogs naïve café Straße Ελλάδα Москва שלום سلام नमस्ते สวัสดี 안녕 世界 こんにちは ' +
  'İstanbul ﬁne ǅ dž can not HTTPServer snake_case camelCase x86 v2'
).split(' ');
const special = [
  '<|im_start|>', '<|im_end|>', '<|endoftext|>', '<|im_start', 'im_end|>', '<|im_start|', '<|<|im_end|>|>',
  '<|im_end|><|im_start|>', ' <|endoftext|> ', '<|IM_END|>', '< |im_end|>', '<｜im_end｜>', '<|im_end|>\n',
  '<tool_call>', '</tool_call>', '<|fim_prefix|>', '<|vision_start|>', '<|box_end|>', '<|repo_name|',
];
const code = [
  'int main(int argc, char** argv) {\n\treturn argc > 1 ? 0 : -1;\r\n}\n',
  'def f(x: int) -> str:\n    """Doc\'s text."""\n    return f"{x!r:>10}"  # comment\n\n\n',
  'const f = async ({a, b = 1}) => `${await a}-${b ?? "x"}`;\n//\tTODO\n',
  'SELECT name, COUNT(*) FROM t WHERE a<>\'it\'\'s\' GROUP BY 1 -- end\n',
  '<div class="a b">&nbsp;&#x1F600;<br/></div>\n\n<!-- x -->',
  '{"a": [1, 2.5e-3, null, true], "b\\u00e9": {"c": "\\n"}}\r\n',
  '#include <vector>\n#define MAX(a,b) (((a)>(b))?(a):(b))\n',
  '    if (!ok) {\n        std::cerr << "error: " << strerror(errno) << \'\\n\';\n    }\n',
  'for i in $(seq 1 10); do echo "$i" >> out.txt 2>&1; done\n',
  'fn main() -> Result<(), Box<dyn Error>> { Ok(()) }',
  '\\begin{equation}\\frac{a_1}{b^2}\\end{equation}\n',
  'https://user:pw@example.com:8080/a/b%20c?d=e&f[]=g#h  \n',
  'diff --git a/x b/x\n@@ -1,3 +1,4 @@\n-\told\n+\tnew\n \n',
];
const emoji =
  '😀 👍🏽 👩🏿‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🏴‍☠️ 🇩🇪 🇯🇵🇰🇷 1️⃣ #️⃣ ❤️ ❤ ☎︎ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🧑‍🤝‍🧑 👁️‍🗨️ \u200d \ufe0f 🏽 🇩'.split(' ');

// Bytes that are no UTF-8: stray, truncated, overlong, surrogates, above U+10FFFF.
const illFormed = [
  '80', 'bf', 'c0', 'c3', 'c0af', 'c1bf', 'e2', 'e282', 'e08080', 'e09fbf', 'eda080', 'edbfbf', 'f0', 'f09f',
  'f09f98', 'f0808080', 'f08fbfbf', 'f4908080', 'f5808080', 'f8888080', 'fe', 'ff', 'e28241', 'f09f9841', 'c320',
].map((hex) => Buffer.from(hex, 'hex'));

const contraction = (r) =>
  r.pick(['', 'it', 'I', 'they', ' you', '7', ' ', '\n', '»']) +
  r.pick(["'", "'", "'", '’', ' ', "''"]) +
  [...r.pick(['s', 't', 're', 've', 'm', 'll', 'd', 'ſ', 'k', '\u212a', 'x'])]
    .map((c) => (r.int(0, 1) ? c.toUpperCase() : c))
    .join('') +
  r.pick(['', '', 'x', ' ', '!', '9', 'ſ', "'s"]);

const whiteSpace = (r) => r.times(1, 6, () => r.pick(spaces).repeat(r.pick([1, 1, 1, 2, 3, 7])));

const fragments = {
  words: (r) => r.pick(['', ' ', '  ']) + r.pick(words),
  marks: (r) => character(r, scripts.Latin) + r.times(1, 4, () => character(r, marks)),
  'white space': (r) => whiteSpace(r) + r.pick(['', '', 'a', '.', '7', '\u0301']),
  digits: (r) =>
    r.int(0, 3) ? r.times(1, 6, () => String.fromCodePoint(r.pick(zeros) + r.int(0, 9))) : r.pick(numbers),
  contractions: contraction,
  'special tokens': (r) => r.pick(special),
  emoji: (r) => r.times(1, 4, () => r.pick(emoji)),
  punctuation: (r) => r.times(1, 5, () => character(r, punctuation)),
  code: (r) => {
    const text = r.pick(code);
    const start = r.pick([0, 0, r.int(0, text.length)]);
    return text.slice(start, r.pick([text.length, r.int(start, text.length)]));
  },
  'random code points': (r) => r.times(1, 5, () => character(r, everywhere)),
  'ill-formed UTF-8': (r) =>
    r.int(0, 2) ? r.pick(illFormed) : Buffer.from(Array.from({ length: r.int(1, 8) }, () => r.int(0, 255))),
};
for (const [name, ranges] of Object.entries(scripts)) {
  fragments[name] = (r) => r.pick(['', '', ' ', '-']) + r.times(1, 6, () => character(r, ranges));
}

const join = (pieces) => Buffer.concat(pieces.map((piece) => Buffer.from(piece)));
const several = (r, low, high, make) => join(Array.from({ length: r.int(low, high) }, make));

const longRun = (r) => {
  const unit = r.pick([...words, ...spaces, 'a', '!', '0', '<|im_end|>', 'ab', '한', '\u0301', '👍🏽', '=', ' \n']);
  return join([r.pick(words), unit.repeat(r.int(20, 2000 / unit.length)), r.pick(words)]);
};

// {kind: [bytes, ...]}: `count` strings of every kind, and mixtures of all.
export function tokenizerStrings(seed, count) {
  const r = makeRandom(seed);
  const many = (n, make) => Array.from({ length: n }, make);
  const edges = ['', ' ', '\n', '\0', 'a', '\ufeff', '\ufeffa', '\ufffd', '\u{10ffff}'];
  const strings = { edges: edges.map((text) => Buffer.from(text)) };
  for (const [kind, make] of Object.entries(fragments)) {
    strings[kind] = many(count, () => several(r, 1, 6, () => make(r)));
  }
  const kinds = Object.values(fragments);
  strings.mixtures = many(10 * count, () => several(r, 1, 10, () => r.pick(kinds)(r)));
  strings['long runs'] = many(count / 4, () => longRun(r));
  return strings;
}

// Conversations as a chat client may send them.
export function conversations(seed, count) {
  const r = makeRandom(seed);
  const kinds = Object.values(fragments);
  const any = () => several(r, 1, 4, () => r.pick(kinds)(r)).toString();
  const content = () => r.pick(['', 'Hello', '{{ 1 }}', '{% if %}', 'a "quoted" \\n', ' \n padded \n ', any(), any()]);
  return Array.from({ length: count }, () => {
    const turns = Array.from({ length: r.int(1, 7) }, (_, i) => ({
      role: r.int(0, 9) ? ['user', 'assistant'][i % 2] : r.pick(['user', 'assistant', 'system']),
      content: content(),
    }));
    return r.int(0, 1) ? [{ role: 'system', content: content() }, ...turns] : turns;
  });
}
