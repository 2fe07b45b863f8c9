"""A context read once, in chunks, and then continued in as many ways as there are questions about it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from subq_jax.axes import Logits, Selection
from subq_jax.checks import check_integer
from subq_jax.inference.generate import split_for_decoding
from subq_jax.model.attention_modules import ChosenBlocks
from subq_jax.model.decoder import Decoder

CHUNK = 2048  # tokens of one prefill step: memory beside the caches follows it, not the context
SHRINK = 16  # from one size of pieces to the next: a smaller factor saves steps and compiles more programs
SMALL_CACHES = (1280, 10_240)  # tokens; caches of any size up to these would cost more to compile than they save


class Read(NamedTuple):
    """What is left of a context after reading: the caches and the logits [V] of what comes next, None at the start."""

    cache: nnx.State
    next_logits: Logits | None
    length: int  # tokens read
    capacity: int


class Said(NamedTuple):
    """A continuation: its tokens int32 [A] and the log-probability float32 [A] that the model gave to each, in nats."""

    tokens: np.ndarray
    log_probs: np.ndarray


class Reader:
    """Reads and continues one sequence at a time with a model's own caches; the model itself is left as it was.

    What compiles depends on the sizes of pieces and caches, and both are few: tokens go through in pieces of `chunk`, a
    sixteenth of it and so on down to 1, and caches have room for `cache_size` of what was asked for. No result
    depends on either, but by rounding.

    Args:
      model: the decoder.
      chunk: tokens of the largest piece, a power of two.

    Raises:
      ValueError: for a chunk that is none.
    """

    def __init__(self, model: Decoder, chunk: int = CHUNK):
        check_integer("chunk", chunk)
        if chunk & (chunk - 1):
            raise ValueError(f"chunk must be a power of two, got {chunk}")
        self._model, self._chunk = model, chunk
        self._weights = None

    def read(self, context: np.ndarray, capacity: int) -> Read:
        """Reads int [S] into caches of `capacity` tokens: the context's and those of the longest continuation.

        Raises:
          ValueError: for an empty context, ids beyond the vocabulary, or a capacity that is too small.
        """
        check_integer("capacity", capacity)
        self._graph, cache, self._weights = split_for_decoding(self._model, 1, cache_size(capacity))
        sharding = jax.tree.leaves(self._weights)[0].sharding
        if isinstance(sharding, jax.sharding.NamedSharding):
            sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        cache = jax.device_put(cache, sharding)  # as every step returns it: or the first piece would compile apart
        return self._extend(Read(cache, None, 0, capacity), context)[0]

    def greedy(self, read: Read, prompt: np.ndarray, num_tokens: int, end: int | None = None) -> Said:
        """The model's own continuation of the context and then prompt [T]; `read` stays as it is.

        It is `num_tokens` long, or shorter: the token `end` is its last.

        Raises:
          ValueError: where the caches have no room for it.
        """
        check_integer("num_tokens", num_tokens)
        self._check_room(read, len(prompt) + num_tokens)
        read = _branch(read)
        if len(prompt):
            # With any `following`: the programs that `log_probabilities` has compiled serve here too.
            read = self._extend(read, prompt, following=prompt)[0]
        _, *said = _continue(self._graph, num_tokens, read.cache, self._weights, read.next_logits,
                             jnp.int32(-1 if end is None else end))
        tokens, log_probs, count = (np.asarray(x) for x in said)
        return Said(tokens[:count], log_probs[:count])

    def chosen(self, read: Read, prompt: np.ndarray, said: np.ndarray) -> list[Selection]:
        """What the queries chose that predict the tokens of `said` [A] after the context and prompt [T], T >= 1.

        Those queries stand at the prompt's last token and at every token of `said` but the last. `read` stays as it is.

        Returns:
          int32 [1, A, K, M] of each layer that chooses, from the first: blocks (`learned_router`: tokens), then -1;
          nothing for a model that does not choose.

        Raises:
          ValueError: for an empty prompt or answer, or where the caches have no room for them.
        """
        if not len(prompt) or not len(said):
            raise ValueError(f"prompt and said must hold a token each, got {len(prompt)} and {len(said)}")
        self._check_room(read, len(prompt) + len(said) - 1)
        read = _branch(read)
        if len(prompt) > 1:
            read = self._extend(read, prompt[:-1], following=prompt[1:])[0]
        parts, cache = [], read.cache
        queries = self._checked(read, np.concatenate([prompt[-1:], said[:-1]]))
        for start, size in pieces(len(queries), self._chunk):
            cache, found = _choose(self._graph, cache, self._weights, jnp.asarray(queries[None, start : start + size]))
            parts.append(found)
        return [np.concatenate(layer, axis=1) for layer in zip(*parts, strict=True)]

    def agreement(self, read: Read, prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
        """Whether each token of answer [A] is the argmax after the context, prompt [T] and the answer before it.

        All true is when greedy decoding gives the answer: scored in one pass, without decoding. `read` stays as it is.

        Raises:
          ValueError: for an empty answer, or where the caches have no room for it.
        """
        return self.log_probabilities(read, prompt, answer)[1]

    def log_probabilities(self, read: Read, prompt: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How likely answer [A] is after the context and prompt [T], in one pass; `read` stays as it is.

        Returns:
          the natural logarithm of the probability of each of its tokens, given those before it, float32 [A]; and
          `agreement`, bool [A].

        Raises:
          ValueError: for an empty answer, ids beyond the vocabulary, or where the caches have no room for it.
        """
        if not len(answer):
            raise ValueError("answer must hold a token")
        tokens = self._known(np.concatenate([prompt, answer]).astype(np.int32))
        best, likely = (np.asarray(x) for x in _compare(read.next_logits[None], tokens[:1]))
        if len(tokens) > 1:
            self._check_room(read, len(tokens) - 1)
            _, later_best, later_likely = self._extend(_branch(read), tokens[:-1], following=tokens[1:])
            best, likely = np.concatenate([best, later_best]), np.concatenate([likely, later_likely])
        return likely[len(prompt):], best[len(prompt):] == answer

    def _extend(self, read: Read, tokens: np.ndarray,
                following: np.ndarray | None = None) -> tuple[Read, np.ndarray | None, np.ndarray | None]:
        """`read`, whose caches are used up, and the tokens [T] after it.

        With `following` [T], the tokens that are to come after each, also what is most likely there, and how likely
        the following one is: int32 [T] and float32 [T].
        """
        tokens = self._checked(read, tokens)
        cache, logits, best, likely = read.cache, read.next_logits, [], []
        for start, size in pieces(len(tokens), self._chunk):
            piece, wanted = tokens[start : start + size], None
            if following is not None:
                wanted = jnp.asarray(following[start : start + size], jnp.int32)
            elif size < self._chunk:  # compared with anything: small pieces of contexts and prompts share a program
                wanted = jnp.asarray(piece)
            cache, logits, found = _extend_in_place(self._graph, cache, self._weights, jnp.asarray(piece[None]), wanted)
            if following is not None:
                best.append(found[0])
                likely.append(found[1])
        read = Read(cache, logits, read.length + len(tokens), read.capacity)
        return (read, None, None) if following is None else (read, np.concatenate(best), np.concatenate(likely))

    def _checked(self, read: Read, tokens: np.ndarray) -> np.ndarray:
        """The tokens as int32 [T], if the model knows them and the caches of `read` have room."""
        tokens = self._known(tokens)
        self._check_room(read, len(tokens))
        return tokens

    def _known(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens as int32 [T], if the model knows them."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 1 or not len(tokens) or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"tokens must be a non-empty int array [T], got {tokens.dtype}{list(tokens.shape)}")
        if (unknown := tokens[(tokens < 0) | (tokens >= self._model.config.vocab_size)]).size:
            raise ValueError(f"tokens must be ids in [0, vocab_size={self._model.config.vocab_size}), got {unknown[0]}")
        return tokens.astype(np.int32)

    def _check_room(self, read: Read, num_tokens: int) -> None:
        if read.length + num_tokens > read.capacity:
            raise ValueError(f"capacity must be at least {read.length + num_tokens} for {num_tokens} tokens after "
                             f"{read.length}, got {read.capacity}")


def pieces(length: int, chunk: int) -> list[tuple[int, int]]:
    """(start, size) of consecutive pieces of `length` tokens, as large as possible: `chunk`, chunk / SHRINK, .. 1."""
    found, start, size = [], 0, chunk
    while start < length:
        while size > length - start:
            size = max(1, size // SHRINK)
        found.append((start, size))
        start += size
    return found


def cache_size(capacity: int) -> int:
    """Tokens of the caches for `capacity` tokens: one of SMALL_CACHES, and beyond them at most a sixteenth more."""
    for size in SMALL_CACHES:
        if capacity <= size:
            return size
    step = 1 << (capacity.bit_length() - 5)
    return -(-capacity // step) * step


def _branch(read: Read) -> Read:
    """`read` with caches of its own, to be used up."""
    return read._replace(cache=_copy(read.cache))


@jax.jit
def _copy(cache):
    return jax.tree.map(jnp.copy, cache)


def _extend_step(graph, cache, weights, tokens, following=None):
    model = nnx.merge(graph, cache, weights)
    logits = model(tokens, decode=True)[0]
    found = None if following is None else _compare(logits, following)
    return nnx.state(model, nnx.Cache), logits[-1], found


@jax.jit
def _compare(logits, tokens):
    """The argmax int32 [T] of logits [T, V], and the log-probability float32 [T] of tokens [T]."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0].astype(jnp.float32)
    return (logits.argmax(axis=-1).astype(jnp.int32),
            chosen - jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1))


_extend_in_place = jax.jit(_extend_step, static_argnums=0, donate_argnums=1)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _choose(graph, cache, weights, tokens):
    """The caches after tokens [1, T], and what each layer that chooses chose for them."""
    model = nnx.merge(graph, cache, weights)
    _, kept = nnx.capture(model, ChosenBlocks)(tokens, decode=True)
    layers = sorted(nnx.to_flat_state(kept), key=lambda item: item[0])  # ("layers", number, "attention", "chosen")
    return nnx.state(model, nnx.Cache), [variable.get_value()[0] for _, variable in layers]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _continue(graph, num_tokens: int, cache, weights, logits, end):
    """The caches, tokens int32 [num_tokens], their log-probabilities, and how many of both were said.

    The caches are of no further use; only what is returned can be written in place.
    """
    def say(logits, tokens, log_probs, count):
        token = logits.argmax().astype(jnp.int32)
        return tokens.at[count].set(token), log_probs.at[count].set(jax.nn.log_softmax(logits)[token]), count + 1

    def goes_on(carry):
        _, tokens, _, count = carry
        return (count < num_tokens) & (tokens[count - 1] != end)

    def step(carry):
        cache, tokens, log_probs, count = carry
        cache, logits, _ = _extend_step(graph, cache, weights, tokens[count - 1][None, None])
        return cache, *say(logits, tokens, log_probs, count)

    said = say(logits, jnp.zeros(num_tokens, jnp.int32), jnp.zeros(num_tokens, jnp.float32), 0)
    return jax.lax.while_loop(goes_on, step, (cache, *said))
