"""Leases: one address, one VM; no reuse before its quarantine is over."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from snooze.groupmanager.leader.address_leases import AddressLeases, mac_of

TINY = "10.0.0.0/29"  # .2 to .5 can be leased
ALL = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]


def lease_all(leases: AddressLeases, now_s: float = 0.0) -> list[str | None]:
    return [leases.lease(f"vm{i}", now_s) for i in range(4)]


def test_addresses_go_out_in_order_without_the_first_and_the_last() -> None:
    leases = AddressLeases([TINY], 60.0)
    assert lease_all(leases) == ALL
    assert leases.lease("one-more", 0.0) is None


def test_a_vm_keeps_its_address() -> None:
    leases = AddressLeases([TINY], 60.0)
    assert leases.lease("vm", 0.0) == leases.lease("vm", 1.0) == "10.0.0.2"
    assert leases.holder("10.0.0.2") == "vm"


def test_several_subnets_are_used_one_after_the_other() -> None:
    leases = AddressLeases(["10.0.0.0/30", TINY, "10.1.0.0/29"], 60.0)
    assert [leases.lease(str(i), 0.0) for i in range(5)] == [*ALL, "10.1.0.2"]


def test_without_subnets_there_is_nothing_to_lease() -> None:
    leases = AddressLeases([], 60.0)
    assert not leases.active
    assert leases.lease("vm", 0.0) is None


def test_a_released_address_rests_and_goes_last() -> None:
    leases = AddressLeases([TINY], 60.0)
    leases.lease("a", 0.0)
    leases.release("a", 0.0)
    assert leases.holder("10.0.0.2") is None
    assert [leases.lease(str(i), 100.0) for i in range(4)] == [*ALL[1:], ALL[0]]


def test_nothing_is_reused_before_the_quarantine_is_over() -> None:
    leases = AddressLeases([TINY], 60.0)
    lease_all(leases)
    leases.release("vm1", 10.0)
    leases.release("vm0", 20.0)
    assert leases.lease("x", 69.0) is None
    assert leases.lease("x", 70.0) == "10.0.0.3"
    assert leases.lease("y", 79.0) is None
    assert leases.lease("y", 80.0) == "10.0.0.2"


def test_an_address_that_was_claimed_rests_too_although_it_was_never_handed_out() -> None:
    leases = AddressLeases([TINY], 60.0)
    assert leases.claim("10.0.0.3", "old")
    leases.release("old", 0.0)
    assert [leases.lease(str(i), 1.0) for i in range(4)] == ["10.0.0.2", *ALL[2:], None]


def test_a_second_stay_begins_a_second_quarantine() -> None:
    leases = AddressLeases([TINY], 60.0)
    lease_all(leases)
    leases.release("vm0", 0.0)
    assert leases.claim("10.0.0.2", "again")
    leases.release("again", 50.0)
    assert leases.lease("x", 61.0) is None
    assert leases.lease("x", 110.0) == "10.0.0.2"


def test_a_claim_holds_against_others() -> None:
    leases = AddressLeases([TINY], 60.0)
    assert leases.claim("10.0.0.2", "a")
    assert leases.claim("10.0.0.2", "a")
    assert not leases.claim("10.0.0.2", "b")
    assert not leases.claim("10.0.0.3", "a"), "it has one already"
    assert leases.holder("10.0.0.3") is None
    assert leases.lease("c", 0.0) == "10.0.0.3"


def test_what_was_never_used_is_free_at_once_and_first() -> None:
    leases = AddressLeases([TINY], 60.0)
    lease_all(leases)
    leases.withdraw("vm2")
    leases.withdraw("vm3")
    assert [leases.lease(name, 0.0) for name in "abc"] == ["10.0.0.4", "10.0.0.5", None]


def test_addresses_of_others_are_kept_apart_and_never_handed_out() -> None:
    leases = AddressLeases([TINY], 60.0)
    for address in ("10.0.0.1", "192.168.7.9", "fe80::1", "no address"):
        assert leases.claim(address, address)
        leases.release(address, 0.0)
    lease_all(leases)
    assert leases.lease("x", 1e9) is None


def test_releasing_the_unknown_changes_nothing() -> None:
    leases = AddressLeases([TINY], 60.0)
    leases.release("nobody", 0.0)
    leases.withdraw("nobody")
    assert lease_all(leases) == ALL


def test_the_mac_address_carries_the_address() -> None:
    assert mac_of("192.168.122.6") == "54:56:c0:a8:7a:06"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["lease", "claim", "release", "withdraw"]),
            st.sampled_from("abcdef"),
            st.sampled_from(ALL),
            st.floats(0.0, 40.0),
        ),
        max_size=60,
    )
)
def test_whatever_happens_no_address_has_two_vms_or_comes_back_early(
    deeds: list[tuple[str, str, str, float]],
) -> None:
    leases, now_s = AddressLeases([TINY], 60.0), 0.0
    holder: dict[str, str] = {}
    free_s: dict[str, float] = {}
    for deed, vm, address, pause_s in deeds:
        now_s += pause_s
        if deed == "lease":
            got = leases.lease(vm, now_s)
            if got is not None and holder.get(got) != vm:
                assert got not in holder
                assert free_s.get(got, 0.0) <= now_s
                holder[got] = vm
        elif deed == "claim":
            if leases.claim(address, vm):
                assert holder.get(address, vm) == vm
                holder[address] = vm
        else:
            had = next((a for a, name in holder.items() if name == vm), None)
            if had is not None:
                del holder[had]
                free_s[had] = now_s + 60.0 if deed == "release" else 0.0
            leases.release(vm, now_s) if deed == "release" else leases.withdraw(vm)
        assert len(set(holder.values())) == len(holder)
        for each in ALL:
            assert leases.holder(each) == holder.get(each)
            assert ipaddress.IPv4Address(each) in ipaddress.IPv4Network(TINY)
