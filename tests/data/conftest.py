"""A small folder of source code to build datasets from."""

import numpy as np
import pytest

from subq_jax.data import make_train_iterator


@pytest.fixture(scope="session")
def source_folder(tmp_path_factory):
    """Twelve packages of two modules, one top-level file, a duplicate, a binary, a Latin-1 and an empty file."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for package in range(12):
        (folder / f"package{package}").mkdir()
        for module in range(2):
            lines = [f"def f{i}_{package}(x): return x * {rng.integers(1000)}  # ünï" for i in range(5 + 8 * module)]
            (folder / f"package{package}" / f"module{module}.py").write_text("\n".join(lines), encoding="utf-8")
    (folder / "alone.py").write_text("print('top level')\n")
    (folder / "package3" / "copy.py").write_bytes((folder / "package1" / "module0.py").read_bytes())
    (folder / "package2" / "picture.bin").write_bytes(b"\x00\x01\x02")
    (folder / "package2" / "latin1.txt").write_bytes("garçon".encode("latin-1"))
    (folder / "package2" / "__init__.py").write_text("")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def text_config(source_folder, data_dir):
    return dict(task="text", seq_len=64, batch_size=4, source=str(source_folder), data_dir=str(data_dir))


@pytest.fixture
def train_iterator(text_config):
    """Makes an iterator from changes of the config and keyword arguments."""

    def make(changes=(), **kwargs):
        return make_train_iterator(text_config | dict(changes), **dict(seed=0, block_size=16) | kwargs)

    return make
