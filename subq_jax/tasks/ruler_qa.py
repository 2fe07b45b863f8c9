"""Questions about documents in the manner of RULER's (Hsieh et al., 2024, arXiv:2404.06654; NVIDIA/RULER, Apache-2.0).

RULER hides the documents of a question of SQuAD or HotpotQA among others. Here a document is a function or class at the
top level of a Python file of the corpus, and a question is about what it says there: in one document, or in two when
the first names the second. No document stands twice.
"""

import ast
import collections
import dataclasses
import functools
import re
import warnings
from collections.abc import Iterator

from subq_jax.tasks.haystack import Encoder, Haystack, Question, Request, Task, assemble, corpus_too_small
from subq_jax.tasks.scores import any_reference

HEADER = ("Answer the question based on the given documents. Only give me the answer and do not output any other words."
          "\n\nThe following are given documents.\n\n")
DOCUMENT = "Document {i}:\n"
QUESTION = ("Answer the question based on the given documents. Only give me the answer and do not output any other "
            "words.\n\nQuestion: {query}")
ANSWER_PREFIX = " Answer:"
ANSWER_TOKENS = 32

ONE_HOP = 'What is the name of the function or class with the description "{description}"?'
TWO_HOPS = ('The function or class with the description "{description}" calls by its bare name just one function or '
            "class that another document defines. What is the name of the last parameter of that one?")
SHORTEST, LONGEST = 4, 28  # letters of an answer: not to be met by chance, and within the answer's tokens
DESCRIPTION_WORDS = range(4, 25)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FILLED = 0.8  # of the room for documents, at least
TRIES = 20  # documents that do not fit, before a context so filled counts as full


@dataclasses.dataclass(frozen=True)
class Definition:
    """A document.

    Attributes:
      name: of the function or class.
      text: its source.
      description: the first line of its docstring, or nothing.
      inner: the descriptions of what is defined in it, such as methods.
      calls: the bare names it calls.
      last_parameter: of the function or of the class's `__init__`, or nothing.
    """

    name: str
    text: str
    description: str
    inner: tuple[str, ...]
    calls: frozenset[str]
    last_parameter: str


@dataclasses.dataclass(frozen=True)
class Fact:
    """A question, its answer, and the documents it takes to answer, the asked one first."""

    query: str
    answer: str
    documents: tuple[int, ...]


def build(name: str, request: Request) -> Haystack:
    """The haystack of the questions `name`: the documents of as many as are asked and fit, and others."""
    rng, encoder = request.rng(name), Encoder(request.tokenizer)
    definitions, facts, answers = _read(request.corpus, name)
    if not facts:
        raise ValueError(f"{name} finds no fact in the Python code of a corpus of {len(request.corpus)} documents: "
                         "give a folder of Python files as --corpus")
    asked, chosen, longest, room = [], [], 0, request.length - ANSWER_TOKENS - encoder.count(HEADER)

    def cost(documents, place):
        """Tokens of documents that follow `place` others."""
        texts = (text for i, document in enumerate(documents, place + 1)
                 for text in (DOCUMENT.format(i=i), definitions[document].text))
        return encoder.count(*texts)

    least = []
    for i in rng.permutation(len(facts)).tolist():
        new = [document for document in facts[i].documents if document not in chosen]
        prompt = max(longest, encoder.count(QUESTION.format(query=facts[i].query), ANSWER_PREFIX))
        needed = cost(new, len(chosen))
        if needed + prompt <= room:
            asked.append(facts[i])
            chosen, longest, room = chosen + new, prompt, room - needed
        elif not asked:
            least.append(request.length + needed + prompt - room)
        if len(asked) == request.num_questions:
            break
    if not asked:
        raise ValueError(f"{name} needs length >= {min(least)} with this tokenizer and corpus, got {request.length}")
    misses, taken, room = 0, set(chosen), room - longest
    most_left = (1 - FILLED) * (room + cost(chosen, 0))
    for document in rng.permutation(len(definitions)).tolist():
        if document in taken:
            continue
        needed = cost([document], len(chosen))
        if needed <= room:
            chosen.append(document)
            room -= needed
        else:
            misses += 1
        if misses >= TRIES and room <= most_left:
            break
    if room and not misses or room > most_left:
        raise corpus_too_small(request, name, room)
    order = [chosen[i] for i in rng.permutation(len(chosen))]
    pieces = [HEADER]
    for i, document in enumerate(order, 1):
        pieces += [DOCUMENT.format(i=i), definitions[document].text]
    offered = sorted({answers[document] for document in order} - {""})

    def ask(spans):
        for fact in asked:
            wrong = tuple(answer for answer in offered if answer.lower() not in fact.answer.lower())
            yield Question(QUESTION.format(query=fact.query), ANSWER_PREFIX, (fact.answer,),
                           evidence=tuple(spans[2 * order.index(document) + 2] for document in fact.documents),
                           wrong=wrong)

    return assemble(request, name, pieces, ask, encoder, ANSWER_TOKENS)


@functools.lru_cache(4)
def _read(corpus: tuple[str, ...], name: str) -> tuple[list[Definition], list[Fact], list[str]]:
    """The documents, the facts about them, and for each document what a wrong answer would take from it."""
    definitions = list({definition.text: definition for text in corpus for definition in _definitions(text)}.values())
    described = collections.Counter(
        description for definition in definitions for description in (definition.description, *definition.inner))
    asked = [i for i, definition in enumerate(definitions) if described[definition.description] == 1
             and len(definition.description.split()) in DESCRIPTION_WORDS]
    named = collections.defaultdict(list)
    for i, definition in enumerate(definitions):
        named[definition.name].append(i)
    if name == "qa_1":
        facts = [Fact(ONE_HOP.format(description=definitions[i].description), definitions[i].name, (i,)) for i in asked
                 if _answers(_letters(definitions[i].name), _letters(definitions[i].description))]
        return definitions, facts, [definition.name for definition in definitions]
    facts = []
    for i in asked:
        first = definitions[i]
        known = [name for name in first.calls if name in named and name != first.name]
        if len(known) != 1 or len(named[known[0]]) != 1:
            continue
        second = named[known[0]][0]
        if _answers(answer := definitions[second].last_parameter, first.text):
            facts.append(Fact(TWO_HOPS.format(description=first.description), answer, (i, second)))
    return definitions, facts, [definition.last_parameter for definition in definitions]


def _letters(text: str) -> str:
    """Letters and digits alone: "Parser base class" gives the name ParserBase away."""
    return re.sub(r"[\W_]", "", text)


def _answers(answer: str, elsewhere: str) -> bool:
    """Whether `answer` is neither met by chance nor given away."""
    return SHORTEST <= len(answer) <= LONGEST and answer.lower() not in elsewhere.lower()


def _definitions(text: str) -> Iterator[Definition]:
    """The functions and classes at the top level of `text`; none if it is no Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    lines = re.split(r"(?<=\n)", re.sub(r"\r\n?", "\n", text))  # as the parser counts them
    for node in tree.body:
        if not isinstance(node, DEFINITIONS):
            continue
        parts = list(ast.walk(node))
        calls = (part.func for part in parts if isinstance(part, ast.Call))
        inner = (_description(part) for part in parts if isinstance(part, DEFINITIONS) and part is not node)
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        source = "".join(lines[first - 1:node.end_lineno]).rstrip("\n")
        yield Definition(
            node.name, source + "\n\n", _description(node), inner=tuple(inner),
            calls=frozenset(function.id for function in calls if isinstance(function, ast.Name)),
            last_parameter=_last_parameter(node))


def _description(node: ast.stmt) -> str:
    return (ast.get_docstring(node) or "").strip().split("\n")[0].strip()


def _last_parameter(node: ast.stmt) -> str:
    """Nothing where a reader may name another one, or need not read: with `*args` or `**options`, or `self` alone."""
    if isinstance(node, ast.ClassDef):
        return next((_last_parameter(part) for part in node.body if getattr(part, "name", "") == "__init__"), "")
    names = [parameter.arg for parameter in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    unsure = node.args.vararg or node.args.kwarg or names == ["self"]
    return names[-1] if names and not unsure else ""


TASKS = (
    Task("qa_1", functools.partial(build, "qa_1"), any_reference, ANSWER_TOKENS,
         "RULER-style: Python definitions of the corpus instead of SQuAD, asked for by their docstrings' first line, "
         "which hints at the name; a model that has seen the code may answer without the context"),
    Task("qa_2", functools.partial(build, "qa_2"), any_reference, ANSWER_TOKENS,
         "RULER-style: Python definitions of the corpus instead of HotpotQA, asked for a parameter of what one calls"),
)
