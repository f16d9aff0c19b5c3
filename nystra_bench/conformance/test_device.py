"""Every device can be looked at: what it is, or why it cannot be used here."""

from nystra_bench.sweep.inspection import answer


def test_it_is_looked_at(subject):
    request = {"sys_path": [], "models": {}, "tasks": {}, "attentions": {}, "metrics": {}, "uses": [], "tiling": None}
    facts = answer({**request, "devices": {"it": subject.config}})["devices"]["it"]
    assert facts["refusal"] or (facts["hardware"] and facts["threads"] >= 1)
