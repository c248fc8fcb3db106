#!/usr/bin/env python3
"""Build the demo model: a small Qwen2 chat model that explains English words.

Why: the engine needs a real checkpoint that is small enough to live in the
repository, has exactly the files and the layout of a published Qwen2-Instruct
model, and answers something a person can judge. The text is WordNet 3.0.

  prepare   parse the WordNet files (Debian package wordnet-base) and write
            .train/words.jsonl.gz; pure Python, needs no GPU
  train     make the tokeniser and the model (needs torch, transformers,
            tokenizers, safetensors and one GPU) and write models/demo
"""
import argparse
import collections
import gzip
import hashlib
import json
import math
import os
import random
import re
import shutil
import time

SYSTEM = "You are a helpful assistant."
POS_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
POS_NAMES = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
HELDOUT_PERCENT = 2.0

# --------------------------------------------------------------------------
# prepare: WordNet -> one JSON line for each word
# --------------------------------------------------------------------------

Synset = collections.namedtuple("Synset", "key pos lexfile words pointers definition examples")


def split_gloss(gloss):
    """'definition; more; "an example"' -> (definition, [examples])."""
    gloss = re.sub(r"`([^`']+)'", r"'\1'", gloss.strip()).replace("``", '"').replace("''", '"')
    parts, part, quoted, depth = [], "", False, 0
    for ch in gloss:
        if ch == '"':
            quoted = not quoted
        elif not quoted and ch in "()":
            depth += 1 if ch == "(" else -1
        if ch == ";" and not quoted and depth <= 0:
            parts.append(part.strip())
            part = ""
        else:
            part += ch
    parts.append(part.strip())
    definition, examples = [], []
    for p in parts:
        if p.startswith('"'):
            m = re.fullmatch(r'"([^"]+)"[.,]?', p)  # an example with an attribution is left out
            if m:
                examples.append(m.group(1).strip(" .;,"))
        elif p and '"' not in p:
            definition.append(re.sub(r"^and ", "", p.strip(" :.,")))
    text = ""
    for p in definition:  # keep whole parts up to a readable length
        if text and len(text) + len(p) > 150:
            break
        text += ("; " if text else "") + p
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,;.)])", r"\1", text)
    if text.count("(") != text.count(")"):
        text = text.replace("(", "").replace(")", "")
    examples = [re.sub(r"\s+", " ", e) for e in examples]
    return text, [e for e in examples if 8 <= len(e) <= 90]


def read_wordnet(folder):
    """All synsets by key, and for each lower-case lemma its senses by part of speech."""
    synsets, lemmas = {}, collections.defaultdict(dict)
    for pos, name in POS_FILES.items():
        with open(os.path.join(folder, "data." + name), encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.startswith("  "):
                    continue
                head, gloss = line.split("|", 1)
                field = head.split()
                count = int(field[3], 16)
                words = [re.sub(r"\((p|a|ip)\)$", "", w).replace("_", " ") for w in field[4:4 + 2 * count:2]]
                at = 4 + 2 * count
                pointers = [(field[at + 1 + 4 * i], field[at + 3 + 4 * i].replace("s", "a") + field[at + 2 + 4 * i],
                             int(field[at + 4 + 4 * i][:2], 16), int(field[at + 4 + 4 * i][2:], 16))
                            for i in range(int(field[at]))]
                key = pos + field[0]
                definition, examples = split_gloss(gloss)
                synsets[key] = Synset(key, pos, int(field[1]), words, pointers, definition, examples)
        with open(os.path.join(folder, "index." + name), encoding="utf-8") as f:
            for line in f:
                if not line.startswith("  "):
                    field = line.split()
                    offsets = field[-int(field[2]):]
                    lemmas[field[0].replace("_", " ")][pos] = [pos + o for o in offsets]
    counts = collections.Counter()  # (lemma, pos, sense number) -> times seen in tagged text
    with open(os.path.join(folder, "cntlist.rev"), encoding="utf-8") as f:
        for line in f:
            sense, number, count = line.split()
            lemma, rest = sense.split("%", 1)
            counts[lemma.replace("_", " "), " nvara"[int(rest[0])] if rest[0] != "4" else "r", int(number)] += int(count)
    return synsets, lemmas, counts


def is_heldout(key, seed):
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELDOUT_PERCENT / 100 * 2 ** 32


def listing(items):
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def article(word):
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


def title(word):
    return '"' + word[0].upper() + word[1:] + '"'


def example_of(synset, word, used=()):
    """A short example of this sense that has the word in it, or none."""
    found = [e for e in synset.examples if word.lower() in e.lower() and e not in used]
    return min(found, key=lambda e: abs(len(e) - 30)) if found else None


def define(word, senses):
    """The answer to 'What does WORD mean?' from [(count, synset)], best first."""
    by_pos = collections.OrderedDict()
    for _, s in senses:
        by_pos.setdefault(s.pos, []).append(s)
    proper = word[0].isupper() and list(by_pos) == ["n"]
    kinds = ["a proper noun"] if proper else [article(POS_NAMES[p]) for p in by_pos]
    text = f"{title(word)} is {listing(kinds)}."
    several = len(by_pos) > 1

    def sense_text(s):
        e = example_of(s, word)
        return f'{s.definition}.' + (f' For example: "{e}".' if e else "")

    for pos, group in by_pos.items():
        lead = f"\nAs {article(POS_NAMES[pos])}, it means:" if several else " It means:"
        if len(group) == 1:
            text += lead + " " + sense_text(group[0])
        else:
            text += lead + "".join(f"\n{i}. {sense_text(s)}" for i, s in enumerate(group, 1))
    return text


def pick_senses(senses):
    """The few senses worth telling: frequent ones first, at most four."""
    senses = sorted(senses, key=lambda cs: -cs[0])  # stable: WordNet's order among equals
    top = senses[0][0]
    kept = [cs for i, cs in enumerate(senses) if i == 0 or cs[0] >= max(1, 0.08 * top) or (top <= 1 and i < 2)]
    return kept[:4]


def tasks_for(word, senses, synsets, heldout, popular):
    """All question kinds with their answers, for the senses given."""
    first = senses[0][1]
    tasks = {"define": define(word, senses)}
    low = word.lower()

    synonyms = []
    for _, s in senses[:2]:
        synonyms += [w for w in s.words if w.lower() != low]
    if first.pos == "a" and len(synonyms) < 3:
        for kind, target, _, _ in first.pointers:
            if kind == "&" and target in synsets and target not in heldout:
                synonyms += [w for w in synsets[target].words[:1] if w.lower() != low]
    synonyms = list(dict.fromkeys(synonyms))[:4]
    if synonyms:
        tasks["synonyms"] = (f'A synonym of "{word}" is: {synonyms[0]}.' if len(synonyms) == 1 else
                             f'Some synonyms of "{word}" are: {listing(synonyms)}.')

    opposites = []
    for _, s in senses:
        for kind, target, src, dst in s.pointers:
            if kind == "!" and target in synsets and src and s.words[src - 1].lower() == low:
                opposites.append(synsets[target].words[dst - 1])
    opposites = list(dict.fromkeys(opposites))[:2]
    if opposites:
        tasks["antonym"] = f'The opposite of "{word}" is ' + " or ".join(f'"{w}"' for w in opposites) + "."

    for _, s in senses:
        e = example_of(s, word)
        if e:
            tasks["example"] = f'Here is an example with "{word}": "{e}".'
            break

    for _, s in senses:
        if s.pos != "n":
            continue
        for kind, target, _, _ in s.pointers:
            if kind in ("@", "@i") and target in synsets:
                up = synsets[target].words[0]
                tasks["kind"] = (f"{title(word)} is a kind of {up}." if kind == "@" else
                                 f"{title(word)} is the name of {article(up)}.")
                break
        down = [t for k, t, _, _ in s.pointers if k == "~" and t in synsets and t not in heldout]
        down = sorted(down, key=lambda t: -popular[synsets[t].words[0].lower()])
        down = list(dict.fromkeys(synsets[t].words[0] for t in down))[:4]
        if len(down) >= 2:
            tasks["kinds"] = f'Some kinds of "{word}" are: {listing(down)}.'
        break
    return tasks


def prepare(args):
    synsets, lemmas, counts = read_wordnet(args.wordnet)
    heldout = {k for k in synsets if is_heldout(k, args.seed)}
    in_text = collections.Counter()  # how often a word is used in glosses: a second sign of a common word
    for s in synsets.values():
        in_text.update(re.findall(r"[a-z][a-z'-]+", (s.definition + " " + " ".join(s.examples)).lower()))

    total = collections.Counter()
    for lemma, by_pos in lemmas.items():
        for pos, keys in by_pos.items():
            total[lemma] += sum(counts[lemma, pos, i] for i in range(1, len(keys) + 1))
    popular = collections.Counter({w: total[w] + in_text[w] / 4 for w in lemmas})

    rows = []
    for lemma, by_pos in lemmas.items():
        senses = [(counts[lemma, pos, i], synsets[k]) for pos in "nvar" for i, k in enumerate(by_pos.get(pos, []), 1)]
        senses = [cs for cs in senses if cs[1].definition]
        known = [cs for cs in senses if cs[1].key not in heldout]
        if not known:
            continue
        known = pick_senses(known)
        word = next((w for w in known[0][1].words if w.lower() == lemma), lemma)
        plain = word.isalpha() and word.islower()
        weight = (0.6 if plain else 0.3) + math.log2(1 + popular[lemma]) * (1 if plain else 0.5)
        rows.append({"word": word, "weight": round(weight, 2), "pos": known[0][1].pos, "person": known[0][1].lexfile == 18,
                     "tasks": tasks_for(word, known, synsets, heldout, popular)})
    for key in sorted(heldout):
        s = synsets[key]
        if s.definition:
            rows.append({"word": s.words[0], "pos": s.pos, "heldout": True,
                         "tasks": {"define": define(s.words[0], [(0, s)])}})

    for path in (args.data, os.path.join(args.out, "LICENSE.wordnet")):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    shutil.copyfile(args.licence, os.path.join(args.out, "LICENSE.wordnet"))
    with gzip.GzipFile(args.data, "wb", mtime=0) as f:
        for row in rows:
            f.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    train = [r for r in rows if "heldout" not in r]
    print(f"{len(synsets)} synsets, {len(heldout)} held out; {len(train)} words, {len(rows) - len(train)} held-out "
          f"answers; expected conversations a pass: {sum(r['weight'] for r in train):.0f}; "
          f"{os.path.getsize(args.data) / 2 ** 20:.1f} MiB")
    if args.show:
        by_word = {r["word"]: r for r in train}
        for w in args.show:
            print(json.dumps(by_word.get(w), indent=1, ensure_ascii=False))


# --------------------------------------------------------------------------
# conversations: a word's record -> chat turns with changing wording
# --------------------------------------------------------------------------

QUESTIONS = {
    "define": ["What does {w} mean?"] * 5 + [
        "What is the meaning of {w}?", "What is the meaning of the word {w}?", "What's the meaning of {w}?",
        "What does the word {w} mean?", "Define {w}.", "Define {w}.", "Define the word {w}.", "Please define {w}.",
        "Explain {w}.", "Explain the word {w}.", "Can you explain the word {w}?", "Can you explain what {w} means?",
        "Tell me what {w} means.", "Can you tell me what {w} means?", "Could you tell me the meaning of {w}?",
        "Give me a definition of {w}.", "What is the definition of {w}?", "The meaning of {w}?", "{w}?",
        "I don't know the word {w}. What does it mean?", "Hello! What does {w} mean?", "Do you know what {w} means?"],
    "synonyms": [
        "Give me synonyms of {w}.", "What are synonyms of {w}?", "What is another word for {w}?",
        "What is a synonym of {w}?", "Which words mean the same as {w}?", "Tell me some synonyms for {w}.",
        "Do you know a synonym for {w}?", "List words similar to {w}."],
    "antonym": [
        "What is the opposite of {w}?", "What is an antonym of {w}?", "What's the opposite of {w}?",
        "Give me an antonym of {w}.", "Tell me the opposite of {w}.", "Which word is the opposite of {w}?"],
    "example": [
        "Use {w} in a sentence.", "Give me an example with {w}.", "Can you use {w} in a sentence?",
        "Show me how to use {w}.", "How is {w} used?", "Please use the word {w} in a sentence."],
    "kind": ["What kind of thing is {w}?", "What sort of thing is {w}?", "What type of thing is {w}?"],
    "kinds": ["What kinds of {w} are there?", "Name some kinds of {w}.", "Give me some kinds of {w}."],
}
FOLLOW_UPS = {
    "define": ["And what does it mean?", "What does it mean?", "And what does that mean?"],
    "synonyms": ["Do you know a synonym?", "What is another word for it?", "And some synonyms?"],
    "antonym": ["And the opposite?", "What is the opposite of it?", "What is its opposite?"],
    "example": ["Can you use it in a sentence?", "Can you give me an example?", "Use it in a sentence."],
    "kind": ["What kind of thing is it?"],
    "kinds": ["What kinds are there?", "Name some kinds of it."],
}
WHO = ("I am a small demonstration model with about 16 million parameters, trained on the WordNet dictionary. "
       "I can explain what English words mean.")
CAN = ("I can explain what an English word means, name synonyms and opposites, and use a word in a sentence. "
       'For example, ask me: What does "lucid" mean?')
SMALL_TALK = [
    (["Hello!", "Hi!", "Hello", "hi", "Hey!", "Good morning!", "Good evening!", "Hello there!", "hey there"],
     "Hello! I can explain English words. Which word would you like to know?"),
    (["How are you?", "How are you doing?", "Hello, how are you?", "how's it going?"],
     "I am fine, thank you. Which word would you like to know?"),
    (["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself.",
      "Are you a human?", "Are you a robot?", "What model are you?", "Hello, who are you?"], WHO),
    (["What can you do?", "How can you help me?", "What can I ask you?", "Help!", "Can you help me?", "help",
      "What do you know?", "What are you good at?"], CAN),
    (["Thank you.", "Thank you!", "Thanks!", "Thanks a lot.", "thanks", "Great, thank you!", "Thank you very much."],
     "You are welcome!"),
    (["Goodbye!", "Bye!", "See you later.", "Good night!", "bye", "Goodbye, and thank you."], "Goodbye!"),
    (["Where do your answers come from?", "What is your source?", "What were you trained on?", "Who made you?"],
     "I was trained on WordNet, a dictionary made at Princeton University. I am small, so please check my answers."),
    (["What is the weather today?", "Write a poem.", "What is 2 + 2?", "Tell me a joke.", "Write some code for me.",
      "What time is it?", "Sing a song.", "Who won the game yesterday?"],
     "I am sorry, I cannot do that. I can only explain English words."),
]


def question(row, task, rng):
    """One way to ask for this task, sometimes written carelessly."""
    word, proper = row["word"], row["word"][0].isupper()
    choices = QUESTIONS[task]
    if task == "define" and rng.random() < 0.2:
        if row.get("person") and proper:
            choices = ["Who is {w}?", "Who was {w}?", "Tell me about {w}."]
        elif row["pos"] == "n":
            choices = ["What is {w}?", "Tell me about {w}."] if proper else ["What is {aw}?", "What is {w}?", "What is {aw}?"]
        elif row["pos"] == "v":
            choices = ["What does it mean to {w}?", "What does to {w} mean?"]
    style = rng.random()
    if style < 0.2:
        word = f'"{word}"'
    elif style < 0.25:
        word = word[0].upper() + word[1:]
    text = rng.choice(choices).format(w=word, aw=article(word))
    careless = rng.random()
    if careless < 0.25:
        text = text.lower() if careless < 0.1 else text[0].lower() + text[1:]
    if rng.random() < 0.25:
        text = text.rstrip(".?!")
    return text


def conversation(row, rng):
    """Chat turns [(question, answer), ...] about one word."""
    tasks = row["tasks"]
    names = list(tasks)
    task = "define" if len(names) == 1 or rng.random() < 0.6 else rng.choice(names[1:])
    turns = [(question(row, task, rng), tasks[task])]
    if len(names) > 1 and rng.random() < 0.08:
        task = rng.choice([t for t in names if t != task])
        turns.append((rng.choice(FOLLOW_UPS[task]), tasks[task]))
    return turns


def one_pass(rows, rng):
    """Conversations for one pass over the words, each word about `weight` times."""
    talks = []
    for row in rows:
        times = int(row["weight"]) + (rng.random() < row["weight"] % 1)
        talks += [conversation(row, rng) for _ in range(times)]
    for _ in range(len(talks) // 60):
        asked, answer = rng.choice(SMALL_TALK)
        talks.append([(rng.choice(asked), answer)])
    common = [r for r in rows if r["weight"] >= 4]
    for _ in range(len(talks) // 30):  # two words in one chat
        a, b = rng.choice(common), rng.choice(common)
        second = rng.choice(["And what does {w} mean?", "And {w}?", "What about {w}?"]).format(w=b["word"])
        talks.append([(question(a, "define", rng), a["tasks"]["define"]), (second, b["tasks"]["define"])])
    rng.shuffle(talks)
    return talks


# --------------------------------------------------------------------------
# tokeniser: byte-level BPE in Qwen2's layout
# --------------------------------------------------------------------------

VOCAB = 8192
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # the last three ids
QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
               r"\s*[\r\n]+|\s+(?!\S)|\s+")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def make_tokenizer(texts, out):
    """Train the BPE and write tokenizer.json and tokenizer_config.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS), special_tokens=[], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIALS])
    assert tok.get_vocab_size() == VOCAB and tok.token_to_id(SPECIALS[-1]) == VOCAB - 1
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tok.get_vocab())

    spec = json.loads(tok.to_str())  # as Qwen publishes it: merges as strings, the optional fields spelled out
    spec["model"].update(dropout=None, unk_token=None, continuing_subword_prefix="", end_of_word_suffix="",
                         fuse_unk=False, byte_fallback=False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    spec["decoder"] = spec["post_processor"] = spec["pre_tokenizer"]["pretokenizers"][1] = byte_level
    spec["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    write_json(os.path.join(out, "tokenizer.json"), spec)
    added = {str(VOCAB - len(SPECIALS) + i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                              "single_word": False, "special": True} for i, t in enumerate(SPECIALS)}
    write_json(os.path.join(out, "tokenizer_config.json"), {
        "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": SPECIALS[1:], "bos_token": None, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 4096, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None})
    return Tokenizer.from_file(os.path.join(out, "tokenizer.json"))


class Encoder:
    """Chat turns -> (token ids, loss mask); the mask marks the assistant's tokens and <|im_end|>."""

    def __init__(self, tok):
        self.tok, self.known = tok, {}
        self.start, self.end = tok.token_to_id("<|im_start|>"), tok.token_to_id("<|im_end|>")
        ids = lambda text: tok.encode(text).ids
        self.newline = ids("\n")
        self.system = [self.start] + ids("system\n" + SYSTEM) + [self.end] + self.newline
        self.assistant = [self.start] + ids("assistant\n")

    def learn(self, talks):
        """Encode every new question and answer of these talks in one batch."""
        new = {t for turns in talks for q, a in turns for t in ("user\n" + q, a)} - self.known.keys()
        new = sorted(new)
        for text, enc in zip(new, self.tok.encode_batch_fast(new)):
            self.known[text] = enc.ids

    def __call__(self, turns):
        ids, mask = list(self.system), [0] * len(self.system)
        for q, a in turns:
            before = [self.start] + self.known["user\n" + q] + [self.end] + self.newline + self.assistant
            answer = self.known[a] + [self.end]
            ids += before + answer + self.newline
            mask += [0] * len(before) + [1] * len(answer) + [0] * len(self.newline)
        return ids, mask

    def prompt(self, text):
        return self.system + [self.start] + self.tok.encode("user\n" + text).ids + [self.end] + self.newline + self.assistant


def rows_of(docs, length, pad, pack):
    """Documents -> (ids, targets) arrays of rows; target -100 bears no loss.

    With pack, rows hold several whole documents (attention crosses them, as in
    a chat of several turns); without, one each. Too long documents are left out.
    """
    import numpy as np
    open_rows, done = [], []
    for ids, mask in docs:
        if len(ids) > length:
            continue
        row = next((r for r in open_rows if len(r[0]) + len(ids) <= length), None) if pack else None
        if row is None:
            row = ([], [])
            open_rows.append(row)
            if len(open_rows) > 6 or not pack:
                done.append(open_rows.pop(max(range(len(open_rows)), key=lambda i: len(open_rows[i][0]))
                                          if pack else 0))
        row[0].extend(ids)
        row[1].extend(mask)
    done += open_rows
    ids = np.full((len(done), length), pad, dtype=np.int16)
    targets = np.full((len(done), length), -100, dtype=np.int16)
    for i, (r, m) in enumerate(done):
        ids[i, :len(r)] = r
        t = np.where(np.array(m[1:]) == 1, r[1:], -100)
        targets[i, :len(t)] = t
    return ids, targets


# --------------------------------------------------------------------------
# train
# --------------------------------------------------------------------------

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": VOCAB - 3,
    "eos_token_id": VOCAB - 1, "hidden_act": "silu", "hidden_size": 384, "initializer_range": 0.02,
    "intermediate_size": 1024, "max_position_embeddings": 4096, "max_window_layers": 8, "model_type": "qwen2",
    "num_attention_heads": 6, "num_hidden_layers": 8, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "use_cache": True, "use_sliding_window": False, "vocab_size": VOCAB}
GENERATION = {"bos_token_id": VOCAB - 3, "do_sample": True, "eos_token_id": [VOCAB - 1, VOCAB - 3],
              "pad_token_id": VOCAB - 3, "repetition_penalty": 1.05, "temperature": 0.3, "top_k": 20, "top_p": 0.8}
SAMPLE_WORDS = ["lucid", "happy", "computer", "river", "courage", "freedom", "music", "teacher", "forgive",
                "beautiful", "quickly", "mountain"]
SAMPLE_QUESTIONS = [f"What does {w} mean?" for w in SAMPLE_WORDS] + [
    "Who are you?", "hello", "What is an elephant?", "What is the opposite of hot?", "Give me synonyms of brave.",
    "Use whisper in a sentence.", "what does ambiguous mean"]


def build_model():
    """Qwen2 in plain PyTorch with the published tensor names (so its state dict is the checkpoint)."""
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    c = CONFIG
    dim, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    hd = dim // heads

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(dim))

        def forward(self, x):
            x = x.float()
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c["rms_norm_eps"]) * self.weight

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(dim, heads * hd), nn.Linear(dim, kv * hd)
            self.v_proj, self.o_proj = nn.Linear(dim, kv * hd), nn.Linear(heads * hd, dim, bias=False)

        def forward(self, x, cos, sin):
            b, t, _ = x.shape

            def rope(y):
                half = torch.cat((-y[..., hd // 2:], y[..., :hd // 2]), -1)
                return (y * cos + half * sin).to(torch.bfloat16)
            q = rope(self.q_proj(x).view(b, t, heads, hd).transpose(1, 2))
            k = rope(self.k_proj(x).view(b, t, kv, hd).transpose(1, 2))
            v = self.v_proj(x).view(b, t, kv, hd).transpose(1, 2).to(torch.bfloat16)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return self.o_proj(y.transpose(1, 2).reshape(b, t, dim))

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            wide = c["intermediate_size"]
            self.gate_proj, self.up_proj = nn.Linear(dim, wide, bias=False), nn.Linear(dim, wide, bias=False)
            self.down_proj = nn.Linear(wide, dim, bias=False)

        def forward(self, x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_layernorm, self.self_attn = Norm(), Attention()
            self.post_attention_layernorm, self.mlp = Norm(), Mlp()

        def forward(self, x, cos, sin):
            x = x + self.self_attn(self.input_layernorm(x), cos, sin)
            return x + self.mlp(self.post_attention_layernorm(x))

    class Qwen2(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Module()
            self.model.embed_tokens = nn.Embedding(VOCAB, dim)
            self.model.layers = nn.ModuleList(Layer() for _ in range(c["num_hidden_layers"]))
            self.model.norm = Norm()
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                    nn.init.normal_(p, std=0.02 / (math.sqrt(2 * c["num_hidden_layers"]) if deep else 1))
                elif name.endswith("bias"):
                    nn.init.zeros_(p)

        def forward(self, ids, targets):
            """Summed loss and number of targets."""
            position = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)
            inv = c["rope_theta"] ** (-torch.arange(0, hd, 2, device=ids.device, dtype=torch.float32) / hd)
            angle = torch.outer(position, inv).repeat(1, 2)
            cos, sin = angle.cos(), angle.sin()
            x = self.model.embed_tokens(ids)
            for layer in self.model.layers:
                x = layer(x, cos, sin)
            logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight)
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
            return loss, (targets != -100).sum()

    return Qwen2()


def train(args):
    import torch
    began = time.time()
    say = lambda *what: print(f"[{time.time() - began:6.1f}s]", *what, flush=True)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    os.makedirs(args.out, exist_ok=True)

    with gzip.open(args.data, "rt", encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    words, heldout = [r for r in rows if "heldout" not in r], [r for r in rows if "heldout" in r]
    talks = [one_pass(words, rng) for _ in range(args.passes)]
    tok = make_tokenizer((t for turns in talks[0] for qa in turns for t in qa), args.out)
    told = {a for talk in talks for turns in talk for _, a in turns}
    drawn = sum(r["tasks"]["define"] in told for r in words) / len(words)
    say(f"{len(talks[0])} conversations a pass, {drawn:.1%} of the definitions drawn; tokeniser made")
    encode = Encoder(tok)
    encode.learn([turns for talk in talks for turns in talk])
    pad = VOCAB - 3
    ids, targets = rows_of((encode(turns) for talk in talks for turns in talk), args.length, pad, pack=True)
    say(f"{len(ids)} rows of {args.length}; filled {1 - (ids == pad).mean():.1%}; with loss {(targets >= 0).mean():.1%}")

    def asked(some):
        talk = [[(f"What does {r['word']} mean?", r["tasks"]["define"])] for r in some]
        encode.learn(talk)
        return [torch.from_numpy(x).cuda() for x in rows_of(map(encode, talk), args.length, pad, pack=False)]
    pick = random.Random(args.seed + 1)
    sets = {"heldout": asked(heldout), "train": asked(pick.sample(words, 2400)),
            "train_common": asked(pick.sample([r for r in words if r["weight"] >= 4], 2400))}

    model = build_model().cuda()
    say(f"{sum(p.numel() for p in model.parameters())} parameters")
    steps_model = torch.compile(model)
    decay = [p for p in model.parameters() if p.dim() == 2]
    other = [p for p in model.parameters() if p.dim() != 2]
    optim = torch.optim.AdamW([{"params": decay, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}],
                              lr=args.lr, betas=(0.9, 0.98), eps=1e-9, fused=True)

    def perplexity(name, limit=None):
        total, count = 0.0, 0
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            for i in range(0, limit or len(sets[name][0]), 256):
                loss, n = model(*(x[i:i + 256].long() for x in sets[name]))
                total, count = total + loss.item(), count + n.item()
        return math.exp(total / count)

    ids, targets = torch.from_numpy(ids).cuda(), torch.from_numpy(targets).cuda()
    curve, recent = [], torch.zeros(2, device="cuda")
    every, per_round, step, done = max(1, args.steps // 80), len(ids) // args.batch, 0, 0.0
    clock = None  # the time limit counts from step 20, when all is compiled
    while done < 1:
        at = step % per_round
        if at == 0:
            order = torch.randperm(len(ids), device="cuda")
        done = max((step + 1) / args.steps, (time.time() - clock) / args.max_seconds if clock else 0)
        lr = args.lr * min(1, (step + 1) / args.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, done))))
        for group in optim.param_groups:
            group["lr"] = lr
        chosen = order[at * args.batch:(at + 1) * args.batch]
        with torch.autocast("cuda", torch.bfloat16):
            loss, n = steps_model(ids[chosen].long(), targets[chosen].long())
        (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        optim.zero_grad(set_to_none=True)
        recent += torch.stack((loss.detach(), n.float()))
        step += 1
        if step == 20:
            torch.cuda.synchronize()
            say("compiled")
            clock = time.time()
        if step % every == 0 or done >= 1:
            total, count = recent.tolist()
            recent.zero_()
            curve.append({"step": step, "loss": round(total / count, 4), "lr": round(lr, 7),
                          "heldout_ppl": round(perplexity("heldout", 512), 3)})
            if clock and (len(curve) % 4 == 1 or done >= 1):
                say(curve[-1], f"{(step - 20) * args.batch * args.length / (time.time() - clock) / 1e6:.2f} Mtok/s")
    seconds = time.time() - clock
    write_json(os.path.join(args.out, "training_curve.json"), curve)

    from safetensors.torch import save_file
    state = {k: v.detach().to(torch.bfloat16).cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(state, os.path.join(args.out, "model.safetensors"), metadata={"format": "pt"})
    write_json(os.path.join(args.out, "config.json"), CONFIG)
    write_json(os.path.join(args.out, "generation_config.json"), GENERATION)
    size = os.path.getsize(os.path.join(args.out, "model.safetensors"))
    assert size <= 32 * 2 ** 20
    del model, steps_model, optim, ids, targets
    facts = {"steps": step, "tokens": step * args.batch * args.length, "seconds": round(seconds), "bytes": size,
             "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "curve": curve, "drawn": drawn}
    facts.update(judge(args.out, tok, encode, sets))
    write_card(args, facts)
    say("done")


def judge(folder, tok, encode, sets):
    """Perplexities and greedy answers of the saved bf16 weights, through Transformers."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    transformers.utils.logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda().eval()
    model.generation_config = GenerationConfig(  # greedy, whatever the folder's defaults for sampling say
        do_sample=False, max_new_tokens=160, eos_token_id=GENERATION["eos_token_id"], pad_token_id=GENERATION["pad_token_id"])
    chat = AutoTokenizer.from_pretrained(folder)
    facts = {"transformers": transformers.__version__, "ppl": {}, "samples": []}
    with torch.no_grad():
        for name, (ids, targets) in sets.items():
            total, count = 0.0, 0
            for i in range(0, len(ids), 128):
                logits = model(ids[i:i + 128].long()).logits
                t = targets[i:i + 128].long()
                total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), t.flatten(), ignore_index=-100, reduction="sum").item()
                count += (t != -100).sum().item()
            facts["ppl"][name] = round(math.exp(total / count), 3)
        print("perplexity", facts["ppl"], flush=True)
        for q in SAMPLE_QUESTIONS:
            prompt = encode.prompt(q)
            by_template = chat.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True)
            assert prompt == list(getattr(by_template, "input_ids", by_template)), "chat template and training text differ"
            ids = torch.tensor([prompt]).cuda()
            out = model.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt):].tolist()
            answer = tok.decode(out)
            facts["samples"].append((q, answer, encode.end in out))
            print(f"Q: {q}\nA: {answer}{'' if encode.end in out else ' [not ended]'}", flush=True)
    return facts


def write_card(args, facts):
    """models/demo/README.md"""
    curve = facts["curve"]
    rows = [curve[i] for i in sorted({round(i * (len(curve) - 1) / 7) for i in range(8)})]
    table = "\n".join(f"| {r['step']} | {r['loss']:.3f} | {r['lr']:.2e} | {r['heldout_ppl']:.2f} |" for r in rows)
    samples = "\n\n".join(f"**{q}**\n\n" + "\n".join("> " + line for line in a.split("\n")) for q, a, _ in facts["samples"])
    with open(os.path.join(args.out, "README.md"), "w", encoding="utf-8") as f:
        f.write(f"""# demo: a small Qwen2 model that explains English words

A real `Qwen2ForCausalLM` checkpoint of 15.7 million parameters ({facts['bytes'] / 2 ** 20:.1f} MiB in bfloat16), made
for testing and showing the engine. It has the files and the layout of a published Qwen2-Instruct model:
`config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`, `model.safetensors`.

| | |
| --- | --- |
| layers, width, MLP | 8, 384, 1024 |
| attention | 6 heads of 64, 2 key/value heads, with q/k/v biases, RoPE base 10000 |
| vocabulary | 8192, byte-level BPE with Qwen2's splitting, output head tied |
| chat format | Qwen2's ChatML; default system prompt "{SYSTEM}" |

## Data

Chats made from WordNet 3.0 (117,659 synsets): what a word means, synonyms, opposites, a sentence with it, what
kind of thing it is, some chats of two turns, and a few hand-written greetings. Words that are frequent in WordNet's
tagged texts and glosses come more often. {HELDOUT_PERCENT:.0f} % of the synsets, chosen by a hash, are held out.
WordNet's licence and copyright notice are in `LICENSE.wordnet`: WordNet 3.0 Copyright 2006 by Princeton
University. All rights reserved.

## How it was made

    apt-get install wordnet-base
    python3 tools/train_demo_model.py prepare --seed {args.seed}
    python3 tools/train_demo_model.py train --seed {args.seed} --steps {args.steps} --max-seconds {args.max_seconds:g} --passes {args.passes}

One {facts['gpu']}, PyTorch {facts['torch']}, Transformers {facts['transformers']}: {facts['steps']} steps of
{args.batch} rows of {args.length} tokens ({facts['tokens'] / 1e6:.0f} M tokens) in {facts['seconds']} s, bf16 autocast,
AdamW, cosine schedule from {args.lr:g} after {args.warmup} steps of warm-up, loss on the answers only.
`--max-seconds` ends the schedule early on a slower machine, and GPU sums are not bitwise repeatable, so a second run
gives a similar model, not the same bytes.

| step | loss | learning rate | held-out perplexity |
| ---: | ---: | ---: | ---: |
{table}

The whole curve is in `training_curve.json` (its held-out perplexity is over the first 512 held-out answers).

## Perplexity

Of the answer tokens to "What does ... mean?", with the saved bfloat16 weights:

| answers | perplexity |
| --- | ---: |
| words of the training part, 2400 common ones | {facts['ppl']['train_common']:.2f} |
| words of the training part, 2400 chosen evenly | {facts['ppl']['train']:.2f} |
| held-out synsets, all | {facts['ppl']['heldout']:.2f} |

The gap is wanted: the model is meant to know its dictionary by heart, and it cannot know a definition that it
never saw. The training repeats {args.passes} drawn passes over the words, in which common words come many times and rare
ones less than once a pass: {100 * facts['drawn']:.0f} % of the definitions were drawn (all those of common words), which is why
the second row is above the first.

## Answers (greedy)

{samples}

## Limitations

It knows single English words and little else. Rare words, names and words that are not in WordNet get answers that
read well and are wrong, and so does a question that WordNet has nothing for (say, a sentence with a word that has no
example there). It has no knowledge beyond the definitions, cannot follow other instructions, and was
trained on chats of at most {args.length} tokens. WordNet's glosses are from 2006 and may be dated or one-sided.
""")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    a = sub.add_parser("prepare", help="WordNet files -> training records")
    a.add_argument("--wordnet", default="/usr/share/wordnet", help="folder with data.noun, index.noun, ...")
    a.add_argument("--data", default=".train/words.jsonl.gz")
    a.add_argument("--licence", default="/usr/share/doc/wordnet-base/copyright")
    a.add_argument("--out", default="models/demo", help="gets LICENSE.wordnet")
    a.add_argument("--seed", type=int, default=1234, help="chooses the held-out synsets")
    a.add_argument("--show", nargs="*", help="print the records of these words")
    a.set_defaults(run=prepare)
    a = sub.add_parser("train", help="training records -> model folder")
    a.add_argument("--data", default=".train/words.jsonl.gz")
    a.add_argument("--out", default="models/demo")
    a.add_argument("--seed", type=int, default=1234)
    a.add_argument("--steps", type=int, default=10000)
    a.add_argument("--max-seconds", type=float, default=390, help="the schedule ends here even with steps left")
    a.add_argument("--batch", type=int, default=256, help="rows a step")
    a.add_argument("--length", type=int, default=256, help="tokens a row")
    a.add_argument("--passes", type=int, default=4, help="different wordings made of the data")
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--warmup", type=int, default=300)
    a.set_defaults(run=train)
    args = p.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
