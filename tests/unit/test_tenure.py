"""How long a circuit of a silent machine is kept."""

from __future__ import annotations

from vela.supervisor.circuit.tenure import PATIENCE_S, PROOF_S, Tenure


def test_circuit_that_was_never_up_for_long_goes_when_its_machine_was_silent_for_long() -> None:
    tenure = Tenure(1000.0)
    # Up for all but the proof, again and again.
    for start in (1000, 1100, 1200):
        for now in range(start, start + int(PROOF_S)):
            tenure.update(float(now), up=True)
        tenure.update(start + PROOF_S, up=False)
    last = 1200 + PROOF_S - 1

    assert not tenure.proven
    assert not tenure.has_ended(last + PATIENCE_S - 0.1)
    assert tenure.has_ended(last + PATIENCE_S)


def test_circuit_that_was_up_for_long_once_is_kept_for_ever() -> None:
    tenure = Tenure(1000.0)
    tenure.update(1000.0, up=True)
    tenure.update(1000.0 + PROOF_S, up=True)
    tenure.update(1001.0 + PROOF_S, up=False)

    assert tenure.proven
    assert not tenure.has_ended(1e9)
    assert not Tenure(1000.0, proven=True).has_ended(1e9)


def test_silence_is_counted_from_the_beginning_and_not_while_this_host_fails() -> None:
    tenure = Tenure(1000.0)

    assert not tenure.has_ended(1000.0 + PATIENCE_S - 0.1)
    assert tenure.has_ended(1000.0 + PATIENCE_S)
    tenure.update(1200.0, up=False, excused=True)
    assert not tenure.has_ended(1000.0 + PATIENCE_S)
    assert tenure.has_ended(1200.0 + PATIENCE_S)
