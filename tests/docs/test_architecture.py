"""The table in docs/architecture.md of who may import whom is what the code does."""

import ast
import re
import sys
from pathlib import Path

from documents import ROOT

# What loads with jax and flax alone.
BARE = {"axes", "checks", "selection", "kernels", "attention", "parallel", "model", "inference"}
BARE_LIBRARIES = {"jax", "jaxlib", "flax", "numpy", "jaxtyping"}


def allowed() -> dict[str, set[str]]:
    """Package -> packages it may import, from the table; `experiments` may import every other."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(?:subq_jax/)?(\w+)(?:\.py)?` \|.*\| (.*) \|$", text, re.MULTILINE)
    table = {package: set(re.findall(r"`(\w+)`", may)) for package, may in rows}
    return table | {"experiments": set(table)}


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names} | {
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "experiments" else parts[1]


def sources() -> list[Path]:
    files = [*(ROOT / "subq_jax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]
    return [path for path in files if path != ROOT / "subq_jax" / "__init__.py"]


def test_imports_point_down():
    table = allowed()
    assert {package_of(path) for path in sources()} == set(table), "one row for each package"
    wrong = []
    for path in sources():
        package = package_of(path)
        for name in imports(path):
            first, *rest = name.split(".")
            if first not in ("subq_jax", "experiments"):
                continue
            target = rest[0] if first == "subq_jax" else first
            target = target if target in table else "attention"  # what subq_jax itself offers comes from there
            if target != package and target not in table[package]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_the_core_needs_jax_and_flax_only():
    wrong = []
    for path in sources():
        if package_of(path) in BARE:
            libraries = {name.split(".")[0] for name in imports(path)} - {"subq_jax", *sys.stdlib_module_names}
            wrong += [f"{path.relative_to(ROOT)} imports {library}" for library in libraries - BARE_LIBRARIES]
    assert not wrong
