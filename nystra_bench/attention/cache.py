"""What is made once and kept between calls, and the seconds that making it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

import torch


class Cache(dict):
    """What one attention keeps for a place: for a layer and window size, or for the maps of one size.

    Args:
        common: what all attentions keep together for the same place; None where nothing is shared.

    Attributes:
        setup_s: seconds that making its entries took, those of ``common`` that it uses among them.
        seconds: the same, by name.
    """

    def __init__(self, common: Cache | None = None):
        super().__init__()
        self.common = common
        self.setup_s = 0.0
        self.seconds: dict[object, float] = {}

    def once(self, name: object, make: Callable):
        """What ``make`` gave when this name was first asked for.

        It serves calls in and outside of ``inference_mode``, and no gradient passes through it.
        """
        if name not in self:
            before, started = self.setup_s, _now()
            with torch.inference_mode(False), torch.no_grad():
                self[name] = make()
            self.seconds[name] = _now() - started
            self.setup_s = before + self.seconds[name]  # with what ``make`` itself asked for
        return self[name]

    def once_for_all(self, name: object, make: Callable):
        """The same, kept once for all attentions of this place; each that asks for it counts its seconds."""
        if self.common is None:
            return self.once(name, make)
        if name not in self:
            self[name] = self.common.once(name, make)
            self.seconds[name] = self.common.seconds[name]
            self.setup_s += self.seconds[name]
        return self[name]


class Caches:
    """The caches of all attentions for one place; an attention's go with it."""

    def __init__(self):
        self._own: WeakKeyDictionary[object, dict[Hashable, Cache]] = WeakKeyDictionary()
        self._common: dict[Hashable, Cache] = {}

    def of(self, attention: object, key: Hashable = None) -> Cache:
        """An attention's cache; ``key`` tells its uses apart, windows of several sizes, say."""
        own = self._own.setdefault(attention, {})
        if key not in own:
            own[key] = Cache(self._common.setdefault(key, Cache()))
        return own[key]

    def __reduce__(self) -> tuple:
        """A copy, in another process or in a file, keeps nothing yet: what is kept is made anew there."""
        return Caches, ()

    def setup_seconds(self, attention: object) -> float:
        return sum(cache.setup_s for cache in self._own.get(attention, {}).values())

    def clear(self) -> None:
        self._own.clear()
        self._common.clear()


def _now() -> float:
    """Seconds, when a GPU has done what it was told until now."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
