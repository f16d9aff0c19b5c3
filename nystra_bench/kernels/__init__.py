"""Kernels in C++ that do in one pass over a window and head what the eager forms do in some forty operations.

They are built at first use with the compiler of this machine, and the library is kept in the user's cache folder.
"""

from nystra_bench.kernels.build import Unbuildable, library, refusal
from nystra_bench.kernels.operators import BLOCK, operator, unusable

__all__ = ["BLOCK", "Unbuildable", "library", "operator", "refusal", "unusable"]
