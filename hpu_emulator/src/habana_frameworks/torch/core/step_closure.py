"""`mark_step` for code that runs in both modes."""

from habana_torch_plugin_emulator import accounting, settings


def _mark_step_if_lazy(device_str: str = "", sync: bool = False) -> None:
    if settings.lazy_mode():
        accounting.mark("mark_step")
