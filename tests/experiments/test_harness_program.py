"""The standard harness on a run: its name, its tokenizer for others, its refusals; and a task from end to end."""

import pytest
from programs import program

pytest.importorskip("lm_eval", reason="needs subq_jax[harness]")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from experiments.harness import TrainedRun, share_tokenizer  # noqa: E402
from subq_jax.data.hugging_face import HuggingFaceTokenizer  # noqa: E402
from subq_jax.data.tokenizers import BpeTokenizer, ByteTokenizer, train_bpe  # noqa: E402
from subq_jax.files import write_rows  # noqa: E402


def test_it_is_registered():
    assert get_model("subq_jax") is TrainedRun


def test_the_tokenizer_is_written_once_and_never_another(tmp_path):
    share_tokenizer(ByteTokenizer(), tmp_path / "new")
    share_tokenizer(ByteTokenizer(), tmp_path / "new")
    assert HuggingFaceTokenizer(tmp_path / "new").vocab_size == 259
    train_bpe(["The grass is green. The grass is green. The grass"], 270, tmp_path / "bpe.json")
    with pytest.raises(ValueError, match="tokenizer must be a new folder, or one with the run's own tokenizer"):
        share_tokenizer(BpeTokenizer(tmp_path / "bpe.json"), tmp_path / "new")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold a run, got no file config.json"):
        TrainedRun(str(tmp_path), device="cuda:0")
    with pytest.raises(ValueError, match="batch_size must be 1: .* got 'auto'"):
        TrainedRun(str(tmp_path), batch_size="auto")


@pytest.mark.slow
def test_a_task_from_end_to_end(tmp_path):
    done = program("train", ("--config=configs/code.py:smoke", "--progress=false"), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, [{"text": "def f(", "end": "self):", "wrong": "\u2603"}] * 2)
    data = {"data_files": {"test": str(rows)}, "cache_dir": str(tmp_path / "cache")}
    task = {"task": "ends", "dataset_path": "json", "dataset_kwargs": data, "test_split": "test",
            "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_target": 0,
            "doc_to_choice": ["{{end}}", "{{wrong}}"], "metric_list": [{"metric": "acc"}]}
    arguments = {"workdir": str(tmp_path / "run"), "tokenizer": str(tmp_path / "tokenizer"), "max_length": 64}
    found = simple_evaluate(model="subq_jax", model_args=arguments, tasks=[task], bootstrap_iters=0)
    end, wrong = (float(answers[0][0]) for answers in found["samples"]["ends"][0]["resps"])
    assert end < 0 and wrong < 0 and found["results"]["ends"]["acc,none"] == float(end > wrong)
    assert (tmp_path / "tokenizer" / "tokenizer.json").exists()
