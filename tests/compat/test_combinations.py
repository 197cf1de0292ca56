"""Version rules against the two stacks that were tested and against mixtures known to fail."""

import re
from pathlib import Path

import pytest

from rlhf_hw.compat.combinations import REQUIREMENTS, TorchBuild, build_clashes, version_clashes

COMMON = {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "safetensors": "0.8.0",
    "matplotlib": "3.11.2",
    "PyYAML": "6.0.3",
    "rich": "15.0.0",
    "jinja2": "3.1.6",
    "psutil": "7.2.2",
    "packaging": "26.3",
    "tqdm": "4.70.1",
}
CURRENT = COMMON | {
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "datasets": "5.2.0",
    "tokenizers": "0.23.3",
    "huggingface_hub": "2.4.0",
    "numpy": "2.4.6",
    "pyarrow": "25.0.0",
    "optimum": "2.3.0",
}
GAUDI = COMMON | {
    "optimum-habana": "1.21.2",
    "transformers": "4.55.4",
    "trl": "0.22.2",
    "accelerate": "1.10.1",
    "peft": "0.17.0",
    "datasets": "5.0.1",
    "tokenizers": "0.21.4",
    "huggingface_hub": "0.36.2",
    "numpy": "1.26.4",
    "pyarrow": "21.0.0",
    "optimum": "2.0.0",
}


@pytest.mark.parametrize("stack", [CURRENT, GAUDI])
def test_the_two_tested_stacks_fit_together(stack):
    assert version_clashes(stack) == []


@pytest.mark.parametrize(
    ("stack", "change", "found"),
    [
        (GAUDI, {"transformers": "4.57.1"}, ["optimum-habana 1.21.2 with transformers 4.57.1"]),
        (GAUDI, {"accelerate": "1.11.0"}, ["optimum-habana 1.21.2 with accelerate 1.11.0"]),
        (
            GAUDI,
            {"trl": "0.23.0"},
            ["optimum-habana 1.21.2 with trl 0.23.0", "trl 0.23.0 with transformers 4.55.4"],
        ),
        (GAUDI, {"huggingface_hub": "1.2.0"}, ["transformers 4.55.4 with huggingface_hub 1.2.0"]),
        (
            GAUDI,
            {"numpy": "2.1.0", "pyarrow": "15.0.2", "datasets": "5.0.0"},
            ["numpy 2.1.0 with pyarrow 15.0.2", "datasets 5.0.0 with pyarrow 15.0.2"],
        ),
        (
            CURRENT,
            {"python": "3.10.14"},
            ["trl 1.16.0 with python 3.10.14", "transformers 5.23.0 with python 3.10.14"],
        ),
        (CURRENT, {"peft": "0.19.1"}, ["transformers 5.23.0 with peft 0.19.1"]),
        (CURRENT, {"bitsandbytes": "0.45.0"}, ["transformers 5.23.0 with bitsandbytes 0.45.0"]),
        (CURRENT, {"pyarrow": "21.0.0"}, ["datasets 5.2.0 with pyarrow 21.0.0"]),
        (CURRENT, {"tokenizers": "0.22.1"}, ["transformers 5.23.0 with tokenizers 0.22.1"]),
        (CURRENT, {"torch": "2.5.1"}, ["torch 2.5.1"]),
        (CURRENT, {"trl": None}, ["trl is not installed"]),
    ],
)
def test_one_changed_version_is_found(stack, change, found):
    changed = {name: version for name, version in {**stack, **change}.items() if version is not None}
    clashes = version_clashes(changed)
    assert [clash.found for clash in clashes] == found
    assert all(clash.reason and clash.cure for clash in clashes)


def test_vendors_builds_count_as_their_release():
    for torch in ("2.6.0a0+ecf3bae", "2.7.1+hpu_1.22.0", "2.8.0.dev20250601+cu128"):
        assert version_clashes({**CURRENT, "torch": torch}) == []


def test_requirements_are_those_of_the_package():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL).group(1)
    declared = dict(re.findall(r'"([\w.-]+?)([<>=!~][^"]*)"', block))
    assert declared == REQUIREMENTS


@pytest.mark.parametrize(
    ("build", "gpus", "reason"),
    [
        (TorchBuild("2.13.0+cpu", None, sees_gpu=False), 0, None),
        (TorchBuild("2.13.0", "13.0", sees_gpu=True), 8, None),
        (TorchBuild("2.13.0+cpu", None, sees_gpu=False), 1, "without CUDA"),
        (TorchBuild("2.13.0", "13.0", sees_gpu=False), 1, "driver is older"),
        (None, 1, None),
    ],
)
def test_gpus_need_a_torch_that_can_use_them(build, gpus, reason):
    clashes = build_clashes(build, gpus)
    assert len(clashes) == (reason is not None)
    assert all(reason in clash.reason for clash in clashes)
