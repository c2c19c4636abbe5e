"""A module's forward answered by someone else for as long as a request is open, in the thread that opened it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, local
from typing import Any
from weakref import WeakKeyDictionary

import torch

Answer = Callable[..., Any]


class _Open(local):
    """The requests that this thread has open, the innermost last."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []


class Switch:
    """Stands in for one module's forward while any thread has a request open; else the module is untouched.

    All that replace one module share one switch, so that requests may end in any order. Threads without a request, and
    calls that a request's own answer makes, get the original.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        # The module refers to the switch while it is installed, and the registry must not keep the module alive.
        self._lock, self._open, self._count = Lock(), _Open(), 0
        self._had: Answer | None = None  # an instance's own forward, as accelerate's hooks set it
        self._class_forward = type(module).forward

    @contextmanager
    def answering(self, module: torch.nn.Module, answer: Answer) -> Iterator[None]:
        """Let `answer` be called instead of the module's forward, in this thread."""
        with self._lock:
            if self._count == 0:
                self._had = module.__dict__.get("forward")
                module.__dict__["forward"] = self._forward_of(module)
            self._count += 1
        self._open.answers.append(answer)
        try:
            yield
        finally:
            self._open.answers.pop()
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
            if self._open.answers:
                return self._open.answers[-1](*args, **options)
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
