"""A layer with low-rank adapters as PEFT's are to look at, which is no dependency."""

from __future__ import annotations

import torch


class AdaptedLinear(torch.nn.Module):
    """A linear layer with two adapters, `"a"`, the active one, and `"b"`."""

    def __init__(self, base_layer: torch.nn.Linear) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        rows, columns = base_layer.weight.shape
        self.base_layer = base_layer
        self.lora_A = torch.nn.ParameterDict({n: torch.randn(2, columns, generator=generator) for n in "ab"})
        self.lora_B = torch.nn.ParameterDict({n: torch.randn(rows, 2, generator=generator) for n in "ab"})
        self.scaling = {"a": 0.5, "b": 0.5}
        self.merged_adapters: list[str] = []
        self._active_adapter, self._disable_adapters = ["a"], False

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def active_adapter(self) -> list[str]:
        return self._active_adapter

    @property
    def disable_adapters(self) -> bool:
        return self._disable_adapters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base_layer(x)
        if self._disable_adapters or self.merged_adapters:
            return out
        for name in self._active_adapter:
            out = out + x @ self._delta(name).T.to(x.dtype)
        return out

    def _delta(self, name: str) -> torch.Tensor:
        return self.scaling[name] * self.lora_B[name] @ self.lora_A[name]

    def set_adapter(self, name: str) -> None:
        self._active_adapter = [name]

    def disable(self) -> None:
        self._disable_adapters = True

    def scale(self, factor: float) -> None:
        self.scaling["a"] *= factor

    def merge(self) -> None:
        """Add the active adapter to the base layer's weight, which torch does not count."""
        for name in self._active_adapter:
            self.base_layer.weight.data += self._delta(name).detach()
            self.merged_adapters.append(name)


SWITCHES = {
    "another adapter": lambda layer: layer.set_adapter("b"),
    "disabled": AdaptedLinear.disable,
    "scaled": lambda layer: layer.scale(4),
    "merged": AdaptedLinear.merge,
}
"""What changes the numbers of an adapted layer, without a write that torch counts."""
