"""Quoting one of several licences: real legal texts, much of whose wording recurs from one to the next.

The documents of `request.corpus` are licences; the first paragraph is the title (its first line if that is long), and a
document whose title has come before is left out. A context holds at least four, in random order, each cut after a
sentence where it would take more than a quarter; it falls short of the length by less than one heading and sentence
and what its question is shorter than the longest possible.
"""

import collections
import dataclasses
import random
import re

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
from subq_jax.tasks.sentences import python_rng

NAME = "legal_licence"
QUESTION = "\nHow does this sentence of the licence titled \"{title}\" go on?\n"
SENTENCE_END = re.compile(r"(?<=[.;:])(?=\s)|(?=\n[ \t]*\n)")
OPENING = 8  # words given to the model
SHORTEST, LONGEST = 4, 300  # a completion: words at least, characters at most
LICENCES = 4
LONGEST_TITLE = 150  # characters
ANSWER_TOKENS = 320


@dataclasses.dataclass(frozen=True)
class _Quote:
    """A sentence to ask about: the piece it is, and the piece that names its licence."""

    title: str
    opening: str
    completion: str
    place: int
    title_place: int

    def text(self) -> str:
        return QUESTION.format(title=self.title)


def _title(document: str) -> str:
    paragraph = re.split(r"\n\s*\n", document.strip(), maxsplit=1)[0]
    title = " ".join(paragraph.split())
    return title if len(title) <= LONGEST_TITLE else " ".join(paragraph.splitlines()[0].split())[:LONGEST_TITLE]


def _quotes(title: str, sentences: list[str], first: int) -> list[_Quote]:
    """The sentences of a licence that can be asked about: long enough, and alone in it with their opening."""
    split = [sentence.split() for sentence in sentences]
    openings = collections.Counter(tuple(words[:OPENING]) for words in split)
    return [_Quote(title, " ".join(words[:OPENING]), " ".join(words[OPENING:]), first + place, first - 1)
            for place, words in enumerate(split)
            if len(words) >= OPENING + SHORTEST and len(" ".join(words[OPENING:])) <= LONGEST
            and openings[tuple(words[:OPENING])] == 1]


def _pieces(documents: list[tuple[str, list[str]]], room: int, encoder: Encoder) -> tuple[list[str], list[_Quote], int]:
    """The pieces that fill `room` tokens, what can be asked of them, and how many tokens the documents lack."""
    pieces, quotes, share = [], [], room // LICENCES
    for title, document in documents:
        header, limit = f"\n\nLICENCE: {title}\n\n", min(share, room)
        left = limit - encoder.count(header)
        sentences = []
        for sentence in document:
            left -= encoder.count(sentence)
            if left < 0:
                break
            sentences.append(sentence)
        last = left < 0 and limit == room
        if sentences:
            quotes += _quotes(title, sentences, len(pieces) + 1)
            pieces += [header, *sentences]
            room -= encoder.count(header, *sentences)
        if last:
            return pieces, quotes, 0
    return pieces, quotes, room


def _chosen(rng: random.Random, quotes: list[_Quote], number: int) -> list[tuple[_Quote, tuple[str, ...]]]:
    """Quotes with their confusable completions; first those whose opening goes on otherwise in another licence."""
    alike = collections.defaultdict(dict)
    for quote in quotes:
        alike[quote.opening][quote.completion] = None
    order = rng.sample(quotes, len(quotes))
    order.sort(key=lambda quote: len(alike[quote.opening]) == 1)
    neighbours = {quote: quotes[max(0, at - 1):at + 2] for at, quote in enumerate(quotes)}
    return [(quote, tuple(dict.fromkeys(
        text for text in (*alike[quote.opening], *(near.completion for near in neighbours[quote]))
        if text != quote.completion))) for quote in order[:number]]


def _build(request: Request) -> Haystack:
    rng, encoder = python_rng(request, NAME), Encoder(request.tokenizer)
    titled = {}
    for document in request.corpus:
        if document.strip():
            titled.setdefault(_title(document), SENTENCE_END.split(document.strip()))
    documents = rng.sample(list(titled.items()), len(titled))
    longest_question = QUESTION.format(title=max(titled, key=len, default=""))
    longest_opening = max((quote.opening for title, sentences in documents for quote in _quotes(title, sentences, 0)),
                          key=len, default="")
    room = room_for_context(request, NAME, encoder, ANSWER_TOKENS, longest_question, longest_opening)
    pieces, quotes, missing = _pieces(documents, room, encoder)
    if missing:
        more = f", of one licence at most {room // LICENCES}, got {len(titled)} licences"
        raise corpus_too_small(request, NAME, missing, more)
    reserved = encoder.count(longest_question, longest_opening)
    quotes = [quote for quote in quotes if encoder.count(quote.text(), quote.opening) <= reserved]
    if not quotes:
        raise ValueError(f"{NAME} needs length > {request.length}: no sentence fits to be asked about")
    chosen = _chosen(rng, quotes, request.num_questions)

    def ask(spans):
        for quote, wrong in chosen:
            yield Question(quote.text(), quote.opening, (quote.completion,),
                           (spans[quote.place], spans[quote.title_place]), wrong)

    return assemble(request, NAME, pieces, ask, encoder, ANSWER_TOKENS)


def score(answer: str, question: Question) -> float:
    """The share of the reference's words that the answer gives before its first mistake; 1 is a verbatim quote."""
    expected, given = question.outputs[0].split(), answer.split()
    right = next((at for at, pair in enumerate(zip(expected, given, strict=False)) if pair[0] != pair[1]),
                 min(len(expected), len(given)))
    return right / len(expected)


TASKS = (Task(
    NAME, _build, score, ANSWER_TOKENS,
    "Ours. Score: the share of the completion's words given before the first mistake. Chance, the completion of "
    "another sentence: below 0.05. A model that has seen the licences in training may answer without the context."),)
