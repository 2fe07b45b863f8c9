"""Software engineering over real repositories: search, completion across files, bodies with doctests, edits.

The repository is `Request.corpus`, documents whose first line is `# path/to/file.py` (`source_documents` reads a folder
so), or the standard library if the corpus is empty, which is also what models train on here by default: score those on
another folder. Its whole files, in random order, fill the context.

Each task has a renamed variant, `_renamed`, in which functions and classes have made-up names throughout. How much is
memory is what the same questions without the context show (`subq_jax.evaluation.controls`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from subq_jax.tasks.code.bodies import BODY, edit_similarity, is_body, passes_doctests
from subq_jax.tasks.code.completion import FAR, IDENTIFIER, NEXT_LINE, is_line, is_name
from subq_jax.tasks.code.context import Family
from subq_jax.tasks.code.edits import EDIT, share_of_sites
from subq_jax.tasks.code.repository import source_documents
from subq_jax.tasks.code.search import BY_CALL, BY_DESCRIPTION, is_found
from subq_jax.tasks.haystack import Haystack, Request, Score, Task

__all__ = ["TASKS", "source_documents"]

REPOQA = "RepoQA (Liu et al., 2024, arXiv:2406.06025)"
COMPLETION = "CrossCodeEval (Ding et al., 2023, arXiv:2310.11248), RepoBench (Liu et al., 2023, arXiv:2306.03091)"


def _variants(family: Family, score: Score, source: str, further_scores: Mapping[str, Score] | None = None,
              chance: float | None = None) -> Iterator[Task]:
    """The task of a family, renamed and not."""
    for renamed in (False, True):
        name = family.name + "_renamed" * renamed
        build = _builder(family, name, renamed)
        yield Task(name, build, score, family.answer_tokens, source, further_scores or {}, chance)


def _builder(family: Family, name: str, renamed: bool) -> Callable[[Request], Haystack]:
    return lambda request: dataclasses.replace(family.build(request, renamed), task=name)


TASKS = (
    *_variants(BY_DESCRIPTION, is_found, f"{REPOQA}, for Python. Differs: a docstring describes, files stand in any "
               "order, comments count, and any function of the context may be nearer.", chance=0.0),
    *_variants(BY_CALL, is_found, f"{REPOQA}; as code_search, but a call asks in place of a description.", chance=0.0),
    *_variants(NEXT_LINE, is_line, f"{COMPLETION}; the definition stands in the first {1 - FAR:.0%} of the context"),
    *_variants(IDENTIFIER, is_name, f"{COMPLETION}; the rest of the line is shown"),
    *_variants(BODY, passes_doctests, "ours: a function's own doctests run with the body the model writes",
               {"exact match": is_body, "edit similarity": edit_similarity}),
    *_variants(EDIT, share_of_sites, "ours: a new parameter and its argument in all calls"),
)
