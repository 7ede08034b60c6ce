"""Slice a package: one function and everything it needs, as a self-contained module."""

from __future__ import annotations

import ast
import builtins
import contextlib
import sys
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import final

from envkit.environments.code_editor.mining.docstrings import summary, without_docstrings
from envkit.environments.code_editor.mining.library import Library
from envkit.environments.code_editor.mining.modules import (
    Import,
    Module,
    annotation_names,
    bound_names,
    free_names,
    source_of,
)

#: Longest module text that a slice may have, in characters.
MAX_CLOSURE = 6000

_BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}
_SKIPPED_DECORATORS = ("overload", "singledispatch", "contextmanager", "asynccontextmanager", "deprecated")
#: Modules whose results depend on the clock, randomness or the machine.
_UNREPEATABLE = frozenset(
    (
        *("datetime", "getpass", "gzip", "locale", "os", "platform", "random", "secrets"),
        *("socket", "subprocess", "tempfile", "threading", "time"),
    )
)


class Unclosed(Exception):
    """The function cannot be made self-contained; the message says why. The miner skips such functions."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A self-contained module around one function.

    Args:
        module: dotted name of the module that the function came from.
        function: its name.
        text: the module text. The function's docstring is cut to its summary; others are removed.
        shown: the function's own lines within ``text``.
        docstring: the full docstring, or ``""``.
        node: the original function.
    """

    module: str
    function: str
    text: str
    shown: str
    docstring: str
    node: ast.FunctionDef


@final
class _Modules:
    """The modules of a library, each parsed when it is first needed."""

    def __init__(self, library: Library) -> None:
        self._sources = library.modules
        self._packages = {name.rpartition(".")[0] for name in library.modules}
        #: First parts of the modules' names.
        self.roots = {name.partition(".")[0] for name in library.modules}
        self._parsed: dict[str, Module | None] = {}

    def get(self, name: str) -> Module | None:
        """The module; ``None`` if the library has none of that name, or Python cannot parse it.

        Packages ship modules that Python cannot parse: templates, other versions, deeply nested code.
        """
        if name not in self._parsed:
            self._parsed[name] = None
            if name in self._sources:
                is_package = name in self._packages or name in self.roots
                with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
                    self._parsed[name] = Module(name, self._sources[name], is_package)
        return self._parsed[name]

    def __getitem__(self, name: str) -> Module:
        if (found := self.get(name)) is None:
            raise KeyError(name)
        return found

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)


@final
class Slicer:
    """Makes slices of one library; parses each module once, when it is needed."""

    def __init__(self, library: Library) -> None:
        self._modules = _Modules(library)

    def functions(self, only: Collection[str] | None = None) -> Iterator[tuple[str, ast.FunctionDef]]:
        """Yield the public module-level functions, with their module's name, in order.

        Args:
            only: dotted names of the functions to yield; ``None`` for all.
        """
        for name in sorted(self._modules):
            if only is not None and not any(wanted.rpartition(".")[0] == name for wanted in only):
                continue
            module = self._modules.get(name)
            for bound in module.statements.values() if module is not None else ():
                if len(bound) != 1 or not isinstance(bound[0], ast.FunctionDef) or bound[0].name[0] == "_":
                    continue
                if only is None or f"{name}.{bound[0].name}" in only:
                    yield name, bound[0]

    def slice(self, module: str, function: str) -> Slice:
        """Slice a function with everything it uses, transitively.

        Raises:
            Unclosed: the source of something it needs is not available, or the text gets too long.
        """
        try:
            return _Closure(self._modules, module, function).render()
        except RecursionError:
            raise Unclosed(f"{function} nests too deep") from None
        except (SyntaxError, ValueError, MemoryError) as error:  # what Python reads and cannot write out
            raise Unclosed(f"{function} cannot be written out: {error}") from None


@final
class _Closure:
    """Collects the definitions that one function needs."""

    def __init__(self, modules: _Modules, module: str, function: str) -> None:
        self._modules, self._roots = modules, modules.roots
        self._target = (module, function)
        self._texts: dict[tuple[str, int], str] = {}
        self._owner: dict[str, object] = {}
        self._plain: set[str] = set()
        self._from: dict[str, set[str]] = {}
        self._aliases: dict[str, str] = {}
        self._namespaces: dict[str, set[str]] = {}
        self._need(module, function, function)

    def _own(self, name: str, origin: object) -> None:
        """Reserve a global name of the new module."""
        if self._owner.setdefault(name, origin) != origin:
            raise Unclosed(f"the name {name} means two things")

    def _need(self, module: str, name: str, local: str, passed: tuple[tuple[str, str], ...] = ()) -> None:
        """Define ``local`` in the new module as ``name`` of ``module``.

        ``passed`` lists the places where the name was looked up so far, because imports can be circular.
        """
        if (module, name) in passed:
            raise Unclosed(f"{name} is imported in a circle")
        passed = (*passed, (module, name))
        home = self._modules.get(module)
        if home is None:
            raise Unclosed(f"{module} is not part of the package")
        if name in home.statements:
            self._need_statement(home, name, local)
        elif name in home.imports:
            self._need_import(home.imports[name], local, passed)
        elif f"{module}.{name}" in self._modules:
            raise Unclosed(f"{name} is a module used as a value")
        else:
            for star in home.stars:
                other = self._modules.get(star)
                if other and (name in other.statements or name in other.imports):
                    return self._need(star, name, local, passed)
            raise Unclosed(f"{name} is not defined in {module}")

    def _need_statement(self, home: Module, name: str, local: str) -> None:
        bound = home.statements[name]
        if len(bound) > 1 or name in home.imports:
            raise Unclosed(f"{name} is bound more than once in {home.name}")
        statement = bound[0]
        key = (home.name, statement.lineno)
        if name != local:
            self._own(local, ("alias", key))
            self._aliases[local] = name
        if key in self._texts:
            return
        for each in bound_names(statement):
            self._own(each, key)
        self._texts[key] = without_docstrings(source_of(home, statement))
        if sum(map(len, self._texts.values())) > MAX_CLOSURE:
            raise Unclosed("needs too much else")
        self._check_inner_imports(statement)
        for free in sorted(free_names(statement)):
            self._need_free(home, statement, free)
        for hint in sorted(annotation_names(statement) & home.imports.keys()):
            if self._is_stdlib(home.imports[hint].module):
                self._need_import(home.imports[hint], hint)

    def _need_free(self, home: Module, statement: ast.stmt, name: str) -> None:
        known_here = name in home.statements or name in home.imports
        imported = home.imports.get(name)
        dotted = self._package_module(imported) if imported else None
        if dotted is not None:
            self._need_namespace(statement, name, dotted)
        elif known_here or name not in _BUILTINS:
            self._need(home.name, name, name)

    def _package_module(self, imported: Import) -> str | None:
        """Dotted name of the package's own module that an import names, or ``None``."""
        dotted = f"{imported.module}.{imported.attribute}" if imported.attribute else imported.module
        return dotted if dotted in self._modules else None

    def _need_namespace(self, statement: ast.stmt, alias: str, module: str) -> None:
        """Provide ``pkg.name`` in a body as an attribute of a namespace object."""
        self._own(alias, ("namespace", module))
        nodes = list(ast.walk(statement))
        uses = [n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
        attributes = {n.attr for n in uses if isinstance(n.value, ast.Name) and n.value.id == alias}
        names = sum(isinstance(n, ast.Name) and n.id == alias for n in nodes)
        if names != sum(isinstance(n.value, ast.Name) and n.value.id == alias for n in uses):
            raise Unclosed(f"module {module} is used as a value")
        for attribute in sorted(attributes):
            self._need(module, attribute, attribute)
        self._namespaces.setdefault(alias, set()).update(attributes)

    def _is_stdlib(self, module: str) -> bool:
        root = module.partition(".")[0]
        return root in sys.stdlib_module_names and root not in self._roots

    def _need_import(self, imported: Import, local: str, passed: tuple[tuple[str, str], ...] = ()) -> None:
        if imported.module == "typing_extensions" and hasattr(typing, imported.attribute or "?"):
            imported = Import("typing", imported.attribute)
        if self._is_stdlib(imported.module):
            _require_repeatable(imported.module)
            self._own(local, imported)
            rename = "" if local == (imported.attribute or imported.module) else f" as {local}"
            if imported.attribute is None:
                self._plain.add(f"import {imported.module}{rename}")
            elif imported.module != "__future__":
                self._from.setdefault(imported.module, set()).add(imported.attribute + rename)
        elif imported.module.partition(".")[0] in self._roots and imported.attribute:
            self._need(imported.module, imported.attribute, local, passed)
        else:
            raise Unclosed(f"needs the third-party module {imported.module}")

    def _check_inner_imports(self, statement: ast.stmt) -> None:
        for node in ast.walk(statement):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = ["." if node.level else node.module or "."]
            for name in names:
                _require_repeatable(name)
                # An import under `try` may fail, because its handler then binds the name.
                if not self._is_stdlib(name) and not isinstance(statement, ast.Try):
                    raise Unclosed(f"imports {name} inside")

    def _import_order(self, first: str) -> list[str]:
        """The package's modules in the order in which ``import first`` would finish loading them."""
        seen: set[str] = set()
        done: list[str] = []

        def visit(name: str) -> None:
            if name in seen or name not in self._modules:
                return
            seen.add(name)
            home = self._modules[name]
            for imported in home.imports.values():
                visit(imported.module)
                visit(f"{imported.module}.{imported.attribute}")
            for star in home.stars:
                visit(star)
            done.append(name)

        visit(first)
        return done

    def render(self) -> Slice:
        """Write the collected definitions as one module: imports, then definitions in import order."""
        module, function = self._target
        [node] = self._modules[module].statements[function]
        if not isinstance(node, ast.FunctionDef):
            raise Unclosed(f"{function} is not a plain function")
        if any(word in ast.unparse(one) for one in node.decorator_list for word in _SKIPPED_DECORATORS):
            raise Unclosed(f"{function} is decorated")
        docstring = ast.get_docstring(node) or ""
        shown = without_docstrings(source_of(self._modules[module], node), summary(docstring))
        self._texts[module, node.lineno] = shown
        rank = {name: index for index, name in enumerate(self._import_order(module))}
        blocks = [self._texts[key] for key in sorted(self._texts, key=lambda key: (rank[key[0]], key[1]))]
        blocks += [f"{alias} = {name}" for alias, name in sorted(self._aliases.items())]
        for alias, attributes in sorted(self._namespaces.items()):
            self._from.setdefault("types", set()).add("SimpleNamespace")
            members = ", ".join(f"{name}={name}" for name in sorted(attributes))
            blocks.append(f"{alias} = SimpleNamespace({members})")
        imports = sorted(self._plain)
        for source, names in sorted(self._from.items()):
            imports.append(f"from {source} import {', '.join(sorted(names))}")
        head = ["from __future__ import annotations", *(["\n".join(imports)] if imports else [])]
        text = "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(blocks) + "\n"
        if len(text) > MAX_CLOSURE:
            raise Unclosed(f"{len(text)} characters with all it needs")
        return Slice(module, function, text, shown, docstring, node)


def _require_repeatable(module: str) -> None:
    if module.partition(".")[0] in _UNREPEATABLE:
        raise Unclosed(f"{module} answers differently from time to time")
