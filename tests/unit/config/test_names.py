"""Settings that choose by name offer exactly the names that exist."""

from typing import get_args

import pytest

from snooze.common.config import GroupManagerSettings, LocalControllerSettings, parse
from snooze.common.settings_schema import leaves
from snooze.common.settings_templates import Danger
from snooze.common.template_policy import DEFAULT_POLICY
from snooze.common.template_policy import Danger as KnownDanger
from snooze.common.template_settings import template_policy
from snooze.localcontroller.hypervisor.port import MigrationMethod
from snooze.scheduling.assignment import AssignmentPolicy
from snooze.scheduling.dispatching import DispatchPolicy
from snooze.scheduling.policies import policy_named


@pytest.mark.parametrize(
    ("root", "key", "names"),
    [
        (GroupManagerSettings, "leader.assignment_policy", AssignmentPolicy),
        (GroupManagerSettings, "leader.dispatching_policy", DispatchPolicy),
        (LocalControllerSettings, "migration.method", MigrationMethod),
    ],
)
def test_choices(
    root: type[GroupManagerSettings] | type[LocalControllerSettings],
    key: str,
    names: type[AssignmentPolicy] | type[DispatchPolicy] | type[MigrationMethod],
) -> None:
    choices = {".".join(path): info.choices for path, info in leaves(root)}
    assert set(choices[key]) == {name.value for name in names}


def test_dangers() -> None:
    assert set(get_args(Danger)) == {danger.value for danger in KnownDanger}


def test_the_settings_defaults_are_the_policys_own() -> None:
    host, manager = LocalControllerSettings(), GroupManagerSettings()
    assert template_policy(host.templates, host.images.directories) == DEFAULT_POLICY
    assert template_policy(manager.templates, manager.templates.image_directories) == DEFAULT_POLICY


def test_an_allowed_danger_is_let_through() -> None:
    settings = parse(
        '[templates]\nallowed_dangers = ["host-devices"]', LocalControllerSettings
    ).templates
    assert template_policy(settings, ("/i",)).allowed == {KnownDanger.HOST_DEVICES}


def test_the_default_placement_policy_and_those_in_its_comment_exist() -> None:
    assert policy_named(GroupManagerSettings().placement.policy)
    (text,) = [
        info.doc.text
        for path, info in leaves(GroupManagerSettings)
        if path == ("placement", "policy")
    ]
    words = {word.strip(",;()") for word in text.split()}
    named = {word for word in words if "_" in word and "." not in word}
    assert named >= {"first_fit", "best_fit", "round_robin"}
    for name in named | {"optimised"}:
        assert policy_named(name)
