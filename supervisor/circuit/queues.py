"""How many queues a circuit has: threads, TAP queues, and UDP ports of its own. Pure but for one.

A flow goes through one queue at each end: linux.flow_steering chooses it when frames leave, and the
port that they come from, by steering, when they arrive.
"""

from __future__ import annotations

from vela.dataplane.contract import Abilities
from vela.linux.flow_steering import why_no_queues
from vela.reasons import NO_REASON, Cause, Reason

from ..config.records import CircuitConfig
from .terms import Profile


def tap_queues(config: CircuitConfig) -> int:
    """Return how many queues an interface that is made now is to have.

    One that is made with one stays so, and one that may have more takes 6 MB of the kernel's memory
    (docs/performance.md). Engine and encryption may change while it is there.
    """
    wanted = max(1, len(config.cpus))
    return 1 if wanted > 1 and why_no_queues() else wanted


def queues_in_use(
    config: CircuitConfig, profile: Profile, abilities: Abilities, there: int
) -> tuple[int, Reason]:
    """Return how many queues carry frames, and why it is one where several are wanted.

    there: the interface's.
    """
    wanted = max(1, len(config.cpus))
    if wanted == 1:
        return 1, NO_REASON
    obstacle = why_one(config, profile, abilities, there)
    if obstacle:
        return 1, Cause.ONE_QUEUE.say(cpu=config.cpus[0], why=obstacle)
    return min(wanted, there), NO_REASON


def without_ports(config: CircuitConfig, queues: int) -> Reason:
    """Return why there is one queue where other programs have the ports of so many."""
    why = f"there are no {queues} free ports in a row to send from"
    return Cause.ONE_QUEUE.say(cpu=config.cpus[0], why=why)


def place_of(queue: int, queues: int) -> tuple[int, int]:
    """Return Attachment.queue."""
    return queue, 1 << (queues - 1).bit_length()


def why_one(config: CircuitConfig, profile: Profile, abilities: Abilities, there: int) -> str:
    """Return why there is one queue only; empty: there may be more."""
    if not abilities.several_queues:
        return 'the engine "python" has one queue'
    if why_no_queues():
        return f"velad cannot load a BPF program: {why_no_queues()}"
    if there == 1:
        return "its interface was made with one queue; restart velad to have another one made"
    if profile.encrypted and profile.sequences == 1:
        return (
            "it is encrypted, and the other end's velad does not know counters for each queue, or "
            "an older velad left this circuit a key page without room for them"
        )
    if not profile.several_ports:
        return (
            "frames leave from one port, as it is configured, or as others do not cross, or as the "
            "other end takes no others"
        )
    return ""
