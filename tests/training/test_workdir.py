"""The folder of a run: one process at a time, one config, and clear words for what is damaged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from subq_jax.training import train
from subq_jax.training.metrics import MetricsLog
from subq_jax.training.workdir import claim_workdir, only_process_in, stored_config

ROOT = Path(__file__).parents[2]


def test_a_second_process_is_refused(tmp_path, tiny_config):
    program = ("import sys; from pathlib import Path; from subq_jax.training.workdir import only_process_in\n"
               "with only_process_in(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="is in use: another process works in it"):
            train(tiny_config, tmp_path, show_progress=False)
        assert not (tmp_path / "config.json").exists()
        holder.kill()
    with only_process_in(tmp_path):
        pass


@pytest.mark.parametrize("damage", [b'{"config": ', b"\xff\xfe", b""])
def test_damaged_config_is_named(tmp_path, tiny_config, damage):
    claim_workdir(tmp_path, tiny_config, "")
    (tmp_path / "config.json").write_bytes(damage)
    with pytest.raises(ValueError, match="config.json is damaged: .*Mend it, or choose another workdir"):
        claim_workdir(tmp_path, tiny_config, "")
    assert (tmp_path / "config.json").read_bytes() == damage


def test_fields_that_both_configs_have_are_named_first(tmp_path, tiny_config):
    other = tiny_config.copy_and_resolve_references()
    other.data.task = "copy"
    with other.unlocked():
        for number in range(9):
            other.data[f"a_{number}"] = number
    claim_workdir(tmp_path, tiny_config, "")
    with pytest.raises(ValueError, match="data.task is .* there, 'copy' here; data.a_0 is missing there"):
        claim_workdir(tmp_path, other, "")


@pytest.mark.parametrize("stored", ["[1, 2]", "{}", '{"config": 1}', '{"config": null}'])
def test_a_folder_that_holds_no_run_is_named(tmp_path, stored):
    with pytest.raises(ValueError, match="workdir .* must hold a run, got no file config.json there"):
        stored_config(tmp_path)
    (tmp_path / "config.json").write_text(stored)
    with pytest.raises(ValueError, match='config.json must be the config of a run, with a mapping "config", got'):
        stored_config(tmp_path)


def test_a_config_of_another_kind_belongs_to_another_run(tmp_path, tiny_config):
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="belongs to another config"):
        claim_workdir(tmp_path, tiny_config, "")


def test_a_workdir_that_is_a_file_is_named(tmp_path, tiny_config):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="workdir .*file.* cannot be used"):
            train(tiny_config, workdir, show_progress=False)


@pytest.mark.parametrize("row", [{"loss": 1.0}, {"step": "one"}])
def test_a_row_of_metrics_without_step_is_named(tmp_path, row):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="metrics.jsonl has a row without a step"):
        MetricsLog(tmp_path, restored_step=0, write=False)
