"""What a replayed HPU graph gives is what the model would have given: other weights, adapters and inputs included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import ARCHITECTURES, tiny_model
from tiny_roles import shared_roles

from backends.base import BackendError
from backends.hpu import HPUBackend, HPUSettings
from backends.hpu_generation import HPUGeneration
from backends.hpu_graphs import HPUGraphSettings, Recordings, replay_passes, replayable
from rlhf_hw.models.positions import logits_at
from rlhf_hw.models.wrapping import adapter_state, trunk

BOTH = HPUGraphSettings(inference=True, training=True)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often something was recorded and replayed."""
    from habana_torch_plugin_emulator import settings
    from habana_torch_plugin_emulator.graphs import HPUGraph

    if not settings.lazy_mode():
        pytest.skip("this process was started in eager mode")
    counts = {"capture_begin": 0, "replay": 0}

    def counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return method(*args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(HPUGraph, name, counting(name, getattr(HPUGraph, name)))
    return counts


def on_device(architecture: str = "llama", **options: Any) -> Any:
    """A small model whose attention is the plain one, as the backend chooses in lazy mode."""
    model = tiny_model(architecture, **options)
    model.set_attn_implementation("eager")
    return model.to("hpu")


def with_graphs(model: Any, settings: HPUGraphSettings = BOTH) -> Any:
    replay_passes(trunk(model), partial(adapter_state, model), settings)
    return model


def with_lora(model: Any) -> Any:
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
    return adapted.to("hpu")


def batch(seed: int = 0, rows: int = 3, length: int = 10) -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 96, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, length - 2 :] = 0
    return {"input_ids": ids.to("hpu"), "attention_mask": mask.to("hpu")}


@torch.no_grad()
def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    where = inputs["attention_mask"].bool()
    return logits_at(model, where, **inputs).logits.cpu()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_replay_gives_what_the_model_gives(counted: dict[str, int], architecture: str) -> None:
    """For every architecture: else its causal model would call past the decoder that is recorded."""
    plain, graphed = on_device(architecture), with_graphs(on_device(architecture))
    for seed in range(4):
        assert torch.equal(logits(graphed, batch(seed)), logits(plain, batch(seed)))
    assert counted == {"capture_begin": 1, "replay": 4}
    assert torch.equal(logits(graphed, batch(5, rows=2)), logits(plain, batch(5, rows=2)))
    assert counted["capture_begin"] == 2


def test_inputs_and_outputs_stay_the_callers(counted: dict[str, int]) -> None:
    model = trunk(with_graphs(on_device()))
    first, second = batch(0), batch(1)
    kept = first["input_ids"].clone()
    with torch.no_grad():
        found = model(**first).last_hidden_state
        copy = found.clone()
        model(**second)
    assert torch.equal(first["input_ids"], kept)
    assert torch.equal(found, copy)
    assert counted["replay"] == 2


def test_each_state_of_the_adapters_has_its_own_graphs(counted: dict[str, int]) -> None:
    """A replay of the adapted policy in the reference's place would make every KL zero."""
    plain, graphed = with_lora(on_device()), with_graphs(with_lora(on_device()))
    for seed in range(3):
        inputs = batch(seed)
        with plain.disable_adapter(), graphed.disable_adapter():
            reference = logits(graphed, inputs)
            assert torch.equal(reference, logits(plain, inputs))
        adapted = logits(graphed, inputs)
        assert torch.equal(adapted, logits(plain, inputs))
        assert (adapted - reference).abs().max() > 0.1
    assert counted["capture_begin"] == 2


def test_roles_on_one_base_are_replayed_each_by_its_own_graph(
    counted: dict[str, int], tmp_path: Path
) -> None:
    """Policy, reference, value and reward, in turns."""
    plain, graphed = (shared_roles(tmp_path) for _ in range(2))
    for made in (plain, graphed):
        made.roles.policy.get_base_model().set_attn_implementation("eager")
        made.roles.eval().to("hpu")
        made.reward.to("hpu")
    with_graphs(graphed.roles.policy)
    found = []
    for seed in range(2):
        ids, mask = batch(seed).values()
        answers = mask.bool() & (torch.arange(mask.shape[1], device="hpu") > 4)
        for made in (graphed, plain):
            with torch.no_grad():
                found_here = made.roles(ids, mask, answers)
                reference = made.roles.reference_logprobs(ids, mask, answers)
                scores = made.reward(ids, mask)
                found.append([x.cpu() for x in (found_here.logprobs, reference, found_here.values, scores)])
    for replayed, expected in (found[:2], found[2:]):
        assert all(torch.equal(one, other) for one, other in zip(replayed, expected, strict=True))
    assert counted == {"capture_begin": 4, "replay": 8}


def test_one_recording_for_all_states_would_be_wrong(counted: dict[str, int]) -> None:
    """The test above can fail."""
    model = with_lora(on_device())
    replay_passes(trunk(model), lambda: None, BOTH)
    adapted = logits(model, batch())
    with model.disable_adapter():
        assert torch.equal(logits(model, batch()), adapted)


def test_a_replay_sees_new_weights(counted: dict[str, int]) -> None:
    plain, graphed = on_device(), with_graphs(on_device())
    before = logits(graphed, batch())
    for model in (plain, graphed):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    after = logits(graphed, batch())
    assert torch.equal(after, logits(plain, batch()))
    assert not torch.equal(after, before)
    assert counted["capture_begin"] == 1


def test_mixed_precision_has_its_own_graphs(counted: dict[str, int]) -> None:
    plain, graphed = on_device("gpt2"), with_graphs(on_device("gpt2"))
    for enabled in (False, True, False, True):
        with torch.autocast("hpu", torch.bfloat16, enabled=enabled):
            assert torch.equal(logits(graphed, batch()), logits(plain, batch()))
    assert counted["capture_begin"] == 2


@pytest.mark.parametrize("adapted", [False, True])
def test_gradients_are_those_without_graphs(counted: dict[str, int], adapted: bool) -> None:
    """Of several micro-batches of two shapes, added up, over three steps."""

    def gradients(model: Any) -> list[torch.Tensor]:
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        found = []
        for step in range(3):
            optimizer.zero_grad(set_to_none=step == 1)
            for seed, length in ((step, 10), (step + 10, 10), (step + 20, 12)):
                inputs = batch(seed, length=length)
                where = inputs["attention_mask"].bool()
                logits_at(model, where, **inputs).logits.float().logsumexp(-1).mean().backward()
            found += [p.grad.cpu().clone() for p in model.parameters() if p.requires_grad]
            optimizer.step()
        return found

    make = with_lora if adapted else lambda model: model
    expected = gradients(make(on_device()))
    found = gradients(with_graphs(make(on_device())))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert any(gradient.abs().max() > 1e-4 for gradient in found)
    assert counted["capture_begin"] == 4  # forward and backward of two shapes


def test_two_passes_may_wait_for_their_backward_passes(counted: dict[str, int]) -> None:
    def gradients(model: Any) -> list[torch.Tensor]:
        model.train()
        for first, second in ((0, 1), (2, 3)):
            losses = []
            for seed in (first, second):
                inputs = batch(seed)
                where = inputs["attention_mask"].bool()
                losses.append(logits_at(model, where, **inputs).logits.logsumexp(-1).mean())
            (losses[0] * losses[1]).backward()
        return [p.grad.cpu() for p in model.parameters()]

    expected, found = gradients(on_device()), gradients(with_graphs(on_device()))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(expected, found, strict=True))
    assert counted["capture_begin"] == 2


def test_without_either_kind_asked_for_nothing_is_recorded(counted: dict[str, int]) -> None:
    model = with_graphs(on_device(), HPUGraphSettings(training=True))
    logits(model, batch())
    model = with_graphs(on_device(), HPUGraphSettings(inference=True)).train()
    logits_at(model, batch()["attention_mask"].bool(), **batch()).logits.sum().backward()
    with torch.no_grad():
        model(**batch())  # in training mode: dropout may be on
    assert counted["capture_begin"] == 0


def test_beyond_the_most_graphs_the_model_itself_runs(counted: dict[str, int]) -> None:
    plain = on_device()
    graphed = with_graphs(on_device(), HPUGraphSettings(inference=True, most=1))
    for length in (10, 12, 10, 12):
        assert torch.equal(logits(graphed, batch(length=length)), logits(plain, batch(length=length)))
    assert counted["capture_begin"] == 1


def test_an_object_among_the_inputs_is_not_frozen_into_a_graph() -> None:
    from transformers import DynamicCache

    assert replayable(((torch.zeros(1), None, True), {"a": [1, "x", torch.float32]}))
    assert not replayable(((), {"past_key_values": DynamicCache()}))
    runs = []
    recordings = Recordings(lambda cache: runs.append(cache), BOTH)
    for _ in range(2):
        recordings.run("state", DynamicCache())
    assert len(runs) == 2


# --- what rollouts may be asked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "by_graphs", "name", "reason"),
    [
        ({"bucket_internal": True}, False, "bucket_internal", "--bucket_size"),
        ({"bucket_internal": True, "bucket_size": 8}, True, "bucket_internal", "--reuse_cache"),
        ({"reuse_cache": True, "bucket_size": 8}, False, "bucket_size", "--bucket_internal"),
        ({"ignore_eos": False, "bucket_size": 8}, False, "bucket_size", "--bucket_internal"),
    ],
)
def test_options_that_do_not_go_together_are_known_before_a_model_loads(
    wanted: dict[str, Any], by_graphs: bool, name: str, reason: str
) -> None:
    found = HPUGeneration(**wanted).contradictions(by_graphs=by_graphs)
    assert list(found) == [name]
    assert reason in found[name]
    together = HPUGeneration(ignore_eos=False, reuse_cache=True, bucket_size=8, bucket_internal=True)
    assert not together.contradictions(by_graphs=True)


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ({"reuse_cache": True}, r"--reuse_cache: GPT2LMHeadModel"),
        ({"bucket_internal": True, "bucket_size": 8}, r"--bucket_internal: GPT2LMHeadModel"),
    ],
)
def test_what_a_model_cannot_do_in_rollouts_is_one_line(wanted: dict[str, Any], line: str) -> None:
    with pytest.raises(BackendError, match=line):
        HPUGeneration(**wanted).check(tiny_model("gpt2"))


def test_graphs_of_sharded_weights_are_refused() -> None:
    settings = HPUSettings(lazy_mode=True, graphs=BOTH)
    with pytest.raises(BackendError, match="DeepSpeed and FSDP move them"):
        HPUBackend(settings).replay_passes(torch.nn.Linear(1, 1), lambda: None, sharded=True)
    HPUBackend().replay_passes(torch.nn.Linear(1, 1), lambda: None, sharded=True)  # none was asked for


def test_attention_that_asks_what_the_mask_hides_is_not_recorded() -> None:
    """transformers' sdpa leaves out a mask that hides nothing: the next batch may need one."""
    backend = HPUBackend(HPUSettings(runtime="native", lazy_mode=True, graphs=BOTH))
    with pytest.raises(BackendError, match=r"--attn_implementation sdpa: .*use eager"):
        backend.replay_passes(trunk(tiny_model()), lambda: None)
