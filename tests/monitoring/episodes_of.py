"""Openings of episodes as monitoring says them."""

from typing import Any, get_args

from meguri_contracts.events import AnomalyDetected, DriftDetected, PerformanceDegraded, Window
from meguri_contracts.spec import EpisodeKind

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
KINDS: tuple[EpisodeKind, ...] = get_args(EpisodeKind)
Opening = DriftDetected | PerformanceDegraded | AnomalyDetected


def opening(model: str, episode: str, about: EpisodeKind = "drift", **given: Any) -> Opening:
    """An opening with everything that such an event can have."""
    common: dict[str, Any] = {
        "model": model,
        "version": 3,
        "episode": episode,
        "about": about,
        "producer": "camera-b",
        "share": 0.94,
        "samples": ("p-1", "p-2"),
        "traces": (TRACE,),
    }
    if about == "performance":
        numbers = {"metric": "accuracy", "before": 0.952, "now": 0.881, "labels": 1200, "coverage": 0.4}
        return PerformanceDegraded.model_validate(common | numbers | given)
    if about in ("drift", "prediction", "missing", "categories"):
        drift = {
            "feature": "brightness",
            "distance": 1.48,
            "ks": 0.6,
            "p_value": 1e-9,
            "drifted": ("brightness", "contrast"),
            "window": Window(first=100, last=199, rows=100),
            "inputs_moved": False if about == "prediction" else None,
        }
        return DriftDetected.model_validate(common | drift | given)
    numbers = {"subject": "persons.count", "value": 0.2, "expected": 12.5, "inputs_moved": False}
    return AnomalyDetected.model_validate(common | numbers | given)
