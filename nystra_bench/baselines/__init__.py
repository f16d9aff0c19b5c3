"""Training-free attention methods from the literature, one file each, with the contract of ``nystra_bench.attention``.

In the repository the files lie in the folder ``baselines/`` at its top; a wheel has them in this package. The name is
the same in both, and leaves ``baselines`` to the user's own code.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2] / "baselines"

if not Path(__file__).with_name("common.py").is_file():
    __path__ = [str(_CHECKOUT)]
