"""Gates: the promotion rule of a model, `accuracy >= 0.9 and accuracy >= champion.accuracy - 0.005`.

A gate is one or more comparisons joined by `and`. Names are metrics of the candidate, `champion.<metric>` those of the
champion on the same hold-out; numbers, `+`, `-`, `*`, `/` and parentheses are allowed and nothing else is.
"""

import ast
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Annotated

from pydantic import AfterValidator

from meguri_contracts.errors import Invalid

Metrics = Mapping[str, float]

_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.GtE: operator.ge,
    ast.Gt: operator.gt,
    ast.LtE: operator.le,
    ast.Lt: operator.lt,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_parsing = Lock()
"""Python 3.11 counts the depth of all parsing threads in one place and fails when two take turns (CPython gh-106905)."""
MAX_LENGTH = 1000
"""Characters a gate may have; nobody reads a longer one."""
MAX_DEPTH = 50
"""Levels of parts within parts. Python's own limit depends on the caller, and a gate must be valid everywhere or nowhere."""


@dataclass(frozen=True)
class Rule:
    """One comparison of a gate."""

    text: str
    _tree: ast.Compare

    def holds(self, candidate: Metrics, champion: Metrics | None) -> bool:
        """Tell whether the comparison is true. A rule about the champion holds while there is none.

        Raises Invalid when a metric is missing or a division is by zero.
        """
        if champion is None and self.compares_with_champion:
            return True
        values = [_value(node, candidate, champion or {}) for node in (self._tree.left, *self._tree.comparators)]
        comparisons = [_COMPARISONS[type(op)] for op in self._tree.ops]
        return all(compare(a, b) for compare, a, b in zip(comparisons, values, values[1:], strict=False))

    @property
    def compares_with_champion(self) -> bool:
        return any(isinstance(node, ast.Attribute) for node in ast.walk(self._tree))

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics that the rule needs."""
        names = {n.id for n in ast.walk(self._tree) if isinstance(n, ast.Name)} - {"champion"}
        return names | {n.attr for n in ast.walk(self._tree) if isinstance(n, ast.Attribute)}


def parse_gate(text: str) -> tuple[Rule, ...]:
    """Return the rules of a gate. Raises Invalid that names the part which is not allowed."""
    if len(text) > MAX_LENGTH:
        raise Invalid(f"gate: {len(text)} characters, at most {MAX_LENGTH} are allowed")
    try:
        with _parsing:
            body = ast.parse(text.strip(), mode="eval").body
        if _is_too_deep(body):
            raise Invalid(f"gate: at most {MAX_DEPTH} levels of parts within parts are allowed")
        parts = body.values if isinstance(body, ast.BoolOp) and isinstance(body.op, ast.And) else [body]
        return tuple(_rule(part) for part in parts)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Invalid(f"gate {text!r} cannot be read: {error}") from error


def _is_too_deep(tree: ast.AST) -> bool:
    level = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return bool(level)


def _rule(node: ast.expr) -> Rule:
    text = ast.unparse(node)
    if not isinstance(node, ast.Compare) or any(type(op) not in _COMPARISONS for op in node.ops):
        raise Invalid(f"gate: {text!r} is not a comparison with >=, >, <= or <; join several with 'and'")
    for side in (node.left, *node.comparators):
        _check(side)
    return Rule(text, node)


def _check(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=int() | float() as number) if (
            not isinstance(number, bool) and number <= sys.float_info.max
        ):
            return
        case ast.Name(id=name) if name != "champion":
            return
        case ast.Attribute(value=ast.Name(id="champion")):
            return
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            _check(left)
            _check(right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand)
        case _:
            allowed = "numbers, metrics, champion.<metric>, + - * / and parentheses"
            raise Invalid(f"gate: {ast.unparse(node)!r} is not allowed; allowed are {allowed}")


def _value(node: ast.expr, candidate: Metrics, champion: Metrics) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name):
            return _metric(name, candidate, "the candidate")
        case ast.Attribute(attr=name):
            return _metric(name, champion, "the champion")
        case ast.UnaryOp(operand=operand):
            return -_value(operand, candidate, champion)
        case ast.BinOp(left=left, op=op, right=right):
            try:
                return _ARITHMETIC[type(op)](_value(left, candidate, champion), _value(right, candidate, champion))
            except ZeroDivisionError as error:
                raise Invalid(f"gate: {ast.unparse(node)} divides by zero") from error
    raise Invalid(f"gate: {ast.unparse(node)!r} is not allowed")


def _metric(name: str, metrics: Metrics, whose: str) -> float:
    if name not in metrics:
        raise Invalid(f"gate: {whose} has no metric {name!r}; it has {', '.join(sorted(metrics)) or 'none'}")
    return float(metrics[name])


def _validated(text: str) -> str:
    try:
        parse_gate(text)
    except Invalid as error:
        raise ValueError(str(error)) from error
    return text


Gate = Annotated[str, AfterValidator(_validated)]
