"""Gates say when a candidate is good enough; whatever else is written into one is refused, never run."""

import gc
import math
import string
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meguri_contracts.errors import Invalid
from meguri_contracts.gates import MAX_LENGTH, parse_gate

GOOD, BETTER = {"accuracy": 0.9, "log_loss": 0.4}, {"accuracy": 0.95, "log_loss": 0.3}


def holds(gate: str, candidate=GOOD, champion=None) -> bool:
    return all(rule.holds(candidate, champion) for rule in parse_gate(gate))


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("accuracy >= 0.9", True),
        ("accuracy > 0.9", False),
        ("accuracy <= 0.9 and log_loss < 0.5", True),
        ("accuracy >= 0.9 and log_loss < 0.4", False),
        ("0.8 < accuracy < 0.95", True),
        ("0.8 < accuracy < 0.85", False),
        ("-accuracy < -0.8", True),
        ("accuracy >= (1 + 0.8) / 2", True),
        ("accuracy - log_loss * 2 > 0.05", True),
        ("  accuracy > 0\n", True),
    ],
)
def test_a_gate_is_arithmetic_on_the_candidates_metrics(gate, expected):
    assert holds(gate) is expected


def test_a_rule_about_the_champion_compares_with_it_and_holds_while_there_is_none():
    gate = "accuracy >= champion.accuracy - 0.005"

    assert holds(gate, GOOD, None)
    assert holds(gate, BETTER, GOOD)
    assert not holds(gate, GOOD, BETTER)


def test_every_rule_of_a_gate_is_kept_with_its_text_and_its_metrics():
    first, second = parse_gate("accuracy >= .5 and log_loss < champion.log_loss + accuracy")

    assert (first.text, first.metrics) == ("accuracy >= 0.5", {"accuracy"})
    assert (second.text, second.metrics) == ("log_loss < champion.log_loss + accuracy", {"log_loss", "accuracy"})
    assert (first.compares_with_champion, second.compares_with_champion) == (False, True)


def test_a_metric_that_is_not_a_number_passes_no_rule():
    assert not holds("accuracy >= 0", {"accuracy": math.nan})
    assert not holds("accuracy < 1", {"accuracy": math.nan})


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ("precision > 0.5", r"candidate has no metric 'precision'; it has accuracy, log_loss"),
        ("accuracy > champion.precision", r"champion has no metric 'precision'"),
        ("accuracy / (log_loss - log_loss) > 1", r"divides by zero"),
    ],
)
def test_a_rule_that_cannot_be_evaluated_says_why(gate, reason):
    with pytest.raises(Invalid, match=reason):
        holds(gate, GOOD, BETTER)


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ("", "cannot be read"),
        ("accuracy >=", "cannot be read"),
        ("accuracy", "not a comparison"),
        ("accuracy == 1", "not a comparison"),
        ("accuracy > 0.5 or accuracy < 0.2", "not a comparison"),
        ("not accuracy > 0.5", "not a comparison"),
        ("accuracy ** 2 > 1", "not allowed"),
        ("accuracy > champion", "champion.<metric>"),
        ("accuracy > champion.accuracy.real", "not allowed"),
        ("accuracy > rival.accuracy", "not allowed"),
        ("accuracy > True", "not allowed"),
        ("accuracy > '0.5'", "not allowed"),
        ("accuracy > 1j", "not allowed"),
        ("accuracy > 1e999", "not allowed"),
        ("accuracy > " + "9" * 400, "not allowed"),
        ("f'{\"\t\"}' > accuracy", "gate"),
        ("accuracy\x00 > 1", "cannot be read"),
        ("\ud800 > 1", "cannot be read"),
        ("-" * 900 + "accuracy > 0", "50 levels"),
        ("accuracy > 1" + "+1" * 400, "50 levels"),
        ("(" * 400 + "1" + ")" * 400 + " > accuracy", "gate"),
        ("accuracy > 0 and " * 100 + "accuracy > 0", f"at most {MAX_LENGTH}"),
    ],
    ids=lambda text: text[:30].encode("unicode_escape").decode(),
)
def test_what_is_no_gate_is_refused_in_words(gate, reason):
    with pytest.raises(Invalid, match=reason):
        parse_gate(gate)


@pytest.mark.parametrize(
    "gate",
    [
        "__import__('os').abort() > 0",
        "(lambda: 1)() > 0",
        "[x for x in (1,)][0] > 0",
        "accuracy.__class__ > 0",
        "champion.__class__.__mro__ > 0",
        "(accuracy := 2) > 1",
        "f'{exit()}' > 0",
        "accuracy > (yield)",
        "accuracy > (1 if accuracy else 0)",
    ],
)
def test_nothing_but_arithmetic_is_taken(gate):
    with pytest.raises(Invalid):
        parse_gate(gate)


PIECES = [
    "accuracy",
    "champion.accuracy",
    "champion",
    "0.5",
    "1e308",
    "-",
    "+",
    "*",
    "/",
    "(",
    ")",
    ">=",
    "<",
    " and ",
    "f'",
    "'",
]


@given(st.text(max_size=80) | st.lists(st.sampled_from(PIECES)).map(" ".join) | st.text(string.printable, max_size=80))
def test_any_text_is_a_gate_or_invalid_and_a_gate_can_be_evaluated(text):
    with warnings.catch_warnings():
        # Python comments on odd code that it parses; a gate is none.
        warnings.simplefilter("ignore")
        try:
            for rule in parse_gate(text):
                rule.holds(dict.fromkeys(rule.metrics, 0.5), dict.fromkeys(rule.metrics, 0.5))
        except Invalid:
            pass


sums = st.recursive(
    # Numbers are doubles in a gate, also those that are written as integers.
    st.just("accuracy") | st.floats(0, 1e9).map(repr),
    lambda part: st.tuples(part, st.sampled_from("+-*"), part).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
    max_leaves=12,
)


@given(sums, st.sampled_from([">=", ">", "<=", "<"]), sums)
def test_a_gate_agrees_with_python_on_arithmetic(left, comparison, right):
    gate, metrics = f"{left} {comparison} {right}", {"accuracy": 0.9}

    assert holds(gate, metrics) is eval(gate, metrics.copy())


def test_reading_a_gate_again_gives_the_same_rules():
    rules = parse_gate("accuracy>=.8 and (accuracy)>champion.accuracy-0.005")

    assert [parse_gate(rule.text)[0].text for rule in rules] == [rule.text for rule in rules]


class Garbage:
    """Collected in the middle of something else, it lets another thread go on there."""

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        sum(range(50))


@pytest.fixture
def _threads_take_turns_everywhere():
    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(20)
    sys.setswitchinterval(1e-6)
    yield
    gc.set_threshold(*before)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_threads_take_turns_everywhere")
def test_gates_are_read_by_several_threads_at_once():
    text = " and ".join(f"accuracy > (0.{n} + 0.{n} * (1 - 0.{n}))" for n in range(1, 9))

    def read(_: int) -> int:
        Garbage()
        return len(parse_gate(text))

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read, range(1000))) == {8}
