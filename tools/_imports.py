"""Who imports whom, read from the text of the product's files. Standard library only."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FOLDERS = ("library", "networks", "tools")


@dataclass(frozen=True)
class Import:
    """One imported module: `module` is a project file ("library/utils.py") or a dotted name."""

    module: str
    line: int
    in_function: bool
    typing_only: bool

    @property
    def is_project(self) -> bool:
        return self.module.endswith(".py")

    def is_of(self, packages: Iterable[str]) -> bool:
        return any(f"{self.module}.".startswith(f"{package}.") for package in packages)


class Product:
    """The files of a checkout that users run, by their paths from its root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        found = list(root.glob("*.py"))
        for folder in FOLDERS:
            found += (root / folder).rglob("*.py")
        self.files = sorted(path.relative_to(root).as_posix() for path in found)
        self.known = frozenset(self.files)
        self.trees: dict[str, ast.Module] = {}

    def tree(self, path: str) -> ast.Module:
        """A file, parsed once."""
        if path not in self.trees:
            self.trees[path] = ast.parse(self.source(path))
        return self.trees[path]

    def source(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")

    def file_of(self, dotted: str, importer: str) -> str | None:
        """The file a dotted name stands for; a tool's bare name is one beside it."""
        for folder in (Path(), Path(importer).parent):
            path = folder / dotted.replace(".", "/")
            for candidate in (f"{path.as_posix()}.py", f"{path.as_posix()}/__init__.py"):
                if candidate in self.known:
                    return candidate
        return None

    def imported_names(self, node: ast.AST, importer: str) -> list[str]:
        """The modules a statement imports: of `from a import b`, a.b when that is a project file."""
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if not isinstance(node, ast.ImportFrom):
            return []
        package = ".".join(Path(importer).parts[: -node.level]) if node.level else ""
        base = ".".join(part for part in (package, node.module) if part)
        names = [f"{base}.{alias.name}" for alias in node.names]
        return [name if self.file_of(name, importer) else base for name in names]

    def imports_of(self, path: str, text: str) -> list[Import]:
        """Every import in the text of a file at `path`, those in functions and for types included."""
        return self.imports_in(path, ast.parse(text))

    def imports_in(self, path: str, tree: ast.Module) -> list[Import]:
        """The same of a file that is parsed."""
        found: list[Import] = []

        def visit(node: ast.AST, in_function: bool, typing_only: bool) -> None:
            for name in dict.fromkeys(self.imported_names(node, path)):
                module = self.file_of(name, path) or name
                line = getattr(node, "lineno", 0)
                found.append(Import(module, line, in_function, typing_only))
            in_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guarded = node.body if isinstance(node, ast.If) and _is_type_checking(node.test) else []
            for child in ast.iter_child_nodes(node):
                visit(child, in_function, typing_only or child in guarded)

        visit(tree, False, False)
        return found

    @cached_property
    def all_imports(self) -> list[tuple[str, Import]]:
        """Every import, with the file that it is in."""
        return [(path, each) for path in self.files for each in self.imports_in(path, self.tree(path))]

    def arrows(self) -> dict[str, set[str]]:
        """File -> the project's files it imports."""
        arrows: dict[str, set[str]] = {path: set() for path in self.files}
        for path, found in self.all_imports:
            if found.is_project:
                arrows[path].add(found.module)
        return arrows


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups in which each file reaches each other one by imports; sorted."""
    reached = {start: _reach(arrows, start) for start in arrows}
    groups = {
        tuple(sorted(other for other in reached[start] if start in reached[other]))
        for start in arrows
        if start in reached[start]
    }
    return sorted(list(group) for group in groups)


def _reach(arrows: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(arrows[start])
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += arrows[path]
    return found
