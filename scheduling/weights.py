"""How bad each host would be for a VM: scores from 0 (best) to ``MAX_WEIGHT`` (worst).

A score looks at the host as it would be *with* the VM. Scores of hosts that filters refused are
computed too, and mean nothing.
"""

from typing import Final

import numpy as np

from snooze.common.resources import Axis, FloatArray
from snooze.scheduling.ledger import Scene
from snooze.scheduling.norms import length, normalised
from snooze.scheduling.snapshot import NONE, Affinity, Labels
from snooze.scheduling.units import MAX_WEIGHT, Properties, Weight


def _scaled(fractions: FloatArray) -> FloatArray:
    """Fractions of 0 to 1 as scores; what lies outside is cut off."""
    scores: FloatArray = np.clip(fractions, 0.0, 1.0) * MAX_WEIGHT
    return scores


def _load_after(scene: Scene, axis: int) -> FloatArray:
    """``float64[H]``: share of ``axis`` in use with the VM; 1 where there is none of it."""
    if len(scene.need) <= axis:
        return np.zeros(scene.snapshot.hosts)
    capacity = scene.snapshot.capacity[:, axis]
    after = scene.load[:, axis] + scene.need[axis]
    share: FloatArray = after / np.where(capacity > 0, capacity, 1.0)
    return np.where(capacity > 0, share, 1.0)


def _even_distribution(scene: Scene, _: Properties) -> FloatArray:
    return _scaled(_load_after(scene, Axis.CPU))


def _even_memory(scene: Scene, _: Properties) -> FloatArray:
    return _scaled(_load_after(scene, Axis.MEMORY))


def _power_saving(scene: Scene, properties: Properties) -> FloatArray:
    """MAX_WEIGHT for a host without VMs, else MAX_WEIGHT less its even-distribution score.

    Source: oVirt's Power Saving weight module.
    """
    scores = MAX_WEIGHT - _even_distribution(scene, properties)
    scores[scene.counts == 0] = MAX_WEIGHT
    return scores


def _even_vm_count(scene: Scene, _: Properties) -> FloatArray:
    return np.minimum(scene.counts.astype(np.float64) + scene.size, MAX_WEIGHT)


def _preferred_hosts(scene: Scene, _: Properties) -> FloatArray:
    """By ``host_preference``: 0 for the most preferred host, MAX_WEIGHT for the least."""
    preference = scene.snapshot.host_preference
    if not preference.size:
        return preference
    span = preference.max() - preference.min()
    return _scaled((preference.max() - preference) / (span if span > 0 else 1.0))


def _lacking(labels: Labels | None, scene: Scene) -> FloatArray:
    """Share of what the VM needs that each host lacks."""
    if labels is None or not labels.vms[scene.vm].any():
        return np.zeros(scene.snapshot.hosts)
    lacking: FloatArray = 1.0 - labels.hosts[:, labels.vms[scene.vm]].mean(axis=1)
    return lacking


def _image_locality(scene: Scene, _: Properties) -> FloatArray:
    return _scaled(_lacking(scene.snapshot.images, scene))


def _soft_affinity(scene: Scene, _: Properties) -> FloatArray:
    """Share of the soft rules of the VM, by their weights, that each host would break."""
    broken = np.zeros(scene.snapshot.hosts)
    total = 0.0
    for rule, members in scene.rules:
        if rule.hard or rule.weight <= 0:
            continue
        total += rule.weight
        taken = scene.placement[members]
        taken = np.unique(taken[taken != NONE])
        inside = np.zeros(scene.snapshot.hosts, dtype=np.bool_)
        if rule.kind is Affinity.APART:
            inside[taken] = True
        elif rule.kind is Affinity.TOGETHER:
            inside[taken] = True
            inside = ~inside if taken.size else inside
        else:
            inside[list(rule.hosts)] = True
            inside = inside if rule.kind is Affinity.OFF_HOSTS else ~inside
        broken += rule.weight * inside
    return _scaled(broken / total) if total else broken


def _ha_spread(scene: Scene, _: Properties) -> FloatArray:
    """Number of highly available VMs per host, if the VM is one: their restarts are shared out."""
    if not scene.snapshot.highly_available[scene.vm]:
        return np.zeros(scene.snapshot.hosts)
    places = scene.placement[scene.snapshot.highly_available & (scene.placement != NONE)]
    protected = np.bincount(places, minlength=scene.snapshot.hosts).astype(np.float64)
    return np.minimum(protected, MAX_WEIGHT)


def _left(scene: Scene) -> FloatArray:
    """``float64[H, R]``: room left with the VM, as a share of what each host may give."""
    return normalised(scene.free - scene.need, scene.snapshot.limit)


def _best_fit(scene: Scene, _: Properties) -> FloatArray:
    return _scaled(length(_left(scene)) / max(1, len(scene.need)))


def _worst_fit(scene: Scene, _: Properties) -> FloatArray:
    return MAX_WEIGHT - _scaled(length(_left(scene)) / max(1, len(scene.need)))


def _dot_product(scene: Scene, _: Properties) -> FloatArray:
    """Prefers hosts whose room points the way the demand does: the largest product wins.

    Source: Panigrahy, Talwar, Uyeda, Wieder, "Heuristics for vector bin packing" (2011),
    DotProduct, with all axis weights 1, for one item at a time.
    """
    limit = scene.snapshot.limit
    product = (normalised(scene.need, limit) * normalised(scene.free, limit)).sum(axis=1)
    return MAX_WEIGHT - _scaled(product / max(1, len(scene.need)))


def _l2(scene: Scene, _: Properties) -> FloatArray:
    """Prefers hosts whose room is nearest to the demand: the smallest distance wins.

    Source: as DotProduct; norm-based greedy with the L2 norm.
    """
    left = _left(scene)
    return _scaled(np.sqrt((left * left).mean(axis=1))) if left.shape[1] else left.sum(axis=1)


BUILT_IN: Final = (
    Weight("even_distribution", _even_distribution, summary="CPU load after placing."),
    Weight("even_memory", _even_memory, summary="Memory load after placing."),
    Weight("power_saving", _power_saving, summary="Empty hosts last, then the least loaded."),
    Weight("even_vm_count", _even_vm_count, summary="Number of VMs."),
    Weight("preferred_hosts", _preferred_hosts, summary="Hosts by their preference."),
    Weight("image_locality", _image_locality, summary="Share of the VM's images not there yet."),
    Weight("soft_affinity", _soft_affinity, summary="Share of soft affinity rules broken."),
    Weight("ha_spread", _ha_spread, summary="Highly available VMs apart from one another."),
    Weight("best_fit", _best_fit, summary="Room left after placing: the tightest host wins."),
    Weight("worst_fit", _worst_fit, summary="The host with most room left wins."),
    Weight("dot_product", _dot_product, summary="Demand times room (Panigrahy): largest wins."),
    Weight("l2", _l2, summary="Distance of room to demand (Panigrahy): smallest wins."),
)
