"""Fingerprints of what a run was made from: the code that its command reaches, and its files.

Comments, docstrings and layout of the code do not count, nor do the times of files.
"""
import ast
import collections
import functools
import hashlib
import os
from pathlib import Path

from support.errors import InputError

PROJECT = Path(__file__).resolve().parent.parent


@functools.cache
def code_fingerprint(file, names=(), imports=True):
    """A digest of the code in `file` and in all project files that it imports, directly or not.

    names: of losses.py, only these definitions count, and those that they use. So an edited
    formula touches only the runs that train with it. (A module of your own that losses.py
    imports counts as a whole, for every run.) imports=False: the file alone."""
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(imported_files(file)) if imports else [Path(file)]:
        statements = statements_of(path)
        if path == PROJECT / "losses.py":
            statements = statements_reached(statements, names)
        digest.update(canonical(statements).encode())
    return digest.hexdigest()


def canonical(node):
    """Syntax as a text that is the same in every version of Python.

    ast.dump and ast.unparse differ between versions: new ones add fields, which are empty for code
    that does not use them, and choose other quotes and parentheses."""
    if isinstance(node, list):
        return f"[{', '.join(map(canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={canonical(value)}" for name, value in ast.iter_fields(node)
              if value is not None and value != []]
    return f"{type(node).__name__}({', '.join(fields)})"


@functools.cache
def statements_of(path):
    """The top-level statements of a file, without docstrings, as when this process first asked.

    If the file is edited later, this process still runs what it has loaded."""
    return without_docstrings(ast.parse(path.read_text(encoding="utf-8"))).body


def imported_files(file):
    """The set of project files that a file imports, directly or not, and the file itself."""
    found, to_read = set(), [Path(file).resolve()]
    while to_read:
        path = to_read.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.Module(statements_of(path), type_ignores=[])):
            for module in imported_modules(node):
                candidate = PROJECT / f"{module.replace('.', '/')}.py"
                if candidate.is_file():
                    to_read.append(candidate)
    return found


def imported_modules(node):
    """The dotted names that an import statement may load; empty for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def statements_reached(statements, names):
    """Those top-level statements that the definitions of these names use, directly or not.

    Statements that define nothing always count, and all count if a name is not found."""
    definitions = collections.defaultdict(list)
    for node in statements:
        for name in names_defined(node):
            definitions[name].append(node)
    if not set(names) <= definitions.keys():
        return statements
    reached, to_read = set(), list(names)
    while to_read:
        name = to_read.pop()
        if name in reached or name not in definitions:
            continue
        reached.add(name)
        for node in definitions[name]:
            to_read += [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    return [node for node in statements if not names_defined(node) or reached & names_defined(node)]


def names_defined(node):
    """The names that a top-level statement binds: a definition, an assignment, an import, or
    an if or try that contains them."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    bound = [part for target in targets if target for part in ast.walk(target)]
    names = {part.id for part in bound if isinstance(part, ast.Name)}
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.stmt, ast.excepthandler)):
            names |= names_defined(child)
    return names


def without_docstrings(tree):
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def files_fingerprint(files):
    """A digest of the contents of files, in this order. Raises InputError if one is missing."""
    digest = hashlib.blake2b(digest_size=12)
    for file in files:
        try:
            status = os.stat(file)
        except FileNotFoundError:
            raise InputError(f"{file}: no such file") from None
        digest.update(file_fingerprint(str(file), status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@functools.cache  # size and time only tell whether the file was rewritten since the last call
def file_fingerprint(file, size, time_ns):
    """A digest of one file's contents."""
    digest = hashlib.blake2b(digest_size=12)
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.digest()
