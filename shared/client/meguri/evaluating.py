"""A command for evaluators: have what they made of the predictions made again."""

from typing import Annotated, Any

import typer
from rich.console import Console

from meguri.answering import Json, answer, give
from meguri.client import Meguri
from meguri.times import moment

Model = Annotated[str, typer.Argument(help="Name of the model.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to an application."""
    app.command()(answer(evaluate))


def evaluate(
    model: Model,
    evaluator: Annotated[str, typer.Argument(help="Name of the evaluator, as in the model's spec.")],
    since: Annotated[
        str | None, typer.Option(help="Predictions made since: 2h, 3d or a time; all if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate the predictions that are kept again, and add to the evaluator's table what it does not have."""
    with Meguri() as meguri:
        refilled = meguri.evaluate(model, evaluator, since=moment(since) if since else None)
    give(as_json, refilled, _refilled)


def _refilled(out: Console, refilled: dict[str, Any]) -> None:
    out.print(
        f"{refilled['rows']:,} rows evaluated from predictions {refilled['first']} to {refilled['last']}, "
        f"{refilled['written']:,} of them were missing and are there now"
    )
    if left_out := refilled["left_out"]:
        out.print(
            f"[red]its writer left out {left_out:,} of them, as it does now with new ones[/]: the log of monitoring says why"
        )
