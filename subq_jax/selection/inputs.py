"""What an implementation of selective attention is given."""

from typing import NamedTuple

import jax

from subq_jax.axes import Keys, Queries, RouterQueries, Selection, Values
from subq_jax.selection.tree import SummaryTree
from subq_jax.selection.visibility import QueryPlace


class SelectiveInputs(NamedTuple):
    """The arrays of one call, checked and placed.

    Rows of padding queries are zero. Absent keys and values may hold anything, and must not be read: clearing them
    would cost a pass over a cache for every token decoded. Tree nodes that cover positions beyond the keys are zero,
    except where there are `few_queries`, which must not read them either.
    """

    q: Queries
    k: Keys
    v: Values
    router_q: RouterQueries
    tree: SummaryTree  # the blocks' summaries alone when selection is flat
    place: QueryPlace
    present: jax.Array  # bool [B, S], which positions hold a key
    selection: Selection | None  # overrides the choice
