import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from meguri_inference.batching import MAX_BATCHED_ROWS, Batcher
from meguri_inference.predicting import NoAnswer
from meguri_inference.protocol import Array, Batch
from tests.conftest import until
from tests.inference.replicas import Noted


@dataclass(eq=False)
class Question:
    x: Array


class Asked:
    """A batcher, and what came of each question in the order of the answers."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.batcher: Batcher[Question] = Batcher(model, self._answered, self._failed)
        self.batches: list[Batch] = []
        self.outcomes: dict[Question, list[Array] | Exception] = {}

    def submit(self, x: Array) -> Question:
        question = Question(x)
        self.batcher.submit(question)
        return question

    def _answered(self, batch: Batch, questions: Sequence[Question]) -> None:
        self.batches.append(batch)
        start = 0
        for question in questions:
            end = start + len(question.x)
            self._settle(question, [values[start:end] for values in batch.outputs])
            start = end

    def _failed(self, question: Question, error: Exception) -> None:
        self._settle(question, error)

    def _settle(self, question: Question, outcome: Any) -> None:
        assert question not in self.outcomes
        self.outcomes[question] = outcome

    async def all(self, questions: Sequence[Question]) -> list[Any]:
        await until(lambda: len(self.outcomes) >= len(questions), "all outcomes")
        return [self.outcomes[question] for question in questions]

    def slow(self) -> None:
        """From now on every call is expected to take too long for the loop."""
        self.model._slowness = 1e9


def sizes(asked: Asked) -> list[int]:
    return [len(batch.x) for batch in asked.batches]


@pytest.mark.parametrize("which", ["iris", "flowers", "forest"])
async def test_each_of_many_callers_gets_the_answer_to_its_own_rows(which, request):
    fitted = request.getfixturevalue(which)
    asked, rng = Asked(fitted.load()), np.random.default_rng(0)
    xs = [fitted.x[rng.integers(0, len(fitted.x), rows)] for rows in rng.choice([1, 1, 2, 7, 64, 65, 200, 300], 60)]

    answers = await asked.all([asked.submit(x) for x in xs])

    for x, (label, probabilities) in zip(xs, answers, strict=True):
        assert label.tolist() == fitted.estimator.predict(x).tolist()
        np.testing.assert_allclose(probabilities, fitted.estimator.predict_proba(x), atol=1e-5)


async def test_what_arrives_in_one_turn_of_the_loop_is_computed_together(iris):
    asked = Asked(iris.load())

    await asked.all([asked.submit(iris.x[:1]), asked.submit(iris.x[1:3])])
    await asked.all([*asked.outcomes, asked.submit(iris.x[:1])])

    assert sizes(asked) == [3, 1]


async def test_no_call_has_more_rows_than_its_bound_and_who_came_first_is_answered_first(iris):
    asked, rows = Asked(iris.load()), [100, 100, 100, 156, 1, 255, 256, 2]
    questions = [asked.submit(np.resize(iris.x, (count, 4))) for count in rows]

    await asked.all(questions)

    assert sizes(asked) == [200, 256, 256, 256, 2]
    assert max(sizes(asked)) <= MAX_BATCHED_ROWS
    assert list(asked.outcomes) == questions


async def test_a_request_of_many_rows_is_computed_by_itself(iris):
    asked = Asked(iris.load())

    await asked.all([asked.submit(iris.x[:1]), asked.submit(np.repeat(iris.x, 2, axis=0)), asked.submit(iris.x[:2])])

    assert sorted(sizes(asked)) == [3, 300]


async def test_the_loop_turns_while_many_rows_are_computed(forest):
    asked = Asked(forest.load())
    question = asked.submit(np.repeat(forest.x, 40, axis=0))

    turns = 0
    while question not in asked.outcomes:
        turns += 1
        await asyncio.sleep(0)

    assert turns > 20
    assert len(asked.batches[0].outputs[0]) == 6000


async def test_a_model_that_has_become_slow_leaves_the_loop_even_for_one_row(forest):
    asked = Asked(forest.load())
    asked.slow()
    first = asked.submit(forest.x[:1])
    await asyncio.sleep(0)
    assert first not in asked.outcomes

    answers = await asked.all([first, asked.submit(forest.x[50:51])])

    assert [label[0] for label, _ in answers] == forest.estimator.predict(forest.x[[0, 50]]).tolist()


async def test_what_arrives_while_a_slow_model_computes_makes_the_next_call_together(forest):
    asked = Asked(forest.load())
    asked.slow()
    questions = [asked.submit(forest.x[:1])]
    await asyncio.sleep(0)  # the first call has begun

    questions += [asked.submit(forest.x[:1]) for _ in range(5)]
    await asked.all(questions)

    assert sizes(asked) == [1, 5]


@pytest.mark.parametrize("slow", [False, True], ids=["in the loop", "in a thread"])
@pytest.mark.parametrize("bad", [99, 2], ids=["the call fails", "the answer is not a number"])
async def test_rows_without_an_answer_spoil_nobody_elses(picky, bad, slow):
    asked = Asked(picky)
    if slow:
        asked.slow()
    keys = [0, 1, bad, 1, 0]

    answers = await asked.all([asked.submit(np.array([[key]], np.float32)) for key in keys])

    assert isinstance(answers[2], NoAnswer)
    found = [answer[0].tolist() for answer in answers if not isinstance(answer, NoAnswer)]
    assert found == [[10], [11], [11], [10]]


async def test_a_single_row_without_an_answer_is_computed_once(picky):
    asked = Asked(picky)
    picky._engine = engine = Noted(picky._engine)

    await asked.all([asked.submit(np.array([[99]], np.float32))])

    assert engine.calls == [1]


async def test_a_batcher_goes_on_when_an_answer_could_not_be_handed_over(iris):
    failures, asked = [], Asked(iris.load())
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    twice = asked.submit(iris.x[:1])
    asked.outcomes[twice] = []
    await until(lambda: failures, "the failure")
    del asked.outcomes[twice]

    ((label, _),) = await asked.all([asked.submit(iris.x[:1])])

    assert label.tolist() == [0]
