"""Where in the user's program an operator runs: the module's dotted path, or what stands in for it."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

_TORCH = str(Path(torch.__file__).parent)
_EMULATOR = str(Path(__file__).parent)
_VENDOR_NAMES = str(Path(__file__).parent.parent / "habana_frameworks")
_paths: weakref.WeakKeyDictionary[torch.nn.Module, dict[int, str]] = weakref.WeakKeyDictionary()


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """From the innermost frame outwards, without this package's own."""
    while frame is not None:
        if not frame.f_code.co_filename.startswith((_EMULATOR, _VENDOR_NAMES)):
            yield frame
        frame = frame.f_back


def _path_within(outer: torch.nn.Module, inner: torch.nn.Module) -> str | None:
    """`inner`'s dotted name in `outer`, or None when it is not a part of it."""
    names = _paths.get(outer)
    if names is None or id(inner) not in names:
        names = {id(module): name for name, module in outer.named_modules()}
        _paths[outer] = names
    return names.get(id(inner))


def _module_place(frames: list[FrameType]) -> str | None:
    """The innermost module at work, by its path in the outermost one."""
    modules = [
        owner
        for frame in frames
        if isinstance(owner := frame.f_locals.get("self"), torch.nn.Module) and "_modules" in owner.__dict__
    ]
    if not modules:
        return None
    inner, outer = modules[0], modules[-1]
    path = _path_within(outer, inner)
    if not path:
        return type(inner).__name__
    return f"{path} ({type(inner).__name__} of {type(outer).__name__})"


def _optimizer_place(frames: list[FrameType]) -> str | None:
    for frame in frames:
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.optim.Optimizer):
            return f"{type(owner).__name__}.{frame.f_code.co_name}"
    return None


def _line(frames: list[FrameType]) -> str | None:
    """The innermost line outside torch."""
    for frame in frames:
        if not frame.f_code.co_filename.startswith(_TORCH):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    return None


def _step(frames: list[FrameType]) -> str | None:
    """The global step of the trainer that is running, if one is."""
    for frame in frames:
        state = getattr(frame.f_locals.get("self"), "__dict__", {}).get("state")
        step = getattr(state, "global_step", None)
        if isinstance(step, int):
            return f"step {step}"
    return None


def locate(op: str) -> str:
    """Where the operator `op` is running, e.g. "layers.0.mlp (MLP of Model), model.py:31, step 4".

    In the backward pass, which has no Python frames of its own, the autograd node is named, and line and step are
    those of the call that started it.
    """
    frames = list(_frames(sys._getframe(1)))
    callers = frames
    if threading.current_thread() is not threading.main_thread():
        callers = list(_frames(sys._current_frames().get(threading.main_thread().ident or 0)))
    node = torch._C._current_autograd_node()
    place = _module_place(frames)
    if node is not None:
        place = f"backward of {node.name()}" + (f", recomputing {place}" if place else "")
    elif place is None:
        place = _optimizer_place(frames)
    parts = [place, _line(frames) or _line(callers), _step(callers) or _step(frames)]
    return ", ".join(part for part in parts if part)
