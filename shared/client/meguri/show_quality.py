"""What the quality of a model's versions looks like in print."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

WIDTH = 200


def quality(out: Console, found: dict[str, Any]) -> None:
    """One row for each version: those that answer, and shadows."""
    of_shadows = [one | {"version": f"{one['version']} (shadow)"} for one in found["shadows"]]
    _print(out, f"{found['model']}: answers since {found['since']}", ("version",), [*found["versions"], *of_shadows])
    if found["labels_waiting"]:
        out.print(f"labels about no answer that is counted here: {found['labels_waiting']}")


def with_slices(out: Console, found: dict[str, Any]) -> None:
    """The same, each version told apart by producer and by the slices of the spec."""
    quality(out, found)
    for one in found["versions"]:
        if one.get("slices"):
            _print(out, f"version {one['version']}", ("slice", "value"), one["slices"])


def _print(out: Console, title: str, named: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    out.print(escape(title))
    metrics = list(dict.fromkeys(name for one in rows for name in _numbers(one)))
    table = Table(*named, "answers", "labels", "coverage", *metrics, box=None)
    for one in rows:
        table.add_row(*(escape(str(one[name])) for name in named), *_counts(one), *_values(one, metrics))
    # As wide as it is: numbers that are cut off say something else.
    Console(file=out.file, width=max(out.width, WIDTH), highlight=False).print(table, crop=False, soft_wrap=True)


def _counts(one: Mapping[str, Any]) -> Iterator[str]:
    yield str(one["answers"])
    yield str(one["labels"])
    yield f"{one['coverage']:.1%}" if one["coverage"] is not None else ""


def _values(one: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[str]:
    for name in metrics:
        value = one["metrics"].get(name)
        yield f"{value:.4g}" if value is not None else ""


def _numbers(one: Mapping[str, Any]) -> Iterator[str]:
    return (name for name, value in one["metrics"].items() if not isinstance(value, list))
