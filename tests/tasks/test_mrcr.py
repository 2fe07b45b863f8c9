"""MRCR-style tasks: a parser of the conversation answers them all, and the score is MRCR's."""

import dataclasses
import random
import re

import numpy as np
import pytest
from tiny_tasks import TOKENIZER, build, check_common, check_solved, decoded

from subq_jax.tasks import Question, find_task
from subq_jax.tasks.mrcr import ANSWER_TOKENS, ANSWERED, FORMATS, PREFIX_LENGTH, score, wrong_instance_score
from subq_jax.tasks.words import WORDS

NAMES = "mrcr_2", "mrcr_4", "mrcr_8"
QUESTION = Question("?", "", ("abcdefghijthe cat sat",), wrong=("the dog ran",))


def solve(context, question):
    prefix, number, asked = re.search(r"Prepend (\w+) to the (\d+)\w\w \(1 indexed\) (.*)\. Do not", question).groups()
    turns = re.findall(r"User: Write a (.*)\.\nAssistant:\n((?:.+\n)+)\n", context)
    return prefix + [answer for request, answer in turns if request == asked][int(number) - 1]


@pytest.mark.parametrize("name", NAMES)
def test_common(name):
    check_common(name, 9000, 600)


@pytest.mark.parametrize("name", NAMES)
def test_solved_by_counting_requests(name):
    check_solved(name, solve, (5000, 9000, 60_000))


@pytest.mark.parametrize("name", NAMES)
def test_each_request_asked_about_has_so_many_different_answers(name):
    haystack = build(name, 40_000, num_questions=6)
    for question in haystack.questions:
        assert len({*question.wrong, question.outputs[0][10:]}) == int(name[5:])
    requests = re.findall("User: Write a (.*) about (.*)[.]", haystack.context)
    asked = re.search("indexed[)] (.*) about (.*)[.] Do", haystack.questions[0].text).groups()
    assert {kind for kind, topic in requests if topic == asked[1]} > {asked[0]}
    assert {topic for kind, topic in requests if kind == asked[0]} > {asked[1]}


def test_evidence_is_the_answer_and_the_requests_up_to_it():
    haystack = build("mrcr_4", 20_000, num_questions=4)
    for question in haystack.questions:
        answer, *requests = decoded(haystack, question)
        assert answer == f"Assistant:\n{question.outputs[0][10:]}\n\n"
        number, asked = re.search(r"the (\d)\w\w \(1 indexed\) (.*)\. Do", question.text).groups()
        assert requests == [f"User: Write a {asked}.\n"] * int(number)


def test_answers_stand_at_random_places():
    places = [build("mrcr_2", 8000, index=index).questions[0].evidence[0][0] for index in range(40)]
    assert min(places) < 1500 < 6000 < max(places)


def test_score_needs_the_prefix_and_is_the_ratio_of_what_follows():
    assert score("abcdefghijthe cat sat", QUESTION) == 1
    assert score("the cat sat", QUESTION) == 0
    # 4 + 1 + 1 characters in order ("the ", "a" of sat, ...): twice the matches over both lengths.
    assert score("abcdefghijthe cat", QUESTION) == pytest.approx(2 * 7 / (7 + 11))
    assert score("abcdefghijthe cat sat\n\nUser: more", QUESTION) == 1


def test_a_wrong_instance_scores_higher_against_the_wrong_ones():
    answer = "abcdefghijthe dog ran"
    assert wrong_instance_score(answer, QUESTION) == 1 > score(answer, QUESTION)
    assert wrong_instance_score("the dog ran", QUESTION) == 0
    assert wrong_instance_score(answer, dataclasses.replace(QUESTION, wrong=())) == 0


def test_the_score_of_wrong_instances_is_measured_beside_the_score():
    haystack, task = build("mrcr_4", 3500), find_task("mrcr_4")
    (question,) = haystack.questions
    (measure,) = task.further_scores.values()
    wrong = question.outputs[0][:PREFIX_LENGTH] + question.wrong[0]
    assert measure(wrong, question) > 0.95 > task.score(wrong, question)
    assert measure(question.outputs[0], question) < 0.95 < task.score(question.outputs[0], question)


def score_of_another_answer(haystack, question, rng):
    """That of a random other answer of the conversation, after the required prefix."""
    expected = question.outputs[0]
    answers = [piece.removeprefix(ANSWERED).rstrip("\n") for piece in haystack.pieces if piece.startswith(ANSWERED)]
    answer = rng.choice([answer for answer in answers if answer != expected[PREFIX_LENGTH:]])
    return score(expected[:PREFIX_LENGTH] + answer, question)


@pytest.mark.parametrize("name", NAMES)
def test_chance_is_what_the_task_says(name):
    rng, others, same = random.Random(0), [], []
    for index in range(40):
        haystack = build(name, 20_000, index=index, num_questions=4)
        for question in haystack.questions:
            others.append(score_of_another_answer(haystack, question, rng))
            same.append(score(question.outputs[0][:10] + rng.choice(question.wrong), question))
    *_, of_the_same = map(float, re.findall(r"0\.\d\d", find_task(name).source))
    assert np.mean(others) == pytest.approx(find_task(name).chance, abs=0.03)
    assert np.mean(same) == pytest.approx(of_the_same, abs=0.04)


def test_the_longest_answer_has_room():
    longest = {slot: max(words, key=len) for slot, words in WORDS.items()} | {"topic": "mysterious caterpillars"}
    for opening, lines in FORMATS.values():
        text = "\n".join([opening, *[max(lines, key=lambda line: len(line.format(**longest)))] * 5]).format(**longest)
        assert len(TOKENIZER.encode(text)) + 10 <= ANSWER_TOKENS
