"""A bounded cache."""

from collections.abc import Hashable
from threading import Lock
from typing import Any


class Recent:
    """A thread-safe cache of the ``most`` values that were kept last."""

    def __init__(self, most: int):
        self.most = most
        self._values: dict[Hashable, Any] = {}
        self._lock = Lock()

    def get(self, key: Hashable) -> Any:
        """The value, or None. The order stays as it is: to change it would take longer than to look the key up."""
        return self._values.get(key)

    def take(self, key: Hashable) -> Any:
        """The value, or None; it is removed."""
        with self._lock:
            return self._values.pop(key, None)

    def keep(self, key: Hashable, value: Any) -> None:
        """Store a value, which is not None, as the last one."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
            if len(self._values) > self.most:
                del self._values[next(iter(self._values))]

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self._values.clear()

    def __len__(self) -> int:
        return len(self._values)
