"""What the documents say that can be checked: paths, commands, code blocks."""

import ast
import json
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "selective_attention.ipynb"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PROGRAMS = [*sorted((ROOT / "experiments").glob("*.py")), *sorted((ROOT / "configs").glob("*.py"))]

_FOLDERS = "subq_jax|experiments|configs|tests|notebooks|docs|scripts"
_PATH = re.compile(rf"(?<![\w./-])(?:{_FOLDERS})/[\w./-]*\w/?")
_COMMAND = re.compile(r"python -m experiments\.[^`\n#]*")


def repository_paths(document: Path) -> set[str]:
    """Paths under the repository's folders that a text mentions, and the targets of a document's relative links."""
    text = document.read_text(encoding="utf-8")
    paths = set(_PATH.findall(text))
    if document.suffix == ".md":
        links = re.findall(r"\]\(([^)#\s]+)\)", text)
        here = document.parent
        paths |= {str((here / link).resolve().relative_to(ROOT)) for link in links if "://" not in link}
        paths = {path for path in paths if not (here / path).exists()}  # a document may name its neighbours
    return paths


def experiment_commands(text: str) -> list[list[str]]:
    """The words after `python -m` of every experiment's command in a text; lines may end in a backslash."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [shlex.split(command.strip().rstrip(".,;:)"))[2:] for command in _COMMAND.findall(joined)]


def all_text(path: Path) -> str:
    """The text of a document, or of every cell of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def defined_flags(program: Path) -> set[str]:
    """Names of the absl flags that a program defines, itself or through what it imports from `experiments`.

    Read from the source: two programs may use the same name.
    """
    names = set()
    for node in ast.walk(ast.parse(program.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in (name for name in imported if name.startswith("experiments.")):
                path = ROOT / (module.replace(".", "/") + ".py")
                names |= defined_flags(path) if path.exists() else set()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("DEFINE_"):
            names.add(node.args[0].value)
    return names
