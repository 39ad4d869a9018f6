"""What episodes and their reports look like in print."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_STATE = {"resolved": "green", "acknowledged": "yellow"}
WIDTH = 200
LATEST = 10
"""Of what happened, what is printed."""


def episodes(out: Console, found: Sequence[dict[str, Any]]) -> None:
    if not found:
        out.print("no episode yet")
        return
    table = Table("episode", "model", "version", "about", "subject", "from", "since", "state", box=None)
    for one in found:
        table.add_row(
            one["episode"],
            one["model"],
            str(one["version"]),
            one["about"],
            escape(one["subject"]),
            _culprit(one),
            one["opened"][:19].replace("T", " "),
            _state(one["state"]),
        )
    # As wide as it is: an id that is cut off cannot be copied.
    Console(file=out.file, width=max(out.width, WIDTH), highlight=False).print(table, crop=False, soft_wrap=True)
    for one in found:
        if one["resolved"]:
            out.print(f"{one['episode']} ended {one['resolved'][:19].replace('T', ' ')}: {escape(one['reason'])}")
        for failed in one.get("not_told", ()):
            what = escape(
                f"{failed['target']} was not told that {one['episode']} was {failed['moment']}: {failed['error']}"
            )
            out.print(f"[red]{what}[/]; `meguri dead` has the message")


def acknowledged(out: Console, one: dict[str, Any]) -> None:
    note = f": {escape(one['note'])}" if one["note"] else ""
    out.print(f"episode {one['episode']} of {one['model']} was seen by {escape(one['actor'])}{note}")


def report(out: Console, data: dict[str, Any]) -> None:
    if "days" in data:
        _days(out, data)
        return
    story = data["story"]
    out.print(f"[bold]{escape(data['sentence'])}[/]")
    out.print(f"{_state(data['status'])} since {story['began'][:19].replace('T', ' ')}{_ended(story)}")
    out.print(escape(f"{data['how_bad']} {data['culprit']}"))
    if example := _example(story["opening"]):
        out.print(f"an example: `{escape(example)}`")
    _happened(out, story["happened"])


def _example(opening: dict[str, Any]) -> str:
    """The command that leads on: evaluators are always traced, predictions only sometimes."""
    if opening["about"] == "measure" and opening["traces"]:
        return f"meguri trace {opening['traces'][0]}"
    return f"meguri why {opening['samples'][0]}" if opening["samples"] else ""


def _days(out: Console, data: dict[str, Any]) -> None:
    days = data["days"]
    out.print(f"[bold]{escape(data['headline'])}[/]")
    out.print(f"version {days['champion']} answers now" if days["champion"] else "no version answers yet")
    for version, rows in days["versions"].items():
        out.print(f"version {version} gave {rows:,} predictions")
    _happened(out, days["happened"])


def _happened(out: Console, lines: Sequence[dict[str, Any]]) -> None:
    for one in lines[-LATEST:]:
        out.print(f"  {one['time'][:19].replace('T', ' ')}  {escape(one['text'])}")


def _ended(story: dict[str, Any]) -> str:
    return f" until {story['ended'][:19].replace('T', ' ')}: {escape(story['reason'])}" if story["ended"] else ""


def _culprit(one: dict[str, Any]) -> str:
    if not one["producer"]:
        return ""
    return escape(one["producer"]) + (f" ({one['share']:.0%})" if one["share"] else "")


def _state(state: str) -> str:
    word = "open" if state == "opened" else state
    return f"[{_STATE.get(state, 'red')}]{word}[/]"
