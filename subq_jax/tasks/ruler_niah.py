"""RULER's eight needles in a haystack (Hsieh et al., 2024, arXiv:2404.06654; NVIDIA/RULER, Apache-2.0), and two more.

Sentences bind keys to values; the question names keys and wants all their values. They stand among a sentence of noise
again and again, among sentences of natural text, or among other such sentences, which makes every key a distractor.
Ours are up to 32 needles in noise, each asked about alone: many keys, and yet a haystack of any length; and one needle
in noise whose depth goes with the haystack's index, so that a map of depths and lengths has no empty cell.
"""

import dataclasses
import functools
import itertools
import re
import uuid
from collections.abc import Iterator

import numpy as np

from subq_jax.tasks.haystack import (
    Encoder,
    Haystack,
    Question,
    Request,
    Task,
    assemble,
    corpus_too_small,
    room_for_context,
)
from subq_jax.tasks.scores import share_of_references
from subq_jax.tasks.words import ADJECTIVES, NOUNS

# RULER's wording; the singular forms are for questions with one answer.
TEMPLATE = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will quiz "
    "you about the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} for {query} "
    "mentioned in the provided text?")
ANSWER_PREFIX = " The special magic {type_needle_v} for {query} mentioned in the provided text are"
SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"))
NEEDLE = ("One of the special magic {type_needle_v} for", " {key}", " is:", " {value}", ".")
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
ANSWER_TOKENS = 128

MANY_KEYS, GRID = "niah_noise_32", "niah_grid"  # ours
GRID_DEPTHS = 10  # equal parts of the context
LONGEST_SENTENCE = 60  # words; text without full stops is cut here, so that needles find places in it
LONGEST_WORD = 200  # characters; text without spaces is cut here, or the context would end where one does not fit


@dataclasses.dataclass(frozen=True)
class Kind:
    """RULER's parameters of a needle task.

    Attributes:
      haystack: "noise", "essay" or "needle".
      keys: "words" or "uuids".
      values: "numbers" or "uuids".
      num_keys: inserted, beside those of a haystack of needles.
      num_values: of each key.
      num_queries: keys in one question.
      fewer: whether there are fewer keys where they and as much noise would take more than half of the length.
      by_index: whether the needle of haystack i begins in tenth i mod 10 of the context, at a random place there.
    """

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    fewer: bool = False
    by_index: bool = False

    def wording(self) -> tuple[str, str, str]:
        """The text before the context, the question and the answer's prefix; `{query}` is still to be filled in."""
        texts, noun = [TEMPLATE, ANSWER_PREFIX], self.values
        if self.num_queries * self.num_values == 1:
            noun = noun.removesuffix("s")
            for plural, singular in SINGULAR:
                texts = [text.replace(plural, singular) for text in texts]
        template, prefix = (text.replace("{type_needle_v}", noun) for text in texts)
        header, question = template.split("{context}\n")
        return header, question, prefix

    def needle(self, key: str, value: str) -> tuple[str, ...]:
        """The parts of the sentence that binds `value` to `key`; only two of them are new, so encoding is quick."""
        return tuple(part.format(type_needle_v=self.values, key=key, value=value) for part in NEEDLE)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A key and its values."""

    key: str
    values: tuple[str, ...]


KINDS = {
    "niah_single_1": Kind("noise"),
    "niah_single_2": Kind("essay"),
    "niah_single_3": Kind("essay", values="uuids"),
    "niah_multikey_1": Kind("essay", num_keys=4),
    "niah_multikey_2": Kind("needle"),
    "niah_multikey_3": Kind("needle", keys="uuids", values="uuids"),
    "niah_multivalue": Kind("essay", num_values=4),
    "niah_multiquery": Kind("essay", num_keys=4, num_queries=4),
    MANY_KEYS: Kind("noise", num_keys=32, fewer=True),
    GRID: Kind("noise", by_index=True),
}


def build(name: str, request: Request) -> Haystack:
    """The haystack of the needle task `name`."""
    kind, rng, encoder = KINDS[name], request.rng(name), Encoder(request.tokenizer)
    fill = _among_needles if kind.haystack == "needle" else _among_text
    pieces, entries, places, groups = fill(name, kind, request, rng, encoder)

    def ask(spans):
        for group in groups:
            text, prefix = _question(kind, [entries[i] for i in group])
            yield Question(
                text, prefix, tuple(value for i in group for value in entries[i].values),
                evidence=tuple((spans[first][0], spans[last][1]) for i in group for first, last in places[i]),
                wrong=tuple(value for i, entry in enumerate(entries) if i not in group for value in entry.values))

    return assemble(request, name, pieces, ask, encoder, ANSWER_TOKENS)


def spread(rng: np.random.Generator, fillers: list[str], needles: list[str],
           before: range | None = None) -> tuple[list[str], list[int]]:
    """The needles, in their order, each before another random filler (of those `before`, or of all).

    Also returns where they are in the resulting list.
    """
    pieces = list(fillers)
    before = range(len(fillers)) if before is None else before
    places = np.sort(rng.choice(before, len(needles), replace=False)) + np.arange(len(needles))
    for needle, place in zip(needles, places, strict=True):
        pieces.insert(place, needle)
    return pieces, places.tolist()


def _among_needles(name, kind, request, rng, encoder):
    """As many needles as fit, in random order; the first drawn are asked about.

    Returns the pieces, the entries, the first and last piece of each needle of each entry, and the groups of entries
    that share a question.
    """
    header = kind.wording()[0]
    entries, longest, used = [], 0, encoder.count(header) + ANSWER_TOKENS

    def drawn():
        """The entries; half of what still fits is encoded together."""
        source = _entries(kind, request, rng)
        while batch := list(itertools.islice(source, max(1, len(entries) * (request.length - used) // (2 * used)))):
            encoder.learn(part for entry in batch for part in kind.needle(entry.key, *entry.values))
            yield from batch

    for entry in drawn():
        if len(entries) < request.num_questions:
            longest = max(longest, encoder.count(*_question(kind, [entry])))
        used += encoder.count(*kind.needle(entry.key, *entry.values), "\n")
        if used + longest > request.length:
            break
        entries.append(entry)
    else:
        raise ValueError(f"{name} has {len(entries)} keys, too few for length={request.length}")
    if len(entries) < 2:
        raise ValueError(f"{name} needs at least 2 needles where length={request.length}: with this tokenizer "
                         f"{len(entries) + 1} of them take {used + longest} tokens")
    order = rng.permutation(len(entries))
    lines = ((*kind.needle(entries[i].key, *entries[i].values), "\n") for i in order)
    pieces = [header, *itertools.chain.from_iterable(lines)]
    size = len(NEEDLE) + 1
    places = [((1 + size * line, size * (line + 1)),) for line in np.argsort(order).tolist()]
    return pieces, entries, places, [(i,) for i in range(min(request.num_questions, len(entries)))]


def _among_text(name, kind, request, rng, encoder):
    """Noise or natural text with the needles in it, each before another sentence; returns as `_among_needles`."""
    header = kind.wording()[0]
    entries = list(itertools.islice(_entries(kind, request, rng), kind.num_keys))
    if kind.fewer:
        each = max(encoder.count(*kind.needle(entry.key, *entry.values), NOISE) for entry in entries)
        entries = entries[: max(2, request.length // (2 * each))]
    shuffled = rng.permutation(len(entries)).reshape(-1, kind.num_queries).tolist()
    groups = shuffled[:request.num_questions]
    asked = max((_question(kind, [entries[i] for i in group]) for group in groups),
                key=lambda texts: encoder.count(*texts))
    needles = ["".join(kind.needle(entry.key, value)) for entry in entries for value in entry.values]
    if kind.haystack == "noise":
        needles = [needle + "\n" for needle in needles]
        least = [NOISE] * len(needles)
        room = room_for_context(request, name, encoder, ANSWER_TOKENS, header, *asked, *needles, *least)
        start, sentences = [header], least + [NOISE] * (room // encoder.count(NOISE))
    else:
        needles = [" " + needle for needle in needles]
        room = room_for_context(request, name, encoder, ANSWER_TOKENS, header, *asked, *needles, "\n")
        opening, *sentences = natural_text(request, name, rng, encoder, room, len(needles))
        start, sentences = [header, opening], [*sentences, "\n"]
    before = _places_by_index(name, request, encoder, header, needles[0], len(sentences)) if kind.by_index else None
    order = rng.permutation(len(needles))
    pieces, places = spread(rng, sentences, [needles[i] for i in order], before)
    place_of = len(start) + np.array(places)[np.argsort(order)]
    places = [[(place, place) for place in row] for row in place_of.reshape(len(entries), kind.num_values).tolist()]
    return [*start, *pieces], entries, places, groups


def _places_by_index(name: str, request: Request, encoder: Encoder, header: str, needle: str,
                     num_noises: int) -> range:
    """The noises before which a needle begins in the tenth of the context that the haystack's index wants.

    Raises:
      ValueError: where the context is so short that the header, or noise and needle, are longer than a tenth of it.
    """
    begin, noise = encoder.count(header), encoder.count(NOISE)
    total = begin + encoder.count(needle) + num_noises * noise
    if (lacking := GRID_DEPTHS * max(begin, noise + encoder.count(needle)) - total) >= 0:
        raise ValueError(f"{name} needs length > {request.length + lacking + noise} with this tokenizer, got "
                         f"{request.length}")
    depth = request.index % GRID_DEPTHS
    first, last = (max(0, -((begin * GRID_DEPTHS - edge * total) // (noise * GRID_DEPTHS)))
                   for edge in (depth, depth + 1))
    return range(first, min(last, num_noises))


def natural_text(request: Request, name: str, rng: np.random.Generator, encoder: Encoder, room: int,
                 at_least: int) -> list[str]:
    """Sentences of the corpus that fill `room` tokens, its documents in random order; the last one is cut at a word.

    Every sentence but the first begins with a space.

    Raises:
      ValueError: when the corpus is too small, or fewer than `at_least` sentences fit.
    """
    pieces = []
    for document in rng.permutation(len(request.corpus)):
        for sentence in _sentences(request.corpus[document]):
            words = [(" " if pieces else "") + sentence[0], *(" " + word for word in sentence[1:])]
            while words and encoder.count("".join(words)) > room:
                words.pop()
            if words:
                pieces.append("".join(words))
                room -= encoder.count(pieces[-1])
            if len(words) < len(sentence) or not room:
                if len(pieces) < at_least:
                    raise ValueError(f"{name} needs room for {at_least} sentences, length={request.length} has it for "
                                     f"{len(pieces)}")
                return pieces
    raise corpus_too_small(request, name, room)


def _sentences(document: str) -> Iterator[list[str]]:
    """The words of each sentence."""
    sentence = []
    for word in re.findall(rf"\S{{1,{LONGEST_WORD}}}", document):
        sentence.append(word)
        if len(sentence) == LONGEST_SENTENCE or re.search(r"[.!?][\"')\]]*$", word):
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _entries(kind: Kind, request: Request, rng: np.random.Generator) -> Iterator[Entry]:
    """Entries whose keys and values never repeat, until there are no more keys that the request may have."""
    keys = _word_keys(rng) if kind.keys == "words" else _uuids(rng)
    values = _numbers(rng) if kind.values == "numbers" else _uuids(rng)
    for key in filter(request.admits, keys):
        yield Entry(key, tuple(itertools.islice(values, kind.num_values)))


def _word_keys(rng):
    """All keys in random order. Few are wanted, mostly, so that half of them are drawn one at a time."""
    key = lambda i: f"{ADJECTIVES[i // len(NOUNS)]}-{NOUNS[i % len(NOUNS)]}"
    total, seen = len(ADJECTIVES) * len(NOUNS), set()
    while 2 * len(seen) < total:
        i = int(rng.integers(total))
        if i not in seen:
            seen.add(i)
            yield key(i)
    yield from map(key, rng.permutation([i for i in range(total) if i not in seen]).tolist())


def _numbers(rng):
    """Distinct numbers of 7 digits; there are more of them than keys."""
    seen = set()
    while True:
        number = int(rng.integers(10**6, 10**7))
        if number not in seen:
            seen.add(number)
            yield str(number)


def _uuids(rng):
    while True:
        yield str(uuid.UUID(bytes=rng.bytes(16), version=4))


def _question(kind: Kind, entries: list[Entry]) -> tuple[str, str]:
    """The question about the keys of `entries`, and the answer's prefix."""
    *most, last = (entry.key for entry in entries)
    query = f"{', '.join(most)}, and {last}" if most else last
    return tuple(text.format(query=query) for text in kind.wording()[1:])


def _source(name: str, kind: Kind) -> str:
    keys = f"; keys of {len(ADJECTIVES)} adjectives and {len(NOUNS)} nouns of our own" if kind.keys == "words" else ""
    if kind.haystack == "essay":
        return f"RULER-style: sentences of the corpus instead of essays, needles at any depth{keys}"
    ours = {MANY_KEYS: "'s sentences, up to 32 keys: ours", GRID: "'s niah_single_1 at depths by index: ours"}
    return f"RULER{ours.get(name, '')}{keys}"


TASKS = tuple(Task(name, functools.partial(build, name), share_of_references, ANSWER_TOKENS, _source(name, kind))
              for name, kind in KINDS.items())
