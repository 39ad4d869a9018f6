"""Commands that keep the log and everything else, and put them back."""

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from meguri import backup as keep
from meguri import restoring, restoring_backup, show
from meguri.answering import Json, answer, give
from meguri.client import Meguri

Folder = Annotated[Path, typer.Argument(help="Folder of the backup.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to an application."""
    app.command("restore-log")(answer(restore_log))
    for command in (backup, restore, verify):
        app.command()(answer(command))


def restore_log(
    accept_gaps: Annotated[
        bool, typer.Option("--accept-gaps", help="Put a marker where no journal has the message.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a lost log again from the journals of all services. Changes nothing when the log is whole."""
    done = asyncio.run(restoring.restore_log(accept_gaps=accept_gaps, say=_say))
    give(as_json, asdict(done), show.restored_log)


def backup(folder: Folder, as_json: Json = False) -> None:
    """Back up the running system into a new folder: log, streams, tables, artifacts, and the digests to prove it by."""
    give(as_json, asyncio.run(keep.backup(folder, say=_say)), show.backed_up)


def restore(folder: Folder, as_json: Json = False) -> None:
    """Put a backup into an empty system; verified at once if the services run."""
    manifest = asyncio.run(restoring_backup.restore(folder, say=_say))
    give(as_json, manifest, show.backed_up)
    with Meguri() as meguri:
        if not all(meguri.answers(service) for service in manifest["services"]):
            _say(f"restored; start the services, then prove it: meguri verify {folder}")
            return
    verify(folder, as_json)


def verify(folder: Folder, as_json: Json = False) -> None:
    """Does the log yield what was backed up? Exit code 1 when it does not. Needs the services; changes nothing."""
    verdicts = restoring_backup.verify(folder)
    give(as_json, [asdict(verdict) for verdict in verdicts], show.verified)
    if any(verdict.differ for verdict in verdicts):
        raise typer.Exit(1)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
