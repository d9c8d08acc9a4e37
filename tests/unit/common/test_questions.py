"""Questions to a core: each gets its own answer, an error, or the end."""

import asyncio

import pytest

from snooze.common.errors import Conflict, ErrorReport, NotLeader
from snooze.common.questions import Questions


async def test_each_question_gets_its_own_answer() -> None:
    questions = Questions[str]()
    fed: list[int] = []
    asked = [asyncio.ensure_future(questions.ask(fed.append)) for _ in range(3)]
    await asyncio.sleep(0)
    for number in reversed(fed):
        questions.answer(number, f"answer {number}")
        questions.answer(number, "too late")
    assert await asyncio.gather(*asked) == [f"answer {number}" for number in fed]


async def test_an_answer_may_come_while_the_question_is_fed() -> None:
    questions = Questions[None]()
    await questions.ask(lambda number: questions.answer(number, None))


async def test_errors_and_the_end_reach_whoever_waits_and_nobody_else() -> None:
    questions = Questions[str]()
    with pytest.raises(Conflict, match="no"):
        await questions.ask(lambda n: questions.refuse(n, ErrorReport("conflict", "no")))
    waits = asyncio.ensure_future(questions.ask(lambda _: None))
    left = asyncio.ensure_future(questions.ask(lambda _: None))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.sleep(0)
    questions.close(NotLeader("gone"))
    with pytest.raises(NotLeader):
        await waits
    questions.answer(99, "nobody asked")
