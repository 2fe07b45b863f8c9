"""Wrong configs get one clear error before any compute."""

import pytest

from configs import code, recall
from subq_jax.parallel import parse_mesh
from subq_jax.training import check_config, train


def test_the_projects_configs_are_right():
    for get_config in (recall.get_config, code.get_config):
        for arg in ("", "smoke"):
            check_config(get_config(arg))
        with pytest.raises(ValueError, match="'smok'"):
            get_config("smok")


def test_a_section_that_nobody_reads_is_refused(tiny_config):
    tiny_config.sweep = {"seeds": (0,)}
    with pytest.raises(ValueError, match=r"config has no field \['sweep'\]; known fields: .*'model'"):
        check_config(tiny_config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate must be a finite number, got nan"),
        ("optimizer.weight_decay", float("inf"), "optimizer.weight_decay must be a finite number, got inf"),
        ("optimizer.b2", 1.0, r"optimizer.b2 must be in \[0, 1\), got 1.0"),
        ("optimizer.warmup_steps", 60, "optimizer.warmup_steps must be < training.steps=60, got 60"),
        ("training.steps", 0, "training.steps must be >= 1, got 0"),
        ("training.dense_steps", 61, r"training.dense_steps must be in \[0, steps=60\], got 61"),
        ("data.batch_size", 0, "data.batch_size must be an integer >= 1, got 0"),
        ("model.mechanism", "telepathy", "mechanism must be one of .*selective.*, got 'telepathy'"),
        ("model.num_kv_heads", 4, "num_heads must be a multiple of num_kv_heads=4, got 2"),
        ("model.vocab_size", 100, "model.vocab_size must be >= the data's 128, or 0 to take it, got 100"),
        ("data.num_pairs", 30, "length must be at least 64 for 30 pairs and 2 questions"),
        ("model.router_dim", 0, "model.router_dim must be an integer >= 1, got 0"),
        ("model.param_dtype", "float16", "param_dtype must be one of .*'bfloat16'.*, got 'float16'"),
        ("model.layer_pattern", 5, r"model.layer_pattern must be a non-empty tuple of \('local', 'selective'\), got 5"),
        ("model.layer_pattern", "local", "model.layer_pattern must be a non-empty tuple of .*, got 'local'"),
        ("model.layer_pattern", (["local"],), "model.layer_pattern must be a non-empty tuple of"),
        ("model.vocab_size", "many", "model.vocab_size must be an integer >= 0, got 'many'"),
        ("data.curriculum", 5, r"data.curriculum must be a sequence of \(first_step, length, num_pairs\), got 5"),
        ("data.curriculum", (0, 16, 1), r"data.curriculum entries must be \(first_step, length, num_pairs\), got 0"),
        ("seed", 2**70, r"seed must be an integer in \[0, 2\*\*31\), got"),
        ("seed", -1, r"seed must be an integer in \[0, 2\*\*31\), got -1"),
    ],
)
def test_wrong_value_is_named(tmp_path, tiny_config, field, value, message):
    section, _, name = field.rpartition(".")
    target = tiny_config[section] if section else tiny_config
    with target.ignore_type():
        target[name] = value
    with pytest.raises(ValueError, match=message):
        train(tiny_config, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_stages_that_would_cut_rows_of_text_inside_a_block_leave_the_workdir_alone(tmp_path):
    config = code.get_config("smoke")
    config.data.curriculum = ((0, 8), (5, 256))
    with pytest.raises(ValueError, match=r"data.curriculum lengths must divide .* block_size=16, got 8"):
        train(config, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_missing_and_unknown_fields_are_named(tiny_config):
    del tiny_config.training.log_every
    with pytest.raises(ValueError, match=r"training lacks \['log_every'\]"):
        check_config(tiny_config)
    del tiny_config.optimizer
    with pytest.raises(ValueError, match=r"config lacks \['optimizer'\]"):
        check_config(tiny_config)


@pytest.mark.parametrize("section", ["data", "model", "optimizer", "training"])
@pytest.mark.parametrize("value", [5, None, (1, 2)])
def test_a_section_that_is_no_mapping_is_named(tiny_config, section, value):
    with tiny_config.ignore_type():
        tiny_config[section] = value
    with pytest.raises(ValueError, match=f"{section} must be a mapping of fields to values, got"):
        check_config(tiny_config)


def test_unknown_field_is_named(tiny_config):
    tiny_config.optimizer.momentum = 0.9
    with pytest.raises(ValueError, match=r"optimizer has no field \['momentum'\]; known fields: .*'b1'"):
        check_config(tiny_config)


def test_batch_that_the_mesh_cannot_share(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr("subq_jax.training.loop.batch_divisor", lambda mesh: 8)
    message = r"data.batch_size must give a multiple of data\*fsdp=8 times .* sequences at length 32, got 4"
    with pytest.raises(ValueError, match=message):
        train(tiny_config, tmp_path, mesh=parse_mesh(""), show_progress=False)
