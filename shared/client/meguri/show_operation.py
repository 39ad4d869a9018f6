"""What the operators' commands print for people."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meguri.following import Seen
from meguri.times import ago


def status(out: Console, found: dict[str, Any]) -> None:
    for one in found["services"]:
        state = "[green]ready[/]" if one["ready"] else f"[red]not ready[/]: {escape('; '.join(one['reasons']))}"
        out.print(f"{one['service']:11} {state}{_place(one['log'])}")
        for warning in one.get("warnings", []):
            out.print(f"{'':11} [yellow]{escape(warning)}[/]")
    if found["broker"]:
        out.print(f"[red]{escape(found['broker'])}[/]")
        return
    table = Table("consumer", "to hear", "in hand", "after a failure", box=None)
    for one in found["consumers"]:
        numbers = ("[red]missing[/]", "", "") if one["missing"] else (one["waiting"], one["in_hand"], one["again"])
        table.add_row(one["consumer"], *map(str, numbers))
    out.print(table)


def _place(log: dict[str, Any] | None) -> str:
    if log is None:
        return ""
    behind = max(log["last"] - log["position"], 0)
    parked = f", [yellow]{len(log['parked'])} parked[/]" if log["parked"] else ""
    return f", at {log['position']} of the log{f', [yellow]{behind} behind[/]' if behind else ''}{parked}"


def letters(out: Console, found: Sequence[dict[str, Any]]) -> None:
    for one in found:
        trace = f", trace {one['trace']}" if one["trace"] else ""
        age = ago(datetime.fromisoformat(one["parked"]))
        out.print(
            f"[bold]{one['id']}[/]  {escape(one['subject'])}, event {escape(one['event'])} from {escape(one['producer'])}, "
            f"parked {age} ago by {one['service']} after {_times(one['deliveries'])}{trace}"
        )
        out.print(f"    [red]{escape(one['reason'])}[/]")
        if one["redriven"]:
            out.print(f"    sent back {one['redriven']} by {escape(one['redriven_by'] or '')}")
    if not found:
        out.print("no dead letter")


def _times(deliveries: int) -> str:
    return "1 delivery" if deliveries == 1 else f"{deliveries} deliveries"


def redriven(out: Console, done: Sequence[dict[str, Any]]) -> None:
    for one in done:
        edited = ", edited" if one["edited"] else ""
        out.print(f"sent back {one['id']} as event {escape(one['event'])}{edited}")
    if not done:
        out.print("nothing was sent back")


def event(out: Console, seen: Seen, body: bool) -> None:
    cause = f" because of {escape(seen.cause)}" if seen.cause and seen.cause != seen.id else ""
    out.print(
        f"{seen.sequence:6} {seen.time:%Y-%m-%d %H:%M:%S} [bold]{escape(seen.kind)}[/] {escape(seen.key)}  "
        f"{escape(seen.id)} from {escape(seen.source)}{cause}"
    )
    if body:
        out.print(f"       [dim]{escape(seen.body.decode(errors='replace'))}[/]")


def replayed(out: Console, done: dict[str, Any]) -> None:
    out.print(f"{done['service']} at {done['position']} of the log")
    out.print(f"digest before  {done['before']}\ndigest after   {done['after']}")
    differ = ", ".join(done["differ"])
    if not differ:
        out.print("[green]the tables are what the log says[/]")
    elif done["kept"]:
        out.print(f"[yellow]put right:[/] {differ}")
    else:
        out.print(f"[red]not what the log says:[/] {differ}; `meguri replay {done['service']}` puts it right")
        _of_before(out, done.get("not_kept", {}))


def _of_before(out: Console, not_kept: dict[str, int]) -> None:
    """Say that nothing is broken where an older release, or one beside, kept less than this one would have."""
    if not_kept:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(not_kept.items()))
        out.print(f"made by an older release, which did not keep {kinds}: nothing is lost, they come from the log")
    else:
        out.print(
            "of an upgraded service that is to be expected once: an older release may have kept the same otherwise"
        )


def past_digest(out: Console, done: dict[str, Any]) -> None:
    out.print(f"{done['service']} at {done['position']} of the log\ndigest  {done['after']}")


def known_at(out: Console, found: dict[str, Any]) -> None:
    out.print(f"at {found['time']}")
    for one in found["models"]:
        before = f", before that {', '.join(map(str, one['past']))}" if one["past"] else ""
        out.print(
            f"[bold]{one['model']}[/]: spec version {one['spec_version']}, champion {one['champion'] or 'none'}{before}"
        )
        for part in one["plan"][1:]:
            out.print(f"  version {part['version']} is {part['role']}, {part['share']:.3g} of the requests")
        if one["versions"]:
            table = Table("  version", "run", "verdict", box=None)
            for version in one["versions"]:
                table.add_row(f"  {version['version']}", version["run"], version["verdict"])
            out.print(table)
    if not found["models"]:
        out.print("no model was known")
