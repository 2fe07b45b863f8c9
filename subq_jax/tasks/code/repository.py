"""A repository as the tasks read it: files of Python, what they define, and which names of other files they use."""

import ast
import dataclasses
import functools
import re
import warnings
from collections import Counter
from collections.abc import Iterator

from subq_jax.source_folder import read_document, scan

_HEADER = re.compile(r"# (\S.*\.py)\n")
_WORD = re.compile(r"[^\W\d]\w*")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Lines:
    """Lines `first` to `last`, exclusive, of a file of the repository, counted from 0; the header is line 0."""

    file: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Definition:
    """A function or a class.

    Attributes:
      name: without its class.
      lines: from `def` or `class` on, without decorators.
      is_function: else a class.
      scope: "module", "class" or "function": where it is defined.
      docstring: cleaned of indentation; "" if there is none on lines of its own, before other statements.
      docstring_lines: of the docstring's statement; empty if there is none.
      body: the lines that follow the docstring, or the signature if there is none.
    """

    name: str
    lines: Lines
    is_function: bool
    scope: str
    docstring: str
    docstring_lines: Lines
    body: Lines


@dataclasses.dataclass(frozen=True)
class Use:
    """A name that stands for a function or class at the top level of a file, on a line of ASCII.

    Attributes:
      file, line, column: of the name.
      definition: what the name stands for.
      statement: whether a statement of its own fills the line.
      close: the column of a call's closing parenthesis, on the same line; -1 when the name is not called so.
      extensible: whether one more keyword argument may be written before `close`.
      has_arguments: of the call.
    """

    file: int
    line: int
    column: int
    definition: Definition
    statement: bool
    close: int
    extensible: bool
    has_arguments: bool


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file: `lines` with their ends, the first `# path`, and its `definitions` in order."""

    path: str
    lines: tuple[str, ...]
    definitions: tuple[Definition, ...]
    imported_packages: frozenset[str]

    @functools.cached_property
    def num_characters(self) -> int:
        return sum(map(len, self.lines))


@dataclasses.dataclass(frozen=True, eq=False)
class Renaming:
    """`original[new name]` of the functions and classes that were given new names."""

    original: dict[str, str]

    def restore(self, text: str) -> str:
        """The text with the original names; the new ones are no words, so all that occur are meant."""
        return _WORD.sub(lambda word: self.original.get(word[0], word[0]), text)

    def restore_answer(self, answer: str) -> str:
        """The same for what a model wrote; original names that read as code become names that are nowhere defined.

        They do not occur in the repository, so a model that writes them remembers.
        """
        remembered = {name for name in self.original.values() if reads_as_code(name)}
        return self.restore(_WORD.sub(lambda word: word[0] + "_unknown" * (word[0] in remembered), answer))


NOT_RENAMED = Renaming({})


def reads_as_code(name: str) -> bool:
    """Whether a name has an underscore, a digit or an inner capital, so that it is no word of a text."""
    return not (name.islower() and name.isalpha()) and not (name[0].isupper() and name[1:].islower())


@dataclasses.dataclass(frozen=True, eq=False)
class Repository:
    """Files that parse, with the uses of their definitions.

    Attributes:
      files: in the order of the documents.
      uses: of what is defined at top level, wherever the imports say what a name stands for.
      mentions: how often each identifier stands in expressions and as a parameter, resolved or not.
      num_skipped: documents that do not parse.
      renaming: how the names were changed before.
    """

    files: tuple[SourceFile, ...]
    uses: tuple[Use, ...]
    mentions: Counter[str]
    num_skipped: int
    renaming: Renaming = NOT_RENAMED

    def text(self, lines: Lines) -> str:
        """The text of lines, their ends included."""
        return "".join(self.files[lines.file].lines[lines.first:lines.last])

    def definitions(self) -> Iterator[Definition]:
        """Those of all files, in order."""
        for file in self.files:
            yield from file.definitions


@functools.lru_cache(4)
def source_documents(source: str = "", suffix: str = ".py") -> tuple[str, ...]:
    """The files of a folder whose names end in `suffix`, of the standard library for `""`, as a corpus.

    Python files get a first line `# path`, by which these tasks know them.

    Raises:
      ValueError: as `subq_jax.source_folder.scan`.
    """
    found = scan(source, suffix)
    return tuple(f"# {document.path}\n" * document.path.endswith(".py") + read_document(found.source, document)
                 for document in found.documents)


@functools.lru_cache(4)
def read_repository(documents: tuple[str, ...]) -> Repository:
    """The repository that the documents are the files of, each with `# path/to/file.py` as its first line.

    Raises:
      ValueError: when a document has no such line, two have the same path, or none parses.
    """
    parsed = []
    paths = set()
    num_skipped = 0
    for number, document in enumerate(documents):
        header = _HEADER.match(document)
        if not header:
            raise ValueError(f"corpus[{number}] must begin with a line '# path/to/file.py', got {document[:40]!r}")
        if header[1] in paths:
            raise ValueError(f"corpus must hold each path once, got {header[1]!r} twice")
        paths.add(header[1])
        lines = _lines(document)
        try:
            parsed.append(_ParsedFile(len(parsed), header[1], lines))
        except (SyntaxError, ValueError, RecursionError):
            num_skipped += 1
    if not parsed:
        raise ValueError(f"corpus must hold files of Python that parse, got {num_skipped} that do not and no other")
    modules = {file.module: file for file in parsed}
    uses = tuple(use for file in parsed for use in file.resolve(modules))
    mentions = sum((file.mentions for file in parsed), Counter())
    return Repository(tuple(file.source_file for file in parsed), uses, mentions, num_skipped)


def module_name(path: str) -> str:
    """The dotted name that a file is imported by, from the top folder or from `src`."""
    parts = path.removesuffix(".py").removeprefix("src/").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _lines(text: str) -> tuple[str, ...]:
    """The lines as the parser counts them, each with its end."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return tuple(line + "\n" for line in (lines if lines[-1] else lines[:-1]))


@dataclasses.dataclass(frozen=True)
class _Mention:
    """An expression `name` or `module.name`, as it stands; what it stands for is known once all files are read."""

    module: str
    name: str
    line: int
    column: int
    call: ast.Call | None


class _ParsedFile:
    """What one tree tells; trees are large and are dropped at once."""

    def __init__(self, index: int, path: str, lines: tuple[str, ...]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse("".join(lines))
        self.index, self.module, self.lines = index, module_name(path), lines
        self.package = self.module if path.endswith("__init__.py") else self.module.rpartition(".")[0]
        nodes = list(ast.walk(tree))
        definitions = sorted(self._definitions(tree, "module"), key=lambda definition: definition.lines.first)
        self.top = {found.name: found for found in definitions if found.scope == "module"}
        self.imports = self._imports(nodes)
        self.mentions = Counter(
            getattr(node, {ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg"}[type(node)])
            for node in nodes if isinstance(node, ast.Name | ast.Attribute | ast.arg))
        self.bound = {
            node.arg if isinstance(node, ast.arg) else node.id for node in nodes
            if isinstance(node, ast.arg) or isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        self.statements = {
            node.lineno - 1 for node in nodes
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.Return)
            and node.lineno == node.end_lineno}
        self.uses = [mention for mention in self._mentions(nodes) if lines[mention.line].isascii()]
        packages = frozenset(module.split(".")[0] for module, _ in self.imports.values())
        self.source_file = SourceFile(path, lines, tuple(definitions), packages)

    def _definitions(self, parent: ast.AST, scope: str) -> Iterator[Definition]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                yield self._definition(node, scope)
                yield from self._definitions(node, "class" if isinstance(node, ast.ClassDef) else "function")
            elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
                yield from self._definitions(node, scope)

    def _definition(self, node, scope: str) -> Definition:
        first, docstring = node.body[0], ast.get_docstring(node)
        own_lines = docstring and len(node.body) > 1 and first.lineno > node.lineno and (
            self.lines[first.lineno - 2].rstrip().endswith(":") and first.end_lineno < node.body[1].lineno)
        doc_first = first.lineno - 1
        doc_last = first.end_lineno if own_lines else doc_first
        return Definition(
            node.name, Lines(self.index, node.lineno - 1, node.end_lineno), isinstance(node, _FUNCTIONS), scope,
            docstring if own_lines else "", Lines(self.index, doc_first, doc_last),
            Lines(self.index, doc_last, node.end_lineno))

    def _imports(self, nodes: list[ast.AST]) -> dict[str, tuple[str, str]]:
        """Local name -> (module, name in the module or "")."""
        found = {}
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.asname or "." not in alias.name:
                        found[alias.asname or alias.name] = (alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                package = self.package.split(".")[:len(self.package.split(".")) + 1 - node.level] if node.level else []
                module = ".".join([*filter(None, package), *([node.module] if node.module else [])])
                for alias in node.names:
                    found[alias.asname or alias.name] = (module, alias.name)
        return found

    def _mentions(self, nodes: list[ast.AST]) -> Iterator[_Mention]:
        """Names and attributes of names that this file imports or defines and never binds to anything else."""
        calls = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
        known = self.imports.keys() - self.bound
        for node in nodes:
            if isinstance(node, ast.Name) and node.id not in self.bound:
                module, name = self.imports.get(node.id, (self.module, node.id))
                if name and (module != self.module or name in self.top):
                    yield _Mention(module, name, node.lineno - 1, node.col_offset, calls.get(id(node)))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (
                    node.value.id in known and node.lineno == node.end_lineno):
                module = ".".join(filter(None, self.imports[node.value.id]))
                column = node.end_col_offset - len(node.attr)
                yield _Mention(module, node.attr, node.lineno - 1, column, calls.get(id(node)))

    def resolve(self, modules: dict[str, "_ParsedFile"]) -> Iterator[Use]:
        for mention in self.uses:
            if mention.module not in modules or mention.name not in modules[mention.module].top:
                continue
            call = mention.call
            one_line = call is not None and call.lineno == call.end_lineno
            line = self.lines[mention.line]
            arguments = [*call.args, *call.keywords] if one_line else []
            extensible = one_line and line[:call.end_col_offset - 1].rstrip()[-1] != "," and not any(
                isinstance(argument, ast.Starred | ast.GeneratorExp) or getattr(argument, "arg", "") is None
                for argument in arguments)
            if line.startswith(mention.name, mention.column):
                yield Use(
                    self.index, mention.line, mention.column, modules[mention.module].top[mention.name],
                    mention.line in self.statements, call.end_col_offset - 1 if one_line else -1, extensible,
                    bool(arguments))
