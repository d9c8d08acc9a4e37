"""What the settings of a local controller become for its libvirt."""

from snooze.common.config import LocalControllerSettings, parse
from snooze.localcontroller.drivers import libvirt_options
from snooze.localcontroller.hypervisor.libvirt_options import LibvirtOptions


def options_of(text: str) -> LibvirtOptions:
    return libvirt_options(parse(text, LocalControllerSettings))


def test_consoles_listen_on_this_host_only_unless_told_otherwise() -> None:
    assert options_of("").adapt.graphics_listen == "127.0.0.1"
    text = '[templates]\ngraphics_listen = "%s"'
    assert options_of(text % "::").adapt.graphics_listen == "::"
    assert options_of(text % "").adapt.graphics_listen == "", "the template's"


def test_addresses_for_migrations_are_filled_in() -> None:
    options = options_of(
        '[network]\nadvertised_address = "10.1.2.3"\n[hypervisor]\n'
        'migration_uri = "qemu+tls://{address}/system"\nmigration_data_uri = "tcp://{address}"'
    )
    assert options.peer_uri == "qemu+tls://10.1.2.3/system"
    assert options.data_uri == "tcp://10.1.2.3"
    assert (options_of("").peer_uri, options_of("").data_uri) == ("", "")
