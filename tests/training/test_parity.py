"""The tables of docs/models.md say what is: who answers, in which precision, and how near to scikit-learn."""

import re
from pathlib import Path

import pytest

from meguri_training import estimators
from tests.training import parity

PAGE = Path(__file__).parents[2] / "docs/models.md"
DOCUMENTED = parity.documented(PAGE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", parity.CASES, ids=lambda case: f"{case.named} on {case.data}")
def test_what_inference_serves_answers_as_scikit_learn_does(case):
    found = parity.measure(case)
    precision, engine, bound = DOCUMENTED[case.named, case.data]

    assert (found.precision, found.engine) == (precision, engine), found.reason
    assert bool(found.reason) == (engine == "scikit-learn")
    assert found.difference <= 10 * float(bound.removeprefix("< "))
    assert found.mislabelled == 0


def test_the_table_has_no_other_lines():
    assert sorted(DOCUMENTED) == sorted((case.named, case.data) for case in parity.CASES)


@pytest.mark.parametrize("task", list(estimators.KNOWN))
def test_the_page_names_every_estimator_of_a_task(task):
    listed = re.search(rf"^\| {task} \| (.*) \|$", PAGE.read_text(), re.MULTILINE)

    assert listed
    assert listed[1].split(", ") == sorted(estimators.KNOWN[task])
