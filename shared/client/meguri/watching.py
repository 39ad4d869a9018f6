"""Commands for who looks after models that are watched: quality, episodes, that somebody has seen one, and reports."""

from pathlib import Path
from typing import Annotated, Any

import typer

from meguri import show_episodes, show_quality
from meguri.answering import Json, answer, console, fail, give
from meguri.client import Meguri, Refused

NOT_FOUND = 404
LANGUAGES = ("en", "ja")


def add_to(app: typer.Typer) -> None:
    """Add these commands to an application."""
    for command in (quality, episodes, ack, report):
        app.command()(answer(command))


def quality(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    slices: Annotated[bool, typer.Option("--slices", help="Also of each producer and slice.")] = False,
    as_json: Json = False,
) -> None:
    """How good each version is by the labels that came, and how many of its answers have one."""
    with Meguri() as meguri:
        give(as_json, meguri.quality(model), show_quality.with_slices if slices else show_quality.quality)


def episodes(
    model: Annotated[str | None, typer.Argument(help="Of one model only.")] = None,
    open_only: Annotated[bool, typer.Option("--open", help="Only those that have not ended.")] = False,
    as_json: Json = False,
) -> None:
    """Episodes, newest first: what they are about, who causes them, when they began and ended."""
    with Meguri() as meguri:
        give(as_json, meguri.episodes(model, open_only=open_only), show_episodes.episodes)


def ack(
    episode: Annotated[str, typer.Argument(help="Id of the episode, as `meguri episodes` names it.")],
    note: Annotated[str, typer.Option(help="What is known of it; stands in the log.")] = "",
    as_json: Json = False,
) -> None:
    """Say that you have seen an open episode."""
    with Meguri() as meguri:
        give(as_json, meguri.acknowledge(episode, note), show_episodes.acknowledged)


def report(
    what: Annotated[str, typer.Argument(help="Id of an episode, or name of a model.", metavar="EPISODE|MODEL")],
    output: Annotated[Path | None, typer.Option(help="Write it to this file: a page, or with --json data.")] = None,
    days: Annotated[int, typer.Option(min=1, max=92, help="Of a model: how many days.")] = 7,
    language: Annotated[str, typer.Option(help="en or ja.")] = "en",
    as_json: Json = False,
) -> None:
    """What an episode, or a model's days, were about, who caused it, and what was done: in short here, whole in a file."""
    if language not in LANGUAGES:
        fail(f"--language: {language!r} is not one of {', '.join(LANGUAGES)}")
    with Meguri() as meguri:
        path, data = _found(meguri, what, days, language)
        if output is None:
            give(as_json, data, show_episodes.report)
            return
        output.write_bytes(meguri.report(path, language=language, days=days, format="json" if as_json else "html"))
    console.print(f"written to {output}", markup=False)


def _found(meguri: Meguri, what: str, days: int, language: str) -> tuple[str, dict[str, Any]]:
    """Return which report is meant and its data: an episode's, or else a model's."""
    hints: list[str] = []
    for path in (f"/episodes/{what}/report", f"/models/{what}/report"):
        try:
            return path, meguri.report_data(path, language=language, days=days)
        except Refused as refused:
            # A name that no model can have is refused in another way.
            if refused.status not in (NOT_FOUND, 422):
                raise
            hints.append(str(refused).partition("; ")[2])
    near = next((one for one in hints if one.startswith("near")), "`meguri episodes` and `meguri models` list them")
    raise Refused(NOT_FOUND, f"there is neither an episode nor a watched model {what!r}; {near}")
