"""Contract tasks: a parser that reads contracts as a lawyer would answers them all."""

import re

import numpy as np
import pytest
from tiny_tasks import build, check_common, check_solved, decoded

from subq_jax.tasks import Question, find_task
from subq_jax.tasks.contracts import COMPANIES, SERVICES, STATES, TERMS

NAMES = "legal_clause", "legal_term", "legal_definition", "legal_exception"
LENGTHS = 7000, 20_000, 150_000
STATED = {  # what a clause says, by what it is called in a question
    "notice period for": "terminate the {} Services for convenience by (.*?) days",
    "time to cure": "terminate the {} Services for a breach not cured within (.*?) days",
    "fee for": r"termination of the {} Services, Customer shall pay Provider a fee of (\$[\d,]+)",
    "law that governs": "the termination of the {} Services is governed by the laws of (.*?)[.]",
}


def contracts(context):
    """{(provider, customer): {section number: text}}"""
    parts = re.split(r"AGREEMENT between (.*) \(\"Provider\"\) and (.*) \(\"Customer\"\)\n", context)[1:]
    return {tuple(parts[at:at + 2]): dict(re.findall(r"Section (\d+\.\d+) [A-Z][\w ]*\. (.*)\n\n", parts[at + 2]))
            for at in range(0, len(parts), 3)}


def stated(sections, question):
    """The section a question is about and what it says."""
    service = re.search("the ([A-Z][a-zA-Z ]*) Services", question)[1]
    pattern = next(pattern for name, pattern in STATED.items() if name in question).format(service)
    (found,) = [(number, match[1]) for number, text in sections.items() if (match := re.search(pattern, text))]
    return found


def parties_in(question):
    return re.search("agreement between (.*?) and (.*?(?:Ltd|LLC|Inc))", question).groups()


def solve(context, question):
    sections = contracts(context)[parties_in(question)]
    if "Which section" in question:
        return stated(sections, question)[0]
    if term := re.search("how much is the \"(.*?)\"", question):
        text = " ".join(sections.values())
        number = re.search(f'"{term[1]}" has the meaning given to "(.*?)" in Section (.*?)[.] ', text)
        return re.search(rf'"{number[1]}" means (\S+)[.]', sections[number[2]])[1]
    number, value = stated(sections, question)
    if condition := re.search("in days, (.*)[?]", question):
        texts = " ".join(sections.values())
        return re.search(f"Notwithstanding Section {number}, {condition[1]} the period stated there is (.*?) days",
                         texts)[1]
    return value


@pytest.mark.parametrize("name", NAMES)
def test_common(name):
    check_common(name, 12_000, 250)


@pytest.mark.parametrize("name", NAMES)
def test_solved_by_reading(name):
    check_solved(name, solve, LENGTHS)


def test_evidence_is_the_facts_and_what_names_them():
    for question in build("legal_exception", 12_000, num_questions=4).questions:
        special, heading, article, *general = decoded(build("legal_exception", 12_000, num_questions=4), question)
        number = re.match(r"Section ([\d.]+) Termination", general[1])[1]
        assert special.startswith(f"Notwithstanding Section {number}, ")
        assert special.endswith(f" is {question.outputs[0]} days. ")
        assert heading.endswith(" Special cases. ") and article.startswith("ARTICLE ")
        assert question.wrong[0] in general[0]
    for question in build("legal_definition", 12_000, num_questions=4).questions:
        alias, *_, = texts = decoded(build("legal_definition", 12_000, num_questions=4), question)
        other = re.search("given to (\".*?\")", alias)[1]
        assert f"{other} means {question.outputs[0]}. " in texts


def test_contracts_have_50_to_200_pages_and_facts_stand_anywhere():
    haystack = build("legal_term", 1_000_000, num_questions=50)
    read = contracts(haystack.context)
    assert len(read) >= 2
    for sections in read.values():
        assert 40 * 3000 < sum(map(len, sections.values())) < 200 * 3000
    places = [question.evidence[0][0] for question in haystack.questions]
    assert min(places) < 150_000 and max(places) > 850_000
    assert len(haystack.questions) == 50


def test_guessing_scores_the_chance_stated():
    chances = {"period": 1 / 90, "time to": 1 / 90, "fee": 1 / 900, "law": 1 / 50}
    days = [str(number) for number in range(10, 100)]
    fees = [f"${number // 10},{number % 10}00" for number in range(100, 1000)]
    score = find_task("legal_term").score
    guessed = []
    for question in (question for index in range(20)
                     for question in build("legal_term", 12_000, index=index, num_questions=16).questions):
        kind = next(kind for kind in chances if kind in question.text)
        answers = {"fee": fees, "law": STATES}.get(kind, days)
        assert sum(score(answer, question) for answer in answers) / len(answers) == pytest.approx(chances[kind])
        guessed.append(chances[kind])
    assert np.mean(guessed) == pytest.approx(find_task("legal_term").chance, abs=0.001)
    assert "1/90 for a period, 1/900 for a fee, 1/50 for a law" in find_task("legal_term").source
    for name, answers in (("legal_definition", fees), ("legal_exception", days)):
        for question in build(name, 12_000, num_questions=4).questions:
            assert sum(score(answer, question) for answer in answers) == 1
        assert find_task(name).chance == 1 / len(answers) and f"1/{len(answers)}" in find_task(name).source
    haystack = build("legal_clause", 12_000, num_questions=8)
    for question in haystack.questions:
        sections = contracts(haystack.context)[parties_in(question.text)]
        assert len(sections) >= 14 and sum(score(number, question) for number in sections) == 1


def test_the_condition_alone_does_not_tell_an_exception():
    """Who skips the section that an exception names can only choose among those with the same condition."""
    for length in (8000, 150_000):
        shared = []
        for index in range(4):
            haystack = build("legal_exception", length, index=index, num_questions=4)
            for question in haystack.questions:
                texts = " ".join(contracts(haystack.context)[parties_in(question.text)].values())
                condition = re.search("in days, (.*)[?]", question.text)[1]
                shared.append(len(re.findall(f"{condition} the period stated there is", texts)))
        assert min(shared) >= 2 and max(shared) <= 9


def test_the_first_value_of_an_answer_counts():
    score = find_task("legal_term").score
    law, days, fee = (Question("?", "", (output,)) for output in ("Virginia", "45", "$94,200"))
    assert score(" the laws of VIRGINIA.", law) == 1 > score("West Virginia", law) == score("Ohio or Virginia", law)
    assert score("45 days", days) == 1 > score("145", days) == score("45.5", days) == score("44 or 45", days)
    assert score(" $94,200.", fee) == 1 > score("$94,200.50", fee) == score("$194,200", fee) == score("", fee)
    assert find_task("legal_clause").score(" 12.4.", Question("?", "", ("12.4",))) == 1
    assert not any(find_task("legal_clause").score(text, Question("?", "", ("12.4",)))
                   for text in ("12.41", "112.4", "3.12.4", "12", "12-4"))


def test_names_are_distinct():
    for names, number in ((COMPANIES, 2400), (SERVICES, 30), (STATES, 50), (TERMS, 133)):
        assert len(set(names)) == len(names) == number
