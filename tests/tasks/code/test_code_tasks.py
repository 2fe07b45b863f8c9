"""Every code task: golden samples, solvers that only look words up, controls, and requests that cannot be met."""

import json
import re

import numpy as np
import pytest
from shop import documents, request

from subq_jax.tasks import TASKS, find_task, score_row
from subq_jax.tasks.code.bodies import edit_similarity, is_body
from subq_jax.tasks.code.completion import FAR
from subq_jax.tasks.code.edits import _parameter_column
from subq_jax.tasks.code.repository import read_repository
from subq_jax.tasks.code.search import first_function, similarity

NAMES = ("code_search", "code_search_call", "code_next_line", "code_identifier", "code_body", "code_edit")


def build(name, **changes):
    return find_task(name).build(request(**{"num_questions": 9} | changes))


def question_with(haystack, words):
    (found,) = (question for question in haystack.questions if words in question.text)
    return found


def evidence_texts(haystack, question):
    return ["".join(map(chr, haystack.tokens[first:last])) for first, last in question.evidence]


def test_every_task_has_a_renamed_variant():
    assert {name + suffix for name in NAMES for suffix in ("", "_renamed")} <= set(TASKS)


def test_search_by_description():
    haystack = build("code_search")
    question = question_with(haystack, "Sum of the weights of everything in the list of items.")
    assert question.outputs == ("""\
def total_weight(self, items):
    weights = [item.weight for item in items if item.weight is not None]
    total = sum(weights, 0.0)
    return total + 0.1 * len(weights)
""",)
    assert "Sum of the weights" not in haystack.context and "def total_weight" in haystack.context
    assert evidence_texts(haystack, question)[0].replace("\n    ", "\n").strip() == question.outputs[0].strip()


def test_search_by_call():
    haystack = build("code_search_call")
    question = question_with(haystack, "    sticker = labels.print_label(name, width=8)\n")
    assert "In shop/orders.py of the repository" in question.text
    assert question.outputs[0].startswith("def print_label(text, width=20):\n") and question.outputs[0].count("\n") == 5


def test_confusable_functions_of_the_context_are_wrong_answers():
    copy = documents()[0].replace("prices", "costs").replace("Sum of", "Add").replace("0.1", "0.2")
    haystack = build("code_search", corpus=(*documents(), copy), length=4500)
    question = question_with(haystack, "Sum of the weights")
    near = question.outputs[0].replace("0.1", "0.2")
    assert near in question.wrong and similarity(near, question.outputs[0]) > 0.8
    score = find_task("code_search").score
    assert score(question.outputs[0], question) == 1 and score(near, question) == 0
    assert score(question.outputs[0].replace("total", "whole", 1), question) == 1
    assert score("def total_weight(self, items):\n    return 0\n", question) == 0


@pytest.mark.parametrize("name", ["code_search", "code_search_call"])
def test_functions_that_an_answer_cannot_quote_are_not_asked_for(name):
    words = " ".join(f"word{number}" for number in range(16))
    text = documents()[1].replace("    line = ", f'    note = """\n{words}\n"""\n    line = note + ')
    haystack = build(name, corpus=(documents()[0], text, *documents()[2:]))
    assert haystack.questions
    assert not any("def print_label" in question.outputs[0] for question in haystack.questions)
    assert all(find_task(name).score(question.outputs[0], question) == 1 for question in haystack.questions)


def test_next_line_and_its_far_definition():
    haystack = build("code_next_line", num_questions=1)
    (question,) = haystack.questions
    assert question.outputs[0] in (
        "gross = [prices.add_tax(amount) for amount in amounts]", "sticker = labels.print_label(name, width=8)",
        "gross = prices.add_tax(amount, rate=7)")
    score = find_task("code_next_line").score
    assert score("\n    " + question.outputs[0] + "\n    more", question) == 1
    assert all(score(wrong, question) == 0 for wrong in question.wrong)


@pytest.mark.parametrize("name", ["code_next_line", "code_identifier"])
def test_definitions_are_far_and_the_completed_file_is_not_there(name):
    for index in range(8):
        haystack = build(name, index=index)
        for question in haystack.questions:
            assert question.evidence[0][1] <= (1 - FAR) * len(haystack.tokens)
            assert question.text.split("# ")[1].split("\n")[0] not in haystack.context


def test_body():
    haystack = build("code_body", length=4500)
    question = question_with(haystack, "`order_total` of shop/orders.py")
    assert question.answer_prefix.startswith("def order_total(amounts):\n") and "238.0" in question.answer_prefix
    assert question.outputs == (
        "    gross = [prices.add_tax(amount) for amount in amounts]\n    return round(sum(gross), 2)\n",)
    stub, helper = evidence_texts(haystack, question)
    assert stub.endswith('    """\n    ...  # left out\n') and helper.startswith("def add_tax(price, rate=19):")
    assert "round(sum(gross)" not in haystack.context
    score = find_task("code_body").score
    other = "    total = 0\n    for amount in amounts:\n        total += prices.add_tax(amount)\n    return total\n"
    assert score(question.outputs[0] + "\n\ndef more():\n    1 / 0\n", question) == 1
    assert score(other, question) == 1 and is_body(other, question) == 0 and 0 < edit_similarity(other, question) < 1
    assert score("    return 1\n", question) == 0 == score("    return (\n", question)
    assert is_body(question.outputs[0], question) == edit_similarity(question.outputs[0], question) == 1


def test_body_of_a_renamed_repository_runs_with_its_names():
    haystack = build("code_body_renamed", length=4500)
    score = find_task("code_body_renamed").score
    question = question_with(haystack, "of shop/orders.py")
    assert "prices.add_tax" not in question.outputs[0] and score(question.outputs[0], question) == 1
    assert score("    return round(sum(prices.add_tax(amount) for amount in amounts), 2)\n", question) == 0


def test_edit():
    haystack = build("code_edit")
    question = question_with(haystack, "The function `add_tax` of shop/prices.py")
    parameter, value = re.search(r"`(\w+)=(\d+)`\. ", question.text).groups()
    expected = {
        f"shop/prices.py: def add_tax(price, rate=19, {parameter}=0):",
        f"shop/orders.py: gross = [prices.add_tax(amount, {parameter}={value}) for amount in amounts]",
        f"shop/refunds.py: gross = prices.add_tax(amount, rate=7, {parameter}={value})"}
    assert set(question.outputs) == expected
    score = find_task("code_edit").score
    assert score("\n".join([*question.outputs, "done", "other"]), question) == 1
    assert score("\n".join(question.outputs[:2]), question) == pytest.approx(2 / 3)
    assert score("\n".join([*question.outputs, *question.wrong]), question) == pytest.approx(3 / 6)


@pytest.mark.parametrize(("line", "expected"), [
    ("    def f(a, b=(1)):\n", "    def f(a, b=(1)+):\n"), ("def f(a) -> (int):\n", "def f(a+) -> (int):\n"),
    ("def f(a=g(1), /, b=(2)) -> g(3):\n", "def f(a=g(1), /, b=(2)+) -> g(3):\n")])
def test_a_parameter_goes_before_the_parenthesis_that_closes_them(line, expected):
    column = _parameter_column(line)
    assert line[:column] + "+" + line[column:] == expected


@pytest.mark.parametrize("line", ["def f():\n", "def f(a, /):\n", "def f(a,):\n", "def f(a, *b):\n", "class A(B):\n"])
def test_signatures_without_a_place_for_a_parameter(line):
    assert _parameter_column(line) == -1


def functions_of(context):
    return re.findall(r"^ *def .*\n(?:(?: +.*)?\n)*?(?=^\S|^ *def |\Z)", context, re.MULTILINE)


def solve(name, context, question):
    """Answers by looking words up in the context, as a person with a text editor would."""
    files = dict(re.findall(r"^# (\S+\.py)\n(.*?)(?=^# \S+\.py\n|\Z)", context, re.MULTILINE | re.DOTALL))
    if name.startswith("code_search_call"):
        (called,) = re.findall(r"Write the function `(\w+)`", question.text)
        return next(text for text in functions_of(context) if f"def {called}(" in text)
    if name.startswith("code_search"):
        hint = {"weights": "weight", "Centre": "center", "Gross": "amounts", "Increase": "share ="}
        word = next(word for key, word in hint.items() if key in question.text)
        return next(text for text in functions_of(context) if word in text)
    if name.startswith("code_identifier"):
        (module,) = re.findall(r"(\w+)\.____", question.text)
        return re.findall(r"^def (\w+)", files[f"shop/{module}.py"], re.MULTILINE)[0] + "`."
    called, parameter, value = re.search(
        r"function `(\w+)`.*`(\w+)=0`.*`\w+=(\d+)`", question.text, re.DOTALL).groups()
    lines = [(path, line.strip()) for path, text in files.items() for line in text.split("\n") if f"{called}(" in line]
    edited = [re.sub(rf"({called}\([^()]*)\)", rf"\1, {parameter}={'0' if 'def ' in line else value})", line)
              for _, line in lines if ">>>" not in line]
    paths = [path for path, line in lines if ">>>" not in line]
    return "\n".join(f"{path}: {line}" for path, line in zip(paths, edited, strict=True)) + "\ndone"


@pytest.mark.parametrize("variant", ["", "_renamed"])
@pytest.mark.parametrize("name", ["code_search", "code_search_call", "code_identifier", "code_edit"])
def test_looking_words_up_solves_what_is_searched(name, variant):
    for index in range(4):
        haystack = build(name + variant, index=index)
        for question in haystack.questions:
            assert find_task(name).score(solve(name, haystack.context, question), question) == 1


@pytest.mark.parametrize("variant", ["", "_renamed"])
@pytest.mark.parametrize("name", NAMES)
def test_questions_without_their_context_do_not_hold_the_answer(name, variant):
    haystack = build(name + variant, length=4500)
    assert haystack.task == name + variant
    for question in haystack.questions:
        assert question.evidence
        assert not any(re.search(rf"(?<!\w){re.escape(output.strip())}(?!\w)", question.text)
                       for output in question.outputs)
        assert find_task(name).score(question.text, question) < 1


@pytest.mark.parametrize("variant", ["", "_renamed"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_scored_from_rows_alone(name, variant):
    haystack, task = build(name + variant, length=4500, num_questions=2), find_task(name + variant)
    rows = [json.loads(json.dumps(row)) for row in haystack.rows()]
    for row, question in zip(rows, haystack.questions, strict=True):
        answers = ["\n".join(question.outputs), "".join(question.outputs) + "\ndone", *question.wrong[:2], "nothing"]
        scores = [task.score(answer, question) for answer in answers]
        assert [score_row(row, answer) for answer in answers] == scores and max(scores) > 0.9 > scores[-1]


def test_a_row_that_lacks_what_runs_a_body_is_refused():
    row = build("code_body_renamed", length=4500).row(0)
    with pytest.raises(ValueError, match="row must have the field 'body' to be scored by code_body_renamed, got"):
        score_row(row, "    pass")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_gives_the_same_haystack_and_another_index_another(name):
    first, again, other = (build(name, index=index, length=4500) for index in (0, 0, 1))
    assert first.pieces == again.pieces and first.questions == again.questions
    assert np.array_equal(first.tokens, again.tokens) and first.pieces != other.pieces
    assert len(first.tokens) <= 4500


def test_contexts_are_whole_files():
    haystack = build("code_search_call", length=2000)
    whole = [document for document in documents() if document in haystack.context]
    assert sum(map(len, whole)) == len(haystack.tokens) and 2 <= len(whole) < len(documents())


@pytest.mark.parametrize("name", NAMES)
def test_requests_that_cannot_be_met_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} needs length >= \d+ with this tokenizer, got 300"):
        build(name, length=300)
    with pytest.raises(ValueError, match=r"fill 80% of the \d+ tokens .* at length=90000: \d+ are missing \(35 files"):
        build(name, length=90_000)
    with pytest.raises(ValueError, match=f"{name} needs a repository with a .*, and none of 30 files has one"):
        build(name, corpus=documents()[5:])


@pytest.mark.parametrize("name", ["code_search_call", "code_next_line", "code_identifier", "code_edit"])
def test_the_folder_of_the_package_itself_is_refused_with_a_hint(name):
    inside = tuple(document.replace("# shop/", "# ", 1) for document in documents())
    with pytest.raises(ValueError, match="none of 35 files has one; no file imports from another: give the folder that "
                                         "holds the package, if this is its own$"):
        build(name, corpus=inside)


def test_similarity_is_bleu():
    assert similarity("a b c d e", "a b c d e") == 1 and similarity("", "a") == 0
    # Precisions 4/5, 3/4, 2/3, 1/2; no penalty.
    assert similarity("a b c d x", "a b c d e") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert similarity("a b c d", "a b c d e") == pytest.approx(np.exp(1 - 5 / 4))


@pytest.mark.parametrize("answer", [
    "def f(x):\n    return x\n```\nThat is all.", "```python\ndef f(x):\n    return x\n```\nAnd so on.",
    "def f(x):\n    return x\n\ndef g(x):\n    return 1\n", "    def f(x):\n        return x\n    y = 1\n"])
def test_the_first_function_of_an_answer_counts(answer):
    assert first_function(answer).split() == ["def", "f(x):", "return", "x"]


def test_repositories_are_read_once():
    assert read_repository(documents()) is read_repository(documents())
