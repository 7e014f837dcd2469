#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Small tokenizers of every supported kind, and the results of the reference implementations for awkward texts.

Trains on text that it generates, configures each tokenizer like a published family, and writes
tests/golden/tok/: texts.json, and per kind the tokenizer and cases.json. Needs the Python packages tokenizers,
sentencepiece and tiktoken.

    gen_tokenizers.py [--random N] [--seed S] [OUT_DIR]

--random N replaces the texts by N random ones, for a wider comparison than the committed one.
"""
import argparse
import base64
import io
import json
import os
import random
import re
import struct
import tempfile

import sentencepiece
import tiktoken
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said what its about
than into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also did many off before must well back through years where much your way down should because long each
just state those people too mister little good world make very year still see work life day get here between both being
under never know same another while last might us great old against go come since right used take three water history
river album game season played team city north south east west film song series war king queen house church school
calibration quantization tensor tokenizer block vector matrix gradient weight activation""".split()
FOREIGN = """été naïve façade über straße niño garçon œuvre Ångström смысл человек время город река книга λόγος ανθρωπος
χρόνος שלום ספר مدينة كتاب नमस्ते दुनिया ไทย 日本語 東京 中国 漢字 カタカナ ひらがな 한국어 서울 tiếng Việt""".split()
PUNCT = [".", ",", ";", ":", "!", "?", "...", " - ", "(", ")", "\"", "'", "'s", "'t", "'re", "'ll", "/", "@", "#", "$", "%", "=", "=="]

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Expressions that only a general engine knows. GPT-4o's is that of gpt-oss and Llama 4, Tekken's that of Mistral Nemo.
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}" + TAIL
GPT4O = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT}|\p{{N}}{{1,3}}" + TAIL)
GPT4 = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
            r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")
# A class inside a class, which other engines read differently.
BLOOM = r" ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"


def corpus(seed, sentences=3000):
    rng = random.Random(seed)
    for _ in range(sentences):
        out = []
        for _ in range(rng.randint(3, 16)):
            word = rng.choice(FOREIGN if rng.random() < 0.12 else WORDS)
            if rng.random() < 0.15:
                word = word.capitalize()
            if rng.random() < 0.05:
                word = str(rng.randint(0, 9999))
            out.append(word + (rng.choice(PUNCT) if rng.random() < 0.2 else ""))
        yield " ".join(out) + rng.choice(["", "\n", "\n\n", "  ", "\r\n", "\t"])


def awkward_texts():
    texts = ["", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t", " \n", "\n ", " \n \n ", "\t\t x", "a", " a", "a ",
             "  a  b   c    d", "a\n\nb", "a \n b", "a\r\nb\r\n", "\n\n \n  foo!!\n\nBAR'LL  ",
             "Hello  world's 12345\n\n \n  foo!!\n\nBAR'LL  ", "Hello, world!", "hello world", " Hello", "HELLO WORLD",
             "it's we're they've I'm you'll he'd don't", "IT'S WE'RE THEY'VE I'M YOU'LL HE'D DON'T", "'s", "''s", "' s", "'", "''",
             "'S'T'RE'VE'M'LL'D", "'sx 'tx 'rex", "x's'x", "\u2019s it\u2019s", "'\u017f", "'\u017ft", "'\u212a", "l'\u00e9t\u00e9", "rock 'n' roll",
             "0", "00", "000", "0000", "1234567890", "3.14159", "1,000,000", "1 2 3", " 1 22 333 4444", "x1y22z333", "v1.2.3-rc4",
             "\u0661\u0662\u0663\u0664", "\u0967\u0968\u0969 \u0e51\u0e52", "\u00bd \u00b2 \u2160\u2161 \u2460\u2461", "\u4e00\u4e8c\u4e09", "\uff11\uff12\uff13", "12\u0663\u066445", "5\u2075\u2085",
             "\u00e9", "e\u0301", "e\u0301e\u0301", "a\u0300\u0301\u0323", "a\u0323\u0301\u0300", "\u1e69 s\u0323\u0307 s\u0307\u0323", "\u212b \u00c5 A\u030a", "\u01c6 \u01c4",
             "\ufb01 \ufb03", "\u2126 \u03a9", "\u0958 \u0915\u093c", "\uac00 \u1100\u1161 \u1100\u1161\u11a8 \uac01", "\u0344 \u0308\u0301", "\u0301", "\u0301a", " \u0301a",
             "\u0f71\u0f72\u0f74 \u0f73", "\u0340 \u0341 \u0343", "\u2000 \u2001 \u2002", "a\u0315\u0300\u05ae\u0062", "\U0001d15e \U0001d1bb",
             "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u03ba\u03cc\u03c3\u03bc\u03b5", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
             "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
             "Ti\u1ebfng Vi\u1ec7t", "\u10e5\u10d0\u10e0\u10d7\u10e3\u10da\u10d8", "\u0540\u0561\u0575\u0565\u0580\u0565\u0576", "\u12a0\u121b\u122d\u129b", "\u0ba4\u0bae\u0bbf\u0bb4\u0bcd", "\u17a2\u1780\u17d2\u179f\u179a", "\u1018\u102c\u101e\u102c", "\u0d2e\u0d32\u0d2f\u0d3e\u0d33\u0d02",
             "\u6587\u5b57 and \u0442\u0435\u043a\u0441\u0442 mixed\u6df7\u5408\u0442\u0435\u043a\u0441\u0442", "\u00bfQu\u00e9 tal?", "\u00abguillemets\u00bb \u201ecurly\u201d \u2018q\u2019", "\u2014 \u2013 - \u2212 \u00ad", "\u2026 ... . . .",
             "\U0001f600", "\U0001f600\U0001f601\U0001f602", " \U0001f600 ", "a\U0001f600b", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd\U0001f44d", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7",
             "\u2764\ufe0f\u200d\U0001f525", "#\ufe0f\u20e3 1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\u00a9 \u00ae \u2122 \u20ac \u00a3 \u00a5",
             "\u00a0", "a\u00a0b", "\u00a0\u00a0x", " \u00a0 x", "\u2003x\u2003\u2003y", "\u3000\u3042", "a\u200bb", "\u200e\u200f", "\ufeffBOM", "\u2028a\u2029b", "\u0085", "a\u0085\u0085b",
             "\u1680x", "\u180ex y", "\u202fx", "\u205f\u205fx", "\x0bx \x0c y", "\x1c\x1d\x1e\x1f", "\x00", "a\x00b", "\x01\x02 \x7f", "\ufffd", "\ufffdx\ufffd", "\ufffe\uffff", "\U0010ffff \U00010000",
             "\ue000\uf8ff", "\u0600\u06dd", "\u2062\u2063", "\u0378 \u0379", "a\u0903b \u20dd", "_under_score_", "\u203f\u2040", "snake_case camelCase PascalCase",
             "x" * 100, "ab" * 200, "the" * 50, " " * 50, "\n" * 20, " \n" * 10, "!" * 60, "=" * 33, "9" * 40, "\u00e9" * 40, "\u65e5" * 30, "\U0001f600" * 10, "e" + "\u0301" * 20,
             "a" + "\u0301\u0323" * 20, "supercalifragilisticexpialidocious" * 4, "antidisestablishmentarianism", "the the the  the   the",
             "<unk>", "<s>", "</s>", "<s>hello</s>", " <s> hello </s> ", "<s><s></s>", "< s>", "<S>", "<s", "s>", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n",
             "<|begin_of_text|>hello<|eot_id|>", "a<|endoftext|>b", "a <|endoftext|> b", "<|endoftext|><|endoftext|>", "<|endoftext", "<|im_start|>", "<|end<|endoftext|>",
             "<0x0A>", "<0x41><0x00>", "[MASK]", "a [MASK] b", "a  [MASK]  b", "[MASK][MASK]", " [MASK]\n\n[MASK] ", "x\u3000[MASK]\u3000y", "[LEFT] a", "a  [LEFT]  b", "a [RIGHT]  b", "[RIGHT]\n[LEFT]",
             "[WORD]", "a[WORD]b", "a [WORD] b", "[WORD]\u00e9", "_[WORD]", "-[WORD]-", "1[WORD]", "\u0301[WORD]", "[WORD][WORD]", "[norm\u00e9]", "[norme\u0301]", "x[norme\u0301]y", "[NORM]", "a[norm]", "[LONG]", "[LONGER]", "[LONG]ER]",
             "\u2581", "\u2581\u2581", "\u2581a", " \u2581a", "a\u2581b", "a \u2581 b", "\u0120", "\u010a\u0120", "\u0120hello", "\u00c3\u00a9", "\u0100\u0143\u00ff",
             "def f(x):\n    return x**2  # comment\n", "if (a && b) { c[i] += 1; }\n\t\treturn 0;\n", "{\"key\": [1, 2.5e-3, null]}", "https://example.org/a?b=c&d=%20#e", "user@example.org",
             "C:\\path\\to\\file", "$\\alpha + \\beta^{2}$", "<html><body>&amp;</body></html>", "a,b;c:d|e", "**bold** _it_ `code`", "- item\n- item\n  - sub", "1. one\n2. two\n",
             " = Robert Boulter = \n\n", " Robert Boulter is an English film , television and theatre actor . ", "1 @,@ 000 @.@ 5 @-@ 6", "the king 's river ( 1999 )",
             "\n\n = = History = = \n\n", "Dr. Smith's $1,234.56", "50% off!!! Buy now???", "caf\u00e9 na\u00efve r\u00e9sum\u00e9", "cafe\u0301 nai\u0308ve", "\u00dcber stra\u00dfe", "I\u0307\u0131\u0130", "\u01c5\u02b0\u02bc\u00aa\u00ba",
             "quantization of the weights and activations", "the city of the north river", "Water history", " New York City ", "people", "peoples", "unpeopled", "\nthe\nof\n", "to be or not to be\t\ttab",
             "mixed\r\nline\rends\n\r", "trailing space \r\n", "   indented\n      more\n", "\t\tthe\n\t\tof", "end.", "end.\n", "(the)", "[the]", "{the}", "\"the\"", "'the'", "the'the", "the--the", "the/the", "the\u2014the"]
    return texts


def random_texts(seed, count):
    rng = random.Random(seed)
    base = awkward_texts()
    bits = sorted({c for t in base for c in t})
    pieces = [t for t in base if 0 < len(t) < 30]
    out = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 12)):
            kind = rng.random()
            if kind < 0.4:
                parts.append(rng.choice(bits))
            elif kind < 0.6:
                parts.append(rng.choice(pieces))
            elif kind < 0.8:
                parts.append(rng.choice([" ", "  ", "\n", "'", "\u0301", "1", "a", " the", "\r"]))
            else:
                parts.append(rng.choice(WORDS + FOREIGN))
        out.append("".join(parts))
    return out


def added(first, *tokens, **flags):
    """added_tokens entries; a token is its content, or content and flags."""
    out = []
    for i, token in enumerate(tokens):
        content, own = token if isinstance(token, tuple) else (token, {})
        entry = dict(id=first + i, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        entry.update(flags)
        entry.update(own)
        out.append(entry)
    return out


def train(pre, normal, size, specials, limit=None, alphabet=()):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre
    if normal:
        t.normalizer = normal
    options = dict(limit_alphabet=limit) if limit else {}
    t.train_from_iterator(corpus(1), trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), initial_alphabet=list(alphabet), show_progress=False, **options))
    model = json.loads(t.to_str())["model"]
    return model["vocab"], model["merges"]


def byte_characters():
    """The character that stands for each byte in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def write(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def document(vocab, merges, tokens, normalizer=None, pre=None, post=None, decoder=None, old_merges=False, **model):
    body = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                fuse_unk=False, byte_fallback=False, ignore_merges=False)
    body.update(model)
    body["vocab"] = vocab
    body["merges"] = [" ".join(m) for m in merges] if old_merges else merges
    return dict(version="1.0", truncation=None, padding=None, added_tokens=tokens, normalizer=normalizer, pre_tokenizer=pre,
                post_processor=post, decoder=decoder, model=body)


def byte_level(prefix=False, regex=True):
    return dict(type="ByteLevel", add_prefix_space=prefix, trim_offsets=True, use_regex=regex)


def split(regex, behavior="Isolated", invert=False):
    return dict(type="Split", pattern=dict(Regex=regex), behavior=behavior, invert=invert)


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def template(name, token_id):
    return dict(type="TemplateProcessing",
                single=[dict(SpecialToken=dict(id=name, type_id=0)), dict(Sequence=dict(id="A", type_id=0))],
                pair=[dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=1))],
                special_tokens={name: dict(id=name, ids=[token_id], tokens=[name])})


def byte_level_kinds():
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocab, merges = train(pre, None, 1200, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], alphabet=bytes_)
    yield "gpt2", document(vocab, merges, added(0, "<|endoftext|>"), pre=byte_level(), post=byte_level(prefix=True),
                           decoder=byte_level(prefix=True), old_merges=True), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    digits = dict(type="Digits", individual_digits=True)
    yield "smollm2", document(vocab, merges, added(0, "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
                              pre=sequence("pretokenizers", digits, byte_level()), decoder=byte_level(prefix=True)), {
        "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>", "lstrip": False}}

    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    vocab, merges = train(pre, None, 1200, [], alphabet=bytes_)
    size = len(vocab)
    # ignore_merges shows where a whole word is in the vocabulary but not what the merges lead to: drop some merges.
    yield "llama3", document(vocab, [m for i, m in enumerate(merges) if i % 7 != 5],
                             added(size, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
                             pre=sequence("pretokenizers", split(LLAMA3), byte_level(regex=False)),
                             post=sequence("processors", byte_level(), template("<|begin_of_text|>", size)),
                             decoder=byte_level(), ignore_merges=True), {
        "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}

    pre = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    vocab, merges = train(pre, normalizers.NFC(), 1200, [], alphabet=bytes_)
    yield "qwen2", document(vocab, merges, added(len(vocab), "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
                            normalizer=dict(type="NFC"), pre=sequence("pretokenizers", split(QWEN2), byte_level(regex=False)),
                            post=byte_level(), decoder=byte_level(), continuing_subword_prefix="", end_of_word_suffix=""), {
        "bos_token": None, "eos_token": "<|im_end|>"}

    runs = dict(type="Digits", individual_digits=False)
    at = dict(type="Split", pattern=dict(String="the"), behavior="MergedWithPrevious", invert=False)
    yield "prefix", document(vocab, merges, added(len(vocab), ("[MASK]", dict(lstrip=True)), ("[LONG]", {}), ("[LONGER]", {})),
                             pre=sequence("pretokenizers", at, runs, byte_level(prefix=True)), decoder=byte_level()), None


def pattern_kinds():
    """Published chains of Split steps, with small vocabularies."""
    last = byte_level(regex=False)
    digits = dict(type="Digits", individual_digits=True)
    chains = dict(
        gpt4o=[split(GPT4O, "Removed", True), last], tekken=[split(TEKKEN), last], gpt4=[split(GPT4, "Removed", True), last],
        deepseek3=[split(r"\p{N}{1,3}"), split(CJK), split(DEEPSEEK), last],
        deepseek2=[split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(r"\s+$"), split(CJK), digits, last],
        viking=[split(BLOOM), digits, last],
        # Steps after ByteLevel see the characters that stand for bytes.
        falcon=[dict(type="Punctuation", behavior="Contiguous"), byte_level(), dict(type="Digits", individual_digits=False),
                split("[0-9][0-9][0-9]")])
    for name, steps in chains.items():
        pre = sequence("pretokenizers", *steps)
        bare = dict(version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None, pre_tokenizer=pre,
                    post_processor=None, decoder=None, model=dict(type="BPE", vocab={}, merges=[]))
        vocab, merges = train(Tokenizer.from_str(json.dumps(bare)).pre_tokenizer, None, 700, [],
                              alphabet=pre_tokenizers.ByteLevel.alphabet())
        yield name, document(vocab, merges, added(len(vocab), "<|endoftext|>"), pre=pre, decoder=byte_level()), {
            "bos_token": None, "eos_token": "<|endoftext|>"}


def split_cases(texts):
    """What Split makes of some texts, for each kind of pattern, each behavior, and inverted: [pre_tokenizer, pieces per text]."""
    patterns = [dict(Regex=r) for r in ("the|[0-9]", r"\s+", r"\p{L}+", "a*", r"(?<=e)|\b", "(?i)B|\u00e9", r"\s+$", QWEN2)]
    patterns += [dict(String=s) for s in (" ", "the", "a.")]
    steps = [dict(type="Punctuation", behavior=b) for b in ("Isolated", "Contiguous", "MergedWithNext")] + [
        dict(type="WhitespaceSplit"), sequence("pretokenizers", dict(type="WhitespaceSplit"), dict(
            type="Metaspace", replacement="_", prepend_scheme="first", split=True))]
    for step in steps:
        pre = Tokenizer.from_str(json.dumps(document({"a": 0}, [], [], pre=step))).pre_tokenizer
        yield [step, [[piece for piece, _ in pre.pre_tokenize_str(s)] for s in texts]]
    for pattern in patterns:
        for behavior in ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"):
            for invert in (False, True):
                step = dict(type="Split", pattern=pattern, behavior=behavior, invert=invert)
                doc = document({"a": 0}, [], [], pre=step)
                pre = Tokenizer.from_str(json.dumps(doc)).pre_tokenizer
                yield [step, [[piece for piece, _ in pre.pre_tokenize_str(s)] for s in texts]]


SPLIT_TEXTS = ["", "the the", "  a  b\n", "a.a.b", "12the3", "caf\u00e9 B\u00c9b", "it's 1,000!", "\u65e5\u672ca \u3042", " \n x \n ", "aaab", "e e", "(a, b)!? \u00abc\u00bb $1+2~\u2014\u3002 \u20ac"]


BYTES = ["<0x%02X>" % b for b in range(256)]


def spaced_kinds():
    specials = ["<unk>", "<s>", "</s>"]
    pre = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    vocab, merges = train(pre, None, 1100, specials + BYTES, limit=90)
    for k in (2, 4, 8):  # runs of spaces, as the published vocabularies have them
        vocab["\u2581" * k] = len(vocab)
        merges.append(["\u2581" * (k // 2)] * 2)
    decoder = sequence("decoders", dict(type="Replace", pattern=dict(String="\u2581"), content=" "), dict(type="ByteFallback"),
                       dict(type="Fuse"), dict(type="Strip", content=" ", start=1, stop=0))
    flags = dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    prepend = sequence("normalizers", dict(type="Prepend", prepend="\u2581"),
                       dict(type="Replace", pattern=dict(String=" "), content="\u2581"))
    yield "llama2", document(vocab, merges, added(0, *specials), normalizer=prepend, post=template("<s>", 1), decoder=decoder,
                             old_merges=True, **flags), {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    first = dict(type="Metaspace", replacement="\u2581", prepend_scheme="first", split=False)
    yield "mistral", document(vocab, merges, added(0, *specials), pre=first, post=template("<s>", 1), decoder=decoder, **flags), {
        "bos_token": "<s>", "eos_token": "</s>"}

    # Rarer flags: unknown characters one by one, some bytes only, tokens that are normalized, alone, or take white space.
    small = {k: v for k, v in vocab.items() if k not in BYTES[128:]}
    small = {k: i for i, k in enumerate(sorted(small, key=small.get))}
    tokens = added(len(small), ("[MASK]", dict(lstrip=True, rstrip=True)), ("[LEFT]", dict(lstrip=True, special=False)),
                   ("[RIGHT]", dict(rstrip=True)), ("[WORD]", dict(single_word=True, special=False)),
                   ("[norm\u00e9]", dict(normalized=True, special=False)), ("[norm]", dict(normalized=True)), "[LONG]", "[LONGER]")
    always = dict(type="Metaspace", replacement="\u2581", prepend_scheme="always", split=True)
    nfc = sequence("normalizers", dict(type="NFC"), dict(type="Replace", pattern=dict(String="NORM"), content="norm"))
    yield "flags", document(small, merges, tokens, normalizer=nfc, pre=always, decoder=always, unk_token="<unk>", byte_fallback=True), None
    yield "bare", document(small, merges, added(0, "<unk>"), pre=None, unk_token="<unk>", fuse_unk=True), None


def sentencepiece_kinds():
    common = dict(normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False, minloglevel=2,
                  character_coverage=0.995, num_threads=1)
    for name, options in (("spm", dict(model_type="bpe", vocab_size=1100, byte_fallback=True, split_digits=True,
                                       allow_whitespace_only_pieces=True)),
                          ("unigram", dict(model_type="unigram", vocab_size=600, user_defined_symbols=["[MASK]", "[LONG]"]))):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=corpus(2), model_writer=model, **common, **options)
        yield name, model.getvalue()


# A small table of normalization: ligatures, wide forms, composition, expansion, removal, and one rule that is a prefix of another.
RULES = ["\ufb01\tfi", "\ufb03\tffi", "\uff0c\t,", "\uff01\t!", "\uff11\t1", "\uff12\t2", "e\u0301\t\u00e9", "A\u030a\t\u00c5", "\u2122\tTM", "\u00bd\t1/2",
         "\u0001\t", "\u200b\t", "\u3000\t ", "\u00a0\t ", "\u2026\t...", "\u00e9\u0301\te", "\u0130\ti\u0307", "\U0001f600\t:)", "\t\t "]


def with_rules():
    """A unigram model that normalizes by RULES and joins spaces."""
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as f:
        for rule in RULES:
            source, target = rule.rsplit("\t", 1)
            f.write("\t".join(" ".join("%X" % ord(c) for c in part) for part in (source, target)) + "\n")
        f.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=corpus(2), model_writer=model, normalization_rule_tsv=f.name, minloglevel=2, num_threads=1,
            character_coverage=0.995, model_type="unigram", vocab_size=500)
    return model.getvalue()


def fields(data):
    """The fields of a protobuf message, as far as a model needs them."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        n = {1: 8, 5: 4}.get(key & 7)
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        n = varint() if n is None else n
        yield key >> 3, data[at:at + n]
        at += n


def unigram_kinds(model):
    """tokenizer.json files of a SentencePiece model: with its normalization, with bytes, and without an unknown token."""
    pieces = [dict(fields(value)) for number, value in fields(model) if number == 1]
    vocab = [[p[1].decode(), struct.unpack("<f", p.get(2, bytes(4)))[0]] for p in pieces]
    charsmap = next(dict(fields(value))[2] for number, value in fields(model) if number == 3)
    meta = dict(type="Metaspace", replacement="\u2581", prepend_scheme="always", split=True)
    first = dict(meta, prepend_scheme="first", split=False)
    rules = dict(type="Precompiled", precompiled_charsmap=base64.b64encode(charsmap).decode())
    runs = dict(type="Replace", pattern=dict(Regex=" {2,}"), content=" ")

    def unigram(vocab, normalizer, pre, decoder, unk_id=0, byte_fallback=False, post=None):
        doc = document({}, [], added(0, "<unk>", "<s>", "</s>"), normalizer=normalizer, pre=pre, decoder=decoder, post=post)
        doc["model"] = dict(type="Unigram", unk_id=unk_id, vocab=vocab, byte_fallback=byte_fallback)
        return doc

    yield "unigram_rules", unigram(vocab, sequence("normalizers", rules, dict(type="Strip", strip_left=False, strip_right=True), runs),
                                   sequence("pretokenizers", dict(type="WhitespaceSplit"), meta), meta, post=template("</s>", 2)), {
        "bos_token": "</s>", "eos_token": "</s>"}
    with_bytes = vocab[:3] + [["<0x%02X>" % b, 0.0] for b in range(256)] + vocab[3:]
    decoder = sequence("decoders", dict(type="Replace", pattern=dict(Regex="\u2581"), content=" "), dict(type="ByteFallback"),
                       dict(type="Fuse"), dict(type="Strip", content=" ", start=1, stop=0))
    yield "unigram_bytes", unigram(with_bytes, dict(type="NFKC"), first, decoder, byte_fallback=True), {"bos_token": "<s>", "eos_token": "</s>"}
    yield "unigram_forms", unigram(vocab[:3] + [[t, -len(t) / 2] for t, _ in vocab[3:]], sequence(
        "normalizers", dict(type="NFKD"), dict(type="NFD"), dict(type="Strip", strip_left=True, strip_right=False)), None, None), None


def special_names(first):
    """Llama 3's special tokens by the order in Meta's reference code."""
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    reserved = iter(range(256))
    return {"<|%s|>" % (named.get(i) or "reserved_special_token_%d" % next(reserved)): first + i for i in range(256)}


def write_ranks(out, texts):
    """A tokenizer.model of ranks, by tiktoken, and the same vocabulary's ids by a tokenizer.json with all merges."""
    with open(os.path.join(out, "llama3", "tokenizer.json"), encoding="utf-8") as f:
        vocab = json.load(f)["model"]["vocab"]
    byte_of = {c: b for b, c in zip(range(256), byte_characters())}
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in vocab.items()}
    folder = os.path.join(out, "ranks")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            f.write(base64.b64encode(token) + b" %d\n" % rank)
    first = len(ranks)
    t = tiktoken.Encoding("ranks", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special_names(first))
    ids = [[first] + t.encode(s, allowed_special="all") for s in texts]
    pairs = sorted(((vocab[k], vocab[k[:i]], vocab[k[i:]], [k[:i], k[i:]]) for k in vocab for i in range(1, len(k))
                    if k[:i] in vocab and k[i:] in vocab), key=lambda p: p[:3])
    pre = sequence("pretokenizers", split(LLAMA3), byte_level(regex=False))
    tokens = added(first, *special_names(first))
    other = Tokenizer.from_str(json.dumps(document(vocab, [p[3] for p in pairs], tokens, pre=pre, ignore_merges=True)))
    assert ids == [[first] + other.encode(s).ids for s in texts]
    write(os.path.join(folder, "cases.json"), dict(
        vocab=first + 256, bos=first, eos=first + 1, around=1, ids=ids,
        kept=[t.decode(i) for i in ids], plain=[t.decode([k for k in i if k < first]) for i in ids]))


def write_beside(out, texts, model, name, legacy, special, plain, files):
    """A tokenizer.model with added tokens: {content: id} of special and of plain ones."""
    folder = os.path.join(out, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
        f.write(model)
    for file, value in files.items():
        write(os.path.join(folder, file), value)
    tokens = {**special, **plain}
    first = sentencepiece.SentencePieceProcessor(model_proto=model)
    later = first if legacy else sentencepiece.SentencePieceProcessor(model_proto=model + b"\x1a\x02\x18\x00")
    cut = re.compile("(%s)" % "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))

    def encode(text):
        at, ids = 0, []
        for part in cut.split(text):
            ids += [tokens[part]] if part in tokens else (later if at else first).encode(part)
            at += len(part)
        return ids

    def decode(ids, keep):
        names, run, start, text = {v: k for k, v in tokens.items()}, [], 0, ""
        for i, k in enumerate([*ids, None]):
            if k is not None and k not in names:
                run.append(k)
                continue
            text += (later if start else first).decode(run) if run else ""
            text += names[k] if k is not None and (keep or k not in special.values()) else ""
            run, start = [], i + 1
        return text

    ids = [encode(s) for s in texts]
    write(os.path.join(folder, "cases.json"), dict(
        vocab=max(first.get_piece_size(), max(tokens.values()) + 1), bos=1, eos=tokens["<|im_end|>"], around=0, ids=ids,
        kept=[same(s, decode(i, True)) for s, i in zip(texts, ids)], plain=[same(s, decode(i, False)) for s, i in zip(texts, ids)]))


def beside_kinds(out, texts, model):
    """Added tokens in the spelling of older and newer files; a BOS that the model does not use."""
    start, end = "<|im_start|>", "<|im_end|>"
    config = dict(tokenizer_class="LlamaTokenizer", add_bos_token=False, model_max_length=int(1e30))
    write_beside(out, texts, model, "added", True, {start: 1101, end: 1100, "<s>": 1}, {"[LONG]": 1102, "[LONGER]": 1104}, {
        "added_tokens.json": {start: 1101, end: 1100, "[LONG]": 1102, "[LONGER]": 1104},
        "special_tokens_map.json": {"eos_token": {"content": end, "lstrip": False}, "bos_token": "<s>",
                                    "additional_special_tokens": [start]},
        "tokenizer_config.json": config})
    def entry(content, **flags):
        return dict(content=content, lstrip=False, normalized=False, rstrip=False, single_word=False, special=True) | flags
    write_beside(out, texts, model, "decoder", False, {"<unk>": 0, "<s>": 1, "</s>": 2, start: 1100, end: 1101}, {"[MASK]": 1102}, {
        "tokenizer_config.json": dict(config, legacy=False, eos_token=end, bos_token="<s>", added_tokens_decoder={
            "0": entry("<unk>"), "1": entry("<s>"), "2": entry("</s>"), "1100": entry(start), "1101": entry(end),
            "1102": entry("[MASK]", special=False)})})


def same(text, decoded):
    return None if decoded == text else decoded


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--random", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("out", nargs="?", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "tok"))
    a = p.parse_args()
    texts = random_texts(a.seed, a.random) if a.random else awkward_texts()
    assert len(texts) >= 200 or a.random
    os.makedirs(a.out, exist_ok=True)
    write(os.path.join(a.out, "texts.json"), texts)
    write(os.path.join(a.out, "splits.json"), dict(texts=SPLIT_TEXTS, cases=list(split_cases(SPLIT_TEXTS))))
    ruled = with_rules()
    for name, doc, config in [*byte_level_kinds(), *spaced_kinds(), *pattern_kinds(), *unigram_kinds(ruled)]:
        folder = os.path.join(a.out, name)
        os.makedirs(folder, exist_ok=True)
        write(os.path.join(folder, "tokenizer.json"), doc)
        if config:
            write(os.path.join(folder, "tokenizer_config.json"), config)
        t = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        ids = [t.encode(s).ids for s in texts]
        names = config or {}
        def token(key):
            v = names.get(key)
            v = v["content"] if isinstance(v, dict) else v
            return -1 if v is None else t.token_to_id(v)
        write(os.path.join(folder, "cases.json"), dict(
            vocab=max(t.get_vocab(True).values()) + 1, bos=token("bos_token"), eos=token("eos_token"),
            around=t.num_special_tokens_to_add(False), ids=ids,
            kept=[same(s, t.decode(i, skip_special_tokens=False)) for s, i in zip(texts, ids)],
            plain=[same(s, t.decode(i, skip_special_tokens=True)) for s, i in zip(texts, ids)]))
    for name, model in [*sentencepiece_kinds(), ("rules", ruled)]:
        folder = os.path.join(a.out, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
            f.write(model)
        sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        ids = [[sp.bos_id()] + sp.encode(s) for s in texts]
        write(os.path.join(folder, "cases.json"), dict(
            vocab=sp.get_piece_size(), bos=sp.bos_id(), eos=sp.eos_id(), around=1, ids=ids,
            plain=[same(s, sp.decode(i)) for s, i in zip(texts, ids)]))
        if name == "spm":
            beside_kinds(a.out, texts, model)
    write_ranks(a.out, texts)


if __name__ == "__main__":
    main()
