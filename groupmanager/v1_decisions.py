"""The calls about decisions and autonomy, of our own API."""

from aiohttp import web

from snooze.common.api import API_PREFIX, AutonomyChange, DecisionView, DecisionWord
from snooze.common.decisions import DecisionKind, DecisionState
from snooze.common.errors import InvalidRequest, NotFound
from snooze.groupmanager.leader.autonomy import view_of
from snooze.groupmanager.leader.service import LeaderService
from snooze.groupmanager.v1_api import Handler, answer, body_of, number_of

MAX_DECISIONS_PER_CALL = 1000


def routes() -> list[tuple[str, str, Handler]]:
    """``(verb, path, handler)`` of every call."""
    return [
        ("GET", f"{API_PREFIX}/decisions", _decisions),
        ("GET", f"{API_PREFIX}/decisions/{{id}}", _decision),
        ("POST", f"{API_PREFIX}/decisions/{{id}}/{{word}}", _judge),
        ("GET", f"{API_PREFIX}/hosts/{{id}}/why", _why),
        ("GET", f"{API_PREFIX}/autonomy", _autonomy),
        ("PUT", f"{API_PREFIX}/autonomy", _change),
        ("POST", f"{API_PREFIX}/managers/{{id}}/consolidate", _consolidate),
    ]


async def _decisions(request: web.Request, leader: LeaderService) -> web.Response:
    """Newest first."""
    leader.require()
    limit = number_of(request, "limit", 100, 1, MAX_DECISIONS_PER_CALL)
    after = number_of(request, "after", 0, 0, 2**53)
    kind, state = request.query.get("kind"), request.query.get("state")
    try:
        of_kind = DecisionKind(kind) if kind else None
        in_state = DecisionState(state) if state else None
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    found = leader.decisions.latest(limit, of_kind, in_state, _subjects(request, leader), after - 1)
    views: list[DecisionView] = [view_of(decision) for decision in found]
    return answer(views)


def _subjects(request: web.Request, leader: LeaderService) -> list[str]:
    """The ids of the host and the VM that are asked for; what is unknown may be an id of old."""
    subjects: list[str] = []
    if name := request.query.get("host", ""):
        host = leader.registry.find_host(name)
        subjects.append(host.description.host_id if host is not None else name)
    if name := request.query.get("vm", ""):
        vm = leader.registry.find_vm(name)
        subjects.append(vm.key if vm is not None else name)
    return subjects


async def _decision(request: web.Request, leader: LeaderService) -> web.Response:
    leader.require()
    decision = leader.autonomy.decision(request.match_info["id"])
    return answer(view_of(decision, with_inputs=True))


async def _judge(request: web.Request, leader: LeaderService) -> web.Response:
    leader.require()
    word = request.match_info["word"]
    if word not in ("approve", "reject"):
        raise NotFound(f"a decision is approved or rejected; {word[:64]!r} is neither")
    said = await body_of(request, DecisionWord) if request.body_exists else DecisionWord()
    return answer(
        await leader.autonomy.judge(
            request.match_info["id"], approved=word == "approve", who=said.who
        )
    )


async def _why(request: web.Request, leader: LeaderService) -> web.Response:
    """Why a host is not emptied now."""
    leader.require()
    return answer(await leader.across.why(request.match_info["id"]))


async def _autonomy(request: web.Request, leader: LeaderService) -> web.Response:
    leader.require()
    return answer(leader.autonomy.view())


async def _change(request: web.Request, leader: LeaderService) -> web.Response:
    leader.require()
    return answer(await leader.autonomy.change(await body_of(request, AutonomyChange)))


async def _consolidate(request: web.Request, leader: LeaderService) -> web.Response:
    leader.require()
    said = await body_of(request, DecisionWord) if request.body_exists else DecisionWord()
    return answer(await leader.autonomy.reconfigure(request.match_info["id"], said.who))
