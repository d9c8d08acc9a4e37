"""Decisions that are no plan of moves, written down with all they depend on, and made again.

Each kind has a question and an answer (both plain data) and a pure function between them; what
``pack`` writes is read by ``replay``:

=============  ==================================  ===========================================
kind           question                            decided by
=============  ==================================  ===========================================
``sleep``      ``energy_question.SleepQuestion``   ``energy_question.choose_sleep``
``wake``       ``energy_question.WakeQuestion``    ``energy_question.choose_wake``
``fence``      ``recovery_question.FenceQuestion``    ``recovery_question.judge_fence``
``restart``    ``recovery_question.RestartQuestion``  ``recovery_question.judge_restart``
``overload``   ``relief_question.ReliefQuestion``     ``relief_question.choose_relief``
``takeover``   ``takeover_question.PowerTakeover``    ``takeover_question.continue_power``
``dispatch``   ``dispatch_question.DispatchQuestion`` ``dispatch_question.choose_managers``
``emptying``   ``emptying_question.EmptyingQuestion`` ``emptying_question.choose_emptying``
=============  ==================================  ===========================================
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from snooze.scheduling.dispatch_question import Dispatched, DispatchQuestion, choose_managers
from snooze.scheduling.emptying_question import Emptying, EmptyingQuestion, choose_emptying
from snooze.scheduling.energy_question import (
    Choice,
    SleepQuestion,
    WakeQuestion,
    choose_sleep,
    choose_wake,
)
from snooze.scheduling.recovery_question import (
    FenceQuestion,
    RestartQuestion,
    Ruling,
    judge_fence,
    judge_restart,
)
from snooze.scheduling.relief_question import Relief, ReliefQuestion, choose_relief
from snooze.scheduling.takeover_question import Continuation, PowerTakeover, continue_power

FORMAT: Final = "snooze-ruling/1"
SLEEP: Final = "sleep"
WAKE: Final = "wake"
FENCE: Final = "fence"
RESTART: Final = "restart"
RELIEF: Final = "overload"
TAKEOVER: Final = "takeover"
DISPATCH: Final = "dispatch"
EMPTYING: Final = "emptying"
MAX_BYTES: Final = 1024 * 1024
"""Compressed; of what is more nothing is kept."""

Question = (
    SleepQuestion
    | WakeQuestion
    | FenceQuestion
    | RestartQuestion
    | ReliefQuestion
    | PowerTakeover
    | DispatchQuestion
    | EmptyingQuestion
)
Answer = Choice | Ruling | Relief | Continuation | Dispatched | Emptying


class _Document(msgspec.Struct, frozen=True):
    format: str
    kind: str
    question: msgspec.Raw
    answer: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Replayed:
    """A ruling made again.

    Attributes:
        kind: what was decided.
        question: the inputs.
        answer, recorded: what comes of them now, and what came of them then.
    """

    kind: str
    question: Question
    answer: Answer
    recorded: Answer

    @property
    def is_same(self) -> bool:
        """Whether the same was decided again."""
        return self.answer == self.recorded

    def lines(self) -> list[str]:
        """The question and what is decided of it, for people."""
        answer = self.answer
        if isinstance(answer, Ruling | Continuation):
            facts = msgspec.to_builtins(self.question)
            told = ", ".join(f"{name} {value}" for name, value in facts.items())
            said = [f"{self.kind}: {told}", f"  {answer.verdict}: {answer.why}"]
        elif isinstance(answer, Relief):
            names = self._names()
            where = f"{names.get(answer.vm, 'no VM')} to {names.get(answer.target, 'no host')}"
            said = [f"{self.kind}: {where}"]
        elif isinstance(answer, Dispatched):
            names = self._names()
            said = [f"{self.kind}: a manager for {_count(len(answer.managers), 'VM')}"]
            said += [f"  {names.get(vm, vm)}: {names.get(at, at)}" for vm, at in answer.managers]
        elif isinstance(answer, Emptying):
            names = self._names()
            said = [f"{self.kind}: {len(answer.moves)} VMs leave"]
            said += [f"  {names.get(vm, vm)} to {names.get(to, to)}" for vm, to in answer.moves]
        else:
            names = self._names()
            said = [f"{self.kind}: {len(answer.hosts)} of {_count(len(names), 'host')}"]
            said += [f"  {names.get(host_id, host_id)}: {why}" for host_id, why in answer.hosts]
        return said + [f"  instead: {line}" for line in answer.others]

    def _names(self) -> dict[str, str]:
        match self.question:
            case SleepQuestion():
                return {host.id: host.name for host in self.question.idle}
            case WakeQuestion():
                return {host.id: host.name for host in self.question.sleepers}
            case ReliefQuestion() | EmptyingQuestion():
                names = {vm.id: vm.name for vm in self.question.vms}
                return names | {host.id: host.name for host in self.question.targets}
            case DispatchQuestion():
                names = {vm.id: vm.name for vm in self.question.vms}
                return names | {each.id: each.name for each in self.question.managers}
            case _:
                return {}


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def pack(kind: str, question: Question, answer: Answer) -> bytes:
    """Question and answer as JSON, compressed by zlib; empty if that is too much to keep."""
    encode = msgspec.json.encode
    document = _Document(FORMAT, kind, msgspec.Raw(encode(question)), msgspec.Raw(encode(answer)))
    packed = zlib.compress(encode(document), 6)
    return packed if len(packed) <= MAX_BYTES else b""


def replay(text: str) -> Replayed | None:
    """Decide again what ``text`` holds; None: it is no ruling.

    Raises:
        ValueError: it is one, and cannot be read; says why.
    """
    try:
        document = msgspec.json.decode(text, type=_Document)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    if document.format != FORMAT:
        return None
    try:
        return _KINDS[document.kind](bytes(document.question), bytes(document.answer))
    except KeyError:
        raise ValueError(f"there is no ruling of kind {document.kind[:64]!r}") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"a ruling of kind {document.kind}: {error}") from None


def _sleep(question: bytes, answer: bytes) -> Replayed:
    asked = msgspec.json.decode(question, type=SleepQuestion)
    answers = iter(asked.ha)
    again = choose_sleep(asked, lambda gone: next(answers, ""))
    return Replayed(SLEEP, asked, again, msgspec.json.decode(answer, type=Choice))


def _wake(question: bytes, answer: bytes) -> Replayed:
    asked = msgspec.json.decode(question, type=WakeQuestion)
    return Replayed(WAKE, asked, choose_wake(asked), msgspec.json.decode(answer, type=Choice))


def _fence(question: bytes, answer: bytes) -> Replayed:
    asked = msgspec.json.decode(question, type=FenceQuestion)
    return Replayed(FENCE, asked, judge_fence(asked), msgspec.json.decode(answer, type=Ruling))


def _restart(question: bytes, answer: bytes) -> Replayed:
    asked = msgspec.json.decode(question, type=RestartQuestion)
    return Replayed(RESTART, asked, judge_restart(asked), msgspec.json.decode(answer, type=Ruling))


def _relief(question: bytes, answer: bytes) -> Replayed:
    asked = msgspec.json.decode(question, type=ReliefQuestion)
    return Replayed(RELIEF, asked, choose_relief(asked), msgspec.json.decode(answer, type=Relief))


def _takeover(question: bytes, answer: bytes) -> Replayed:
    asked = msgspec.json.decode(question, type=PowerTakeover)
    recorded = msgspec.json.decode(answer, type=Continuation)
    return Replayed(TAKEOVER, asked, continue_power(asked), recorded)


def _dispatch(question: bytes, answer: bytes) -> Replayed:
    asked = msgspec.json.decode(question, type=DispatchQuestion)
    recorded = msgspec.json.decode(answer, type=Dispatched)
    return Replayed(DISPATCH, asked, choose_managers(asked), recorded)


def _emptying(question: bytes, answer: bytes) -> Replayed:
    asked = msgspec.json.decode(question, type=EmptyingQuestion)
    recorded = msgspec.json.decode(answer, type=Emptying)
    return Replayed(EMPTYING, asked, choose_emptying(asked), recorded)


_KINDS: Final[dict[str, Callable[[bytes, bytes], Replayed]]] = {
    SLEEP: _sleep,
    WAKE: _wake,
    FENCE: _fence,
    RESTART: _restart,
    RELIEF: _relief,
    TAKEOVER: _takeover,
    DISPATCH: _dispatch,
    EMPTYING: _emptying,
}
