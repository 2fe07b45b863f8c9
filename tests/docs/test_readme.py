"""The README's example runs, and every path, command and flag that the documents mention exists."""

import importlib
import re

import numpy as np
import pytest
from documents import (
    DOCUMENTS,
    NOTEBOOK,
    PROGRAMS,
    ROOT,
    all_text,
    defined_flags,
    experiment_commands,
    repository_paths,
)
from flax import nnx

README = ROOT / "README.md"
FORWARDED = {"experiments.harness"}  # hands its flags on to a program of others
COMMANDS = [(path.relative_to(ROOT), command) for path in [*DOCUMENTS, NOTEBOOK, *PROGRAMS]
            for command in experiment_commands(all_text(path))]


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def shorten(config):
    """A run of the same data, in a few steps of one kind and two layers, as most of its time is compilation."""
    config.model.num_layers = 2
    config.training.steps, config.training.dense_steps, config.training.eval_every = 3, 0, 0
    return config


def test_a_finished_run_generates(tmp_path, capsys):
    example = EXAMPLES[1].replace("get_config()", "shorten(get_config('smoke'))").replace("runs/code", str(tmp_path))
    exec(compile(example, "README.md", "exec"), {"shorten": shorten})
    assert capsys.readouterr().out.strip()


def test_the_example_runs_and_keeps_its_word():
    example, names = EXAMPLES[0], {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["config"].budget == 7 * 32
    assert names["out"].shape == names["q"].shape
    last = np.asarray(names["selection"][0, -1, 0])
    assert (np.diff(last) > 0).all() and last[0] >= 1 and last[-1] <= 1024 // 32 - 3, "past blocks, ascending"
    replaced = nnx.MultiHeadAttention(num_heads=8, in_features=512, num_kv_heads=2, rngs=nnx.Rngs(0), decode=False)
    assert names["y"].shape == replaced(names["x"]).shape
    paths = [{"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))}
             for layer in (replaced, names["attention"])]
    assert paths[0] < paths[1], "the same parameters under the same names, and a router"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(document):
    missing = sorted(path for path in repository_paths(document) if not (ROOT / path).exists())
    assert not missing, f"{document.name} mentions {missing}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in [*DOCUMENTS, NOTEBOOK]:
        named = re.findall(r"(?:`|^)make (?:\w+=\S+ )*([\w-]+)", all_text(path), re.MULTILINE)
        assert set(named) <= targets, f"{path.name} names make targets that do not exist"
    assert {"sweep", "test"} <= targets


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=lambda value: str(value) if value else "")
def test_commands_exist(path, command):
    module, *arguments = command
    program = ROOT / (module.replace(".", "/") + ".py")
    assert program.exists(), f"{path} names {module}"
    if module in FORWARDED:
        return
    config = None
    for argument in arguments:
        assert argument.startswith("--"), f"{path}: {argument} is not a flag"
        name, _, value = argument.removeprefix("--").partition("=")
        flag, *fields = name.split(".")
        known = defined_flags(program)
        assert flag in known or flag.removeprefix("no") in known, f"{path}: {module} has no flag --{flag}"
        if fields:
            parent = config
            for field in fields:
                assert field in parent, f"{path}: the config has no field {name}"
                parent = parent[field]
        elif flag == "config":
            file, _, config_argument = value.partition(":")
            assert (ROOT / file).exists(), f"{path} names {file}"
            config = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config(config_argument)


def test_commands_are_found_at_all():
    named = {command[0] for path, command in COMMANDS if path.name == "README.md"}
    assert named == {"experiments.train", "experiments.sweep", "experiments.benchmark_attention",
                     "experiments.benchmark_generation", "experiments.search_choice", "experiments.evaluate",
                     "experiments.generate_tasks"}
    assert experiment_commands("`python -m experiments.a --b=1` and\npython -m experiments.c \\\n  --d") == [
        ["experiments.a", "--b=1"], ["experiments.c", "--d"]]
