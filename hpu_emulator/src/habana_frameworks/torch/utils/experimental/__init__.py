"""The device's generation, which HPU_EMULATOR_DEVICE_NAME chooses."""

from enum import Enum

from habana_torch_plugin_emulator import device as hpu


class synDeviceType(Enum):
    synDeviceGaudi = 1
    synDeviceGaudi2 = 4
    synDeviceGaudi3 = 5


_BY_NAME = {
    "GAUDI": synDeviceType.synDeviceGaudi,
    "GAUDI2": synDeviceType.synDeviceGaudi2,
    "GAUDI3": synDeviceType.synDeviceGaudi3,
}


def _get_device_type() -> synDeviceType:
    return _BY_NAME[hpu.get_device_name()]


def _is_fp16_supported() -> bool:
    """The HPU trains in bf16 and fp32."""
    return False


__all__ = ["_get_device_type", "_is_fp16_supported", "hpu", "synDeviceType"]
