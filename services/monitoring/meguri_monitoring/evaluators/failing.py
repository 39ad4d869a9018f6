"""What there is to say of an evaluator that fails. The score of its episode is how many requests are set aside, at least; 0
while it does not work at all."""

from collections.abc import Mapping

from meguri_monitoring.episodes.episodes import Episode, State
from meguri_monitoring.episodes.looks import Look

NAMED = 20
"""Requests that an episode names."""


def said(evaluator: str, model: str, reason: str) -> str:
    """Return the warning about one that does not work."""
    return f"evaluator {evaluator} of {model} does not work: {reason}"


def does_not_work(champion: int, evaluator: str, at: int, reason: str) -> Look:
    """It fails on everything that follows on sequence `at`."""
    text = f"{evaluator} waits until it is put right, and then goes on where it is: {reason}"
    return _look(champion, evaluator, str(at), moved=True, text=text)


def leaves_out(state: State, evaluator: str, at: int, failed: Mapping[str, str], *, all_: bool) -> Look:
    """It fails on some requests alone and went on to sequence `at` without them; `all_` if these are all there are."""
    episode = None if all_ else state.open("evaluator", evaluator)
    first = next(iter(failed))
    text = (
        f"{evaluator} goes on without requests that it cannot do ({len(failed)}); `meguri evaluate {state.model} {evaluator}` "
        f"tries them again; {first}: {failed[first]}"
    )
    return _look(
        state.champion or 0,
        evaluator,
        str(at),
        moved=True,
        value=len(failed) + (episode.score if episode else 0.0),
        samples=tuple(failed)[:NAMED],
        text=text,
    )


def works(champion: int, evaluator: str, episode: Episode) -> Look:
    """It has done what it failed on before."""
    return _look(champion, evaluator, episode.id, moved=False, back=f"{evaluator} has evaluated what it failed on")


def _look(
    champion: int,
    evaluator: str,
    place: str,
    *,
    moved: bool,
    value: float = 0.0,
    samples: tuple[str, ...] = (),
    text: str = "",
    back: str = "",
) -> Look:
    return Look(
        about="evaluator",
        version=champion,
        subject=evaluator,
        place=place,
        moved=moved,
        value=value,
        samples=samples,
        text=text,
        back=back,
        runs=1,
    )
