"""RULER's variable tracking (Hsieh et al., 2024, arXiv:2404.06654; NVIDIA/RULER, Apache-2.0).

A number goes to a variable and from there to another, hop by hop, in statements spread through noise in this order. The
question wants all variables that hold the number. A solved example stands first.
"""

import string
from collections.abc import Sequence

import numpy as np

from subq_jax.tasks.haystack import Encoder, Haystack, Question, Request, Task, assemble, room_for_context
from subq_jax.tasks.ruler_niah import NOISE, spread
from subq_jax.tasks.scores import share_of_references

NAME = "vt"
NUM_HOPS = 4  # of the one chain
HEADER = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = "Question: Find all variables that are assigned the value {query} in the text above."
ANSWER_PREFIX = (" Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are "
                 "assigned the value {query}, they are: ")
ANSWER_TOKENS = 30
LETTERS, EXAMPLE_LETTERS = 5, 3  # of a variable's name
EXAMPLE_TOKENS = 500  # at most, unless the fewest noises need more


def build(request: Request) -> Haystack:
    """The haystack of variable tracking."""
    rng, encoder = request.rng(NAME), Encoder(request.tokenizer)
    names, statements, question, prefix = _chain(rng, LETTERS)
    solved, example = _example(rng, encoder, names)
    fewest = [NOISE] * len(statements)
    room = room_for_context(request, NAME, encoder, ANSWER_TOKENS, *example, HEADER, question, prefix, *statements,
                            *fewest)
    body, places = spread(rng, fewest + [NOISE] * (room // encoder.count(NOISE)), statements)
    start = [*example, HEADER]

    def ask(spans):
        yield Question(question, prefix, tuple(names), evidence=tuple(spans[len(start) + place] for place in places),
                       wrong=tuple(solved))

    return assemble(request, NAME, [*start, *body], ask, encoder, ANSWER_TOKENS)


def _chain(rng: np.random.Generator, letters: int, taken: Sequence[str] = ()) -> tuple[list[str], list[str], str, str]:
    """Names of variables, the statements that assign one number to all, and the question and the answer's prefix.

    No name stands in another or in one of `taken`.
    """
    names: list[str] = []
    while len(names) <= NUM_HOPS:
        name = "".join(rng.choice(list(string.ascii_uppercase), letters))
        if not any(name in other for other in (*taken, *names)):
            names.append(name)
    value = int(rng.integers(10000, 99999))
    statements = [f"VAR {names[0]} = {value}\n"]
    statements += [f"VAR {name} = VAR {before} \n" for before, name in zip(names, names[1:], strict=False)]
    return names, statements, QUESTION.format(query=value), ANSWER_PREFIX.format(query=value, num_v=len(names))


def _example(rng: np.random.Generator, encoder: Encoder, taken: list[str]) -> tuple[list[str], list[str]]:
    """The answer and the pieces of a short prompt of the same kind, the answer included."""
    names, statements, question, prefix = _chain(rng, EXAMPLE_LETTERS, taken)
    rest = encoder.count(HEADER, *statements, question, prefix)
    num_noises = max(len(statements), (EXAMPLE_TOKENS - rest) // encoder.count(NOISE))
    body, _ = spread(rng, [NOISE] * num_noises, statements)
    return names, [HEADER, *body, question, prefix, f" {' '.join(names)}\n\n"]


TASKS = (Task(NAME, build, share_of_references, ANSWER_TOKENS,
              "RULER; the example has 5 lines of noise where 500 tokens hold fewer, which RULER never finishes"),)
