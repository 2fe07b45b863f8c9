"""RULER's common and frequent words (Hsieh et al., 2024, arXiv:2404.06654; NVIDIA/RULER, Apache-2.0).

Common words: a numbered list in which ten words stand more often than all others; a solved short list comes first.
Frequent words: coded words as often as a zeta distribution says; the first rank is noise, the next three are wanted.
"""

import bisect
import itertools
import string
from collections.abc import Iterator

import numpy as np

from subq_jax.tasks.haystack import Encoder, Haystack, Question, Request, Task, assemble, room_for_context
from subq_jax.tasks.scores import share_of_references

COMMON_HEADER = ("Below is a numbered list of words. In these words, some appear more often than others. Memorize the "
                 "ones that appear most often.\n")
COMMON_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
COMMON_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
COMMON_TOKENS = 120
NUM_COMMON = 10
# freq_cw and freq_ucw, how often common and uncommon words stand in the list; then the example's words, and its two.
FORMS = (((30, 3), (40, 10, 3)), ((6, 1), (20, 3, 1)))  # the long one, and the short one for where that does not fit
LONG_FROM = 4096  # tokens; RULER's bound, below which the form is short anyway

FREQUENT_HEADER = ("Read the following coded text and track the frequency of each coded word. Find the three most "
                   "frequently appeared coded words.")
FREQUENT_QUESTION = ("\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
                     "most frequently appeared words in the above coded text?")
FREQUENT_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
FREQUENT_TOKENS = 50
ALPHA = 2.0
ZETA = np.pi**2 / 6  # of ALPHA
CODED_LETTERS = 6
TOKENS_PER_WORD = 50  # of the vocabulary
DOTS = "..."
NUM_FREQUENT = 3
FEWEST_CODED = 53  # from here on the fourth rank always stands more often than the fifth

BATCH = 4096  # words whose numbers are encoded together

SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]
NUM_SYLLABLES = 3  # so no word is part of another, and there are a million


def build_common(request: Request) -> Haystack:
    """The haystack of common words: as many uncommon words as fit."""
    encoder = Encoder(request.tokenizer)
    for (often, seldom), (num_words, example_often, example_seldom) in FORMS[request.length < LONG_FROM:]:
        rng = request.rng("cwe")
        words = _words(rng)
        example_words = list(itertools.islice(words, num_words))
        solved = example_words[:NUM_COMMON]
        example = [COMMON_HEADER, *_numbered(rng, example_words, example_often, example_seldom)[0], COMMON_QUESTION,
                   COMMON_PREFIX, "".join(f" {i}. {word}" for i, word in enumerate(solved, 1)), "\n"]

        chosen = list(itertools.islice(words, NUM_COMMON + 1))
        least, _ = _numbered(rng, chosen, often, seldom)
        fixed = [*example, COMMON_HEADER, COMMON_QUESTION, COMMON_PREFIX, *least]
        if encoder.count(*fixed) + COMMON_TOKENS < request.length:
            break
    room = room_for_context(request, "cwe", encoder, COMMON_TOKENS, *fixed)
    last = len(least) // 2
    for number, word in enumerate(words):
        if number % BATCH == 0:
            ahead = (_number(last + i) for i in range(1, BATCH * seldom + 1))
            encoder.learn(itertools.islice(ahead, room))  # a number takes a token at least
        room -= seldom * encoder.count(" " + word)
        room -= encoder.count(*[_number(last + i) for i in range(1, seldom + 1)])
        if room < 0:
            break
        chosen.append(word)
        last += seldom
    else:
        raise ValueError(f"cwe has {len(chosen)} words, too few for length={request.length}")
    pieces, listed = _numbered(rng, chosen, often, seldom)
    start = [*example, COMMON_HEADER]

    def ask(spans):
        places = len(start) + 2 * np.flatnonzero(listed < NUM_COMMON) + 1
        yield Question(COMMON_QUESTION, COMMON_PREFIX, tuple(chosen[:NUM_COMMON]),
                       evidence=tuple(spans[place] for place in places), wrong=tuple(solved))

    return assemble(request, "cwe", [*start, *pieces], ask, encoder, COMMON_TOKENS)


def _numbered(rng: np.random.Generator, words: list[str], often: int, seldom: int) -> tuple[list[str], np.ndarray]:
    """The pieces of a numbered list, a number and a word in turn, and which word stands where."""
    counts = [often] * NUM_COMMON + [seldom] * (len(words) - NUM_COMMON)
    listed = rng.permutation(np.repeat(np.arange(len(words)), counts))
    return [piece for i, word in enumerate(listed.tolist(), 1) for piece in (_number(i), " " + words[word])], listed


def _number(i: int) -> str:
    return f" {i}." if i > 1 else "1."


def _words(rng: np.random.Generator) -> Iterator[str]:
    """All words of three syllables in random order."""
    size = len(SYLLABLES)
    for i in rng.permutation(size**NUM_SYLLABLES).tolist():
        yield "".join(SYLLABLES[i // size**place % size] for place in range(NUM_SYLLABLES))


def build_frequent(request: Request) -> Haystack:
    """The haystack of frequent words: as many as fit."""
    rng, encoder = request.rng("fwe"), Encoder(request.tokenizer)
    vocab_size = (request.length - FREQUENT_TOKENS) // TOKENS_PER_WORD
    if vocab_size <= NUM_FREQUENT:
        least = FREQUENT_TOKENS + TOKENS_PER_WORD * (NUM_FREQUENT + 1)
        raise ValueError(f"fwe needs length >= {least}, got {request.length}")
    ranks = np.arange(1, min(vocab_size, int((2 * request.length / ZETA) ** (1 / ALPHA))) + 1)
    vocabulary = _coded(rng, len(ranks))
    pieces = [" " + word for word in vocabulary]
    costs = np.array([encoder.count(piece) for piece in pieces])

    def counts(num_words):
        return (num_words * (ranks**-ALPHA) / ZETA).astype(int)

    least = [pieces[i] for i in np.repeat(ranks - 1, counts(FEWEST_CODED))]
    room = room_for_context(request, "fwe", encoder, FREQUENT_TOKENS, FREQUENT_HEADER, FREQUENT_QUESTION,
                            FREQUENT_PREFIX, *least) + encoder.count(*least)
    num_words = bisect.bisect_right(range(2 * request.length), room, key=lambda n: int(counts(n) @ costs)) - 1
    listed = rng.permutation(np.repeat(ranks - 1, counts(num_words)))

    def ask(spans):
        places = np.flatnonzero((listed > 0) & (listed <= NUM_FREQUENT)) + 1
        yield Question(FREQUENT_QUESTION, FREQUENT_PREFIX, tuple(vocabulary[1:NUM_FREQUENT + 1]),
                       evidence=tuple(spans[place] for place in places),
                       wrong=tuple(vocabulary[NUM_FREQUENT + 1:listed.max() + 1]))

    return assemble(request, "fwe", [FREQUENT_HEADER, *(pieces[i] for i in listed.tolist())], ask, encoder,
                    FREQUENT_TOKENS)


def _coded(rng: np.random.Generator, size: int) -> list[str]:
    """The dots and `size - 1` distinct words of random letters."""
    words = {DOTS: None}  # in order
    while len(words) < size:
        words["".join(rng.choice(list(string.ascii_lowercase), CODED_LETTERS))] = None
    return list(words)


TASKS = (
    Task("cwe", build_common, share_of_references, COMMON_TOKENS,
         "RULER; the words are made of three syllables, at every length, where RULER has English ones; at 4,096 "
         "tokens and more the list is RULER's short one where its long one does not fit"),
    Task("fwe", build_frequent, share_of_references, FREQUENT_TOKENS, "RULER"),
)
