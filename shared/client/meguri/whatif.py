"""The command `meguri whatif`: what would have become of an episode under another rule."""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meguri.answering import Json, answer, fail, give
from meguri.client import Meguri

CHANGES = {
    "threshold": "threshold {}",
    "p_value": "p-value {}",
    "windows": "{} windows in a row",
    "window_rows": "windows of {} rows",
    "min_rows": "at least {} rows",
    "rule": "the rule {}",
    "delta": "delta {}",
    "min_labels": "at least {} labels",
    "baseline_rows": "a baseline of {} rows",
    "version": "version {}",
}
"""Words for what was changed."""
WIDTH = 120


class Rule(StrEnum):
    meguri = "meguri"
    evidently = "evidently"


def add_to(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(answer(whatif))


def whatif(
    episode: Annotated[str, typer.Argument(help="Id of the episode.")],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Least effect, in the unit of the episode's kind: a distance or share, a ratio of requests a second (volume), "
            "seconds (silence), loss of accuracy or share of the error (performance)."
        ),
    ] = None,
    p_value: Annotated[float | None, typer.Option(help="Significance, divided by the number of features.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, max=100, help="Windows in a row that must agree.")] = None,
    window_rows: Annotated[
        int | None,
        typer.Option(min=20, max=1_000_000, help="Predictions, or rows of an evaluator, that make a window."),
    ] = None,
    min_rows: Annotated[int | None, typer.Option(min=20, help="Rows needed for a verdict.")] = None,
    rule: Annotated[Rule | None, typer.Option(help="Whose verdicts; of drift and predictions.")] = None,
    delta: Annotated[float | None, typer.Option(help="Of ADWIN: smaller is slower and surer; of performance.")] = None,
    min_labels: Annotated[int | None, typer.Option(min=20, help="Labels needed before anything is said.")] = None,
    baseline_rows: Annotated[
        int | None, typer.Option(min=20, help="First rows of an evaluator: its reference.")
    ] = None,
    model: Annotated[
        int | None, typer.Option(min=1, help="Version of the model: would it have been an episode with that one?")
    ] = None,
    as_json: Json = False,
) -> None:
    """What would have become of a past episode under another rule, or with another version of the model.

    Recomputed from what is kept, from the rule that was in force when it began; changes nothing. Which options there are
    depends on what the episode is about.
    """
    asked: dict[str, Any] = {
        "threshold": threshold,
        "p_value": p_value,
        "windows": windows,
        "window_rows": window_rows,
        "min_rows": min_rows,
        "rule": rule.value if rule else None,
        "delta": delta,
        "min_labels": min_labels,
        "baseline_rows": baseline_rows,
        "version": model,
    }
    for name, bounds in _BOUNDS.items():
        if (value := asked[name]) is not None and not bounds.least < value < bounds.most:
            fail(f"--{name.replace('_', '-')} is {value}: {bounds.words} is allowed")
    with Meguri() as meguri:
        give(as_json, meguri.whatif(episode, **asked), show)


class _Bounds(NamedTuple):
    least: float
    most: float
    words: str


_BOUNDS = {
    "threshold": _Bounds(0, math.inf, "a number above 0"),
    "p_value": _Bounds(0, 1, "a number between 0 and 1"),
    "delta": _Bounds(0, 1, "a number between 0 and 1"),
}


def show(out: Console, found: dict[str, Any]) -> None:
    """Say it in words, with the windows beside each other where they are the same."""
    happened, would = found["happened"], found["would"]
    end = f"until {_at(happened['resolved'])} ({escape(happened['reason'])})" if happened["resolved"] else "still open"
    out.print(
        f"episode {found['episode']}: {found['about']} of {found['model']} version {found['version']}, "
        f"{_culprit(happened)}, since {_at(happened['opened'])}, {end}"
    )
    out.print(f"{_rule(found)}: {_would(would)}")
    for one in would[1:]:
        out.print(f"and again: {_span(one)}")
    # As wide as it is: times that are cut off say nothing.
    table = _windows(found["windows"], happened["windows"])
    Console(file=out.file, width=max(out.width, WIDTH), highlight=False).print(table, crop=False, soft_wrap=True)
    for note in found["notes"]:
        out.print(escape(note))
    if any(one["moved"] is False and one["score"] >= one["threshold"] for one in found["windows"]):
        out.print("quiet at or above the threshold: the rule asks for more than that, such as significance")


def _rule(found: dict[str, Any]) -> str:
    """What was in force when it began, and what was changed about it."""
    then, changed = found["in_force"], found["changed"]
    spec = "the usual rule" if then["spec"] is None else f"the rule of spec {then['spec']}"
    said = ", ".join(_words(name, value) for name, value in then.items() if name != "spec" and value is not None)
    with_ = ", ".join(_words(name, value) for name, value in changed.items())
    return f"by {spec} ({said})" + (f" with {with_}" if with_ else "")


def _words(name: str, value: Any) -> str:
    return escape(CHANGES.get(name, f"{name.replace('_', ' ')} {{}}").format(value))


def _would(would: Sequence[dict[str, Any]]) -> str:
    return f"[yellow]an episode[/], {_span(would[0])}" if would else "[green]no episode[/]"


def _span(one: dict[str, Any]) -> str:
    end = f"until {_at(one['resolved'])}" if one["resolved"] else "not over in these windows"
    begin = f"from {one['number']} ({_at(one['opened'])}){' or before' if one['or_before'] else ''}"
    share = f", {one['share']:.0%} of it" if one["producer"] else ""
    return f"{'the same, ' if one['same'] else ''}{_culprit(one)}{share}, {begin}, {end}"


def _culprit(one: dict[str, Any]) -> str:
    who = f" from {escape(one['producer'])}" if one["producer"] else ""
    return f"{escape(one['subject'])}{who}"


def _at(time: str) -> str:
    return time[:19].replace("T", " ")


def _windows(now: Sequence[dict[str, Any]], then: Sequence[dict[str, Any]]) -> Table:
    """One line per window; what it said then beside it if it is the same one."""
    before = {(one["number"], one["rows"], one["began"], one["ended"]): one for one in then}
    table = Table("number", "rows", "until", "worst", "score", "threshold", "would say", "said then", box=None)
    for one in now:
        known = before.get((one["number"], one["rows"], one["began"], one["ended"]))
        moved = {True: "[red]moved[/]", False: "quiet", None: "too few rows"}
        table.add_row(
            str(one["number"]),
            str(one["rows"]),
            _at(one["ended"]),
            escape(one["subject"]),
            f"{one['score']:.3g}",
            f"{one['threshold']:.3g}",
            f"{moved[one['moved']]} {one['said']}".strip(),
            f"{moved[known['moved']]}, {known['score']:.3g}" if known else "",
        )
    return table
