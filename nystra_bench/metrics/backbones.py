"""Pretrained networks inside metrics: where their weights are, and reading them. Nothing here downloads anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nystra_bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class Backbone:
    """The weights of a network, in a file that may not be there.

    Args:
        download: what ``python -m nystra_bench.fetch`` calls them; it puts them where PyTorch looks for them.
        given: a file to be taken instead.
    """

    def __init__(self, download: str, given: str | None = None):
        self._download, self._given = download, given

    @property
    def path(self) -> Path:
        from nystra_bench import fetch

        return Path(self._given).expanduser() if self._given else fetch.find(self._download).target

    def absent(self) -> str | None:
        """Why the weights cannot be used, and what to do about it; None where the file is there."""
        if self.path.is_file():
            return None
        if self._given:
            return f"{self._given}, given for its backbone, is no file"
        return (
            f"its backbone {self.path.name} is not on this machine; "
            f"it comes with python -m nystra_bench.fetch {self._download}"
        )

    def read(self) -> dict[str, Tensor]:
        """The state dict, on the CPU. A file that would execute code is refused.

        Raises:
            UserError: the file is absent, damaged, or no state dict.
        """
        import torch

        if reason := self.absent():
            raise UserError(reason)
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise self.unfit("is damaged or holds more than tensors, which could execute code") from error
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise self.unfit("holds no state dict")
        return state

    def unfit(self, what: str) -> UserError:
        """The error for a file that is there and cannot be used."""
        return UserError(f"{self.path} {what}: accepted is what python -m nystra_bench.fetch {self._download} gets")
