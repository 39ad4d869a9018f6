"""How good answers are, by the labels that are about them: what one label says of one answer, and what many say together."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from meguri_contracts.spec import Task
from meguri_monitoring.predictions.predictions import parts_of

BINS = 10
"""Of the probability, for the calibration."""
LEAST = 2.220446049250313e-16
"""How near to 0 and 1 a probability comes in a log loss: a double's precision, as scikit-learn has it."""
TRUTHS = {"_text": pl.String(), "_number": pl.Float64()}
"""A label as text and as number, in a frame."""
LARGEST = 1e140
"""Largest number that can be compared: no database can add up the squares of larger ones."""
YES = frozenset({"true", "1"})
"""Answers and labels that say that a row is an outlier."""


def as_text(label: float | int | bool | str) -> str:
    """Return a label as it is compared with an answer that is text: `7`, `0.5`, `true`."""
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) and label.is_integer():
        return f"{label:.0f}"
    return str(label)


def as_number(label: float | int | bool | str) -> float | None:
    """Return a label as it is compared with an answer that is a number or a boolean; None if it is none, or infinite."""
    if isinstance(label, str) and label.lower() in ("true", "false"):
        label = label.lower() == "true"
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def task_of(columns: Iterable[str]) -> Task:
    """Return what a version does, by the columns of its table of predictions."""
    _, answer = parts_of(tuple(columns))
    if answer == ("prediction",):
        return "regression"
    return "outliers" if answer[-1] == "score" else "classification"


def scored(answers: pl.DataFrame, answer: tuple[str, ...]) -> pl.DataFrame:
    """Return the rows with what their labels, in the columns of `TRUTHS`, say of them, as `ScoredRow` has it.

    `answer` names the columns of the answer. Rows whose answer and label are nothing that can be compared are left out.
    """
    if answer == ("prediction",):
        return _scored_numbers(answers)
    text, label, right = _compared(answers.schema[answer[0]], pl.col(answer[0]))
    probability = pl.col("probability").cast(pl.Float64).fill_nan(None) if answer[-1] == "probability" else _none()
    score = right.fill_null(value=False).cast(pl.Float64)
    # Lengthened first: what follows needs the columns under their new names.
    rows = answers.with_columns(
        score=score, probability=probability, answer=text.fill_null(""), target=_none(), true=label
    )
    sure = pl.col("probability").clip(LEAST, 1 - LEAST)
    loss = -pl.when(pl.col("score") == 1).then(sure).otherwise(1 - sure).log()
    tenth = (pl.col("probability") * BINS).floor().clip(0, BINS - 1).cast(pl.Int64)
    return rows.with_columns(loss=loss, bin=tenth, label=pl.col("true"))


def _scored_numbers(answers: pl.DataFrame) -> pl.DataFrame:
    nothing = {"probability": _none(), "loss": _none(), "bin": pl.lit(None, pl.Int64)}
    texts = {name: pl.lit(None, pl.String) for name in ("label", "answer")}
    score = -(pl.col("prediction") - pl.col("_number")).abs()
    rows = answers.with_columns(score=score, target=pl.col("_number"), **nothing, **texts)
    return rows.filter(pl.col(name).abs() <= LARGEST for name in ("score", "target"))


def _compared(kind: pl.DataType, answer: pl.Expr) -> tuple[pl.Expr, pl.Expr, pl.Expr]:
    """Answer and label as texts that are the same when the answer is right, and whether it is."""
    text, number = pl.col("_text"), pl.col("_number")
    if kind == pl.String:
        return answer, text, answer == text
    right = answer.cast(pl.Float64) == number
    if kind == pl.Boolean:
        named = pl.when(number == 1).then(pl.lit("true")).when(number == 0).then(pl.lit("false"))
        return answer.cast(pl.String), named.otherwise(text), right
    return _digits(answer.cast(pl.Float64)), pl.coalesce(_digits(number), text), right


def _digits(number: pl.Expr) -> pl.Expr:
    whole = (number == number.round()) & (number.abs() < 1e15)
    return pl.when(whole).then(number.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(number.cast(pl.String))


def _none() -> pl.Expr:
    return pl.lit(None, pl.Float64)


# --- many together ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Sums over scored rows that have the same label and answer, as texts, and whose probability is in the same tenth."""

    label: str | None
    answer: str | None
    bin: int | None
    rows: int
    score: float
    squares: float
    """Of the scores."""
    loss: float
    probability: float
    off: float
    """Of a regression's labels, their distance from a number near them; `off_squares` of its square."""
    off_squares: float


@dataclass
class Sums:
    """What the metrics follow from: as many numbers as there are pairs of classes, however many rows."""

    rows: int = 0
    score: float = 0.0
    squares: float = 0.0
    loss: float = 0.0
    off: float = 0.0
    off_squares: float = 0.0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by label and answer."""
    bins: dict[int, list[float]] = field(default_factory=dict)
    """By tenth of the probability: rows, sum of the scores, sum of the probabilities."""

    def add(self, cell: Cell) -> None:
        self.rows += cell.rows
        self.score += cell.score
        self.squares += cell.squares
        self.loss += cell.loss
        self.off += cell.off
        self.off_squares += cell.off_squares
        if cell.label is not None and cell.answer is not None:
            self.pairs[cell.label, cell.answer] += cell.rows
        if cell.bin is not None:
            sums = self.bins.setdefault(cell.bin, [0, 0.0, 0.0])
            for place, one in enumerate((cell.rows, cell.score, cell.probability)):
                sums[place] += one


def metrics(task: Task, sums: Sums) -> dict[str, Any]:
    """Return the metrics of a task; null where the rows say nothing of it.

    Of the probabilities only that of the answer is kept, so the log loss is that of the statement "the answer is right": for
    two classes the usual one, for more the least that the usual one can be.
    """
    if not sums.rows:
        return {}
    if task == "regression":
        return _of_numbers(sums)
    accuracy = {"accuracy": sums.score / sums.rows}
    return accuracy | (_of_outliers(sums.pairs) if task == "outliers" else _of_classes(sums))


def _of_numbers(sums: Sums) -> dict[str, Any]:
    spread = sums.off_squares - sums.off * sums.off / sums.rows
    return {
        "mae": -sums.score / sums.rows,
        "rmse": math.sqrt(sums.squares / sums.rows),
        "r2": 1 - sums.squares / spread if spread > 0 else None,
    }


def _of_outliers(pairs: Counter[tuple[str, str]]) -> dict[str, Any]:
    found = sum(rows for (_, answer), rows in pairs.items() if answer in YES)
    real = sum(rows for (label, _), rows in pairs.items() if label in YES)
    both = sum(rows for (label, answer), rows in pairs.items() if label in YES and answer in YES)
    return {
        "precision": both / found if found else None,
        "recall": both / real if real else None,
        "f1": 2 * both / (found + real) if found + real else None,
    }


def _of_classes(sums: Sums) -> dict[str, Any]:
    labels: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for (label, answer), rows in sums.pairs.items():
        labels[label] += rows
        answers[answer] += rows
    classes = sorted(labels.keys() | answers.keys())
    f1 = [2 * sums.pairs[one, one] / (labels[one] + answers[one]) for one in classes]
    sure = sum(rows for rows, _, _ in sums.bins.values())
    off = sum(abs(score - probability) for _, score, probability in sums.bins.values())
    return {
        "f1_macro": sum(f1) / len(f1) if f1 else None,
        "log_loss": sums.loss / sure if sure else None,
        "calibration_error": off / sure if sure else None,
        "calibration": [
            {
                "from": tenth / BINS,
                "to": (tenth + 1) / BINS,
                "labels": int(rows),
                "probability": probability / rows,
                "accuracy": score / rows,
            }
            for tenth, (rows, score, probability) in sorted(sums.bins.items())
        ],
    }
