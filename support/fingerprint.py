"""Fingerprints of what a run was made from: the code that its command reaches, and its files.

Comments, docstrings and layout of the code do not count, nor do the times of files.
"""
import ast
import functools
import hashlib
import os
from pathlib import Path

from support.errors import InputError

PROJECT = Path(__file__).resolve().parent.parent


@functools.cache  # the code as it was when this process first asked
def code_fingerprint(file, names=(), imports=True):
    """A digest of the code in `file` and in all project files that it imports, directly or not.

    names: of losses.py, only these definitions count, and those that they use. So an edited
    formula touches only the runs that train with it. imports=False: the file alone."""
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(imported_files(file)) if imports else [Path(file)]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path == PROJECT / "losses.py":
            tree.body = statements_reached(tree.body, names)
        digest.update(ast.unparse(without_docstrings(tree)).encode())
    return digest.hexdigest()


def imported_files(file):
    """The set of project files that a file imports, directly or not, and the file itself."""
    found, to_read = set(), [Path(file).resolve()]
    while to_read:
        path = to_read.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    defined_in = {name: node for node in statements for name in names_defined(node)}
    if not set(names) <= defined_in.keys():
        return statements
    reached, to_read = set(), list(names)
    while to_read:
        name = to_read.pop()
        if name in reached or name not in defined_in:
            continue
        reached.add(name)
        to_read += [node.id for node in ast.walk(defined_in[name]) if isinstance(node, ast.Name)]
    return [node for node in statements if not names_defined(node) or reached & names_defined(node)]


def names_defined(node):
    """The names that a top-level definition, assignment or import binds."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    bound = [part for target in targets if target for part in ast.walk(target)]
    return {part.id for part in bound if isinstance(part, ast.Name)}


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
