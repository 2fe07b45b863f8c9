"""Records in rows: looking up, counting, and following changes. A prompt falls short of the length by less than one row
and what its question is shorter than the longest asked.
"""

import dataclasses
import random
import re
import string
from collections.abc import Callable, Iterable

from subq_jax.tasks.haystack import Encoder, Haystack, Question, Request, Task, assemble, room_for_context
from subq_jax.tasks.scores import first_values
from subq_jax.tasks.sentences import SENTENCES, python_rng, scattered, sentence, until_full, write
from subq_jax.tasks.words import WORDS, words

LAST_NAMES = tuple(first + last for first in words(
    "Ab Al Am Ar Ash Bar Bel Ber Bir Bran Bre Cal Car Cas Chan Col Cor Dal Dar Del Dor Dun Ed El Em Fal Far Fen Gal "
    "Gar Gil Glen Hal Har Hol Jar Kel Ken Kin Lan Lar Lin Mal Mar Mel Mor Nor Or Os Pal Pen Ral Ros Sal Sel Stan Tal "
    "Tor Wal Win") for last in words(
    "barr bell bert bridge burn by croft dale den don er fax field ford gate gold ham hart holm ing ison ker land "
    "ler ley low man mark mer mond more nell ner nett ney ock or over pole ran rick row sen set shaw sk son ster "
    "stow ter ton tree vale ver wall ward well wick win wood worth"))
KEY_LENGTH = 5
QUERIES = 4
MARKED, MOST_TIMES = 4, 16
LISTS, CHANGES = 4, 16
SHORTEST_LIST, LONGEST_LIST = 4, 9
MOST_WRONG = 16
ANSWER_TOKENS = 40
COUNT_OPENING = "In this text some words stand between asterisks.\n\n"
LIST_OPENING = "# A program that changes some lists of numbers.\n\n"
UNCHANGING = ("print(len({name}))", "{name}.count({number})", "{name}.copy().append({number})", "{name}.copy().clear()",
              "print({number} in {name})", "sorted({name})")


def _distinct(rng: random.Random, count: int, what: str) -> Callable[[], int]:
    """A source of distinct random numbers below `count`; raises ValueError after half of them."""
    seen = set()

    def draw() -> int:
        if 2 * len(seen) >= count:
            raise ValueError(f"{what} has no more than {count // 2}: length too large")
        while (number := rng.randrange(count)) in seen:
            pass
        seen.add(number)
        return number

    return draw


def _wrong(right: Iterable[str], answers: Iterable[str]) -> tuple[str, ...]:
    """Distinct `answers` that are not right, the first MOST_WRONG of them."""
    return tuple(dict.fromkeys(answer for answer in answers if answer not in right))[:MOST_WRONG]


@dataclasses.dataclass(frozen=True)
class _Table:
    """Rows `key value`, some of whose keys are asked about.

    Attributes:
      opening: of the context.
      rows: a source of rows with distinct keys.
      queries: keys a question.
      ask: the text of a question about keys, and how its answer begins.
      parts: of a key, by which two keys are alike.
    """

    name: str
    opening: str
    rows: Callable[[random.Random], Callable[[], str]]
    queries: int
    ask: Callable[[list[str]], tuple[str, str]]
    parts: Callable[[str], Iterable[str]]

    def build(self, request: Request) -> Haystack:
        rng, encoder = python_rng(request, self.name), Encoder(request.tokenizer)
        row = _admitted(request, self.rows(rng))
        most = max(1, request.length // (2 * self.queries * encoder.count(row())))
        groups = [[row() for _ in range(self.queries)] for _ in range(min(request.num_questions, most))]
        facts = [fact for group in groups for fact in group]
        texts = [self.ask([_key(fact) for fact in group]) for group in groups]
        longest = max(texts, key=lambda text: encoder.count(*text))
        room = room_for_context(request, self.name, encoder, ANSWER_TOKENS, self.opening, *longest, *facts)
        filling = [group[0] for group in until_full(lambda: (row(),), room, encoder)]
        rows = scattered(rng, filling, rng.sample(facts, len(facts)))
        wanted = set(facts)
        places = {fact: place for place, fact in enumerate(rows) if fact in wanted}
        alike = {part: [] for fact in facts for part in self.parts(_key(fact))}
        for other in rows:
            for part in self.parts(_key(other)):
                if part in alike:
                    alike[part].append(other)

        def ask(spans):
            for (text, answer_prefix), group in zip(texts, groups, strict=True):
                right = tuple(_value(fact) for fact in group)
                others = [other for fact in group for part in self.parts(_key(fact)) for other in alike[part]]
                others += [other for fact in group for other in rows[max(0, places[fact] - 1):places[fact] + 2]]
                evidence = tuple(spans[1 + places[fact]] for fact in group)
                yield Question(text, answer_prefix, right, evidence, _wrong(right, map(_value, others)))

        return assemble(request, self.name, [self.opening, *rows], ask, encoder, ANSWER_TOKENS)


def _admitted(request: Request, row: Callable[[], str]) -> Callable[[], str]:
    """A source of the rows whose keys the request may have."""
    def draw() -> str:
        while not request.admits(_key(found := row())):
            pass
        return found

    return draw


def _key(row: str) -> str:
    return row.rsplit(" ", 1)[0].rstrip(":")


def _value(row: str) -> str:
    return row.rsplit(" ", 1)[1].rstrip()


def _phonebook_rows(rng: random.Random) -> Callable[[], str]:
    first_names, initials = WORDS["name"], string.ascii_uppercase
    person = _distinct(rng, len(first_names) * len(initials) * len(LAST_NAMES), "phonebook")

    def row() -> str:
        number, initial = divmod(person(), len(initials))
        first, last = divmod(number, len(LAST_NAMES))
        digits = rng.randrange(8 * 10**9) + 2 * 10**9
        return (f"{first_names[first]} {initials[initial]}. {LAST_NAMES[last]}: "
                f"{digits // 10**7}-{digits // 10**4 % 1000:03}-{digits % 10**4:04}\n")

    return row


def _mqar_rows(rng: random.Random) -> Callable[[], str]:
    letters = string.ascii_lowercase
    key = _distinct(rng, len(letters)**KEY_LENGTH, "mqar")

    def row() -> str:
        number = key()
        name = "".join(letters[number // len(letters)**place % len(letters)] for place in range(KEY_LENGTH))
        return f"{name} {rng.randrange(1000, 10_000)}\n"

    return row


PHONEBOOK = _Table(
    "phonebook", "This is a phonebook.\n\n", _phonebook_rows, 1,
    lambda names: (f"\nWhat is the phone number of {names[0]}?\n", f"The number of {names[0]} is"),
    lambda name: name.rsplit(" ", 1))
MQAR = _Table(
    "mqar", "Each line gives a key and its value.\n\n", _mqar_rows, QUERIES,
    lambda keys: (f"\nWhat are the values of {', '.join(keys)}, in this order?\n", "The values are"),
    lambda key: (key[:-1], "_" + key[1:]))


def _count(request: Request) -> Haystack:
    rng, encoder = python_rng(request, "counting"), Encoder(request.tokenizer)
    marked = rng.sample(WORDS["noun"], MARKED)
    times = {word: rng.randint(1, MOST_TIMES) for word in marked}
    with_noun = [template for template in SENTENCES if "{noun}" in template]
    facts = [(word, write(rng.choice(with_noun).replace("{noun}", f"*{word}*", 1), rng) + "\n")
             for word in marked for _ in range(times[word])]
    rng.shuffle(facts)
    asked = marked[:request.num_questions]
    texts = [(f"\nHow many times does *{word}* occur? Do not count it without the asterisks.\n",
              f"The number of times *{word}* occurs is") for word in asked]
    longest = max(texts, key=lambda text: encoder.count(*text))
    sentences = [text for _, text in facts]
    room = room_for_context(request, "counting", encoder, ANSWER_TOKENS, COUNT_OPENING, *longest, *sentences)
    filling = [(None, group[0]) for group in until_full(lambda: (sentence(rng) + "\n",), room, encoder)]
    lines = scattered(rng, filling, facts)
    pieces = [COUNT_OPENING, *(text for _, text in lines)]
    context = "".join(pieces)

    def ask(spans):
        for (text, answer_prefix), word in zip(texts, asked, strict=True):
            bare = len(re.findall(rf"(?<!\*)\b{word}\b", context))
            right = (str(times[word]),)
            wrong = [times[word] + bare, times[word] - 1, times[word] + 1, *times.values()]
            evidence = tuple(span for span, (of_word, _) in zip(spans[1:], lines, strict=True) if of_word == word)
            yield Question(text, answer_prefix, right, evidence, _wrong(right, map(str, wrong)))

    return assemble(request, "counting", pieces, ask, encoder, ANSWER_TOKENS)


class _List:
    """A list with its history: the statements that made it, and every element it ever had."""

    def __init__(self, rng: random.Random, name: str):
        self.rng, self.name, self.fresh = rng, name, iter(rng.sample(range(100, 1000), SHORTEST_LIST + CHANGES + 1))
        self.elements = [next(self.fresh) for _ in range(SHORTEST_LIST + 1)]
        self.held = list(self.elements)
        self.statements = [f"{name}.extend({self.elements})\n", *(self._change() for _ in range(CHANGES))]

    def _change(self) -> str:
        changes = ["append"] * (len(self.elements) < LONGEST_LIST) + ["remove", "pop"] * (
            len(self.elements) > SHORTEST_LIST)
        change, argument = self.rng.choice(changes), ""
        if change == "append":
            argument = next(self.fresh)
            self.held.append(argument)
        elif change == "remove":
            argument = self.rng.choice(self.elements)
        getattr(self.elements, change)(*([argument] if argument else []))
        return f"{self.name}.{change}({argument})\n"


def _noise(rng: random.Random, names: list[str]) -> str:
    """A row that changes no list."""
    if rng.random() < 0.75:
        return f"# {sentence(rng)}\n"
    return rng.choice(UNCHANGING).format(name=rng.choice(names), number=rng.randrange(100, 1000)) + "\n"


def _latent_list(request: Request) -> Haystack:
    rng, encoder = python_rng(request, "latent_list"), Encoder(request.tokenizer)
    lists = {name: _List(rng, name) for name in rng.sample(WORDS["noun"], LISTS)}
    order = [name for name, made in lists.items() for _ in made.statements]
    rng.shuffle(order)
    statements = {name: iter(made.statements) for name, made in lists.items()}
    facts = [(name, next(statements[name])) for name in order]
    asked = [(name, at) for name, made in lists.items() for at in range(len(made.elements))]
    asked = rng.sample(asked, min(request.num_questions, len(asked)))
    opening = LIST_OPENING + "".join(f"{name} = []\n" for name in lists)
    texts = [(f"\nWhat does print({name}[{at}]) print at the end of this program?\n", "It prints")
             for name, at in asked]
    longest = max(texts, key=lambda text: encoder.count(*text))
    room = room_for_context(request, "latent_list", encoder, ANSWER_TOKENS, opening, *longest,
                            *(text for _, text in facts))
    filling = [(None, group[0]) for group in until_full(lambda: (_noise(rng, list(lists)),), room, encoder)]
    rows = scattered(rng, filling, facts)

    def ask(spans):
        for (text, answer_prefix), (name, at) in zip(texts, asked, strict=True):
            right = (str(lists[name].elements[at]),)
            evidence = tuple(span for span, (of_list, _) in zip(spans[1:], rows, strict=True) if of_list == name)
            wrong = _wrong(right, map(str, lists[name].elements + lists[name].held))
            yield Question(text, answer_prefix, right, evidence, wrong)

    return assemble(request, "latent_list", [opening, *(text for _, text in rows)], ask, encoder, ANSWER_TOKENS)


TASKS = (
    Task("phonebook", PHONEBOOK.build, first_values, ANSWER_TOKENS,
         "Jelassi et al. (2024), arXiv:2402.01032. Differs: generated names, no solved examples.", chance=0.0),
    Task("mqar", MQAR.build, first_values, ANSWER_TOKENS,
         "Arora et al. (2023), Zoology, arXiv:2312.04927, as text: four keys a question, at any distance from their "
         "values, where the original draws the distance from a power law. Score: the share of the values given in "
         "their places. Chance, any number of four digits for each: 1/9000.", chance=1 / 9000),
    Task("counting", _count, first_values, ANSWER_TOKENS, "Ours. Chance: 1/16.", chance=1 / MOST_TIMES),
    Task("latent_list", _latent_list, first_values, ANSWER_TOKENS,
         "Vodrahalli et al. (2024), Michelangelo, arXiv:2409.12640. Differs: several lists at once, only append, "
         "remove and pop, one element asked. Chance, an element of the final list: 1 in its length, 4 to 9.",
         chance=0.18),
)
