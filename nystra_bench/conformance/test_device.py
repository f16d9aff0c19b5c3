"""Every device can be looked at: what it is, or why it cannot be used here."""

from nystra_bench.sweep.inspection import answer
from nystra_bench.sweep.plan import Run, request_of


def test_it_is_looked_at(subject):
    request = request_of([], Run(metrics={}, references={}, timing={}))
    facts = answer({**request, "devices": {"it": subject.config}})["devices"]["it"]
    assert facts["refusal"] or (facts["hardware"] and facts["threads"] >= 1)
