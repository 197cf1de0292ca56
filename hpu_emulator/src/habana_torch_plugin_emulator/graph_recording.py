"""Recording the operators that run between two points, and running them again on the same buffers.

A recorded program names tensors by number. A number is either a tensor from outside (an input buffer, a weight: kept,
and read anew at every run) or the result of an earlier operator. A run computes every result afresh and then writes it
over the result of the recording, wherever somebody still holds that one: so results keep their addresses, as an HPU
graph's do, and intermediate ones cost no memory between runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# what makes the host wait for a value, or gives a result whose shape depends on values: no graph can hold it
DATA_DEPENDENT = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
        "aten::unique_dim",
        "aten::unique_consecutive",
        "aten::equal",
        "aten::is_nonzero",
    }
)


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in a program."""

    number: int


@dataclass(frozen=True)
class Instruction:
    operator: Any
    arguments: tuple[Any, ...]  # tensors replaced by Slot
    keywords: dict[str, Any]
    results: tuple[int | None, ...]  # one per leaf of the operator's result; None where it is no tensor


@dataclass(frozen=True)
class Layout:
    """How an input lay in its memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype)

    def storage_elements(self) -> int:
        if 0 in self.shape:
            return 0
        return (
            self.offset
            + 1
            + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        )


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


class Program:
    """What a `Recorder` saw: instructions, and the tensors from outside. `inputs` get slots that a run may replace."""

    def __init__(self, inputs: Iterable[Tensor] = ()) -> None:
        self.instructions: list[Instruction] = []
        self.outside: dict[int, Tensor] = {}
        self.layouts: dict[int, Layout] = {}  # of the inputs
        self.made: list[
            tuple[StorageWeakRef, int]
        ] = []  # the storages that the recording made, and a slot that has each
        self.dead_after: list[list[int]] = []
        self._slots = 0
        # the rest is needed only while recording
        self._slot_of: dict[int, int] = {}  # id(tensor) -> slot
        self._slot_of_storage: dict[int, int] = {}  # of the inputs and of everything made
        self._alive: list[Tensor] = []  # so that those ids stay theirs
        self.inputs = [self._add_input(tensor) for tensor in inputs]

    def _new_slot(self, tensor: Tensor) -> int:
        self._slots += 1
        self._slot_of[id(tensor)] = self._slots
        self._alive.append(tensor)
        return self._slots

    def _add_input(self, tensor: Tensor) -> int:
        number = self._slot_of.get(id(tensor)) or self._new_slot(tensor)
        self.outside[number] = tensor.detach()
        self.layouts[number] = Layout.of(tensor)
        self._slot_of_storage.setdefault(tensor.untyped_storage()._cdata, number)
        return number

    def slot(self, tensor: Tensor) -> int:
        """The slot of an operator's argument; one never seen, nor its memory, comes from outside."""
        number = self._slot_of.get(id(tensor))
        if number is not None:
            return number
        base = self._slot_of_storage.get(tensor.untyped_storage()._cdata)
        number = self._new_slot(tensor)
        if base is None:
            self.outside[number] = tensor.detach()
        else:  # another tensor object over known memory: autograd unpacks saved tensors that way
            layout = (Slot(base), tensor.size(), tensor.stride(), tensor.storage_offset())
            self.instructions.append(Instruction(torch.ops.aten.as_strided.default, layout, {}, (number,)))
        return number

    def result(self, tensor: Tensor, arguments: Iterable[Tensor]) -> int:
        """The slot of an operator's result. In-place operators give back their argument, which keeps its slot."""
        number = self._slot_of.get(id(tensor))
        if number is not None:
            return number
        number = self._new_slot(tensor)
        storage = tensor.untyped_storage()
        if storage._cdata not in self._slot_of_storage and all(
            argument.untyped_storage()._cdata != storage._cdata for argument in arguments
        ):
            self._slot_of_storage[storage._cdata] = number
            self.made.append((StorageWeakRef(storage), number))
        return number

    def finish(self) -> None:
        """Ends the recording: lets go of every tensor but those from outside."""
        self._slot_of.clear()
        self._slot_of_storage.clear()
        self._alive.clear()
        # after which instruction each slot is not needed any more, so that a run can free it
        last_use: dict[int, int] = {}
        for position, instruction in enumerate(self.instructions):
            for leaf in tree_flatten((instruction.arguments, instruction.keywords))[0]:
                if isinstance(leaf, Slot):
                    last_use[leaf.number] = position
            for number in instruction.results:
                if number is not None:
                    last_use.setdefault(number, position)
        self.dead_after = [[] for _ in self.instructions]
        for number, position in last_use.items():
            self.dead_after[position].append(number)

    def living(self) -> Iterator[tuple[StorageWeakRef, int]]:
        """The recording's storages that somebody outside still holds, each with a slot that has it."""
        return ((reference, number) for reference, number in self.made if not reference.expired())

    @torch.no_grad()
    def run(self, inputs: dict[int, Tensor] | None = None, results: Iterable[int] = ()) -> dict[int, Tensor]:
        """Runs every instruction and refreshes the living results of the recording in place.

        `inputs` takes the place of tensors from outside for this run. Returns the new tensors of the slots in `results`.
        """
        living = list(self.living())
        wanted = {number for _, number in living} | set(results)
        values: dict[int, Tensor] = dict(self.outside)
        values.update(inputs or {})

        def value_of(leaf: Any) -> Any:
            return values[leaf.number] if isinstance(leaf, Slot) else leaf

        for position, instruction in enumerate(self.instructions):
            arguments, keywords = tree_map(value_of, (instruction.arguments, instruction.keywords))
            with torch._C._DisableAutocast():  # casts were recorded; a part that ran without them must again
                produced = tree_flatten(instruction.operator(*arguments, **keywords))[0]
            for number, leaf in zip(instruction.results, produced, strict=True):
                if number is not None:
                    values[number] = leaf
            for number in self.dead_after[position]:
                if number not in wanted:
                    values.pop(number, None)
        for reference, number in living:
            storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is not None:
                storage.copy_(values[number].untyped_storage())
        return {number: values[number] for number in results}


class Recorder(TorchDispatchMode):
    """Runs operators as usual and adds those that touch `device_type` to `program`."""

    def __init__(self, program: Program, device_type: str = "hpu") -> None:
        super().__init__()
        self.program = program
        self.device_type = device_type

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in((args, kwargs))
        on_device = any(tensor.device.type == self.device_type for tensor in inputs)
        name = func._schema.name
        if on_device and name in DATA_DEPENDENT:
            raise RuntimeError(f"{name} is not supported during HPU Graph capturing")
        result = func(*args, **kwargs)
        outputs = tree_flatten(result)[0]
        device_outputs = [
            leaf for leaf in outputs if isinstance(leaf, Tensor) and leaf.device.type == self.device_type
        ]
        if not on_device and not device_outputs:
            return result
        if on_device and name in ("aten::_to_copy", "aten::copy_", "aten::to") and not device_outputs:
            raise RuntimeError(f"{name} to the host is not supported during HPU Graph capturing")
        # arguments get their slots before results do: an operator may give an argument back
        arguments, keywords = tree_map(
            lambda leaf: Slot(self.program.slot(leaf)) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        slots = tuple(
            self.program.result(leaf, inputs) if isinstance(leaf, Tensor) else None for leaf in outputs
        )
        self.program.instructions.append(Instruction(func, tuple(arguments), keywords, slots))
        return result
