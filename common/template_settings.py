"""From settings about templates to the policy that templates are judged by."""

from snooze.common.settings_templates import TemplateSettings
from snooze.common.template_policy import Danger, TemplatePolicy


def template_policy(
    settings: TemplateSettings, image_directories: tuple[str, ...]
) -> TemplatePolicy:
    """What templates may ask for.

    Args:
        settings: the ``templates`` section of a group manager or of a local controller.
        image_directories: a local controller's ``images.directories``, or the
            ``templates.image_directories`` of a group manager.
    """
    return TemplatePolicy(
        image_directories=image_directories,
        firmware_directories=settings.firmware_directories,
        emulators=settings.emulators,
        allowed=frozenset(map(Danger, settings.allowed_dangers)),
    )
