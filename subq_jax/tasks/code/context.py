"""How a context is made of a repository: drafts of questions first, then whole files around what they need."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import numpy as np

from subq_jax.tasks.code.renaming import renamed_documents
from subq_jax.tasks.code.repository import Lines, Repository, read_repository, source_documents
from subq_jax.tasks.haystack import Encoder, Haystack, Question, Request, Span, assemble

FILLED = 0.8  # of the room, at least
PATIENCE = 100  # drafts that do not fit beside those chosen before the search for more ends
CHARACTERS_A_TOKEN = 8  # more than any file of code has: such files are not encoded to see that they are too long


@dataclasses.dataclass(frozen=True)
class Draft:
    """A question before its context.

    Attributes:
      question: without evidence.
      evidence: lines that must be in the context.
      cuts: lines that the context's copy lacks, and what stands in their place.
      left_out: files that must not be in the context.
      check: whether the question can be asked; it may be slow, and is called only once everything else fits.
    """

    question: Question
    evidence: tuple[Lines, ...]
    cuts: tuple[tuple[Lines, str], ...] = ()
    left_out: frozenset[int] = frozenset()
    check: Callable[[], bool] = lambda: True

    def clashes_with(self, other: "Draft") -> bool:
        """Whether one of the two takes away what the other needs."""
        return any(
            evidence.file in a.left_out or any(_overlap(cut, evidence) for cut, _ in a.cuts)
            for a, b in ((self, other), (other, self)) for evidence in b.evidence)


@dataclasses.dataclass(frozen=True)
class Family:
    """How the questions of one kind are made.

    Attributes:
      name: of the task.
      draft: yields drafts in random order from (repository, rng, encoder).
      answer_tokens: of the task.
      far: the share of the context, at least, that lies between the evidence and the question.
      finish: completes a question, given the repository and the files in the context.
      lacking: what a repository without drafts lacks, for the error.
    """

    name: str
    draft: Callable[[Repository, np.random.Generator, Encoder], Iterable[Draft]]
    answer_tokens: int
    lacking: str
    far: float = 0.0
    finish: Callable[[Question, Repository, list[int]], Question] = lambda question, repository, files: question

    def build(self, request: Request, renamed: bool = False) -> Haystack:
        """A context of whole files, in random order, with up to `num_questions` questions.

        Raises:
          ValueError: when the repository has nothing to ask about, no question fits the length, or the files fill less
            than FILLED of the room for the context.
        """
        repository = repository_of(request.corpus, renamed)
        rng = request.rng(self.name)
        encoder = Encoder(request.tokenizer)
        drafts, room = self._choose(request, repository, rng, encoder)
        pieces_of = functools.partial(_pieces, repository, drafts)
        needed = {evidence.file for draft in drafts for evidence in draft.evidence}
        sizes = {file: encoder.count(*pieces_of(file).values()) for file in sorted(needed)}
        left_out = {file for draft in drafts for file in draft.left_out}
        remaining = room - sum(sizes.values())
        for file in rng.permutation(len(repository.files)).tolist():
            if file in needed or file in left_out:
                continue
            if repository.files[file].num_characters <= CHARACTERS_A_TOKEN * remaining:
                size = encoder.count(*pieces_of(file).values())
                if size <= remaining:
                    sizes[file] = size
                    remaining -= size
        missing = math.ceil(FILLED * room) - sum(sizes.values())
        if missing > 0:
            raise ValueError(
                f"{self.name} needs a repository whose whole files fill {FILLED:.0%} of the {room} tokens for the "
                f"context at length={request.length}: {missing} are missing ({len(repository.files)} files parse, "
                f"{repository.num_skipped} do not)")
        files = _order(sizes, sorted(needed), (1 - self.far) * sum(sizes.values()), rng)
        placed = [(file, first, text) for file in files for first, text in pieces_of(file).items()]

        def ask(spans: list[Span]) -> Iterable[Question]:
            for draft in drafts:
                evidence = tuple(_span(lines, placed, spans) for lines in draft.evidence)
                question = self.finish(draft.question, repository, files)
                yield dataclasses.replace(question, evidence=evidence)

        return assemble(request, self.name, (text for _, _, text in placed), ask, encoder, self.answer_tokens)

    def _choose(self, request: Request, repository: Repository, rng: np.random.Generator,
                encoder: Encoder) -> tuple[list[Draft], int]:
        """The first drafts that fit together, and the tokens there are for the context."""
        chosen, room, prompt = [], 0, 0
        smallest = math.inf
        misses = 0
        for draft in self.draft(repository, rng, encoder):
            misses += bool(chosen)
            if misses > PATIENCE:
                break
            if any(draft.clashes_with(other) for other in chosen):
                continue
            own_prompt = max(prompt, encoder.count(draft.question.text, draft.question.answer_prefix))
            own_room = request.length - self.answer_tokens - own_prompt
            share = (1 - self.far) * FILLED if self.far else 1
            together = [*chosen, draft]
            files = sorted({evidence.file for other in together for evidence in other.evidence})
            characters = sum(repository.files[file].num_characters for file in files)
            if characters > CHARACTERS_A_TOKEN * (own_room if chosen else max(own_room, smallest)):
                continue
            used = encoder.count(*(text for file in files for text in _pieces(repository, together, file).values()))
            if used <= own_room * share:
                if not draft.check():
                    continue
                chosen, room, prompt, misses = together, own_room, own_prompt, 0
                if len(chosen) == request.num_questions:
                    break
            elif not chosen:
                smallest = min(smallest, math.ceil(used / share) + own_prompt + self.answer_tokens)
        if chosen:
            return chosen, room
        if smallest is math.inf:
            alone = all(use.file == use.definition.lines.file for use in repository.uses)
            hint = "; no file imports from another: give the folder that holds the package, if this is its own" * alone
            raise ValueError(f"{self.name} needs a repository with {self.lacking}, and none of "
                             f"{len(repository.files)} files has one{hint}")
        raise ValueError(f"{self.name} needs length >= {smallest} with this tokenizer, got {request.length}")


@functools.lru_cache(4)
def repository_of(corpus: tuple[str, ...], renamed: bool) -> Repository:
    """The repository of a request: its corpus, or the standard library if that is empty."""
    documents = corpus or source_documents()
    if not renamed:
        return read_repository(documents)
    new = renamed_documents(documents)
    return dataclasses.replace(read_repository(new.documents), renaming=new.renaming)


def _overlap(a: Lines, b: Lines) -> bool:
    return a.file == b.file and a.first < b.last and b.first < a.last


def _pieces(repository: Repository, drafts: list[Draft], file: int) -> dict[int, str]:
    """First line -> text of the file's pieces: cut where evidence begins and ends, without the lines cut out."""
    cuts = {cut.first: (cut, text) for draft in drafts for cut, text in draft.cuts if cut.file == file}
    marks = [cut for cut, _ in cuts.values()]
    marks += [lines for draft in drafts for lines in draft.evidence if lines.file == file]
    bounds = sorted({0, len(repository.files[file].lines), *(end for mark in marks for end in (mark.first, mark.last))})
    pieces = {}
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        inside = [(cut, text) for cut, text in cuts.values() if cut.first <= first and last <= cut.last]
        text = repository.text(Lines(file, first, last))
        if inside:
            text = inside[0][1] if inside[0][0].first == first else ""
        if text:
            pieces[first] = text
    return pieces


def _order(sizes: dict[int, int], needed: list[int], front_size: float, rng: np.random.Generator) -> list[int]:
    """All files in random order, those needed within the first `front_size` tokens."""
    front, back = list(needed), []
    used = sum(sizes[file] for file in needed)
    for file in rng.permutation([file for file in sizes if file not in needed]).astype(int).tolist():
        if used + sizes[file] <= front_size:
            used += sizes[file]
            front.append(file)
        else:
            back.append(file)
    return [front[place] for place in rng.permutation(len(front))] + back


def _span(lines: Lines, placed: list[tuple[int, int, str]], spans: list[Span]) -> Span:
    inside = [span for (file, first, _), span in zip(placed, spans, strict=True)
              if file == lines.file and lines.first <= first < lines.last]
    return inside[0][0], inside[-1][1]
