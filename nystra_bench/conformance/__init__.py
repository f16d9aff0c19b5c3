"""What every option keeps to, as tests that its author can run: ``python -m nystra_bench.conformance DIR``.

``test_<choice>.py`` runs on each option of that choice, ``test_options.py`` on all. Without a folder of a user's these
are the project's own options, so that its test suite holds both to the same contracts.
"""
