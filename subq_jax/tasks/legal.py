"""Questions about long contracts: clauses that differ in one word, defined terms, exceptions, several agreements.

The contracts are those of `subq_jax.tasks.contracts`. A prompt falls short of the length by less than one sentence and
what its question is shorter than the longest asked.
"""

import dataclasses
import functools
from collections.abc import Callable

from subq_jax.tasks.contracts import (
    CLAUSES,
    STATES,
    Contract,
    Section,
    add_boilerplate,
    draw_contracts,
    fixed_texts,
    pieces_of,
)
from subq_jax.tasks.haystack import Encoder, Haystack, Question, Request, Task, assemble, room_for_context
from subq_jax.tasks.scores import NUMBER, first_values
from subq_jax.tasks.sentences import python_rng

MOST_WRONG = 16
ANSWER_TOKENS = 32


@dataclasses.dataclass
class _Asked:
    """A question without its places: the sections it needs, what matters most first."""

    text: str
    answer_prefix: str
    output: str
    needs: tuple[Section, ...]
    wrong: list[str]

    def question(self, spans: list[tuple[int, int]]) -> Question:
        wrong = tuple(dict.fromkeys(answer for answer in self.wrong if answer != self.output))[:MOST_WRONG]
        places = dict.fromkeys(place for section in self.needs for place in section.places)
        return Question(self.text, self.answer_prefix, (self.output,), tuple(spans[place] for place in places), wrong)


ABOUT = {  # how a clause is named
    "notice": "the notice period for terminating the {} Services for convenience",
    "cure": "the time to cure a breach before the {} Services are terminated",
    "fee": "the fee for early termination of the {} Services",
    "law": "the law that governs disputes about the termination of the {} Services",
}
UNITS = {"notice": " in days", "cure": " in days", "fee": "", "law": ""}


def _others(contracts: list[Contract], contract: Contract, fact: Section) -> list[Section]:
    """Facts to be confused with `fact`: of its kind in its contract, then of its subject in the others."""
    near = [other for other in contract.sections if other.kind == fact.kind and other is not fact]
    far = [other for each in contracts if each is not contract for other in each.sections
           if other.kind == fact.kind and other.subject == fact.subject]
    return [other for pair in zip(near, far, strict=False) for other in pair] + near[len(far):] + far[len(near):]


def _clause(contracts, contract, fact) -> _Asked:
    about = ABOUT[fact.kind].format(fact.subject)
    siblings = [other for other in contract.sections if other.subject == fact.subject and other.kind in CLAUSES]
    return _Asked(f"\nWhich section of {contract.name} sets {about}? Answer with its number.\n", "Section", fact.number,
                  (fact,), [other.number for other in siblings + _others(contracts, contract, fact)])


def _term(contracts, contract, fact) -> _Asked:
    about = ABOUT[fact.kind].format(fact.subject)
    return _Asked(f"\nBy {contract.name}, what is {about}{UNITS[fact.kind]}?\n", "It is", fact.value, (fact,),
                  [other.value for other in _others(contracts, contract, fact)])


def _definition(contracts, contract, fact) -> _Asked:
    others = _others(contracts, contract, fact) + _others(contracts, contract, fact.refers)
    return _Asked(f"\nBy {contract.name}, how much is the \"{fact.subject}\"?\n", "It is", fact.value,
                  (fact, fact.refers), [other.value for other in others])


def _exception(contracts, contract, fact) -> _Asked:
    about = ABOUT[fact.refers.kind].format(fact.subject)
    wrong = [fact.refers, *_others(contracts, contract, fact)]
    return _Asked(f"\nBy {contract.name}, what is {about} in days, {fact.detail}?\n", "It is", fact.value,
                  (fact, fact.refers), [other.value for other in wrong])


def _build(request: Request, name: str, kinds: tuple[str, ...], ask: Callable[..., _Asked]) -> Haystack:
    rng, encoder = python_rng(request, name), Encoder(request.tokenizer)
    contracts = draw_contracts(rng, request.length, encoder)
    facts = [(contract, fact) for contract in contracts for fact in contract.sections if fact.kind in kinds]
    asked = [ask(contracts, *fact) for fact in rng.sample(facts, min(request.num_questions, len(facts)))]
    longest = max(asked, key=lambda each: encoder.count(each.text))
    room = room_for_context(request, name, encoder, ANSWER_TOKENS, longest.text, longest.answer_prefix,
                            *fixed_texts(contracts))
    add_boilerplate(rng, contracts, room, encoder)
    return assemble(request, name, pieces_of(rng, contracts), lambda spans: [each.question(spans) for each in asked],
                    encoder, ANSWER_TOKENS)


def score(answer: str, question: Question) -> float:
    """1 if the first number, amount or state that the answer names is the reference."""
    return first_values(answer, question, ANSWER)


ANSWER = "|".join([*sorted(STATES, key=len, reverse=True), NUMBER])  # "West Virginia" is no "Virginia"
SOURCE = ("Ours; contracts are generated, in the manner of real ones. Score: the first number, amount or state of the "
          "answer. Chance: {}.")
KINDS = {  # name: the facts asked about, how, the chance in words, and as a number where it is one
    "legal_clause": (tuple(CLAUSES), _clause, "1 in the number of the contract's sections, at least 14; of those "
                                              "headed Termination, 1 in four times its services, at least 8",
                     None),
    "legal_term": (tuple(CLAUSES), _term, "1/90 for a period, 1/900 for a fee, 1/50 for a law; of what the contract's "
                                          "other clauses say on the same, 1 in its services, at least 2",
                   (2 / 90 + 1 / 900 + 1 / 50) / len(CLAUSES)),
    "legal_definition": (("alias",), _definition, "1/900; of what the contract defines, 1 in its services, at least 2",
                         1 / 900),
    "legal_exception": (("exception",), _exception, "1/90; of the exceptions with the same condition, 1 in 2 to 9; who "
                                                    "overlooks exceptions scores 0", 1 / 90),
}
TASKS = tuple(Task(name, functools.partial(_build, name=name, kinds=kinds, ask=ask), score, ANSWER_TOKENS,
                   SOURCE.format(words), chance=chance) for name, (kinds, ask, words, chance) in KINDS.items())
