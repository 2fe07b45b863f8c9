"""What an implementation of selective attention is given."""

from typing import NamedTuple

import jax

from subq_jax.axes import Keys, Queries, RouterKeys, RouterQueries, Selection, Values
from subq_jax.selection.visibility import QueryPlace


class SelectiveInputs(NamedTuple):
    """The arrays of one call, checked and placed: rows of padding queries and of absent keys are zero."""

    q: Queries
    k: Keys
    v: Values
    router_q: RouterQueries
    router_k: RouterKeys
    place: QueryPlace
    present: jax.Array  # bool [B, S], which positions hold a key
    selection: Selection | None  # overrides the choice
