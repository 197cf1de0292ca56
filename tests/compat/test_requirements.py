"""The pinned stacks: the Gaudi files leave the image's torch alone, and native Gaudi is the tested stack pin for pin."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: pinned once for a Python that a package's newest release has left behind, once for the others
Pins = dict[str, dict[str, str]]


def pins(name: str) -> Pins:
    """{package: {marker, "" without one: "==1.2.3"}} of a requirements file."""
    found: Pins = {}
    for line in (ROOT / name).read_text().splitlines():
        requirement, _, marker = line.partition("#")[0].partition(";")
        if requirement.strip():
            package, version = re.fullmatch(r"([\w.-]+)\s*(\S*)\s*", requirement).groups()
            found.setdefault(package.lower().replace("_", "-"), {})[marker.strip()] = version
    return found


GAUDI_FILES = sorted(path.name for path in ROOT.glob("requirements-hpu*.txt"))


def test_both_runtimes_have_their_file():
    assert GAUDI_FILES == ["requirements-hpu-native.txt", "requirements-hpu.txt"]


@pytest.mark.parametrize("name", GAUDI_FILES)
def test_the_torch_of_a_gaudi_image_is_never_replaced(name):
    assert not [package for package in pins(name) if re.match(r"(torch|nvidia|cuda|triton)", package)]


@pytest.mark.parametrize("name", GAUDI_FILES)
def test_every_package_has_a_version(name):
    loose = [
        (package, marker) for package, found in pins(name).items() for marker in found if not found[marker]
    ]
    assert not loose


def test_native_gaudi_is_the_tested_stack_without_torch():
    native, tested = pins("requirements-hpu-native.txt"), pins("requirements-cuda.txt")
    assert native == {package: found for package, found in tested.items() if package != "torch"}


def test_optimum_habana_is_in_one_of_them_alone():
    assert "optimum-habana" in pins("requirements-hpu.txt")
    assert "optimum-habana" not in pins("requirements-hpu-native.txt")
