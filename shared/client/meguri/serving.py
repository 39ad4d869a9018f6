"""Commands for who decides which versions answer: canary, shadow, A/B test, and how they are doing."""

from typing import Annotated, Any

import typer

from meguri import show, show_rollout
from meguri.answering import Json, answer, fail, give
from meguri.client import Meguri

Model = Annotated[str, typer.Argument(help="Name of the model.")]
Reason = Annotated[str, typer.Option(help="Why; stands in the log.")]
BY_HAND = "asked for by hand"
ANY = "any"


def add_to(app: typer.Typer) -> None:
    """Add these commands to an application."""
    for command in (rollout, canary, shadow, ab):
        app.command()(answer(command))


def rollout(model: Model, as_json: Json = False) -> None:
    """Who answers now, what was observed of each version, and what comes next."""
    with Meguri() as meguri:
        give(as_json, meguri.rollout(model), show_rollout.rollout)


def canary(
    model: Model,
    version: Annotated[int, typer.Argument(help="Version to try.")],
    steps: Annotated[
        str | None, typer.Option(help="Shares of the requests, one after the other, like 0.1,0.5.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Requests of each step.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Least time of each step.")] = None,
    max_errors: Annotated[float | None, typer.Option(help="Share of errors that it may have more.")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Times the champion's 95th percentile of latency that its own may be, or any.")
    ] = None,
    max_quality_loss: Annotated[float | None, typer.Option(help="By how much its mean score may be lower.")] = None,
    min_requests: Annotated[int | None, typer.Option(help="Requests, or labels, before it is taken back.")] = None,
    reason: Reason = BY_HAND,
    as_json: Json = False,
) -> None:
    """Let a version answer a growing share of the requests, until it is champion or is taken back.

    What is left out is as in the model's spec.
    """
    given: dict[str, Any] = {
        "steps": _numbers(steps) if steps else None,
        "requests": requests,
        "seconds": seconds,
        "max_errors": max_errors,
        "max_quality_loss": max_quality_loss,
        "min_requests": min_requests,
    }
    policy = {name: value for name, value in given.items() if value is not None}
    if max_latency is not None:
        policy["max_latency"] = None if max_latency == ANY else _numbers(max_latency)[0]
    with Meguri() as meguri:
        give(as_json, meguri.canary(model, version, reason, **policy), show.said)


def shadow(
    model: Model,
    version: Annotated[int, typer.Argument(help="Version to ask beside.")],
    share: Annotated[float, typer.Option(help="Of the requests.")] = 1,
    stop: Annotated[bool, typer.Option("--stop", help="Ask it no more.")] = False,
    reason: Reason = BY_HAND,
    as_json: Json = False,
) -> None:
    """Ask a version beside the one that answers, and count where they disagree; nobody sees its answers."""
    with Meguri() as meguri:
        give(as_json, meguri.shadow(model, version, reason, share=share, stop=stop), show.said)


def ab(
    model: Model,
    versions: Annotated[list[int], typer.Argument(help="Versions to compare with the champion.")],
    weight: Annotated[
        list[float] | None,
        typer.Option(
            help="Share of the entities for each version, once for all or once for each. [default: equal shares]"
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Probability of a winner when there is no difference.")] = None,
    min_labels: Annotated[int | None, typer.Option(help="Of every version before a winner is named.")] = None,
    max_labels: Annotated[int | None, typer.Option(help="Of every version after which none is better.")] = None,
    reason: Reason = BY_HAND,
    as_json: Json = False,
) -> None:
    """Compare versions with the champion on labelled predictions, until one is surely better, or none is.

    What is left out is as in the model's spec.
    """
    given = {"alpha": alpha, "min_labels": min_labels, "max_labels": max_labels}
    policy = {name: value for name, value in given.items() if value is not None}
    with Meguri() as meguri:
        give(as_json, meguri.ab(model, versions, reason, weights=weight or (), **policy), show.said)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        fail(f"{text!r}: numbers are needed, several with commas between them")
