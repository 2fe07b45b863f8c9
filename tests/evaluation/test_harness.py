"""The standard harness asks our models: what it gets is what the plain model says, and its RULER scores are ours."""

import math
import string
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_decoder import SHAPE, decoder

pytest.importorskip("lm_eval", reason="needs subq_jax[harness]")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402

from subq_jax.data.tokenizers import ByteTokenizer  # noqa: E402
from subq_jax.evaluation.answering import AnsweringModel, answer_questions  # noqa: E402
from subq_jax.evaluation.harness import HarnessModel, greedy_settings  # noqa: E402
from subq_jax.inference.reader import Reader, Said  # noqa: E402
from subq_jax.model.config import DecoderConfig  # noqa: E402
from subq_jax.model.decoder import Decoder  # noqa: E402
from subq_jax.tasks import Haystack, Question, find_task  # noqa: E402
from subq_jax.tasks.scores import any_reference, share_of_references  # noqa: E402

PADDED = 64  # one length of the plain forward pass, one program


class Letters:
    """A tokenizer of 37 signs, so that whatever a model of 40 ids says is text."""

    signs = string.ascii_lowercase + string.digits + " "
    vocab_size, bos_id, eos_id, pad_id = 40, 37, 38, 39

    def encode(self, text):
        return np.array([self.signs.index(sign) for sign in text], np.int32)

    def decode(self, tokens):
        return "".join(self.signs[token] for token in tokens if token < 37)


TOKENIZER = Letters()
forward = nnx.jit(lambda model, tokens: model(tokens))


@pytest.fixture(scope="module")
def model():
    return decoder("dense")


def harness(model, **options):
    return HarnessModel(Reader(model, chunk=1), TOKENIZER, **options)  # one shape, one program


def requests(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]


def encoded(text):
    return np.concatenate([[TOKENIZER.bos_id], TOKENIZER.encode(text)])


def logits(model, tokens):
    padded = jnp.zeros((1, PADDED), jnp.int32).at[0, : len(tokens)].set(tokens)
    return np.asarray(forward(model, padded)[0, : len(tokens)], np.float64)


def likely(model, tokens, start):
    """The log-probability of the tokens from `start` on, by the plain forward pass."""
    before = logits(model, tokens)[start - 1 : -1]
    return sum(row[token] - np.log(np.exp(row).sum()) for row, token in zip(before, tokens[start:], strict=True))


def said(model, text, num_tokens):
    tokens = encoded(text)
    for _ in range(num_tokens):
        tokens = np.append(tokens, logits(model, tokens)[-1].argmax())
    new = tokens[-num_tokens:].tolist()
    return TOKENIZER.decode(new[: new.index(TOKENIZER.eos_id)] if TOKENIZER.eos_id in new else new)


def test_likelihoods_are_those_of_the_forward_pass(model):
    pairs = [("one two", " three"), ("one two", " four"), ("", "alone"), ("ends in a space ", "here")]
    answers = harness(model).loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (found, greedy) in zip(pairs, answers, strict=True):
        tokens = encoded(context + continuation)
        start = 1 + len(TOKENIZER.encode(context.rstrip()))
        assert math.isclose(found, likely(model, tokens, start), rel_tol=1e-5) and not greedy
    best = said(model, "one two", 3)
    worse = best[:-1] + ("x" if best[-1] == "y" else "y")
    (_, greedy), (_, other) = harness(model).loglikelihood(
        requests("loglikelihood", ("one two", best), ("one two", worse)), disable_tqdm=True)
    assert greedy and not other


def test_a_context_is_read_once_for_all_its_continuations(model):
    asked = harness(model)
    reads = []
    asked._reader.read = lambda *args: reads.append(args) or Reader.read(asked._reader, *args)
    pairs = [("one", " a"), ("one", " b c"), ("two", " a")]
    asked.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    assert len(reads) == 2


def test_rolling_likelihoods_are_of_the_whole_text_or_of_windows(model):
    text = "one two three0"
    tokens = encoded(text)
    asked = requests("loglikelihood_rolling", (text,), ("",))
    whole, empty = harness(model).loglikelihood_rolling(asked, disable_tqdm=True)
    assert math.isclose(whole, likely(model, tokens, 1), rel_tol=1e-5) and empty == 0
    (windows, _) = harness(model, max_length=10).loglikelihood_rolling(asked, disable_tqdm=True)
    expected = likely(model, tokens[:11], 1) + likely(model, tokens[-11:], 7)
    assert math.isclose(windows, expected, rel_tol=1e-5) and windows != whole


def test_generation_is_greedy_up_to_the_first_stop(model, monkeypatch):
    monkeypatch.setattr("subq_jax.evaluation.harness.TOKENS_BETWEEN_STOPS", 4)
    answer = said(model, "one two", 20)
    assert len(answer) == 20
    cases = [({"until": []}, answer), ({"until": answer[9]}, answer[: answer.index(answer[9])]),
             ({"until": ["never said", answer[9:12], answer[5:8], ""]},
              answer[: min(answer.index(answer[9:12]), answer.index(answer[5:8]))]),
             ({"until": ["never said"], "max_gen_toks": 7}, said(model, "one two", 7))]
    asked = requests("generate_until", *(("one two", {"max_gen_toks": 20} | settings) for settings, _ in cases))
    assert harness(model).generate_until(asked, disable_tqdm=True) == [expected for _, expected in cases]


def test_generation_ends_with_the_document(model):
    asked = harness(model)

    def greedy(read, prompt, count, end):
        assert end == TOKENIZER.eos_id and not len(prompt)  # nothing is asked for after the end
        said = np.array([*TOKENIZER.encode("yes"), end])
        return Said(said, np.zeros(len(said)))

    asked._reader.greedy = greedy
    assert asked.generate_until(requests("generate_until", ("a", {"until": ["x"]})), disable_tqdm=True) == ["yes"]


def test_a_long_context_loses_its_beginning_and_says_so(model, caplog):
    asked = harness(model, max_length=12)
    settings = {"until": [], "max_gen_toks": 5}
    found = asked.generate_until(
        requests("generate_until", ("lost and 567890", settings), ("short", settings)), disable_tqdm=True)
    assert found == [said(model, "567890", 5), said(model, "short", 5)]
    assert "1 of 2 contexts were longer than max_length=12" in caplog.text
    caplog.clear()
    (found, _), = asked.loglikelihood(requests("loglikelihood", ("lost and 567890", "12345")), disable_tqdm=True)
    assert math.isclose(found, likely(model, encoded(" 56789012345"), 8), rel_tol=1e-5)
    assert "1 of 1 contexts were longer" in caplog.text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: harness(m, max_length=1), "max_length must be an integer >= 2"),
        (lambda m: harness(m, max_length=5).generate_until(
            requests("generate_until", ("a", {"max_gen_toks": 5}))), "max_length must be above 5 .* got 5"),
        (lambda m: harness(m, max_length=5).loglikelihood(
            requests("loglikelihood", ("a", "123456"))), "max_length must be above 5"),
        (lambda m: harness(m).loglikelihood(requests("loglikelihood", ("a", ""))), "must add a token"),
        (lambda m: greedy_settings({"do_sample": True, "temperature": 0.7}), "do_sample must be False"),
        (lambda m: greedy_settings({"temperature": 0.7}), "do_sample must be False"),
        (lambda m: greedy_settings({"num_beams": 4}), r"settings of generation must be among .* got \['num_beams'\]"),
        (lambda m: greedy_settings({"max_gen_toks": 0}), "max_gen_toks must be an integer >= 1"),
    ],
)
def test_what_cannot_be_done_is_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


# RULER's generators and metrics, as the harness has them, on prompts of bytes.
BYTES = ByteTokenizer()
TEMPLATE = "Some special magic {type_needle_v} are in this text.\n{context}\nWhat are all of them for {query}?"
LENGTH = 700


@pytest.fixture(scope="module")
def ruler():
    """The harness's own module of metrics, and rows that its generator made: three of one value, three of two."""
    for library in ("transformers", "wonderwords", "nltk"):
        pytest.importorskip(library, reason="needs subq_jax[harness]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.download", lambda *args: False)  # its import downloads what these tasks do not use
        from lm_eval.tasks.ruler import common_utils, prepare_niah
    measured = lambda text: types.SimpleNamespace(input_ids=BYTES.encode(text))
    rows = [prepare_niah.generate_samples(
        prepare_niah.get_haystack(type_haystack=kind), TOKENIZER=measured, max_seq_length=LENGTH, num_samples=3,
        type_haystack=kind, type_needle_k="words", type_needle_v="numbers", template=TEMPLATE, **count)
        for kind, count in (("needle", {}), ("repeat", {"num_needle_v": 2}))]
    return common_utils, rows


def asked(row):
    return Question("", " " + row["gen_prefix"], tuple(row["outputs"]))


def answers(outputs):
    """Right, wrong and partly right ones: (answer, share of the references in it)."""
    half = outputs[: len(outputs) // 2]
    yield from ((" " + ", ".join(outputs), 1.0), (f"\n\t\x00{' and '.join(outputs[::-1])}.\x1f ", 1.0),
                ("".join(outputs), 1.0), ("", 0.0), ("7", 0.0), (outputs[0][:-1], 0.0),
                (" ".join(half), len(half) / len(outputs)))


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multivalue", "vt", "cwe", "fwe"])
def test_rulers_metric_is_our_score(ruler, task):
    metrics, rows = ruler
    for row in [row for part in rows for row in part] + [{"outputs": ["ABCDE", "fghij", "Ünit"], "max_length": LENGTH}]:
        question = Question("", "", tuple(row["outputs"]))
        for answer, share in answers(row["outputs"]):
            for written in (answer, answer.upper(), answer.lower()):
                theirs = metrics.process_results(row, [written])[str(LENGTH)]
                assert theirs == find_task(task).score(written, question) == share_of_references(written, question)
                assert theirs == share


def test_rulers_metric_of_questions_differs_where_there_are_several_references(ruler):
    """Any of them counts in RULER and in ours; the harness gives their share, as for all other tasks."""
    metrics, ((one, *_), (several, *_)) = ruler
    for row, theirs in ((one, 1.0), (several, 0.5)):
        question, answer = Question("", "", tuple(row["outputs"])), row["outputs"][0]
        assert any_reference(answer, question) == find_task("qa_1").score(answer, question) == 1
        assert metrics.process_results_part(row, [answer])[str(LENGTH)] == theirs


def memorise(model, prompts, answer, steps):
    """Trains a model to say `answer` after each prompt, whatever it asks."""
    texts = [[BYTES.bos_id, *BYTES.encode(prompt + answer), BYTES.eos_id] for prompt in prompts]
    longest = max(map(len, texts))
    tokens = jnp.array([text + [BYTES.pad_id] * (longest - len(text)) for text in texts])
    ends = np.array([[len(text)] for text in texts])
    place = np.arange(1, longest)
    weights = jnp.array((place < ends) & (place >= ends - len(answer) - 1), jnp.float32)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            losses = optax.softmax_cross_entropy_with_integer_labels(model(tokens[:, :-1]), tokens[:, 1:])
            return (losses * weights).sum() / weights.sum()

        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(steps):
        step(model, optimizer)


@pytest.mark.parametrize("steps", [0, pytest.param(100, marks=pytest.mark.slow)])
def test_the_harness_and_our_evaluation_score_a_model_alike(ruler, steps):
    metrics, (_, rows) = ruler
    config = DecoderConfig(mechanism="dense", **SHAPE | {"vocab_size": BYTES.vocab_size, "width": 32})
    model = Decoder(config, rngs=nnx.Rngs(0))
    memorise(model, [f"{row['input']} {row['gen_prefix']}" for row in rows],
             f" {', '.join(rows[0]['outputs'] + rows[1]['outputs'][:1])}.", steps)
    reader = Reader(model, chunk=1)

    import datasets

    task = ConfigurableTask(config={
        "task": "rows", "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)}, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "{{input}}", "doc_to_target": "{{outputs}}",
        "gen_prefix": "{{gen_prefix}}", "target_delimiter": " ", "process_results": metrics.process_results,
        "metric_list": [{"metric": str(LENGTH), "aggregation": metrics.aggregate_metrics, "higher_is_better": True}],
        "generation_kwargs": {"do_sample": False, "temperature": 0.0, "max_gen_toks": 128, "until": []}})
    found = simple_evaluate(model=HarnessModel(reader, BYTES), tasks=[task], bootstrap_iters=0)
    samples = sorted(found["samples"]["rows"], key=lambda sample: sample["doc_id"])

    ours = []
    for index, row in enumerate(rows):
        context, room = row["input"], LENGTH + len(row["gen_prefix"]) + 1  # the harness leaves the prefix out
        haystack = Haystack("niah_multivalue", index, (context,), BYTES.encode(context), (asked(row),), room)
        ours += answer_questions(AnsweringModel(reader, BYTES, config), find_task("niah_multivalue"), haystack)
    assert [sample["resps"][0][0] for sample in samples] == [row["answer"] for row in ours]
    assert [sample[str(LENGTH)] for sample in samples] == [row["score"] for row in ours]
    assert [row["score"] for row in ours] == ([1.0, 0.5, 0.0] if steps else [0.0] * 3)
    assert found["results"]["rows"][f"{LENGTH},none"] == np.mean([row["score"] for row in ours])
