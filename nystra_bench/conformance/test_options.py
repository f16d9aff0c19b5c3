"""Every file of every choice: something can be made of it, and what sweeps vary stands in it."""

import pytest


def test_it_can_be_made_of_its_entries(subject):
    """``_target_`` can be imported and takes the entries; a model without its weights is not made."""
    subject.require()


@pytest.mark.choices("attention", "task", "model")
def test_every_parameter_stands_in_the_file(subject):
    """So that each can be swept."""
    if subject.fault:
        pytest.skip(f"{subject} cannot be made")
    assert subject.arguments() <= set(subject.parameters)
