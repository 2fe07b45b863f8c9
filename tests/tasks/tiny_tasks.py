"""What tests of tasks share: the cheapest tokenizers, and the checks every task passes."""

import dataclasses

import numpy as np
import pytest

from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.tasks import Request, find_task

TOKENIZER = ByteTokenizer()


class PairTokenizer:
    """One token for every two characters of a piece: pieces of other lengths than their bytes."""

    def encode(self, text):
        return np.array([sum(ord(c) << 8 * i for i, c in enumerate(text[at:at + 2])) for at in range(0, len(text), 2)])

    def decode(self, tokens):
        return "".join(chr(token & 255) + (chr(token >> 8) if token >> 8 else "") for token in tokens)


def build(name, length, **options):
    return find_task(name).build(Request(length, options.pop("tokenizer", TOKENIZER), **options))


def decoded(haystack, question, tokenizer=TOKENIZER):
    return [tokenizer.decode(haystack.tokens[start:end]) for start, end in question.evidence]


def used(haystack, question, tokenizer=TOKENIZER):
    """Tokens of a prompt and the longest answer."""
    texts = question.text, question.answer_prefix
    return (len(haystack.tokens) + sum(len(tokenizer.encode(text)) for text in texts)
            + find_task(haystack.task).answer_tokens)


def check_common(name, length, slack, **options):
    """What holds for every task: the same request gives the same haystack, another seed or index another one; prompts
    fall short of the length by at most `slack`; answers have room; references score 1, wrong answers less.
    """
    for tokenizer in (TOKENIZER, PairTokenizer()):
        one, same, seed, index = (build(name, length, tokenizer=tokenizer, num_questions=3, **options, **place)
                                  for place in ({}, {}, {"seed": 1}, {"index": 1}))
        assert one.pieces == same.pieces and one.questions == same.questions
        assert len({one.context, seed.context, index.context}) == 3
        assert tokenizer.decode(one.tokens) == one.context
        task = find_task(name)
        assert 0 <= length - max(used(one, question, tokenizer) for question in one.questions) <= slack
        for question in one.questions:
            assert len(question.outputs) >= 1 and question.wrong and question.evidence
            assert len(tokenizer.encode(" ".join(question.outputs))) < task.answer_tokens
            assert task.score(" ".join(question.outputs), question) == 1
            for wrong in question.wrong:
                assert task.score(wrong, question) < 1
        assert len(set(one.questions)) == len(one.questions)
    with pytest.raises(ValueError, match=f"{name} needs length > [0-9]+ with this tokenizer, got 100"):
        build(name, 100, **options)


def check_solved(name, solve, lengths, **options):
    """`solve` gets a prompt's text alone and answers every question right, however long the context."""
    for length in lengths:
        for index in range(2):
            haystack = build(name, length, index=index, num_questions=4, **options)
            for question in haystack.questions:
                answer = solve(haystack.context, question.text)
                assert find_task(name).score(answer, question) == 1, (length, question, answer)
                assert find_task(name).score(answer, dataclasses.replace(question, outputs=("none such",))) == 0
