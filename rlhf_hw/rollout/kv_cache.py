"""A cache of keys and values that is allocated once, and whose rows and columns in use may change without copying it."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """The cache of one layer: storage [B, heads, T, D] for all rows and columns there will be.

    `keys` and `values` are views of the part in use: some rows, and the columns from the first to the last one written.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.size = (rows, columns)
        self.storage: tuple[torch.Tensor, torch.Tensor] | None = None
        self.open(slice(0, rows), 0)

    def open(self, rows: slice, first: int) -> None:
        """Use `rows`, with nothing in them yet; the next states go to the columns from `first` on."""
        self.rows, self.first, self.end = rows, first, first
        self.keys = self.values = None
        self.is_initialized = False

    def show(self, rows: slice, first: int) -> None:
        """Use `rows` and what stands in them from column `first` on."""
        assert self.storage is not None
        self.rows, self.first = rows, first
        self.keys, self.values = (part[rows, :, first : self.end] for part in self.storage)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write states [rows in use, heads, columns, D] after those that are there; (keys, values) of all columns in use."""
        if self.storage is None:
            self.storage = (self._allocate(key_states), self._allocate(value_states))
        start, self.end = self.end, self.end + key_states.shape[-2]
        for part, states in zip(self.storage, (key_states, value_states), strict=True):
            part[self.rows, :, start : self.end] = states
        self.show(self.rows, self.first)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _allocate(self, states: torch.Tensor) -> torch.Tensor:
        """Room for `states` of all rows and columns, in the dtype in which autocast multiplies them anyway."""
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        rows, columns = self.size
        return states.new_zeros((rows, states.shape[1], columns, states.shape[3]), dtype=dtype)

    def move(self, sources: torch.Tensor, targets: torch.Tensor, first: int) -> None:
        """Copy rows `sources` over rows `targets`, from column `first` on."""
        assert self.storage is not None
        for part in self.storage:
            part[targets, :, first : self.end] = part[sources, :, first : self.end]


class PreallocatedCache(DynamicCache):
    """What a transformers decoder takes as `past_key_values`: a `PreallocatedLayer` for each layer that writes states."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.size = (rows, columns)
        self.place = (slice(0, rows), 0)
        self.layers: list[PreallocatedLayer] = []
        self._add_layer()

    def _add_layer(self) -> None:
        layer = PreallocatedLayer(*self.size)
        layer.open(*self.place)
        self.layers.append(layer)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `PreallocatedLayer.update`."""
        while len(self.layers) <= layer_idx:
            self._add_layer()
        return self.layers[layer_idx].update(key_states, value_states)

    def open(self, rows: slice, first: int) -> None:
        """See `PreallocatedLayer.open`."""
        self.place = (rows, first)
        for layer in self.layers:
            layer.open(rows, first)

    def show(self, rows: slice, first: int) -> None:
        """See `PreallocatedLayer.show`."""
        for layer in self.layers:
            layer.show(rows, first)

    def move(self, sources: torch.Tensor, targets: torch.Tensor, first: int) -> None:
        """See `PreallocatedLayer.move`."""
        for layer in self.layers:
            layer.move(sources, targets, first)
