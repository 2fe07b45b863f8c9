"""Which files of a folder become documents, and of which split."""

import os

import pytest

from subq_jax.source_folder import assign_splits, scan


def test_binary_empty_duplicate_and_hidden_files_are_skipped_and_counted(source_folder):
    found = scan(str(source_folder))
    assert (found.num_binary, found.num_empty, found.num_duplicates) == (2, 1, 1)
    paths = {document.path for document in found.documents}
    assert len(paths) == 25
    assert "package1/module0.py" in paths and "package3/copy.py" not in paths
    assert not any(path.startswith(".git") for path in paths)


def test_a_package_is_a_top_level_folder_or_file_and_has_one_split(source_folder):
    documents = scan(str(source_folder)).documents
    assert {document.package for document in documents} == {"alone.py"} | {f"package{i}" for i in range(12)}
    split_of = {document.package: document.split for document in documents}
    assert all(split_of[document.package] == document.split for document in documents)
    assert set(split_of.values()) == {"train", "validation", "test"}


@pytest.mark.parametrize("num_packages", [3, 4, 7, 40, 400])
def test_no_split_is_empty(num_packages):
    for size in (lambda i: 1, lambda i: 10**i if i < 9 else 1, lambda i: 1 + i % 5):
        splits = assign_splits({f"{num_packages}-{i}": size(i) for i in range(num_packages)})
        assert len(splits) == num_packages and set(splits.values()) == {"train", "validation", "test"}


def test_splits_are_about_90_5_5_by_size():
    sizes = {f"package{i}": 1 + (37 * i) % 100 for i in range(400)}
    splits = assign_splits(sizes)
    for split in ("validation", "test"):
        held = sum(size for name, size in sizes.items() if splits[name] == split)
        assert 0.05 <= held / sum(sizes.values()) <= 0.075


def test_two_packages_train_and_validate_and_one_trains():
    assert set(assign_splits({"a": 1, "b": 1}).values()) == {"train", "validation"}
    assert assign_splits({"a": 1}) == {"a": "train"}


def test_the_fingerprint_follows_names_and_content_not_times(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(f"text {name}")
    before = scan(str(tmp_path)).fingerprint
    os.utime(tmp_path / "a", (1, 1))
    assert scan(str(tmp_path)).fingerprint == before
    (tmp_path / "a").write_text("text A")
    changed = scan(str(tmp_path)).fingerprint
    assert changed != before
    (tmp_path / "a").rename(tmp_path / "d")
    assert scan(str(tmp_path)).fingerprint not in (before, changed)


def test_the_default_source_is_the_standard_library_without_tests():
    found = scan()
    paths = {document.path for document in found.documents}
    assert {"json/decoder.py", "ast.py"} <= paths
    assert all(path.endswith(".py") for path in paths)
    assert not any("site-packages" in path or path.startswith("test/") for path in paths)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="data.source must be a folder, got '.*nowhere'"):
        scan(str(tmp_path / "nowhere"))


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    with pytest.raises(ValueError, match="is empty: it holds no files"):
        scan(str(tmp_path))


def test_a_suffix_leaves_only_files_that_end_in_it(source_folder, tmp_path):
    everything = scan(str(source_folder))
    (tmp_path / "notes.txt").write_text("words")
    for document in everything.documents:
        (tmp_path / document.path).parent.mkdir(exist_ok=True)
        (tmp_path / document.path).write_bytes((source_folder / document.path).read_bytes())
    found = scan(str(tmp_path), ".py")
    assert found.documents == everything.documents
    assert "notes.txt" in {document.path for document in scan(str(tmp_path)).documents}
    with pytest.raises(ValueError, match="holds no files to read whose names end in data.suffix='.rs'"):
        scan(str(tmp_path), ".rs")


def test_a_folder_of_binaries_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b").write_text(" \n")
    with pytest.raises(ValueError, match="holds no UTF-8 text: 1 binary and 1 empty files"):
        scan(str(tmp_path))


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")

    def refuse(path):  # not chmod: a superuser may read everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="cannot be read: .*Permission denied"):
        scan(str(tmp_path))


def test_an_unreadable_file_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("text")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(ValueError, match="cannot be read: .*secret.txt"):
        scan(str(tmp_path))


def test_a_file_name_that_is_not_utf8_is_skipped_and_counted(source_folder):
    before = scan(str(source_folder))
    with open(os.fsencode(source_folder) + b"/caf\xe9.py", "w") as file:
        file.write("a = 1  # nowhere else\n")
    after = scan(str(source_folder))
    assert after.documents == before.documents
    assert after.num_binary == before.num_binary + 1
