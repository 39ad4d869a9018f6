"""What the commands for many rows print for people."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_STATUS = {"completed": "green", "running": "yellow", "requested": "yellow", "failed": "red"}


def requested(out: Console, asked: dict[str, Any]) -> None:
    out.print(f"batch {asked['batch']}\nmeguri batches {asked['batch']}")


def batches(out: Console, found: Sequence[dict[str, Any]]) -> None:
    table = Table("batch", "model", "version", "status", "rows", "since", "input", box=None)
    for one in found:
        table.add_row(
            one["batch"],
            one["model"],
            str(one["version"] or one["asked_version"] or "champion"),
            _status(one["status"]),
            str(one["rows"] if one["rows"] is not None else ""),
            one["time"],
            escape(one["input"]),
        )
    out.print(table if found else "no batch yet")


def batch(out: Console, one: dict[str, Any]) -> None:
    out.print(f"batch     {one['batch']} of {one['model']}: {_status(one['status'])} {escape(one['reason'])}")
    out.print(f"input     {escape(one['input'])} {one['input_digest'][:12]}")
    if one["version"]:
        out.print(f"made by   version {one['version']} of run {one['run']}")
        out.print(f"shards    {one['shards_done']} of {one['shards']} done, {one['rows_done']} rows")
    if one["status"] == "completed":
        out.print(f"output    {escape(one['output'])}\ndigest    {one['digest']}")


def comparison(out: Console, report: dict[str, Any]) -> None:
    out.print(f"{report['model']}: version {report['a']} and version {report['b']} on {report['scored']} recorded rows")
    out.print(f"disagreed {report['disagreed']} ({report['share']:.2%}); {report['rule']}")
    out.print(f"apart     {report['mean_difference']:.4g} on average, at most {report['largest_difference']:.4g}")
    for reason, rows in report["unscored"].items():
        out.print(f"left out  {rows} rows: {escape(reason)}")
    for cell in report["confusion"]:
        if cell["a"] != cell["b"]:
            out.print(f"          {escape(cell['a'])} became {escape(cell['b'])}: {cell['rows']} rows")
    if report["slices"]:
        table = Table("slice", "rows", "disagreed", "lift", box=None)
        for one in report["slices"]:
            name = escape(f"{one['by']} {one['slice']}")
            table.add_row(name, str(one["rows"]), f"{one['disagreed']} ({one['share']:.1%})", f"{one['lift']:.2f}")
        out.print(table)
    for one in report["worst"]:
        out.print(f"{one['prediction_id']}  {escape(str(one['a']))} → {escape(str(one['b']))}  {one['difference']:.4g}")
    out.print(f"digest    {report['digest']}")


def _status(word: str) -> str:
    return f"[{_STATUS[word]}]{word}[/]"
