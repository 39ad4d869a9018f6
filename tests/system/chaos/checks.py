"""What must hold afterwards, whatever was killed: every accepted event has its effect once, and every number its place."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from meguri_contracts.events import (
    OPENINGS,
    ApprovalRequested,
    DataArrived,
    DataCommitted,
    DataRejected,
    EpisodeResolved,
    MessageParked,
    ModelRegistered,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    TrainingFailed,
    TrainingStarted,
)
from tests.system.chaos import specs
from tests.system.chaos.publishers import Ledger
from tests.system.chaos.seen import Seen

NAMED, NAMED_LENGTH = 5, 200
"""Offenders that a finding names, and letters of each."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check, as a row of the table."""

    check: str
    holds: bool
    found: str


def of_arrivals(seen: Seen, ledger: Ledger) -> list[Finding]:
    """Accepted = distinct valid ids; dead letters = poison."""
    taken = [part.event for _, event in seen.said(DataCommitted) for part in event.events]
    dead = [letter.event for letter in seen.dead]
    rejected = [event.event for _, event in seen.said(DataRejected)]
    return [
        _none("accepted and lost", set(ledger.valid) - set(taken), f"{len(ledger.valid)} accepted"),
        _none("committed twice", _doubled(taken), f"{len(taken)} committed, {ledger.duplicates} sent twice"),
        _none("committed and never sent", set(taken) - set(ledger.valid)),
        Finding(
            "dead letters = poison",
            sorted(dead) == sorted(ledger.poison),
            f"{len(dead)} dead letters, {len(ledger.poison)} poison"
            + _such_as({letter.reason for letter in seen.dead if letter.event not in ledger.poison})
            + _such_as(Counter(dead) - Counter(list(ledger.poison))),
        ),
        _none("rejected", rejected),
        _none("dead letters not said", Counter(dead) - Counter(e.event for _, e in seen.said(MessageParked))),
        _none("odd answers over HTTP", ledger.odd, f"{ledger.refused} refused at once"),
    ]


def of_tables(seen: Seen, ledger: Ledger) -> list[Finding]:
    """Every row of an accepted arrival stands once in its table, and every table is what was said of it."""
    sent = {(a.dataset, row, a.event) for a in ledger.valid.values() for row in a.rows}
    stored = [(name, *row) for name, table in seen.rows.items() for row in table.select("row", "_event").rows()]
    last = {event.dataset: event for _, event in seen.said(DataCommitted)}
    return [
        _none("rows lost", sent - set(stored), f"{len(sent)} sent"),
        _none("rows doubled or strange", Counter(stored) - Counter(sent), f"{len(stored)} stored"),
        _none(
            "tables unlike the log",
            [
                f"{name}: {table.height}, said {last[name].total_rows}"
                for name, table in seen.rows.items()
                if name not in last or table.height != last[name].total_rows
            ],
            f"{len(seen.rows)} read back whole",
        ),
    ]


def of_versions(seen: Seen) -> list[Finding]:
    """Numbers without gaps, each said once."""
    committed = [(event.dataset, event.version) for _, event in seen.said(DataCommitted)]
    registered = [(event.model, event.version) for _, event in seen.said(ModelRegistered)]
    verdicts = [(event.model, event.version) for _, event in seen.said(PromotionRejected, ApprovalRequested)]
    verdicts += [(event.model, event.plan.champion.version) for _, event in seen.said(RolloutChanged)]
    # Of a table, version 0 is its creation.
    return [
        _none("dataset versions missing or doubled", _not_in_a_row(committed), f"{len(committed)} versions"),
        _none("model versions missing or doubled", _not_in_a_row(registered), f"{len(registered)} versions"),
        _none("versions without one verdict", _unlike(registered, verdicts), f"{len(verdicts)} verdicts"),
    ]


def of_runs(seen: Seen) -> list[Finding]:
    """Every run is started once and has one outcome; every version comes of one run; no trigger is answered twice."""
    started = [event.run for _, event in seen.said(TrainingStarted)]
    trained = [event.run for _, event in seen.said(ModelTrained)]
    failed = [event.run for _, event in seen.said(TrainingFailed)]
    registered = [event.run for _, event in seen.said(ModelRegistered)]
    triggers = [(event.model, one.event) for _, event in seen.said(TrainingStarted) for one in event.triggers]
    return [
        _none("runs started twice", _doubled(started), f"{len(started)} runs"),
        _none("runs without one outcome", _unlike(started, trained + failed), f"{len(failed)} failed"),
        _none("runs without one version", _unlike(trained, registered), f"{len(trained)} trained"),
        _none("triggers answered twice", _doubled(triggers), f"{len(triggers)} triggers"),
        _none("dataset versions not accounted for", _unaccounted(seen), _uses(seen)),
    ]


def of_watching(seen: Seen) -> list[Finding]:
    """Episodes begin and end in turn, each once; every published prediction is kept once."""
    detected = [event.episode for _, event in seen.said(*OPENINGS)]
    resolved = [event.episode for _, event in seen.said(EpisodeResolved)]
    published, kept = Counter(set(seen.predicted)), Counter(seen.kept_predictions)
    return [
        _none("episodes doubled or ended twice", _doubled(detected) + _doubled(resolved), f"{len(detected)} episodes"),
        _none("episodes out of turn", _out_of_turn(seen), f"{len(resolved)} ended"),
        _none("predictions doubled", kept - published, f"{sum(kept.values())} kept"),
        _none("predictions published and lost", published - kept, f"{len(published)} published"),
    ]


def of_drift(seen: Seen) -> list[Finding]:
    """Every model has had an episode of drift, where every model was made to see it."""
    models = {event.model for _, event in seen.said(*OPENINGS)}
    return [_none("models without an episode", set(specs.DATASET_OF) - models)]


def of_ids(seen: Seen) -> list[Finding]:
    """No event of a service stands in the log twice, under its id or another."""
    said = [message for message in seen.messages if message.source.startswith("meguri/")]
    bodies: dict[str, set[bytes]] = defaultdict(set)
    for message in said:
        bodies[message.id].add(message.body)
    return [
        _none("ids with two effects", [id_ for id_, found in bodies.items() if len(found) > 1]),
        _none("events of services said twice", _doubled(f"{m.kind} {m.id}" for m in said), f"{len(said)} said"),
        _none("arrivals sent on by a service", [m.id for m in said if m.kind == DataArrived.kind()]),
    ]


def _unaccounted(seen: Seen) -> list[str]:
    """Dataset versions that no run of a model used or came after, although they have enough rows for one."""
    newest: dict[str, TrainingStarted] = {event.model: event for _, event in seen.said(TrainingStarted)}
    last: dict[str, DataCommitted] = {event.dataset: event for _, event in seen.said(DataCommitted)}
    found = []
    for model, dataset in specs.DATASET_OF.items():
        run = newest.get(model)
        if dataset in last and (run is None or _is_due(run, last[dataset])):
            found.append(f"{model}: {last[dataset].total_rows} rows, the last run had {run.dataset_rows if run else 0}")
    return found


def _is_due(run: TrainingStarted, last: DataCommitted) -> bool:
    assert run.spec.retrain.rows is not None
    return last.total_rows - run.dataset_rows >= run.spec.retrain.rows


def _uses(seen: Seen) -> str:
    """Say how many versions were used by a run of any model, how many by a later one, how many wait for more rows."""
    used: dict[str, set[int]] = defaultdict(set)
    for _, event in seen.said(TrainingStarted):
        used[event.spec.dataset.name].add(event.dataset_version)
    versions = [(event.dataset, event.version) for _, event in seen.said(DataCommitted)]
    direct = sum(version in used[dataset] for dataset, version in versions)
    later = sum(version > max(used[dataset], default=0) for dataset, version in versions)
    return f"{direct} used, {len(versions) - direct - later} coalesced, {later} wait"


def _out_of_turn(seen: Seen) -> list[str]:
    going_on: dict[tuple[str, str], str] = {}
    found = []
    for _, event in seen.said(*OPENINGS, EpisodeResolved):
        about = (event.model, event.about)
        if not isinstance(event, EpisodeResolved) and about not in going_on:
            going_on[about] = event.episode
        elif isinstance(event, EpisodeResolved) and going_on.get(about) == event.episode:
            del going_on[about]
        else:
            found.append(f"{event.kind()} {event.episode} of {event.model}")
    return found


def _doubled(ids: Iterable[Any]) -> list[Any]:
    return [id_ for id_, times in Counter(ids).items() if times > 1]


def _unlike(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """What stands not as often in one as in the other, or more than once."""
    return [*(Counter(one) - Counter(other)), *(Counter(other) - Counter(one)), *_doubled(one)]


def _not_in_a_row(versions: Sequence[tuple[str, int]]) -> list[str]:
    by_name: dict[str, list[int]] = defaultdict(list)
    for name, version in versions:
        by_name[name].append(version)
    return [f"{name}: {found}" for name, found in by_name.items() if found != list(range(1, len(found) + 1))]


def _none(check: str, offenders: Any, beside: str = "") -> Finding:
    return Finding(check, not offenders, f"{len(offenders)}" + (f" ({beside})" if beside else "") + _such_as(offenders))


def _such_as(offenders: Iterable[Any]) -> str:
    named = [str(one)[:NAMED_LENGTH] for one in list(offenders)[:NAMED]]
    return f": {', '.join(named)}" if named else ""


OF_THE_LOG: Sequence[Callable[[Seen], list[Finding]]] = (of_versions, of_runs, of_watching, of_ids)
