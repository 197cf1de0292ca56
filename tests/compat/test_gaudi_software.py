"""The Gaudi software that is installed: mixtures that cannot work, and the ones that do."""

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_hw.compat.combinations import TorchBuild
from rlhf_hw.compat.gaudi_software import GaudiSoftware, gaudi_clashes

ROOT = Path(__file__).parents[2]
IMAGE = TorchBuild("2.9.0+hpu_1.23.1-25.git8598e6d", None, sees_gpu=False)
UNMARKED = TorchBuild("2.6.0a0+git1234567", None, sees_gpu=False)
ON_A_GAUDI = GaudiSoftware(plugin="1.23.1.25", optimum_habana="1.21.2")
EMULATED = GaudiSoftware(emulator="1.24.0")
CPU = TorchBuild("2.13.0+cpu", None, sees_gpu=False)


@pytest.mark.parametrize(
    ("software", "cards", "torch"),
    [
        (ON_A_GAUDI, 8, IMAGE),
        (ON_A_GAUDI, 0, IMAGE),  # the image on a machine without a card: no clash of software
        (ON_A_GAUDI, 8, UNMARKED),
        (EMULATED, 0, CPU),
        (GaudiSoftware(), 0, TorchBuild("2.13.0+cu130", "13.0", sees_gpu=True)),
        (GaudiSoftware(optimum_habana="1.21.2"), 0, CPU),
    ],
)
def test_what_works_is_left_alone(software: GaudiSoftware, cards: int, torch: TorchBuild) -> None:
    assert gaudi_clashes(software, cards, torch) == []


@pytest.mark.parametrize("torch", [None, IMAGE])
def test_the_emulator_beside_the_real_plugin_is_a_clash(torch: TorchBuild | None) -> None:
    [clash] = gaudi_clashes(GaudiSoftware("1.23.1.25", "1.24.0"), 8, torch)
    assert clash.found == "habana-torch-plugin 1.23.1.25 with habana-torch-plugin-emulator 1.24.0"
    assert clash.cure == "pip uninstall habana-torch-plugin-emulator"


@pytest.mark.parametrize(
    ("version", "cuda"),
    [("2.13.0+cu130", "13.0"), ("2.13.0", "13.0"), ("2.13.0+cpu", None), ("2.9.0+rocm7.0", None)],
)
def test_a_torch_for_another_device_has_replaced_the_images(version: str, cuda: str | None) -> None:
    [clash] = gaudi_clashes(ON_A_GAUDI, 8, TorchBuild(version, cuda, sees_gpu=False))
    assert clash.found == f"habana-torch-plugin 1.23.1.25 with torch {version}"
    assert "replaced the Gaudi image's" in clash.reason
    assert "image" in clash.cure


def test_torch_and_plugin_of_different_releases_clash() -> None:
    [clash] = gaudi_clashes(GaudiSoftware("1.24.0.300"), 8, IMAGE)
    assert "Gaudi software 1.23.1" in clash.reason


@pytest.mark.parametrize(
    ("software", "reason"), [(GaudiSoftware(), "cannot be used"), (EMULATED, "emulated ones would be used")]
)
def test_cards_need_the_real_plugin(software: GaudiSoftware, reason: str) -> None:
    [clash] = gaudi_clashes(software, 8, CPU)
    assert clash.found == "8 Gaudi card(s) without habana-torch-plugin"
    assert reason in clash.reason


def test_the_software_is_known_without_torch(tmp_path: Path) -> None:
    """From metadata alone: here that of packages which nobody could import."""
    for name, version in (("habana_torch_plugin", "1.24.0.5"), ("habana_torch_plugin_emulator", "1.24.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from rlhf_hw.compat.gaudi_software import GaudiSoftware\n"
        "found = GaudiSoftware.installed()\n"
        "print(found.plugin, found.emulator, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["1.24.0.5", "1.24.0", "False"]
