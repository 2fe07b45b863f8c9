"""RULER's variable tracking (Hsieh et al., 2024, arXiv:2404.06654; NVIDIA/RULER, Apache-2.0).

A number goes to a variable and from there to another, hop by hop, in statements spread through noise in this order. The
question wants all variables that hold the number. A solved example stands first. There is one such chain, or there are
several with a number each, of which one is asked about: RULER's parameter `num_chains`, 1 in its benchmark.
"""

import dataclasses
import functools
import string
from collections.abc import Sequence

import numpy as np

from subq_jax.tasks.haystack import Encoder, Haystack, Question, Request, Task, assemble, room_for_context
from subq_jax.tasks.ruler_niah import NOISE, spread
from subq_jax.tasks.scores import share_of_references

NUM_CHAINS = {"vt": 1, "vt_4": 4}
NUM_HOPS = 4  # of a chain
HEADER = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = "Question: Find all variables that are assigned the value {query} in the text above."
ANSWER_PREFIX = (" Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are "
                 "assigned the value {query}, they are: ")
ANSWER_TOKENS = 30
LETTERS, EXAMPLE_LETTERS = 5, 3  # of a variable's name
EXAMPLE_TOKENS = 500  # at most, unless the fewest noises need more


@dataclasses.dataclass(frozen=True)
class Chain:
    """The variables `names` in the order in which the number `value` reaches them."""

    names: tuple[str, ...]
    value: int

    def statements(self) -> list[str]:
        """A line for each variable."""
        first, *further = self.names
        return [f"VAR {first} = {self.value}\n",
                *(f"VAR {name} = VAR {before} \n" for before, name in zip(self.names, further, strict=False))]

    def question(self) -> tuple[str, str]:
        """The question about this chain, and the answer's prefix."""
        return QUESTION.format(query=self.value), ANSWER_PREFIX.format(query=self.value, num_v=len(self.names))


def build(name: str, request: Request) -> Haystack:
    """The haystack of variable tracking `name`."""
    rng, encoder = request.rng(name), Encoder(request.tokenizer)
    chains: list[Chain] = []
    while len(chains) < NUM_CHAINS[name]:
        chains.append(_chain(rng, LETTERS, chains))
    asked, *others = chains
    solved, example = _example(rng, encoder, chains)
    statements = [chain.statements() for chain in (*others, asked)]
    fewest = [NOISE] * sum(map(len, statements))
    room = room_for_context(request, name, encoder, ANSWER_TOKENS, *example, HEADER, *asked.question(),
                            *(line for lines in statements for line in lines), *fewest)
    body = fewest + [NOISE] * (room // encoder.count(NOISE))
    for lines in statements:
        body, places = spread(rng, body, lines)  # in the end those of the chain that is asked about
    start = [*example, HEADER]

    def ask(spans):
        yield Question(*asked.question(), asked.names, evidence=tuple(spans[len(start) + place] for place in places),
                       wrong=tuple(variable for chain in (solved, *others) for variable in chain.names))

    return assemble(request, name, [*start, *body], ask, encoder, ANSWER_TOKENS)


def _chain(rng: np.random.Generator, letters: int, before: Sequence[Chain]) -> Chain:
    """A chain with a number of its own, where no name stands in another or in one of the chains `before`."""
    taken, values = [name for chain in before for name in chain.names], [chain.value for chain in before]
    names: list[str] = []
    while len(names) <= NUM_HOPS:
        name = "".join(rng.choice(list(string.ascii_uppercase), letters))
        if not any(name in other for other in (*taken, *names)):
            names.append(name)
    while (value := int(rng.integers(10000, 99999))) in values:
        pass
    return Chain(tuple(names), value)


def _example(rng: np.random.Generator, encoder: Encoder, before: Sequence[Chain]) -> tuple[Chain, list[str]]:
    """The one chain and the pieces of a short prompt of the same kind, the answer included."""
    chain = _chain(rng, EXAMPLE_LETTERS, before)
    statements = chain.statements()
    rest = encoder.count(HEADER, *statements, *chain.question())
    num_noises = max(len(statements), (EXAMPLE_TOKENS - rest) // encoder.count(NOISE))
    body, _ = spread(rng, [NOISE] * num_noises, statements)
    return chain, [HEADER, *body, *chain.question(), f" {' '.join(chain.names)}\n\n"]


def _source(num_chains: int) -> str:
    several = f"'s generator with num_chains={num_chains}, which its benchmark leaves at 1" if num_chains > 1 else ""
    return f"RULER{several}; the example has 5 lines of noise where 500 tokens hold fewer, which RULER never finishes"


TASKS = tuple(Task(name, functools.partial(build, name), share_of_references, ANSWER_TOKENS, _source(num_chains))
              for name, num_chains in NUM_CHAINS.items())
