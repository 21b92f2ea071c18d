"""A bounded cache."""

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Any


class Recent:
    """A thread-safe cache of the values of the ``most`` most recently used keys."""

    def __init__(self, most: int):
        self.most = most
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable) -> Any:
        """The value, or None."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def take(self, key: Hashable) -> Any:
        """The value, or None; it is removed."""
        with self._lock:
            return self._values.pop(key, None)

    def keep(self, key: Hashable, value: Any) -> None:
        """Store a value, which is not None, as the most recently used."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.most:
                self._values.popitem(last=False)

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)
