"""Rules that plant faults in Python sources, on the syntax tree.

They leave alone what no test should pin down: docstrings and other texts, type hints, the arguments of
exceptions, ``__repr__``, decorators, option declarations and module constants.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator

from tests.mutants.edit import Edit

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: (r"<", "<="),
    ast.LtE: (r"<=", "<"),
    ast.Gt: (r">", ">="),
    ast.GtE: (r">=", ">"),
    ast.Eq: (r"==", "!="),
    ast.NotEq: (r"!=", "=="),
    ast.Is: (r"\bis\b", "is not"),
    ast.IsNot: (r"\bis\s+not\b", "is"),
    ast.In: (r"\bin\b", "not in"),
    ast.NotIn: (r"\bnot\s+in\b", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: (r"-", "+"),
    ast.Mult: (r"\*", "+"),
    ast.Div: (r"/", "*"),
    ast.FloorDiv: (r"//", "%"),
    ast.Mod: (r"%", "//"),
    ast.LShift: (r"<<", ">>"),
    ast.RShift: (r">>", "<<"),
}
SWAPPED_NAMES = {
    "min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any",
    "floor": "ceil", "ceil": "floor", "zeros": "ones", "ones": "zeros", "cdiv": "max",
    "zeros_like": "ones_like", "ones_like": "zeros_like",
}  # fmt: skip
AXIS_KEYWORDS = ("dim", "axis")
# Calls whose arguments are texts for people.
WORDING_CALLS = {
    "echo",
    "print",
    "warn",
    "warning",
    "info",
    "debug",
    "log",
    "Option",
    "Argument",
    "Typer",
    "say",
}
WORDING_FUNCTIONS = {"__repr__", "__str__", "extra_repr"}


def python_edits(source: str) -> Iterator[Edit]:
    """Yield every replacement that the rules find in a module."""
    yield from _Finder(source).edits()


class _Finder:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tree = ast.parse(source)
        # Columns of the syntax tree count bytes of UTF-8.
        self.lines = source.split("\n")
        self.starts = [0, *itertools.accumulate(len(line) + 1 for line in self.lines)]

    def edits(self) -> Iterator[Edit]:
        for statement in self.tree.body:
            yield from self._visit(statement, "")

    def _visit(self, node: ast.AST, function: str) -> Iterator[Edit]:
        if _is_left_alone(node, function):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = f"{function}.{node.name}".lstrip(".")
            for statement in node.body:
                yield from self._visit(statement, inner)
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield from self._visit(node.value, function)
            return
        if function:  # statements of a module make its names: a fault there is found by any import
            for start, end, text, rule in self._faults(node):
                yield Edit(start, end, text, rule, function)
        for child in ast.iter_child_nodes(node):
            yield from self._visit(child, function)

    def _faults(self, node: ast.AST) -> Iterator[tuple[int, int, str, str]]:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                operands = [left, *comparators]
                for operator, before, after in zip(ops, operands, comparators, strict=False):
                    yield from self._operator(before, after, *COMPARISONS[type(operator)], "comparison")
            case ast.BinOp(left=left, op=operator, right=right):
                if type(operator) in ARITHMETIC and not (_is_text(left) or _is_text(right)):
                    yield from self._operator(left, right, *ARITHMETIC[type(operator)], "arithmetic")
                if isinstance(operator, ast.Add | ast.Sub):
                    yield from self._offset(right)
            case ast.BoolOp(op=operator, values=[first, second, *_]):
                words = ("and", "or") if isinstance(operator, ast.And) else ("or", "and")
                yield from self._operator(first, second, rf"\b{words[0]}\b", words[1], "boolean")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield (*self._span(node), f"({self._text(operand)})", "negation")
            case ast.If(test=test, body=[ast.Raise() | ast.Return() | ast.Continue(), *_]):
                yield (*self._span(test), "False", "skipped check")
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                yield (*self._span(test), f"not ({self._text(test)})", "condition")
            case ast.AugAssign(op=ast.Add() | ast.Sub() as operator, target=target, value=value):
                pattern, other = (r"\+=", "-=") if isinstance(operator, ast.Add) else (r"-=", "+=")
                if not _is_text(value):
                    yield from self._operator(target, value, pattern, other, "arithmetic")
                yield (*self._span(node), "pass", "dropped statement")
            case ast.Expr(value=ast.Call() as call) if not _is_wording(call):
                if not self._text(call).startswith("super().__init__"):
                    yield (*self._span(node), "pass", "dropped statement")
            case ast.Slice(lower=lower, upper=upper):
                for bound in (lower, upper):
                    yield from self._offset(bound)
            case ast.Subscript(slice=index) if not isinstance(node.ctx, ast.Del):
                yield from self._offset(index)
            case ast.Call(func=called, args=args, keywords=keywords):
                yield from self._call(called, args, keywords)

    def _call(
        self, called: ast.expr, args: list[ast.expr], keywords: list[ast.keyword]
    ) -> Iterator[tuple[int, int, str, str]]:
        name = _name(called)
        if name in SWAPPED_NAMES:
            end = self._span(called)[1]
            yield end - len(name), end, SWAPPED_NAMES[name], "swapped function"
        if name in ("range", "arange"):
            for arg in args:
                yield from self._offset(arg)
        for keyword in keywords:
            value = keyword.value
            if keyword.arg in AXIS_KEYWORDS and self._text(value) in ("0", "1", "-1"):
                yield (*self._span(value), "-1" if self._text(value) == "0" else "0", "axis")
            if isinstance(value, ast.Constant) and isinstance(value.value, bool):
                yield (*self._span(value), str(not value.value), "flag")

    def _offset(self, node: ast.expr | None) -> Iterator[tuple[int, int, str, str]]:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            node = node.operand
        if isinstance(node, ast.Constant) and type(node.value) is int:
            yield (*self._span(node), str(node.value + 1), "offset")

    def _operator(
        self, before: ast.expr, after: ast.expr, pattern: str, text: str, rule: str
    ) -> Iterator[tuple[int, int, str, str]]:
        """Yield the operator between two operands replaced by another, unless a comment stands there too."""
        begin, end = self._span(before)[1], self._span(after)[0]
        between = self.source[begin:end]
        matches = list(re.finditer(pattern, between))
        if len(matches) == 1 and "#" not in between:
            start = begin + matches[0].start()
            yield start, begin + matches[0].end(), text, rule

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset_of(node.lineno, node.col_offset), self._offset_of(
            node.end_lineno, node.end_col_offset
        )

    def _offset_of(self, line: int, column: int) -> int:
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def _text(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self.source[start:end]


def _is_left_alone(node: ast.AST, function: str) -> bool:
    match node:
        case (
            ast.Raise()
            | ast.Assert()
            | ast.JoinedStr()
            | ast.Import()
            | ast.ImportFrom()
            | ast.expr_context()
        ):
            return True
        case ast.FunctionDef(name=name, decorator_list=decorators):
            return name in WORDING_FUNCTIONS or any(_name(each) == "overload" for each in decorators)
        case ast.Call():
            return _is_wording(node)
        case ast.keyword(arg=arg):
            return arg in ("help", "metadata")
        case ast.If(test=test):
            return _name(test) == "TYPE_CHECKING"
        case ast.Assign() | ast.AnnAssign():
            return not function
    return False


def _is_wording(call: ast.Call) -> bool:
    return _name(call.func) in WORDING_CALLS


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _name(node: ast.expr) -> str:
    """Return the last part of a dotted name, "" for any other expression."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
