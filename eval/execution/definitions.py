"""Names in Python code: which ones a text defines at its margin, and which ones a statement uses."""

import ast
import re
from collections.abc import Collection, Iterator

from .inside import bound

NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # raised by the parser


def parse(code: str) -> ast.Module | None:
    """Return the tree of a text, None if it is not Python."""
    try:
        return ast.parse(code)
    except NOT_PYTHON:
        return None


def parses(code: str) -> bool:
    """Return True if the text is Python."""
    return parse(code) is not None


def may_define(names: Collection[str]) -> re.Pattern:
    """Return a pattern found in every text that defines one of the names, and in few others."""
    known = "|".join(map(re.escape, names))
    return re.compile(
        rf"^[ \t]*(?:async )?(?:def|class)\s+(?:{known})\b|\b(?:{known})\b[^=\n]{{0,80}}=|^[ \t]*(?:from|import)\b.*\b(?:{known})\b"
        rf"|\bexec\s*\(|^[ \t]*(?:for|with)\b.*\b(?:{known})\b|\bglobals\(\)",
        re.MULTILINE,
    )


def defined(tree: ast.Module) -> set[str]:
    """Return the names that code defines outside functions, but not those that it imports."""
    return {name for node in tree.body for name in (*bound(node), *_indirectly(node))}


def _indirectly(node: ast.stmt) -> Iterator[str]:
    """Yield the names in `exec("…")` and `globals()["…"] = …`."""
    match node:
        case ast.Expr(ast.Call(ast.Name("exec"), [ast.Constant(str() as text), *_])):
            tree = parse(text)
            yield from defined(tree) if tree else ()
        case ast.Assign([ast.Subscript(ast.Call(ast.Name("globals")), ast.Constant(str() as name))]):
            yield name


def imported(node: ast.AST) -> set[str]:
    """Return the names that the imports in a statement bind."""
    imports = (each for each in ast.walk(node) if isinstance(each, (ast.Import, ast.ImportFrom)))
    return {alias.asname or alias.name.partition(".")[0] for each in imports for alias in each.names}


def defines(code: str, names: Collection[str]) -> bool:
    """Return True if the text is Python and defines one of the names."""
    tree = parse(code) if may_define(names).search(code) else None
    return tree is not None and not defined(tree).isdisjoint(names)


def is_stub(tree: ast.Module, names: Collection[str]) -> bool:
    """Return True if all of the names that the code defines are functions without a body."""
    functions = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    return all(
        name in functions and all(map(_does_nothing, functions[name].body)) for name in defined(tree) & set(names)
    )


def _does_nothing(node: ast.stmt) -> bool:
    match node:
        case ast.FunctionDef() | ast.ClassDef() | ast.Import() | ast.ImportFrom():
            return True
        case ast.Pass() | ast.Raise(ast.Name("NotImplementedError") | ast.Call(ast.Name("NotImplementedError"))):
            return True
        case ast.Expr(value):
            return not any(
                isinstance(each, (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)) for each in ast.walk(value)
            )
    return False


def used(node: ast.AST) -> set[str]:
    """Return the names that code reads, anywhere in it."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}


def changed(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines, imports, or whose content it changes: by an item, an attribute or a method."""
    names = bound(node) | imported(node)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    for each in ast.walk(node):
        match each:
            case ast.Subscript(ast.Name(name), ctx=ast.Store()) | ast.Attribute(ast.Name(name), ctx=ast.Store()):
                names.add(name)
            case ast.Expr(ast.Call(ast.Attribute(ast.Name(name)))):
                names.add(name)
    return names
