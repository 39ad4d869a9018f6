"""`make chaos`: kills everything, at any time, under load, and shows that every accepted event had its effect exactly once.

make chaos                                          60 s at 200 events/s, on SQLite
make chaos ARGS="--seed 3 --database postgresql"    another order of blows, on a PostgreSQL of its own
make chaos ARGS="--mutants"                         breaks the services in three ways; each must be seen
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.system.chaos import system
from tests.system.chaos.mutants import MUTANTS
from tests.system.chaos.playing import Outcome, Plan, play

SHORT = ("--seconds", "12", "--rate", "100", "--patience", "100", "--quick")
"""What is enough for a mutant to be seen."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the load and of the blows")
    parser.add_argument("--seconds", type=float, default=60, help="of load under havoc")
    parser.add_argument("--rate", type=float, default=200, help="events a second, of four publishers together")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for quiet")
    parser.add_argument("--quick", action="store_true", help="leave out the second burst, which shows leaks")
    parser.add_argument("--json", type=Path, default=Path("build/chaos.json"), help="where the outcome is written")
    parser.add_argument("--keep", type=Path, help="an empty folder to run in; it is kept, logs and all")
    parser.add_argument("--mutate", choices=sorted(MUTANTS), help="break the services in this way")
    parser.add_argument("--mutants", action="store_true", help="break the services in each way; 0 if all are seen")
    args = parser.parse_args()
    if args.mutants:
        return _all_mutants(args.seed, args.database, args.json)
    plan = Plan(args.seed, args.seconds, args.rate, args.database, args.patience, args.quick, args.mutate)
    return _one_run(plan, args.keep, args.json)


def _one_run(plan: Plan, keep: Path | None, out: Path) -> int:
    folder, began = keep or Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    say(f"seed {plan.seed}, {plan.database}" + (f", broken: {plan.mutant}" if plan.mutant else ""))
    try:
        outcome = play(plan, folder.absolute(), say)
    finally:
        if keep is None:
            system.remove(folder)
    holds = all(finding.holds for finding in outcome.findings)
    _print(outcome)
    say("all holds" if holds else f"seed {plan.seed}: NOT ALL HOLDS")
    written: dict[str, Any] = {"plan": asdict(plan), "holds": holds, **asdict(outcome)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(written, indent=2))
    return 0 if holds else 1


def _print(outcome: Outcome) -> None:
    print("\n" + "\n".join(outcome.blows) + "\n")
    for name, figure in outcome.figures.items():
        if not isinstance(figure, dict):
            print(f"         {name}: {figure}")
    width = max(len(finding.check) for finding in outcome.findings)
    for finding in outcome.findings:
        print(f"  {'ok ' if finding.holds else 'RED'}    {finding.check:{width}}  {finding.found}")


def _all_mutants(seed: int, database: str, out: Path) -> int:
    seen = {}
    for name in sorted(MUTANTS):
        kept = out.with_suffix(f".{name}.json")
        kept.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.system.chaos", *SHORT, "--mutate", name, "--json", str(kept)]
        subprocess.run([*command, "--seed", str(seed), "--database", database], check=False)
        seen[name] = _seen_by(name, kept)
    for name, by in seen.items():
        print(f"{name:20} {'red, by: ' + ', '.join(by) if by else 'NOT SEEN'}")
    return 0 if all(seen.values()) else 1


def _seen_by(name: str, kept: Path) -> list[str]:
    """The checks that saw a mutant, if those that should are among them."""
    if not kept.exists():
        return []
    red = [finding["check"] for finding in json.loads(kept.read_text())["findings"] if not finding["holds"]]
    return red if any(check.startswith(should) for check in red for should in MUTANTS[name][1]) else []


if __name__ == "__main__":
    sys.exit(main())
