"""Generated English for fillings: templates whose slots take random words, so that no two places read the same."""

import random
import re
from collections.abc import Callable

from subq_jax.tasks.haystack import Encoder, Request
from subq_jax.tasks.words import WORDS

SENTENCES = (
    "{name} {verb} the {adjective} {noun} {time}.", "The {adjective} {noun} of {place} {adverb} {verb} a {noun}.",
    "Nobody in {place} {adverb} {verb} the {noun}.", "{name} and {name} {verb} a {adjective} {noun} near {place}.",
    "A {noun} and a {adjective} {noun} stood by the {noun} {time}.", "They {verb} the {noun} {adverb}, said {name}.",
    "The road to {place} passed a {adjective} {noun} and a {noun}.", "Every {noun} in {place} was {adjective} {time}.",
    "{name} {adverb} {verb} what the {noun} of {place} {verb}.", "It was {name} who {verb} the {noun} {time}.",
    "Some say that the {noun} {verb} the {adjective} {noun}.", "Between {place} and {place}, {name} {verb} a {noun}.",
)
SLOT, A_BEFORE_VOWEL = re.compile(r"{(\w+)}"), re.compile(r"\b([Aa]) (?=[aeiou])")


def python_rng(request: Request, task: str) -> random.Random:
    """`request.rng` as Python's generator, which is much faster where one word is drawn at a time."""
    return random.Random(int(request.rng(task).integers(2**63)))


def write(template: str, rng: random.Random, **given: str) -> str:
    """`template` with every slot replaced by what is `given` for it or by a random one of its `WORDS`."""
    text = SLOT.sub(lambda slot: given.get(slot[1]) or rng.choice(WORDS[slot[1]]), template)
    return A_BEFORE_VOWEL.sub(r"\1n ", text)


def sentence(rng: random.Random) -> str:
    """A sentence about nothing."""
    return write(rng.choice(SENTENCES), rng)


def until_full(make: Callable[[], tuple[str, ...]], room: int, encoder: Encoder) -> list[tuple[str, ...]]:
    """Groups of pieces that `make` gives, until one has no place in `room` tokens; that one is dropped."""
    groups = []
    while True:
        group = make()
        room -= max(1, encoder.count(*group))
        if room < 0:
            return groups
        groups.append(group)


def scattered(rng: random.Random, filling: list, facts: list) -> list:
    """`facts`, in their order, at random places among `filling`."""
    total = len(filling) + len(facts)
    places = set(rng.sample(range(total), len(facts)))
    filling, facts = iter(filling), iter(facts)
    return [next(facts if place in places else filling) for place in range(total)]
