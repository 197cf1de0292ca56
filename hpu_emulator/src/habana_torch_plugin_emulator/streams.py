"""torch.hpu streams and events. Kernels have finished when they return, so a stream only has an identity and an
event only a time; both subclass PyTorch's own, which DeepSpeed and FSDP rely on."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import torch

from habana_torch_plugin_emulator import _C
from habana_torch_plugin_emulator.memory import Device, device_index


class Stream(torch.Stream):
    """A stream of one HPU."""

    def __new__(cls, device: Device = None, priority: int = 0, **ids: Any) -> Stream:
        if ids:
            return super().__new__(cls, priority=priority, **ids)
        index = device_index(device)
        return super().__new__(cls, device=f"hpu:{index}", priority=priority)

    def record_event(self, event: torch.Event | None = None) -> torch.Event:
        """Records `event`, or a new one, on this stream and returns it."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: torch.Event) -> None:
        event.wait(self)

    def wait_stream(self, stream: torch.Stream) -> None:
        self.wait_event(stream.record_event())

    def __repr__(self) -> str:
        return f"torch.hpu.Stream(device={self.device}, id={self.stream_id})"


class Event(torch.Event):
    """A point in time of a stream; elapsed_time is wall-clock milliseconds.

    PyTorch's elapsed_time takes no subclass of torch.Event for its argument, hence the time kept here.
    """

    recorded: float | None = None
    timed = False

    def __new__(
        cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> Event:
        event = super().__new__(
            cls, device="hpu", enable_timing=enable_timing, blocking=blocking, interprocess=interprocess
        )
        event.timed = enable_timing
        return event

    def record(self, stream: torch.Stream | None = None) -> None:
        super().record(stream)
        self.recorded = time.perf_counter()

    def elapsed_time(self, end_event: torch.Event) -> float:
        """Milliseconds from this event to `end_event`; both must be recorded, with enable_timing."""
        if not isinstance(end_event, Event):
            return super().elapsed_time(end_event)
        if not (self.timed and end_event.timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.recorded is None or end_event.recorded is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end_event.recorded - self.recorded) * 1e3


def _as_stream(stream: torch.Stream) -> Stream:
    return Stream(
        stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type
    )


def current_stream(device: Device = None) -> Stream:
    return _as_stream(torch.accelerator.current_stream(device_index(device)))


def default_stream(device: Device = None) -> Stream:
    index = device_index(device)
    return Stream(stream_id=0, device_index=index, device_type=_device_type())


def set_stream(stream: torch.Stream | None) -> None:
    """Makes `stream` the current one of its device in this thread."""
    if stream is not None:
        torch.accelerator.set_stream(stream)


def _device_type() -> int:
    return torch.accelerator.current_stream(_C.current_device()).device_type


class StreamContext:
    """Makes a stream current within a `with` block; None changes nothing."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self.previous: Stream | None = None
        self.previous_device = -1

    def __enter__(self) -> None:
        if self.stream is not None:
            self.previous_device = _C.current_device()
            self.previous = current_stream(self.stream.device)
            set_stream(self.stream)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stream is not None:
            set_stream(self.previous)
            _C.set_device(self.previous_device)


def stream(stream: torch.Stream | None) -> StreamContext:
    return StreamContext(stream)
