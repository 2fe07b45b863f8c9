"""A model answers the questions of a haystack: the context is read once, whatever the number of questions."""

from typing import Any

import numpy as np

from subq_jax.data.tokenizers import Tokenizer
from subq_jax.inference.reader import Reader
from subq_jax.tasks import Haystack, Task


def answer_questions(reader: Reader, tokenizer: Tokenizer, task: Task, haystack: Haystack) -> list[dict[str, Any]]:
    """What the model says to every question, greedily, and what it scores.

    The model sees the beginning-of-document token, the context, the question and the answer's prefix. An answer ends
    with the end-of-document token or after `task.answer_tokens`.

    Returns:
      `haystack.row` of each, with `answer`: the text said, `score`: 0 to 1, `depth`: the share of the context before
      the first evidence, None where there is none.

    Raises:
      ValueError: where the tokenizer has ids that the model does not know.
    """
    context = np.concatenate([[tokenizer.bos_id], haystack.tokens])
    read = reader.read(context, haystack.length + 1)
    rows = []
    for number, question in enumerate(haystack.questions):
        prompt = np.concatenate([tokenizer.encode(question.text), tokenizer.encode(question.answer_prefix)])
        said = np.asarray(reader.greedy(read, prompt, task.answer_tokens))
        ends = np.flatnonzero(said == tokenizer.eos_id)
        answer = tokenizer.decode(said[: ends[0]] if len(ends) else said)
        depth = question.evidence[0][0] / len(haystack.tokens) if question.evidence else None
        rows.append(haystack.row(number) | {"answer": answer, "score": task.score(answer, question), "depth": depth})
    return rows
