"""Official weights, data sets and metric backbones by name: ``python -m nystra_bench.fetch NAME``.

``catalogue`` says what there is, ``transfer`` receives it, ``archives`` unpacks it, ``fetching`` checks it and puts it
in place, ``command`` is the command line. Importing this package is cheap and touches no network.
"""

from nystra_bench.fetch.catalogue import Download, cache_folder, cached, data_folder, find, names

__all__ = ["Download", "cache_folder", "cached", "data_folder", "find", "names"]
