"""A module's forward answered by someone else while a request is open, in the thread or asyncio task that opened it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch

Answer = Callable[..., Any]


class _Open:
    """An open request."""

    def __init__(self, switch: Switch, answer: Answer) -> None:
        self.switch, self.answer, self.is_open = switch, answer, True


# What this thread, or asyncio task, has open, the innermost last. A task begins with what was open where it was made.
_open: ContextVar[tuple[_Open, ...]] = ContextVar("_open", default=())


class Switch:
    """Stands in for one module's forward while anyone has a request open; else the module is untouched.

    All that replace one module share one switch, so that requests may end in any order. Threads and asyncio tasks
    without a request, and calls that a request's own answer makes, get the original.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        # The module refers to the switch while it is installed, and the registry must not keep the module alive.
        self._lock, self._count = Lock(), 0
        self._had: Answer | None = None  # an instance's own forward, as accelerate's hooks set it
        self._class_forward = type(module).forward

    @contextmanager
    def answering(self, module: torch.nn.Module, answer: Answer) -> Iterator[None]:
        """Let `answer` be called instead of the module's forward, in this thread or task."""
        with self._lock:
            if self._count == 0:
                self._had = module.__dict__.get("forward")
                module.__dict__["forward"] = self._forward_of(module)
            self._count += 1
        opened = _Open(self, answer)
        _open.set((*_open.get(), opened))
        try:
            yield
        finally:
            opened.is_open = False
            _open.set(tuple(one for one in _open.get() if one.is_open))
            with self._lock:
                self._count -= 1
                if self._count == 0:
                    self._put_back(module)

    def original(self, module: torch.nn.Module, *args: Any, **options: Any) -> Any:
        """Call the module's own forward."""
        with self._lock:
            own = self._had if self._count else module.__dict__.get("forward")
        return self._class_forward(module, *args, **options) if own is None else own(*args, **options)

    def _forward_of(self, module: torch.nn.Module) -> Answer:
        def forward(*args: Any, **options: Any) -> Any:
            for one in reversed(_open.get()):
                if one.switch is self and one.is_open:
                    return one.answer(*args, **options)
            return self.original(module, *args, **options)

        return forward

    def _put_back(self, module: torch.nn.Module) -> None:
        if self._had is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = self._had
        self._had = None


_switches: WeakKeyDictionary[torch.nn.Module, Switch] = WeakKeyDictionary()
_registry = Lock()


def switch_of(module: torch.nn.Module) -> Switch:
    """Return the one switch of a module."""
    with _registry:
        return _switches.setdefault(module, Switch(module))
