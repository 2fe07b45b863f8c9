"""Records: each task is solved by a few lines of Python that see the prompt alone."""

import re

import numpy as np
import pytest
from tiny_tasks import build, check_common, check_solved, decoded

from subq_jax.tasks import find_task
from subq_jax.tasks.records import LAST_NAMES, _distinct
from subq_jax.tasks.words import WORDS, words

NAMES = "phonebook", "mqar", "counting", "latent_list"
LENGTHS = 5000, 12_000, 60_000


def final_lists(context):
    """Runs the program."""
    names = {}
    exec(context, {"print": lambda *_: None}, names)
    return names


def solve(context, question):
    if name := re.search("phone number of (.*)[?]", question):
        return re.search(f"^{name[1]}: (.*)$", context, re.MULTILINE)[1]
    if keys := re.search("values of (.*), in this", question):
        table = dict(re.findall(r"^(\w{5}) (\d{4})$", context, re.MULTILINE))
        return " ".join(table[key] for key in keys[1].split(", "))
    if word := re.search(r"does (\*\w+\*) occur", question):
        return str(context.count(word[1]))
    name, at = re.search(r"print\((\w+)\[(\d+)\]\)", question).groups()
    return str(final_lists(context)[name][int(at)])


@pytest.mark.parametrize("name", NAMES)
def test_common(name):
    check_common(name, 8000, 160)


@pytest.mark.parametrize("name", NAMES)
def test_solved_by_a_program(name):
    check_solved(name, solve, LENGTHS)


@pytest.mark.parametrize("name", NAMES)
def test_facts_stand_at_random_places(name):
    places = [place for index in range(60) for question in build(name, 8000, index=index).questions
              for place, _ in question.evidence]
    assert min(places) < 800 and max(places) > 7000


def test_evidence_decodes_to_the_facts():
    haystack = build("phonebook", 5000, num_questions=5)
    for question in haystack.questions:
        name = re.search("of (.*)[?]", question.text)[1]
        assert decoded(haystack, question) == [f"{name}: {question.outputs[0]}\n"]
    haystack = build("mqar", 5000, num_questions=5)
    for question in haystack.questions:
        keys = re.search("of (.*), in", question.text)[1].split(", ")
        assert decoded(haystack, question) == [f"{key} {value}\n" for key, value in
                                               zip(keys, question.outputs, strict=True)]
    haystack = build("counting", 8000, num_questions=4)
    for question in haystack.questions:
        word = re.search(r"\*\w+\*", question.text)[0]
        lines = decoded(haystack, question)
        assert len(lines) == int(question.outputs[0]) and all(word in line for line in lines)
    haystack = build("latent_list", 8000, num_questions=4)
    context = haystack.pieces[0]
    for question in haystack.questions:
        assert solve("\n".join([context, *decoded(haystack, question)]), question.text) == question.outputs[0]


def test_as_many_questions_as_there_are_facts():
    assert [len(build(name, 12_000, num_questions=12).questions) for name in NAMES] == [12, 12, 4, 12]
    assert len(build("phonebook", 300, num_questions=50).questions) < 8
    haystack = build("latent_list", 12_000, num_questions=99)
    assert len(haystack.questions) == sum(
        len(elements) for name, elements in final_lists(haystack.context).items() if name in WORDS["noun"])


def test_guessing_scores_the_chance_stated():
    for question in build("counting", 12_000, num_questions=4).questions:
        assert sum(find_task("counting").score(str(number), question) for number in range(1, 17)) == 1
    assert find_task("counting").chance == 1 / 16
    for question in build("mqar", 12_000, num_questions=4).questions:
        values = [" ".join([str(number)] * 4) for number in range(1000, 10_000)]
        assert sum(find_task("mqar").score(value, question) for value in values) == pytest.approx(1)
    assert find_task("mqar").chance == 1 / 9000
    guessed = []
    for haystack in (build("latent_list", 3000, num_questions=8, index=index) for index in range(40)):
        for question in haystack.questions:
            elements = final_lists(haystack.context)[re.search(r"print\((\w+)\[", question.text)[1]]
            assert 4 <= len(elements) <= 9
            scores = [find_task("latent_list").score(str(element), question) for element in elements]
            assert sum(scores) == 1
            guessed.append(1 / len(scores))
    assert np.mean(guessed) == pytest.approx(find_task("latent_list").chance, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_listing_everything_scores_no_more_than_a_guess(name):
    haystack = build(name, 3500, num_questions=4)
    listed = " ".join([*re.findall(r"\d+(?:-\d+)*", haystack.context), *map(str, range(1, 17))])
    scores = [find_task(name).score(listed, question) for question in haystack.questions]
    assert sum(scores) <= 1 and len(scores) == 4


def test_names_and_keys_are_distinct_and_run_out_with_an_error():
    assert len(set(LAST_NAMES)) == len(LAST_NAMES)
    assert all(len(set(of_kind)) == len(of_kind) for of_kind in WORDS.values())
    import random

    draw = _distinct(random.Random(0), 20, "mqar")
    assert len({draw() for _ in range(10)}) == 10
    with pytest.raises(ValueError, match="mqar has no more than 10: length too large"):
        draw()
    assert words("a b|c", "|") == ("a b", "c")
