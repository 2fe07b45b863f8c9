"""Quoting licences: the title decides where the same words go on differently."""

import re

import numpy as np
import pytest
from tiny_tasks import build, check_common, decoded

from subq_jax.tasks import Question
from subq_jax.tasks.licences import _title, score

NAME = "legal_licence"


def licence(number):
    """A licence of its own words, but for the openings."""
    clauses = "\n\n".join(
        f"{at}. Subject to the terms of clause {at} the licensee\n may copy work {number * 7 + at} and shall give "
        f"notice {number * at} to the owner; all other rights of part {number + at} are kept by the owner of edition "
        f"{number}."
        for at in range(1, 9))
    return f"Public Licence {number}\nVersion {number}.0\n\n{clauses}\n"


CORPUS = tuple(licence(number) for number in range(1, 13))


def solve(context, question):
    """Quotes what follows the opening, which stands after the question, in the licence named."""
    title = re.search("titled \"(.*)\" go", question)[1]
    opening = question.rpartition("\n")[2]
    text = " ".join(context.split(f"LICENCE: {title}\n")[1].split("LICENCE: ")[0].split())
    rest = text.partition(opening)[2]
    return re.split(r"(?<=[.;:]) ", rest.strip())[0]


def test_common():
    check_common(NAME, 6000, 400, corpus=CORPUS)


@pytest.mark.parametrize("length", [4000, 8000])
def test_solved_by_quoting(length):
    haystack = build(NAME, length, num_questions=6, corpus=CORPUS)
    for question in haystack.questions:
        assert score(solve(haystack.context, question.text + question.answer_prefix), question) == 1


def test_openings_that_go_on_otherwise_elsewhere_are_asked_first():
    haystack = build(NAME, 8000, num_questions=6, corpus=CORPUS)
    assert haystack.context.count("LICENCE: ") >= 4
    for question in haystack.questions:
        assert len(question.wrong) >= 3
        sentence, header = decoded(haystack, question)
        assert " ".join(sentence.split()) == f"{question.answer_prefix} {question.outputs[0]}"
        assert f"titled \"{header.strip().removeprefix('LICENCE: ')}\" go" in question.text


def test_score_is_the_share_quoted_before_the_first_mistake():
    question = Question("?", "", ("may copy the work",))
    assert score("may copy the work and more", question) == 1
    assert score("may copy a work", question) == 0.5
    assert score("may copy", question) == 0.5
    assert score("the work may copy", question) == score("", question) == 0


def test_chance_is_what_the_source_says():
    words = ["may", "shall", "copy", "work", "owner", "notice", "each", "grant", "use", "form", "source"]
    rng = np.random.default_rng(0)
    corpus = tuple(f"Licence {number}\n\n" + " ".join(
        " ".join(rng.choice(words, 20)) + "." for _ in range(30)) for number in range(8))
    haystack = build(NAME, 10_000, num_questions=100, corpus=corpus)
    scores = [score(other.outputs[0], question) for question in haystack.questions for other in haystack.questions
              if other is not question]
    assert np.mean(scores) < 0.05


def test_a_corpus_too_small_says_how_much_is_missing():
    message = "needs [0-9]+ more tokens of corpus for length=90000, .* got 12 licences: give .* --corpus"
    with pytest.raises(ValueError, match=message):
        build(NAME, 90_000, corpus=CORPUS)
    with pytest.raises(ValueError, match="got 1 licences"):
        build(NAME, 9000, corpus=CORPUS[:1] * 20)
    with pytest.raises(ValueError, match="more tokens of corpus"):
        build(NAME, 9000)
    with pytest.raises(ValueError, match="no sentence fits"):
        build(NAME, 1000, corpus=tuple(f"Title {number}\n\n" + "A b c. " * 200 for number in range(9)))


def test_title_is_the_first_paragraph_or_line():
    assert _title("\n GNU GENERAL\n  Version 3\n\nText.") == "GNU GENERAL Version 3"
    assert _title("Short\n" + "long " * 60) == "Short"
