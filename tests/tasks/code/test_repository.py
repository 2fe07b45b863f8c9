"""What is read of a repository, and its renamed copy."""

import pytest
from shop import documents

from subq_jax.tasks.code import source_documents
from subq_jax.tasks.code.renaming import renamed_documents
from subq_jax.tasks.code.repository import Lines, module_name, read_repository


def test_a_folder_becomes_documents_with_their_paths(shop_folder):
    assert source_documents(shop_folder) == tuple(sorted(documents(), key=lambda text: text.split("\n")[0]))


def test_of_other_files_a_corpus_has_the_text_alone(tmp_path):
    for name in ("a.py", "LICENSE"):
        (tmp_path / name).write_text(f"x = '{name}'\r\n", encoding="utf-8", newline="")
    assert source_documents(str(tmp_path), "") == ("x = 'LICENSE'\r\n", "# a.py\nx = 'a.py'\r\n")
    with pytest.raises(ValueError, match="holds no files to read"):
        source_documents(str(tmp_path), ".txt")


def test_definitions_have_their_lines_and_docstrings():
    repository = read_repository(documents())
    add_tax, basket, total_weight = repository.files[0].definitions
    assert add_tax.lines == Lines(0, 4, 12) and add_tax.is_function and add_tax.scope == "module"
    assert repository.text(add_tax.body) == "    share = 1 + rate / 100\n    return round(price * share, 2)\n"
    assert not basket.is_function and total_weight.scope == "class"
    assert total_weight.docstring == "Sum of the weights of everything in the list of items."


def test_uses_are_resolved_through_imports():
    repository = read_repository(documents())
    found = {(repository.files[use.file].path, use.line, use.definition.name) for use in repository.uses}
    assert found == {
        ("shop/orders.py", 12, "add_tax"), ("shop/orders.py", 17, "print_label"), ("shop/refunds.py", 7, "add_tax")}


@pytest.mark.parametrize("importing", [
    "from . import a\na.f(1)", "from .a import f\nf(1)", "import pack.a as b\nb.f(1)", "from pack import a\na.f(1)",
    "from pack.a import f as g\n\nif True:\n    from .a import f\nf(1)"])
def test_every_form_of_import_is_followed(importing):
    repository = read_repository(("# pack/a.py\ndef f(x):\n    return x\n", f"# pack/b.py\n{importing}\n"))
    assert [use.definition.name for use in repository.uses] == ["f"]


def test_names_that_a_file_binds_itself_stand_for_nothing_else():
    text = "# b.py\nfrom a import f\n\ndef g(f):\n    return f(1)\n"
    assert not read_repository(("# a.py\ndef f(x):\n    return x\n", text)).uses


def test_files_that_do_not_parse_are_skipped_and_counted():
    repository = read_repository((*documents(), "# bad.py\ndef f(:\n"))
    assert repository.num_skipped == 1 and len(repository.files) == len(documents())


@pytest.mark.parametrize("bad, message", [
    (("x = 1\n",), r"corpus\[0\] must begin with a line '# path/to/file.py', got 'x = 1"),
    (("# a.py\nx = 1\n", "# a.py\ny = 1\n"), "corpus must hold each path once, got 'a.py' twice"),
    (("# a.py\n(\n",), "corpus must hold files of Python that parse, got 1 that do not and no other")])
def test_what_is_no_repository_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        read_repository(bad)


def test_modules_are_named_from_the_top_or_from_src():
    assert [module_name(path) for path in ("a/b.py", "src/a/__init__.py")] == ["a.b", "a"]


def test_renaming_is_consistent_and_can_be_undone():
    renamed = renamed_documents(documents())
    repository = read_repository(renamed.documents)
    text = "".join(renamed.documents)
    for name in ("add_tax", "Basket", "total_weight", "order_total", "print_label"):
        assert name not in text
    assert len(repository.uses) == 3 and repository.num_skipped == 0
    assert tuple(map(renamed.renaming.restore, renamed.documents)) == documents()


def test_renaming_spares_prose_built_ins_modules_and_conversions():
    source = '''# tools/copy.py
def copy(x):
    """Copy like gather(), but merge first. `merge` and _do_it."""
    return f"{x!r} {merge(x)}".format(gather)


def r(x):
    return merge

def merge(x): return "merge"
def gather(x): return [].append(x)
def append(x): return x
def _do_it(x): return {{}}
'''
    renamed = renamed_documents((source,))
    new = {old: new for new, old in renamed.renaming.original.items()}
    assert set(new) == {"r", "merge", "gather", "_do_it"}
    (text,) = renamed.documents
    assert f"Copy like {new['gather']}(), but merge first. `{new['merge']}` and {new['_do_it']}." in text
    assert f'f"{{x!r}} {{{new["merge"]}(x)}}".format({new["gather"]})' in text
    assert 'return "' + new["merge"] + '"' in text and new["_do_it"].startswith("_")


def test_original_names_in_an_answer_are_taken_for_memory():
    renaming = renamed_documents(documents()).renaming
    new = {old: new for new, old in renaming.original.items()}
    assert renaming.restore_answer(f"{new['add_tax']}(1) + add_tax(2) + ship(3)") == (
        "add_tax(1) + add_tax_unknown(2) + ship(3)")
