"""How attention is reached in models of other libraries: one file an architecture (``nystra_bench.models.sites``).

What they say of classes and attributes is of spandrel 0.4; the authors' own code mostly has the same names.
"""
