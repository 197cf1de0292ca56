"""Unmodified optimum-habana generates on the emulated device what it generates on the CPU, in each of its ways."""

from __future__ import annotations

from typing import Any

import pytest

STATIC: dict[str, Any] = {"static_shapes": True}
WAYS: dict[str, dict[str, Any]] = {
    "dynamic shapes": {"static_shapes": False},
    "static shapes": STATIC,
    "buckets": {**STATIC, "bucket_size": 16},
    "internal buckets": {**STATIC, "bucket_size": 16, "bucket_internal": True},
    "reused cache": {**STATIC, "reuse_cache": True},
    "reused cache in buckets": {**STATIC, "reuse_cache": True, "bucket_size": 16, "bucket_internal": True},
    "fused attention": {**STATIC, "use_flash_attention": True},
    "fused causal attention": {**STATIC, "use_flash_attention": True, "flash_attention_recompute": True},
}


def request(settings: list[dict[str, Any]], device: str, model: str = "llama", **more: Any) -> dict[str, Any]:
    return {"task": "generate", "model": model, "device": device, "settings": settings, **more}


@pytest.mark.slow
def test_every_way_to_decode_gives_the_cpus_tokens(run_gaudi):
    (cpu,) = run_gaudi(request([{}], "cpu"))["tokens"]
    answer = run_gaudi(request(list(WAYS.values()), "hpu"))
    assert answer["device"] == "hpu:0"
    for way, tokens in zip(WAYS, answer["tokens"], strict=True):
        assert tokens == cpu, way


@pytest.mark.slow
def test_sampling_with_a_seed_gives_the_cpus_tokens(run_gaudi):
    settings = [{"do_sample": True, "top_k": 10}, {"do_sample": True, "top_p": 0.8, "temperature": 0.7}]
    on_cpu, on_hpu = (run_gaudi(request(settings, device))["tokens"] for device in ("cpu", "hpu"))
    assert on_hpu == on_cpu
    assert on_hpu[0] != on_hpu[1]


@pytest.mark.slow
def test_beam_search_gives_the_cpus_tokens_where_the_device_takes_cpu_operands(run_gaudi):
    """optimum-habana adds a CPU tensor to an HPU tensor there; only the tolerant device lets it."""
    settings = [{"num_beams": 3, "static_shapes": True}]
    on_cpu = run_gaudi(request(settings, "cpu"))["tokens"]
    on_hpu = run_gaudi(request(settings, "hpu"), HPU_EMULATOR_TOLERATE_CPU_TENSORS="1")["tokens"]
    assert on_hpu == on_cpu


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama", "gpt2", "qwen2"])
def test_hpu_graphs_replay_to_the_tokens_of_the_plain_run(run_gaudi, model):
    ways = [STATIC, {**STATIC, "limit_hpu_graphs": True}]
    if model == "llama":
        ways += [{**STATIC, "reuse_cache": True}, WAYS["reused cache in buckets"]]
    plain = run_gaudi(request(ways, "hpu", model))["tokens"]
    # each way twice: the second time nothing is captured any more
    graphed = [{**way, "hpu_graphs": True, "lazy_mode": True} for way in ways for _ in range(2)]
    tokens = run_gaudi(request(graphed, "hpu", model, hpu_graphs=True))["tokens"]
    assert tokens == [answer for answer in plain for _ in range(2)]


@pytest.mark.slow
def test_static_shapes_decode_with_graphs_that_do_not_grow_with_the_length(run_gaudi):
    lengths = (8, 24, 48)

    def distinct(**settings: Any) -> list[int]:
        answers = run_gaudi(
            [request([{"max_new_tokens": length, **settings}], "hpu", count=True) for length in lengths]
        )
        return [answer["distinct"] for answer in answers]

    static, dynamic = distinct(static_shapes=True), distinct(static_shapes=False)
    assert static[1] <= static[0] + 2
    assert static[2] <= static[1] + 2
    assert dynamic[2] - dynamic[1] >= lengths[2] - lengths[1]  # one at least for every token
