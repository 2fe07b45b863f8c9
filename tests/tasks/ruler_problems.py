"""Corpora, RULER's templates, and a solver that reads nothing but the prompt."""

import collections
import re

import numpy as np

from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.tasks import Request, find_task
from subq_jax.tasks.words import ADJECTIVES, NOUNS

STORY = tuple(f"Day {day} began with rain over the {noun}. Nobody in the {adjective} town minded, said the keeper!  Why"
              f"\nwould they? The {noun} had been {adjective} before"
              for day, (adjective, noun) in enumerate(zip(ADJECTIVES[::30], NOUNS[::30], strict=False)))
CODE = tuple(f'''import os

LIMIT = {i}


def {adjective}_{noun}(first, {noun}_of_{adjective}=None):
    """Put the {adjective} {noun} where it belongs.

    More words.
    """
    return [first, {noun}_of_{adjective}]


class {adjective.title()}{noun.title()}:
    """Holder number {i} of what {noun} brings."""

    def use(self):
        return {ADJECTIVES[::30][i - 1]}_{NOUNS[::30][i - 1]}(self)
''' for i, (adjective, noun) in enumerate(zip(ADJECTIVES[::30], NOUNS[::30], strict=False)) if i)

NEEDLE_TEMPLATE = (
    "{a} special magic {type_needle_v} {are} hidden within the following text. Make sure to memorize it. I will quiz "
    "you about the {type_needle_v} afterwards.\n{context}\nWhat {are_all} the special magic {type_needle_v} for "
    "{query} mentioned in the provided text? The special magic {type_needle_v} for {query} mentioned in the provided "
    "text {are}")
VT_TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find"
    " all variables that are assigned the value {query} in the text above. Answer: According to the chain(s) of "
    "variable assignment in the text above, {num_v} variables are assigned the value {query}, they are: ")
CWE_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 "
    "words that appear most often in the list are:")
FWE_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared"
    " coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text? Answer: According to the coded text above, the "
    "three most frequently appeared words are:")
QA_TEMPLATE = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other "
    "words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. "
    "Only give me the answer and do not output any other words.\n\nQuestion: {query} Answer:")
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

NEEDLES = ("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
           "niah_multivalue", "niah_multiquery")
ANSWER_TOKENS = dict.fromkeys(NEEDLES, 128) | {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
TASKS = tuple(ANSWER_TOKENS)
MANY_KEYS, GRID = "niah_noise_32", "niah_grid"  # ours
SYNTHETIC = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
ONE_MORE = {  # bytes of what was left out, at most
    "niah_single_1": 91, "niah_multikey_2": 100, "niah_multikey_3": 140, "vt": 91, "cwe": 40, "fwe": 60,
    "qa_1": 400, "qa_2": 400}
LENGTHS = (2500, 8200, 20011)
GOLDEN_LENGTHS = {"vt": 1900, "cwe": 2600, "fwe": 800, "qa_1": 1300, "qa_2": 1500, "niah_multiquery": 1000}


class Words:
    """A tokenizer of words with the space before them, and of single signs."""

    def __init__(self):
        self.ids, self.texts = {}, []

    def encode(self, text):
        for part in (parts := re.findall(r" ?\w+|\W", text)):
            if part not in self.ids:
                self.ids[part] = len(self.texts)
                self.texts.append(part)
        return np.array([self.ids[part] for part in parts], np.int32)

    def decode(self, tokens):
        return "".join(self.texts[token] for token in tokens)


BYTES = ByteTokenizer()


def make(name, length=2500, tokenizer=BYTES, **fields):
    corpus = fields.pop("corpus", CODE if name.startswith("qa") else STORY)
    return find_task(name).build(Request(length, tokenizer, corpus=corpus, **fields))


def prompt(built, question):
    return built.context + question.text + question.answer_prefix


def solve(name, text):
    """The answer, from the text of a prompt alone; and all that could be taken for a part of it."""
    if name.startswith("niah"):
        value_of = collections.defaultdict(list)
        for key, value in re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", text):
            value_of[key].append(value)
        keys = re.split(r", and |, ", re.findall(r"for ([^?]+?) mentioned in the provided text", text)[-1])
        return [value for key in keys for value in value_of[key]], [v for values in value_of.values() for v in values]
    if name == "vt":
        statements = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text)
        held = {re.findall(r"assigned the value (\d+)", text)[-1]}
        found = []
        for variable, value in statements:
            if value in held:
                held.add(variable)
                found.append(variable)
        return found, [variable for variable, _ in statements]
    if name == "cwe":
        listed = re.findall(r"\d+\. (\w+)", text[text.rindex("Below is"):])
        return [word for word, _ in collections.Counter(listed).most_common(10)], listed
    listed = re.findall(r"\b[a-z]{6}\b", text[text.index("coded words. ") + 12:text.index("\nQuestion")])
    return [word for word, _ in collections.Counter(listed).most_common(3)], listed


def as_text(name):
    """A short prompt, its references, and the texts of its evidence."""
    built = make(name, GOLDEN_LENGTHS.get(name, 900), num_questions=2)
    lines = [built.context]
    for question in built.questions:
        lines += [f"[question]{question.text}", f"[answer prefix]{question.answer_prefix}",
                  f"[outputs]{', '.join(question.outputs)}", f"[wrong]{', '.join(question.wrong)}",
                  *(f"[evidence]{BYTES.decode(built.tokens[start:end])}" for start, end in question.evidence)]
    return "\n".join(lines)
