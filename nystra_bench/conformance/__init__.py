"""What every option keeps to, as tests that its author can run: ``python -m nystra_bench.conformance DIR``.

``test_<choice>.py`` runs on each option of that choice, ``test_options.py`` on all; a new choice stands in
``subjects.CHOICES`` and gets its tests by a file of its name here, which asks for the fixture ``subject``. Without a
folder of a user's these are the project's own options, so that both are held to the same contracts.
"""
