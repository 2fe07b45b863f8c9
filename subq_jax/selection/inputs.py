"""What an implementation of selective attention is given."""

from typing import NamedTuple

from subq_jax.axes import Keys, PerSequence, Queries, RouterKeys, RouterQueries, Selection, Values
from subq_jax.selection.visibility import QueryPlace


class SelectiveInputs(NamedTuple):
    """The arrays of one call, checked and placed: padding rows and keys at or beyond `kv_length` are zero."""

    q: Queries
    k: Keys
    v: Values
    router_q: RouterQueries
    router_k: RouterKeys
    place: QueryPlace
    kv_length: PerSequence
    selection: Selection | None  # overrides the choice
