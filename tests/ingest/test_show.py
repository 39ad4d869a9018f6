from typing import Any

from rich.console import Console

from meguri import show

RECEIPT = {
    "event": "7",
    "producer": "scanner-a",
    "arrived": "2026-01-31T12:00:00+00:00",
    "status": "committed",
    "reason": "",
    "dataset": "digits",
    "dataset_version": 3,
    "rows": 10,
    "quarantined": 1,
    "heard": 2,
    "waits_for": "",
    "letter": None,
    "used_in": [{"model": "digits", "run": "r1", "model_version": 4, "verdict": "promoted"}],
}


def shown(**changes: Any) -> str:
    out = Console(width=200)
    with out.capture() as capture:
        show.receipt(out, RECEIPT | changes)
    return capture.get()


def test_a_receipt_says_what_it_became_how_often_it_was_heard_and_what_learned_from_it():
    said = shown()

    assert "committed" in said
    assert "digits version 3: 10 rows, 1 quarantined" in said
    assert "2 times, taken once" in said
    assert "digits version 4 of run r1 (promoted)" in said


def test_a_receipt_says_what_it_waits_for():
    said = shown(status="waiting", dataset_version=None, used_in=[], heard=1, waits_for="its commit: it is in hand")

    assert "waits for its commit: it is in hand" in said


def test_the_receipt_of_a_dead_letter_says_why_and_how_to_put_it_right():
    said = shown(status="parked", reason="the body is not JSON", letter=12, dataset_version=None, used_in=[], heard=1)

    assert "parked the body is not JSON" in said
    assert "meguri redrive ingest-arrivals/12 --edit" in said
