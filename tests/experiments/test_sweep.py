"""The sweep's bookkeeping with a stubbed training function, and one real sweep of a minute."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console

from configs import code_search, full_sweep, readme_sweep, selector_search
from configs.readme_sweep import get_config
from experiments import sweep, sweep_cell
from experiments.sweep_grid import grid
from experiments.sweep_workers import Worker, gpu_share
from subq_jax.files import read_rows
from subq_jax.model.config import DecoderConfig

ROOT = Path(__file__).parents[2]


class TinyModel(nnx.Module):
    """Stands in for a trained decoder."""

    def __init__(self, config):
        self.config = config
        self.scale = nnx.Param(nnx.initializers.ones(nnx.Rngs(0).params(), (3,)))

    def __call__(self, tokens):
        return tokens[..., None] * self.scale[...].reshape(1, 1, 3)


def small_config() -> ConfigDict:
    config = get_config("smoke")
    del config.sweep.tasks["code"]
    return config


@pytest.fixture
def trained(monkeypatch):
    """Stubs training, evaluation and timing; returns the (workdir, config) pairs of the trainings asked for."""
    calls = []

    def train(config, workdir, *, show_progress):
        calls.append((workdir, config))
        if config.model.mechanism in failing:
            raise RuntimeError("the loss went <up>")
        model = TinyModel(DecoderConfig(**config.model.to_dict() | {"vocab_size": 128}))
        return SimpleNamespace(model=model, step=config.training.steps, metrics=[])

    def evaluate(model, data, *, lengths, num_batches, batch_size, seed):
        return [dict(length=length, loss=1.0, accuracy=0.95, bits_per_byte=None, num_tokens=9) for length in lengths]

    failing = set()
    monkeypatch.setattr(sweep_cell, "train", train)
    monkeypatch.setattr(sweep_cell, "evaluate", evaluate)
    monkeypatch.setattr(sweep_cell, "held_out_routing", lambda model, data, **sizes: {"routing_union_8": 2.0})
    return SimpleNamespace(calls=calls, failing=failing)


@pytest.fixture
def run(tmp_path):
    """Runs the program in this process; returns the rows it left."""

    def run_sweep(config, cells=""):
        failed = sweep.run_sweep(config, tmp_path, pattern=cells, parallel=1, console=Console(width=500))
        rows = read_rows(tmp_path / "results.jsonl")
        assert failed == [row["cell"] for row in rows if row["status"] == "failed"]
        return rows

    return run_sweep


def test_grid_has_no_budget_axis_for_dense():
    cells = grid(get_config())
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names)) == 14
    assert "recall-dense-seed0" in names and "code-selective-64-seed0" in names
    selective = next(cell for cell in cells if cell.name == "recall-selective-32-seed0")
    assert selective.config["model"]["budget"] == 32
    assert selective.config["data"]["task"] == "mqar"
    assert selective.evaluation["lengths"] == [128, 512, 2048]
    code = next(cell for cell in cells if cell.task == "code")
    assert code.config["data"]["task"] == "text"
    assert selective.config["optimizer"] == code.config["optimizer"]  # one learning rate for every arm


def test_every_arm_is_run_at_every_learning_rate():
    config = get_config()
    config.sweep.learning_rates = (1e-3, 5e-3)
    cells = grid(config)
    assert len({cell.name for cell in cells}) == 28
    (cell,) = [cell for cell in cells if cell.name == "code-block_mean-64-lr0.001-seed0"]
    assert cell.config["optimizer"]["learning_rate"] == cell.place()["learning_rate"] == 1e-3
    assert {cell.place()["learning_rate"] for cell in grid(get_config())} == {5e-3}


@pytest.mark.parametrize("module", [code_search, full_sweep, readme_sweep, selector_search],
                         ids=lambda module: module.__name__)
def test_the_projects_sweeps_are_right(module):
    for arg in ("", "smoke"):
        assert grid(module.get_config(arg))
    with pytest.raises(ValueError, match="'smok'"):
        module.get_config("smok")


def test_the_search_on_code_compares_at_an_eighth_of_the_training_length():
    cells = grid(code_search.get_config())
    assert {cell.task for cell in cells} == set(code_search.VARIANTS)
    for cell in cells:
        assert cell.budget in (None, cell.config["data"]["seq_len"] // 8)
        assert cell.config["data"]["batch_size"] * cell.config["data"]["seq_len"] == 65_536
    base = next(cell.config for cell in cells if cell.name == "code-selective-256-seed0")
    taught = selector_search.VARIANTS["block16_1800"]  # what finds needles at half the cost of the best
    for section, fields in taught.items():
        for name, value in fields.items():
            if name not in ("seq_len", "curriculum", "block_size"):
                assert base[section][name] == value, name


def test_finished_cells_are_skipped_and_report_is_written(trained, run, tmp_path, capsys):
    rows = run(small_config())
    assert [(row["cell"], row["length"]) for row in rows] == [
        ("recall-dense-seed0", 64), ("recall-dense-seed0", 128),
        ("recall-selective-32-seed0", 64), ("recall-selective-32-seed0", 128)]
    assert {row["status"] for row in rows} == {"ok"}
    assert all(row["parameters"] == 3 and row["forward_seconds"] > 0 and row["forward_flops"] > 0 for row in rows)
    assert all(row["routing_union_8"] == 2.0 for row in rows)
    assert len(trained.calls) == 2
    assert str(tmp_path / "report.html") in capsys.readouterr().out
    assert "dense answers 95.0% right" in (tmp_path / "report.html").read_text(encoding="utf-8")

    assert run(small_config()) == rows
    assert len(trained.calls) == 2


def test_forward_passes_are_not_timed_without_repeats(trained, run):
    config = small_config()
    config.sweep.timing_repeats = 0
    rows = run(config)
    assert len(rows) == 4 and all(row["forward_flops"] > 0 and "forward_seconds" not in row for row in rows)


def test_interrupted_sweep_goes_on_where_it_was(trained, run, tmp_path):
    trained_before = run(small_config(), cells="dense")
    (tmp_path / "cells" / "recall-selective-32-seed0").mkdir(exist_ok=True)
    (tmp_path / "cells" / "recall-selective-32-seed0" / "request.json").write_text("{}")
    rows = run(small_config())
    assert [workdir.parent.name for workdir, _ in trained.calls] == ["recall-dense-seed0", "recall-selective-32-seed0"]
    assert rows[:2] == trained_before and len(rows) == 4


def test_failed_cell_is_reported_and_the_rest_goes_on(trained, run, tmp_path):
    trained.failing.add("dense")
    rows = run(small_config())
    assert [row["status"] for row in rows] == ["failed", "ok", "ok"]
    assert rows[0]["error"] == "RuntimeError: the loss went <up>"
    assert "Traceback" in (tmp_path / rows[0]["traceback"]).read_text()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Failed cells (1)" in page and "the loss went &lt;up&gt;" in page

    trained.failing.clear()  # a failed cell is tried anew, a finished one is not
    assert [row["status"] for row in run(small_config())] == ["ok"] * 4
    assert len(trained.calls) == 3
    assert not list(tmp_path.glob("cells/*/error.txt"))


def test_other_evaluation_reuses_the_training_folder(trained, run):
    run(small_config())
    config = small_config()
    config.sweep.eval_lengths = (64, 256)
    rows = run(config)
    assert {row["length"] for row in rows} == {64, 256}
    assert len(trained.calls) == 4  # training is asked again, and answers from its own last checkpoint


def test_data_that_cannot_be_used_claims_no_folder(run, tmp_path):
    config = small_config()
    config.sweep.tasks.recall.data.curriculum = ((0, 7, 1),)
    with pytest.raises(ValueError, match="data.curriculum length must divide the tokens"):
        run(config)
    assert not (tmp_path / "cells").exists()


def test_bad_input_is_refused_before_any_training(trained, run):
    run(small_config())
    config = small_config()
    config.optimizer.learning_rate = 1.0
    with pytest.raises(ValueError, match="belongs to another config.*learning_rate"):
        run(config)
    with pytest.raises(ValueError, match="--cells=nothing matches none of .*recall-dense-seed0"):
        run(small_config(), cells="nothing")
    config = small_config()
    config.sweep.budgets = (20,)
    with pytest.raises(ValueError, match="cell recall-selective-20-seed0: budget of selective must be a multiple"):
        run(config)
    config = small_config()
    config.sweep.mechanisms = ("magic",)
    with pytest.raises(ValueError, match="mechanism must be one of"):
        run(config)
    config = small_config()
    del config.sweep.budgets
    with pytest.raises(ValueError, match="config.sweep must have exactly the fields"):
        run(config)
    assert len(trained.calls) == 2


@pytest.mark.parametrize(("field", "value", "message"), [
    ("eval_lengths", (128, 8), "cell recall-dense-seed0: length must be at least 16 for 4 pairs and 4 questions"),
    ("eval_lengths", ("x",), "sweep.eval_lengths must be an integer >= 1, got 'x'"),
    ("eval_batches", 0, "sweep.eval_batches must be an integer >= 1, got 0"),
    ("timing_repeats", -1, "sweep.timing_repeats must be an integer >= 0, got -1"),
    ("eval_lengths", ([128],), r"sweep.eval_lengths must be an integer >= 1, got \[128\]"),
    ("seeds", (0, 0), r"sweep.seeds must not repeat itself, got \(0, 0\)"),
    ("budgets", (), "sweep.budgets must not be empty"),
    ("learning_rates", (1e-3, 1e-3), r"sweep.learning_rates must not repeat itself, got \(0.001, 0.001\)"),
    ("learning_rates", (-1.0,), "cell recall-dense-lr-1-seed0: optimizer.learning_rate must be > 0, got -1.0"),
    ("learning_rates", ("fast",), "sweep.learning_rates must be numbers, got 'fast'"),
    ("learning_rates", (1e-3, 1.0000001e-3), r"too close to tell apart make \['recall-dense-lr0.001-seed0'"),
    ("learning_rates", 1e-3, "sweep.learning_rates must be a tuple of values, got 0.001"),
    ("mechanisms", "dense", "sweep.mechanisms must be a tuple of values, got 'dense'"),
    ("seeds", 3, "sweep.seeds must be a tuple of values, got 3"),
    ("seeds", ("one",), "cell recall-dense-seedone: .*'seed'"),
    ("budgets", (0.5,), "cell recall-selective-0.5-seed0: .*'budget'"),
    ("tasks", ("recall",), "sweep.tasks must be a mapping of fields to values, got"),
    ("tasks", {"recall": 3}, "sweep.tasks.recall must be a mapping of fields to values, got 3"),
    ("tasks", {"a/b": {}}, "cell a/b-dense-seed0: a cell is a folder, and its name must not have a slash"),
    ("tasks", {"recall": {"model": {"width": "wide"}}}, "cell recall-dense-seed0: .*'width'"),
])
def test_a_sweep_that_could_not_be_evaluated_is_refused(field, value, message):
    config = small_config()
    with config.ignore_type():
        config.sweep[field] = value
    with pytest.raises(ValueError, match=message):
        grid(config)


def test_step_time_leaves_out_warm_up_and_curriculum():
    config = get_config()
    config.data.batch_size, config.data.curriculum = 32, ((0, 32, 4), (60, 128, 8))
    config.training.dense_steps, config.training.log_every = 40, 20
    rates = {20: 1.0, 40: 1.0, 60: 1.0, 80: 4096.0, 100: 2048.0, 120: 4096.0}
    metrics = [{"step": step, "tokens_per_second": rate} for step, rate in rates.items()]
    metrics.append({"step": 120, "eval_loss": 1.0})
    assert sweep_cell.median_step_seconds(metrics, config) == 1.0
    assert sweep_cell.median_step_seconds(metrics[:3], config) is None


def test_worker_that_dies_fails_its_cell_only(tmp_path):
    cell = grid(small_config())[0]
    folder = tmp_path / "cells" / cell.name
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps(cell.request()))
    worker = Worker(tmp_path, 0, [], "", {})
    worker._command = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit(7)"]
    worker(folder)
    (row,) = json.loads((folder / "result.json").read_text())["rows"]
    assert row["status"] == "failed" and "ended with status 7" in row["error"]
    assert not sweep.is_complete(cell, tmp_path)

    worker._command = [sys.executable, "-c", f"import sys; sys.stdin.readline(); print({sweep_cell.DONE!r})"]
    worker(folder)  # a new process takes the next cell
    worker.stop()


def test_workers_share_out_the_gpus(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    shares = [gpu_share(index, 5, 2) for index in range(5)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0", "1", "0", "1", "0"]
    assert all(0.25 < float(share["XLA_PYTHON_CLIENT_MEM_FRACTION"]) < 1 / 3 for share in shares)
    assert gpu_share(0, 5, 0) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.1")
    assert gpu_share(1, 2, 2) == {"CUDA_VISIBLE_DEVICES": "5", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.1"}
    with pytest.raises(ValueError, match="--gpus=3 is more than CUDA_VISIBLE_DEVICES=3,5 shows"):
        gpu_share(0, 3, 3)


@pytest.mark.slow
def test_real_sweep_in_worker_processes(tmp_path):
    command = [sys.executable, "-m", "experiments.sweep", "--config=configs/readme_sweep.py:smoke",
               f"--workdir={tmp_path}", "--cells=recall", "--parallel_cells=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "results.jsonl")
    assert len(rows) == 4 and all(row["forward_temp_bytes"] > 0 for row in rows)
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text(encoding="utf-8")
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "2 cells, 2 of them finished before" in again.stdout
    assert read_rows(tmp_path / "results.jsonl") == rows
