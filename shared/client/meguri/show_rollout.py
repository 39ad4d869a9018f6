"""What a traffic plan looks like in print."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def rollout(out: Console, found: dict[str, Any]) -> None:
    out.print(f"{found['model']}: since {found['since']}")
    table = Table("version", "role", "share", "requests", "errors", "p50", "p95", "labels", "score", box=None)
    for one in found["versions"]:
        table.add_row(
            str(one["version"]),
            one["role"],
            f"{one['share']:.3g}",
            str(one["requests"]),
            str(one["errors"]),
            _milliseconds(one["p50"]),
            _milliseconds(one["p95"]),
            str(one["labels"]),
            f"{one['score']:.4f}" if one["score"] is not None else "",
        )
    out.print(table)
    for one in found["versions"]:
        if one["pairs"]:
            out.print(
                f"version {one['version']}: {one['disagreed']} of {one['pairs']} rows answered otherwise "
                f"({one['disagreement']:.2%}), by {one['mean_difference']:.4g} on average"
            )
        if interval := one["above_champion"]:
            out.print(
                f"version {one['version']}: score {interval['estimate']:+.4f} above the champion's, surely from "
                f"{interval['low']:+.4f} to {interval['high']:+.4f}"
            )
    out.print(f"next: {escape(found['next'])}")


def _milliseconds(seconds: float | None) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds is not None else ""
