"""The command `meguri whatif`: what would have become of an episode under another rule."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meguri.answering import Json, answer, give
from meguri.client import Meguri

CHANGES = {
    "distance": "threshold {}",
    "missing": "threshold {}",
    "categories": "threshold {}",
    "volume": "threshold {}",
    "p_value": "p-value {}",
    "windows": "{} windows in a row",
    "window_rows": "windows of {} rows",
    "min_rows": "at least {} rows",
    "rule": "the rule {}",
    "reference": "the reference of version {}",
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
    threshold: Annotated[float | None, typer.Option(help="Least effect, in the unit of the episode's kind.")] = None,
    p_value: Annotated[float | None, typer.Option(help="Significance, divided by the number of features.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows in a row that must agree.")] = None,
    window_rows: Annotated[int | None, typer.Option(min=50, help="Predictions that make a window.")] = None,
    min_rows: Annotated[int | None, typer.Option(min=20, help="Rows needed for a verdict.")] = None,
    rule: Annotated[Rule | None, typer.Option(help="Whose verdicts.")] = None,
    model: Annotated[
        int | None, typer.Option(min=1, help="Version of the model to whose reference it is held.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What would have become of a past episode under another rule. Recomputed from the predictions; changes nothing."""
    asked = {
        "threshold": threshold,
        "p_value": p_value,
        "windows": windows,
        "window_rows": window_rows,
        "min_rows": min_rows,
        "rule": rule.value if rule else None,
        "version": model,
    }
    with Meguri() as meguri:
        give(as_json, meguri.whatif(episode, **asked), show)


def show(out: Console, found: dict[str, Any]) -> None:
    """Say it in words, with the windows beside each other where they are the same."""
    happened, would = found["happened"], found["would"]
    end = f"until {_at(happened['resolved'])} ({escape(happened['reason'])})" if happened["resolved"] else "still open"
    out.print(
        f"episode {found['episode']}: {found['about']} of {found['model']} version {found['version']}, "
        f"{_culprit(happened)}, since {_at(happened['opened'])}, {end}"
    )
    out.print(f"with {_changes(found['changed'])}: {_would(would)}")
    for one in would[1:]:
        out.print(f"and again: {_span(one)}")
    # As wide as it is: times that are cut off say nothing.
    table = _windows(found["windows"], happened["windows"])
    Console(file=out.file, width=max(out.width, WIDTH), highlight=False).print(table, crop=False, soft_wrap=True)
    if any(one["moved"] is False and one["score"] >= one["threshold"] for one in found["windows"]):
        out.print("quiet at or above the threshold: the rule asks for more than that, such as significance")


def _changes(changed: dict[str, Any]) -> str:
    words = [escape(words.format(changed[name])) for name, words in CHANGES.items() if name in changed]
    others = [escape(f"{name} {value}") for name, value in changed.items() if name not in CHANGES]
    return ", ".join([*words, *others]) or "the rule of today"


def _would(would: Sequence[dict[str, Any]]) -> str:
    return f"[yellow]an episode[/], {_span(would[0])}" if would else "[green]no episode[/]"


def _span(one: dict[str, Any]) -> str:
    end = f"until {_at(one['resolved'])}" if one["resolved"] else "not over in these windows"
    return f"{_culprit(one)}, {one['share']:.0%} of it, from window {one['number']} ({_at(one['opened'])}), {end}"


def _culprit(one: dict[str, Any]) -> str:
    who = f" from {escape(one['producer'])}" if one["producer"] else ""
    return f"{escape(one['subject'])}{who}"


def _at(time: str) -> str:
    return time[:19].replace("T", " ")


def _windows(now: Sequence[dict[str, Any]], then: Sequence[dict[str, Any]]) -> Table:
    """One line per window; what it said then beside it if it is the same one."""
    before = {(one["number"], one["rows"], one["began"], one["ended"]): one for one in then}
    table = Table("window", "rows", "until", "worst", "score", "threshold", "would say", "said then", box=None)
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
