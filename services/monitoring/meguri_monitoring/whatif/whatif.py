"""What would have become of a past episode under another rule or with another version, beside what really happened.

It is recomputed from what is kept, by the functions that watch live and with the rule that was in force when it began; nothing
is written, neither to the log nor to a database or a table.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from meguri_chassis.profiles import Profile
from meguri_chassis.store import Database, utc
from meguri_contracts.errors import Invalid
from meguri_contracts.spec import Monitor
from meguri_monitoring import store
from meguri_monitoring.episodes.looks import Look
from meguri_monitoring.evaluators import measure_tables
from meguri_monitoring.predictions import tables
from meguri_monitoring.whatif import asking, of_arrivals, of_labels, of_measures, of_windows, recomputing
from meguri_monitoring.whatif import store as whatif_store
from meguri_monitoring.whatif.recomputing import Outcome, Seen
from meguri_monitoring.whatif.store import Past

NO_RULE: dict[str, str] = {
    "schema": "an episode of schema begins with the first predictions whose columns do not fit, whatever the rule says: there "
    "is nothing to change about it; what was set aside is shown by `meguri dead`",
    "evaluator": "an episode of an evaluator begins when its plug-in fails, whatever the rule says: there is nothing to change "
    "about it; once it is put right, `meguri evaluate` tries again what was set aside",
}
"""By kind of episode why there is no other way in which it could have been."""
Looked = Iterator[tuple[Look | None, Seen]]


@dataclass(frozen=True)
class Question:
    """What is asked about a past episode."""

    past: Past
    asked: Mapping[str, Any]
    """By the names of `asking.settings`, and `version`; None of what stays as it was."""
    rule: Monitor
    """That in force then, with what was asked in place of its own."""

    @property
    def version(self) -> int:
        """Whose answers or reference: the episode's, or the one that was asked for."""
        return self.asked.get(asking.VERSION) or self.past.row.version

    @property
    def other_version(self) -> bool:
        return self.version != self.past.row.version

    @property
    def needs_reference(self) -> bool:
        return self.past.about in ("drift", "prediction", "missing", "categories")


def question(past: Past, asked: Mapping[str, Any]) -> Question:
    """Return what is asked, once it is known to have an answer. Raises Invalid."""
    if why := NO_RULE.get(past.about):
        raise Invalid(why)
    return Question(past, asked, asking.changed(past.rule, past.about, past.row.subject, asked))


def recompute(
    database: Database, data_url: str, question: Question, reference: Profile | None, rest: Callable[[], None]
) -> dict[str, Any]:
    """Return what would have been, and what was. Raises Invalid, and whatever `rest` does, which is called now and then."""
    past, row = question.past, question.past.row
    uri = tables.table_uri(data_url, row.model, row.version)
    how = _How(database, data_url, uri, question, rest, [])
    happened: tuple[Seen, ...] = ()
    match past.about:
        case "performance":
            outcome = _by_labels(how)
        case "silence":
            outcome = _by_arrivals(how)
        case "measure":
            outcome, happened = _by_measures(how)
        case _:
            outcome, happened = _by_windows(how, reference)
    return _answer(question, outcome, happened, [*_notes(past), *how.notes])


@dataclass(frozen=True)
class _How:
    database: Database
    data_url: str
    uri: str
    question: Question
    rest: Callable[[], None]
    notes: list[str]

    def decided(self, looked: Looked, *, whole: bool) -> Outcome:
        past = self.question.past
        # As if the version that is asked about had been champion: its answers are looked at.
        champion = self.question.version if past.about == "performance" else past.state.champion
        state = replace(past.state, champion=champion)
        return recomputing.recomputed(looked, self.question.rule, state, past.row.episode, whole=whole)


def _by_windows(how: _How, reference: Profile | None) -> tuple[Outcome, tuple[Seen, ...]]:
    past, rule = how.question.past, how.question.rule
    about = past.about
    with how.database.read() as session:
        stretch = of_windows.stretch(session, past, rule)
        judged = of_windows.looks_of(
            whatif_store.verdicts(session, past, *stretch.numbers), past.rule, about, stretch.history
        )
        happened = tuple(seen for _, seen in judged)
    cut = how.question.asked.get("window_rows")
    whole = stretch.places[0].number == 0
    if about == "volume" and cut is None:
        with how.database.read() as session:
            windows = whatif_store.verdicts(session, past, *stretch.numbers)
            return how.decided(of_windows.looks_of(windows, rule, about, stretch.history), whole=whole), happened
    other = how.question.other_version and about == "prediction"
    theirs = tables.table_uri(how.data_url, past.row.model, how.question.version) if other else None
    rows = of_windows.Rows(how.uri, stretch, how.rest, window_rows=cut, theirs=theirs)
    if reference is None:
        counted = of_windows.timed(rows.windows(), past.row.version)
    else:
        counted = of_windows.looked(rows.windows(), reference, rule, past)
    outcome = how.decided(of_windows.looks_of(counted, rule, about), whole=whole)
    if rows.unsure:
        how.notes.append(
            f"the windows may have begun up to {rows.unsure} rows later: those before them are no longer kept"
        )
    if theirs:
        how.notes.append(_answered(how.question.version, *rows.answered))
    return outcome, happened


def _by_labels(how: _How) -> Outcome:
    past, version = how.question.past, how.question.version
    with how.database.read() as session:
        scored = whatif_store.scored(session, past, version, of_labels.MOST)
        if not scored.numbers.size:
            raise Invalid(_no_answers(version) if how.question.other_version else "no labels of that time are kept")
        last = int(scored.labels.max())
        times = whatif_store.times_of_labels(session, past.row.model, int(scored.labels.min()), last)
    looked = of_labels.looked(scored, times, how.question.rule, version, how.rest)
    how.notes.append(
        "it is looked at whenever labels came, live once a second at most: it may have begun a moment later"
    )
    return how.decided(looked, whole=True)


def _by_arrivals(how: _How) -> Outcome:
    past, rule = how.question.past, how.question.rule
    with how.database.read() as session:
        versions = [row.version for row in store.versions(session, past.row.model)]
    uris = [tables.table_uri(how.data_url, past.row.model, version) for version in versions]
    scanned = [rows for uri in uris if (rows := tables.scan(uri, shadow=None)) is not None]
    last = utc(past.row.opened) - timedelta(seconds=past.row.detected["value"])
    until = past.ended or datetime.now(UTC)
    around = of_arrivals.since(last, [past.rule, rule]), until
    champion = past.state.champion or past.row.version
    return how.decided(of_arrivals.looked(scanned, rule, champion, around, over=past.ended is not None), whole=False)


def _by_measures(how: _How) -> tuple[Outcome, tuple[Seen, ...]]:
    past, rule, subject = how.question.past, how.question.rule, how.question.past.row.subject
    now, then = asking.watch_of(rule, subject), asking.watch_of(past.rule, subject)
    with how.database.read() as session:
        known = whatif_store.measured(session, past, then.evaluator)
        earlier = whatif_store.before(session, past)
        last = whatif_store.last_number(session, past.row.episode, past.row.version)
        ended = whatif_store.last_number(session, earlier.episode, earlier.version) if earlier else None
    if earlier and known and earlier.detected["window"]["first"] < known[0].window.first:
        # In another rollout windows are numbered anew.
        ended = None
    stretch = of_measures.stretch(known, past, rule, last, ended)
    uri = measure_tables.table_uri(how.data_url, past.row.model, then.evaluator)
    outcome = how.decided(
        of_measures.looked(uri, stretch, now, then, rule, subject, how.rest), whole=stretch.first == 0
    )
    return outcome, tuple(of_measures.look_of(one, subject)[1] for one in stretch.windows)


def _notes(past: Past) -> Iterator[str]:
    if past.later:
        named = ", ".join(map(str, past.later))
        yield f"the spec was changed before it ended (version {named}): recomputed is all by the one in force when it began"


def _answered(version: int, asked: int, found: int) -> str:
    if not found:
        raise Invalid(_no_answers(version))
    return f"version {version} was asked {found} of these {asked} rows too; the others are left out"


def _no_answers(version: int) -> str:
    return (
        f"--model: version {version} was not asked these rows, so its answers to them are not known; only a version that was "
        "shadow at the time can be asked about answers or quality (`meguri shadow`)"
    )


def _answer(question: Question, outcome: Outcome, happened: tuple[Seen, ...], notes: list[str]) -> dict[str, Any]:
    past, row = question.past, question.past.row
    then = asking.settings(past.rule, past.about, row.subject)
    now = asking.settings(question.rule, past.about, row.subject)
    changed = {name: value for name, value in now.items() if value != then.get(name)}
    if question.other_version:
        changed[asking.VERSION] = question.version
    return {
        "episode": row.episode,
        "model": row.model,
        "version": row.version,
        "about": past.about,
        "in_force": {"spec": past.spec} | then,
        "changed": changed,
        "happened": {
            "opened": utc(row.opened).isoformat(),
            "resolved": past.ended.isoformat() if past.ended else "",
            "reason": row.reason,
            "subject": row.subject,
            "producer": row.producer,
            "windows": [asdict(one) for one in happened],
        },
        "would": [asdict(one) for one in outcome.episodes],
        "windows": [asdict(one) for one in outcome.looked],
        "notes": notes,
    }
