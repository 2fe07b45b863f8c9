"""Which of the evidence a model's selectors chose."""

import numpy as np
import pytest
from tiny_decoder import SHAPE, decoder

from subq_jax.attention.mechanisms import SELECTING
from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.evaluation.answering import AnsweringModel, answer_questions
from subq_jax.evaluation.evidence import evidence_recall
from subq_jax.inference.reader import Reader
from subq_jax.selection.config import SelectionConfig
from subq_jax.tasks.haystack import Haystack, Question, Task

CONFIG = SelectionConfig(block_size=4, num_blocks=2, local_blocks=2, sink_blocks=1)


def layer(*rows):
    """int32 [1, A, 1, M] of the blocks that each query chose."""
    return np.array(rows, np.int32)[None, :, None]


@pytest.mark.parametrize("spans, recall, always", [
    ([(12, 16)], 1.0, 0.0),  # block 3, which the first layer chose
    ([(12, 17)], 0.5, 0.0),  # blocks 3 and 4: a token of block 4 is enough to count it
    ([(20, 24), (28, 32)], 1.0, 0.0),  # chosen by another query, and by another layer
    ([(16, 20)], 0.0, 0.0),
    ([(0, 3), (12, 13)], 1.0, 0.5),  # the sink needs no choice
    ([(0, 3)], None, 1.0),
    ([(36, 38), (32, 33)], 0.0, 0.5),  # block 9 is local to the first query, in block 10; block 8 is not
    ([(12, 13), (13, 14)], 1.0, 0.0),  # a block with two spans counts once
])
def test_blocks_are_counted_once_whoever_chose_them(spans, recall, always):
    chosen = [layer([3, -1], [5, -1], [-1, -1]), layer([-1, -1], [-1, -1], [7, -1])]
    found = evidence_recall(chosen, 40, spans, CONFIG)
    assert found == {"evidence_recall": recall, "evidence_always": always}


def haystack(*spans, length=120):
    """Random letters; the question names evidence at `spans` of the context."""
    tokens = np.random.default_rng(0).integers(97, 97 + 26, length).astype(np.int32)
    question = Question("\nWhat?", " It is", ("x",), evidence=spans)
    return Haystack("letters", 0, (bytes(tokens.tolist()).decode(),), tokens, (question,), CAPACITY - 1)


def answering(mechanism, budget):
    """A model of one layer that reads in pieces of few sizes, which compiles fast."""
    model = decoder(mechanism, vocab_size=259, budget=budget, num_layers=1, layer_pattern=("selective",))
    return AnsweringModel(Reader(model, chunk=4), ByteTokenizer(), model.config)


CAPACITY = 160
TASK = Task("letters", None, lambda answer, question: 0.5, 6, "")


@pytest.mark.parametrize("mechanism", [
    name if name == "selective" else pytest.param(name, marks=pytest.mark.slow) for name in ("dense", *SELECTING)])
def test_rows_say_what_the_model_chose(mechanism):
    model = answering(mechanism, 16)
    spans = ((1, 2), (3, 4), (50, 70), (99, 100))  # the second is in the sink but for the token before the context
    (row,) = answer_questions(model, TASK, haystack(*spans))
    if mechanism == "dense":
        assert row["evidence_recall"] is row["evidence_always"] is None
        return
    # By the definition, token by token: what is read begins with one token more than the context.
    context = model.read(haystack().tokens, CAPACITY)
    reply = model.answer(context, haystack().questions[0], 6)
    prompt = model.prompt(haystack().questions[0])
    chosen = model.reader.chosen(context.read, prompt, np.asarray(reply.tokens))
    size = 1 if mechanism == "learned_router" else SHAPE["block_size"]
    evidence = {position // size for start, end in spans for position in range(start + 1, end + 1)}
    sinks = set(range(SHAPE["sink_blocks"] * SHAPE["block_size"] // size))
    blocks = {int(block) for layer in chosen for block in np.asarray(layer).ravel()}
    assert row["evidence_always"] == len(evidence & sinks) / len(evidence) > 0
    assert row["evidence_recall"] == len(evidence & blocks - sinks) / len(evidence - sinks)


@pytest.mark.slow
def test_a_budget_of_everything_finds_all_evidence():
    model = answering("selective", 4 * 60)
    (row,) = answer_questions(model, TASK, haystack((50, 70), (90, 91)))
    assert (row["evidence_recall"], row["evidence_always"]) == (1.0, 0.0)
    (row,) = answer_questions(model, TASK, haystack())
    assert row["evidence_recall"] is None and row["depth"] is None
