"""The TFDS dataset of a source folder: content, rebuilding, interruption and concurrent builds."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from subq_jax.data.code_corpus import CodeCorpus, prepare
from subq_jax.source_folder import scan


def read(folder, split):
    source = tfds.builder_from_directory(folder).as_data_source(split=split)
    return [{name: value.decode() for name, value in source[i].items()} for i in range(len(source))]


def small_folder(path, names="abcd"):
    path.mkdir()
    for name in names:
        (path / f"{name}.py").write_text(f"name = {name!r}\n")
    return path


def test_splits_share_no_package_no_content_and_lose_nothing(source_folder, data_dir):
    folder = prepare(str(source_folder), str(data_dir))
    documents = {split: read(folder, split) for split in ("train", "validation", "test")}
    for field in ("package", "path", "text"):
        values = [{document[field] for document in split} for split in documents.values()]
        assert sum(map(len, values)) == len(set().union(*values))
    everything = [document for split in documents.values() for document in split]
    assert len(everything) == 25
    for document in everything:
        assert document["text"] == (source_folder / document["path"]).read_text(encoding="utf-8")


def test_skipped_files_are_counted_in_the_metadata(source_folder, data_dir):
    info = tfds.builder_from_directory(prepare(str(source_folder), str(data_dir))).info
    assert info.metadata["binary_files_skipped"] == 2
    assert info.metadata["duplicate_files_skipped"] == 1


def test_a_changed_folder_is_built_anew(tmp_path):
    source = small_folder(tmp_path / "source")
    before = prepare(str(source), str(tmp_path / "data"))
    assert prepare(str(source), str(tmp_path / "data")) == before
    (source / "e.py").write_text("new = True\n")
    after = prepare(str(source), str(tmp_path / "data"))
    assert after != before
    assert sum(len(read(after, split)) for split in ("train", "validation", "test")) == 5


def test_an_interrupted_build_is_built_anew(tmp_path, monkeypatch):
    source = small_folder(tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr("subq_jax.data.code_corpus.read_document", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(str(source), str(tmp_path / "data"))
    leftover = tmp_path / "data" / "code_corpus" / scan(str(source)).fingerprint / "incomplete.ABCDEF_1.0.0"
    leftover.mkdir()  # what a killed process leaves
    folder = prepare(str(source), str(tmp_path / "data"))
    assert sum(len(read(folder, split)) for split in ("train", "validation", "test")) == 4
    assert not leftover.exists()


def test_a_file_that_changes_during_the_build_stops_it(tmp_path):
    source = small_folder(tmp_path / "source")
    scanned = scan(str(source))
    (source / "a.py").write_text("other\n")
    with pytest.raises(RuntimeError, match="a.py changed while the dataset was being built"):
        CodeCorpus(scanned=scanned, data_dir=str(tmp_path / "data")).download_and_prepare()


def test_two_processes_may_prepare_at_once(tmp_path):
    source = small_folder(tmp_path / "source", "abcdefgh")
    program = (
        "import sys, json; from subq_jax.data import data_info, make_train_iterator as make\n"
        "config = dict(task='text', seq_len=32, batch_size=2, source=sys.argv[1], data_dir=sys.argv[2])\n"
        "print(json.dumps([data_info(config).fingerprint,"
        " next(make(config, seed=0, block_size=8))['inputs'].tolist()]))"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "data")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=60)[0].splitlines()[-1]) for process in processes]
    assert answers[0] == answers[1]


def test_the_dataset_must_not_lie_in_its_source(tmp_path):
    source = small_folder(tmp_path / "source")
    with pytest.raises(ValueError, match="data.data_dir must lie outside the source folder"):
        prepare(str(source), str(source / "data"))
