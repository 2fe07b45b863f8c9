"""What RULER's tasks refuse, what texts they take, and that they are registered with its numbers."""

import pytest
from ruler_problems import (
    ANSWER_TOKENS,
    BYTES,
    CODE,
    STORY,
    SYNTHETIC,
    TASKS,
    make,
    prompt,
    solve,
)

from subq_jax.tasks import find_task, haystack, ruler_niah, ruler_qa
from subq_jax.tasks.words import ADJECTIVES, NOUNS


@pytest.mark.parametrize("name", TASKS)
def test_too_short(name):
    with pytest.raises(ValueError, match=rf"{name} needs .*length"):
        make(name, 60)
    for length in range(200, 4000, 100):
        try:
            make(name, length)
        except ValueError as error:
            assert name in str(error)
        else:
            break
    for further in range(60, 1000, 67):  # every length draws other words, so that the shortest is not the same for all
        make(name, length + further)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in SYNTHETIC])
def test_corpus_too_small(name):
    corpus = CODE[:3] if name.startswith("qa") else STORY[:3]
    with pytest.raises(ValueError, match=rf"{name} needs \d+ more tokens of corpus for length=5000"):
        make(name, 5000, corpus=corpus)
    with pytest.raises(ValueError, match=f"{name} "):
        make(name, 5000, corpus=())


@pytest.mark.parametrize("name", [pytest.param("qa_1", marks=pytest.mark.slow), "qa_2"])
def test_a_context_that_only_larger_documents_could_fill_is_refused(name):
    large = "def large():\n" + "    print()\n" * 2000
    with pytest.raises(ValueError, match=rf"{name} needs \d+ more tokens of corpus for length=5000"):
        make(name, 5000, corpus=(*CODE[:3], large))
    many = (large.replace("large", f"large_{number}") for number in range(50))
    assert len(make(name, 5000, corpus=(*CODE, *many)).tokens) > 3500


@pytest.mark.parametrize("index", range(3))
def test_a_word_that_does_not_fit_ends_no_context(index):
    corpus = ("QUJD" * 9000, *(f"{text} {'x' * 9000}" for text in STORY[:20]))
    built = make("niah_single_2", 5000, index=index, corpus=corpus)
    assert len(built.tokens) > 5000 - 128 - 300 - ruler_niah.LONGEST_WORD


def test_a_corpus_is_text():
    with pytest.raises(ValueError, match=r"corpus\[1\] must be text that UTF-8 can write"):
        make("niah_single_2", 3000, corpus=("Fine, naïve text.", "Not \ud800 fine."))


@pytest.mark.parametrize("text", ["One of the special magic numbers for able-abacus is: 1234567. ",
                                  "{key} {query} {context} %s {0}. ", "A line.\r\nAnother one!\r\n"])
def test_corpora_that_read_like_the_task_are_but_text(text):
    for name in ("niah_single_2", "niah_multiquery"):
        (question,) = (built := make(name, 3000, corpus=(text * 200,))).questions
        answer, _ = solve(name, prompt(built, question))
        assert sorted(answer) == sorted(question.outputs) and BYTES.decode(built.tokens) == built.context


def test_text_without_full_stops_and_without_facts():
    text = ("word " * 3000,)
    assert len(make("niah_multikey_1", 5000, corpus=text).questions[0].evidence) == 1
    with pytest.raises(ValueError, match="qa_1 finds no fact in the Python code of a corpus of 1 documents"):
        make("qa_1", 5000, corpus=text)
    with pytest.raises(ValueError, match="qa_2 finds no fact"):
        make("qa_2", 5000, corpus=("def broken(:\n", "x = '\\d'\n"))


def test_facts_have_one_answer_that_only_reading_gives():
    def facts(name, *definitions):
        found = ruler_qa._read(("\n\n".join(definitions),), name)[1]
        return [(fact.query.split('"')[1], fact.answer) for fact in found]

    plain = 'def open_gate(left, gate_width=1):\n    """Let the sheep out of here."""\n'
    assert facts("qa_1", plain) == [("Let the sheep out of here.", "open_gate")]
    method = 'class Farm:\n    def release(self):\n        """Let the sheep out of here."""\n'
    assert not facts("qa_1", plain, method)  # two are described so
    assert not facts("qa_1", plain.replace("Let", "Open gate: let"))
    caller = 'def shepherd():\n    """Wake up before the dawn."""\n    open_gate(1)\n'
    assert facts("qa_2", plain, caller) == [("Wake up before the dawn.", "gate_width")]
    assert not facts("qa_2", plain.replace("gate_width=1", "gate_width=1, **options"), caller)
    assert not facts("qa_2", "class open_gate:\n    def __init__(self):\n        pass\n", caller)


def test_lines_of_documents_end_in_any_way():
    text = '"""One.\n"""\ndef first():\n    """Say the first thing there is."""\n\n\ndef second():\n    pass\n'
    found = [[definition.text for definition in ruler_qa._definitions(text.replace("\n", end))]
             for end in ("\n", "\r\n", "\r")]
    assert found[0] == found[1] == found[2] and found[0][1] == "def second():\n    pass\n\n"


def test_keys_run_out(monkeypatch):
    monkeypatch.setattr(ruler_niah, "ADJECTIVES", ADJECTIVES[:2])
    monkeypatch.setattr(ruler_niah, "NOUNS", NOUNS[:3])
    with pytest.raises(ValueError, match="niah_multikey_2 has 5 keys, too few for length=5000"):
        make("niah_multikey_2", 5000)


def test_an_unknown_name_is_answered_with_those_most_like_it():
    with pytest.raises(ValueError, match=r"task must be one of .* got 'phone_book'; did you mean 'phonebook'\?$"):
        find_task("phone_book")
    with pytest.raises(ValueError, match="got 'niah-single-1'; did you mean 'niah_single_1' or 'niah_single_"):
        find_task("niah-single-1")
    with pytest.raises(ValueError, match="got 'telepathy'$"):
        find_task("telepathy")


def test_registered_with_rulers_numbers():
    for name in TASKS:
        task = find_task(name)
        assert task.answer_tokens == ANSWER_TOKENS[name]
        assert task.source.startswith("RULER" if name in SYNTHETIC else "RULER-style")
        assert name not in SYNTHETIC or "RULER-style" not in task.source
    assert len(set(ADJECTIVES)) == len(ADJECTIVES) and len(set(NOUNS)) == len(NOUNS)
    assert isinstance(make("fwe"), haystack.Haystack)
