"""What `--fsdp`, `--fsdp_config` and their older forms ask for, read into one plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlhf_hw.arguments.json_object import json_object
from rlhf_hw.compat.fsdp_through_accelerate import OWN_MARK
from rlhf_hw.errors import UserError

_YES = ("true", "t", "yes", "y", "1", "on")
_NO = ("", "false", "f", "no", "n", "0", "off", "none")
#: the words of `--fsdp` that say when gathered weights are let go: whether after the forward pass already
_STRATEGIES = {"full_shard": True, "shard_grad_op": False}
#: accelerate writes PyTorch's numbers for some of them
_BY_NUMBER = {"1": "full_shard", "2": "shard_grad_op", "3": "no_shard", "4": "hybrid_shard"}
_WRAPPING = {"transformer_based_wrap": "layers", "size_based_wrap": "size", "no_wrap": "nothing"}
#: accelerate's names for transformers'
_RENAMED = {
    "offload_params": "cpu_offload",
    "transformer_cls_to_wrap": "transformer_layer_cls_to_wrap",
    "transformer_cls_names_to_wrap": "transformer_layer_cls_to_wrap",
}
#: settings that have one right value here → that value, in words
_SETTLED = {
    "version": "weights are shared out by PyTorch's fully_shard (FSDP2)",
    "use_orig_params": "FSDP2 shares each weight out by itself",
    "sync_module_states": "every process loads the same weights",
    "cpu_ram_efficient_loading": "every process loads the model whole into the host's memory first",
    "state_dict_type": "weights are saved whole",
    "forward_prefetch": "FSDP2 decides what is gathered beforehand",
    "backward_prefetch": "FSDP2 decides what is gathered beforehand",
    "limit_all_gathers": "FSDP2 needs no limit",
}
_SETTLED_VALUES = {
    "version": ("2",),
    "use_orig_params": _YES,
    "sync_module_states": _YES,
    "cpu_ram_efficient_loading": _NO,
    "state_dict_type": ("full_state_dict",),
    "forward_prefetch": _NO,
    "backward_prefetch": ("no_prefetch", *_NO),
    "limit_all_gathers": _YES,
}


@dataclass(frozen=True)
class FSDPPlan:
    """How FSDP shares a model out.

    A *unit* is what is gathered at once: each decoder layer (`units` is "layers"), each module of at least
    `min_num_params` weights ("size"), or the whole model alone ("nothing"). What lies in no unit is gathered for the
    whole of a forward and backward pass.
    """

    reshard_after_forward: bool = True
    units: str = "layers"
    layer_classes: tuple[str, ...] = ()
    min_num_params: int = 0
    activation_checkpointing: bool = False
    autocast: str = "no"  #: the precision that operations run in: bf16 or no
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def line(self) -> str:
        """What the plan does, for the user."""
        when = (
            "and gathered again for the backward pass" if self.reshard_after_forward else "and kept until it"
        )
        parts = {
            "layers": "layer by layer",
            "size": f"by modules of at least {self.min_num_params:,} weights",
            "nothing": "all at once",
        }
        return (
            "fsdp: processes share the optimizer's state, the gradients and the weights (FSDP2); weights are gathered "
            f"{parts[self.units]} for the forward pass, {when}"
        )

    def as_config(self) -> dict[str, Any]:
        """The plan as `fsdp_config` of transformers' training arguments, read back by `from_config`."""
        plan = {name: value for name, value in asdict(self).items() if name != "notes"}
        return {
            "version": 2,
            "auto_wrap_policy": "NO_WRAP",  # the trainer mixin shares out by itself, before accelerate would
            "state_dict_type": "FULL_STATE_DICT",
            "reshard_after_forward": self.reshard_after_forward,
            "plan": {**plan, "layer_classes": list(self.layer_classes)},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> FSDPPlan:
        """The plan in a trainer's `fsdp_config`; the default where a program made it without one."""
        plan = dict((config or {}).get("plan", {}))
        return cls(**{**plan, "layer_classes": tuple(plan.get("layer_classes", ()))})


def read_plan(said: Any, config: Any, *, min_num_params: int, layer_class: str | None) -> FSDPPlan:
    """The plan that the flags describe.

    Args:
        said: of `--fsdp`, which is not off: true, or words.
        config: of `--fsdp_config`.
        min_num_params, layer_class: of the older flags `--fsdp_min_num_params` and
            `--fsdp_transformer_layer_cls_to_wrap`.

    Raises:
        UserError: a word or setting that there is not, or that cannot be followed.
    """
    settings = _settings(config)
    if min_num_params:
        settings["min_num_params"] = min_num_params
    if layer_class:
        settings["transformer_layer_cls_to_wrap"] = layer_class
    plan = _from_settings(settings, "--fsdp_config")
    reshard = _from_words(said)
    return plan if reshard is None else replace(plan, reshard_after_forward=reshard)


def launched_with_fsdp(environ: Mapping[str, str] | None = None) -> bool:
    """Whether `accelerate launch --use_fsdp` started this process. `environ`: its environment, now if not given."""
    # asked for here and not in the signature: `datasets` puts another object in its place when it maps in processes
    environ = os.environ if environ is None else environ
    return environ.get("ACCELERATE_USE_FSDP", "").lower() in _YES and OWN_MARK not in environ


def plan_of_the_launch(environ: Mapping[str, str] | None = None) -> FSDPPlan:
    """The plan that `accelerate launch --use_fsdp` wrote into the environment (`FSDP_…`)."""
    environ = os.environ if environ is None else environ
    settings = {
        _RENAMED.get(key, key): value
        for key, value in (
            (n.removeprefix("FSDP_").lower(), v) for n, v in environ.items() if n.startswith("FSDP_")
        )
    }
    if str(settings.get("version")) != "2":
        settings.pop("reshard_after_forward", None)  # there sharding_strategy says it
    settings.pop("activation_checkpointing_offload", None)
    for name in _SETTLED:  # written whether or not anybody asked for it
        settings.pop(name, None)
    if str(settings.get("auto_wrap_policy", "")).lower() != "size_based_wrap":
        settings.pop("min_num_params", None)  # written in any case
    return _from_settings(settings, "accelerate launch --use_fsdp")


def _settings(config: Any) -> dict[str, Any]:
    """`--fsdp_config` as a mapping: a JSON object, a file of one, or nothing."""
    if config is None or config == "":
        return {}
    if not isinstance(config, Mapping):
        config = json_object(str(config), "--fsdp_config", "give a JSON object, or a file of one")
    found = {}
    for name, value in config.items():
        key = str(name).lower().removeprefix("fsdp_")
        found[_RENAMED.get(key, key)] = value
    return found


def _from_words(said: Any) -> bool | None:
    """Whether the words of `--fsdp` let weights go after the forward pass; None where they leave it open."""
    text = " ".join(map(str, said)) if isinstance(said, (list, tuple)) else str(said)
    words = text.replace(",", " ").replace("|", " ").lower().split()
    if words in ([word] for word in _YES):
        return None
    strategies = [word for word in words if word in _STRATEGIES]
    for word in words:
        _refuse_strategy(word, "--fsdp")
        if word not in (*_STRATEGIES, "auto_wrap"):
            raise UserError(
                f"--fsdp: there is no {word!r}; give the bare flag, or full_shard or shard_grad_op with or without auto_wrap"
            )
    if len(set(strategies)) > 1:
        raise UserError(f"--fsdp: {' and '.join(strategies)} were both given; give one")
    return _STRATEGIES[strategies[0]] if strategies else None


def _refuse_strategy(word: str, flag: str) -> None:
    if word.startswith("hybrid_shard") or word == "_hybrid_shard_zero2":
        raise UserError(f"{flag}: {word} (sharing within a machine only) is not supported; use full_shard")
    if word == "no_shard":
        raise UserError(f"{flag}: no_shard shares nothing, as training without FSDP does; leave it out")
    if word == "offload":
        raise UserError(
            f"{flag}: offload is not supported with FSDP; use --deepspeed --zero_stage 3 --offload, or leave it out"
        )


def _from_settings(settings: dict[str, Any], flag: str) -> FSDPPlan:
    plan, notes, left = FSDPPlan(), [], dict(settings)
    for name, why in _SETTLED.items():
        value = str(left.pop(name, _SETTLED_VALUES[name][0])).lower()
        if value not in _SETTLED_VALUES[name]:
            notes.append(f"{flag} {name} {value}: no effect; {why}")
    for name in ("cpu_offload", "xla"):
        if _is_yes(left.pop(name, False), name, flag):
            if name == "cpu_offload":
                _refuse_strategy("offload", f"{flag} {name}")
            raise UserError(f"{flag} {name}: TPUs are not trained on; leave it out")
    reshard = left.pop("reshard_after_forward", left.pop("sharding_strategy", None))
    left.pop("sharding_strategy", None)
    if reshard is not None:
        plan = replace(plan, reshard_after_forward=_reshard(reshard, flag))
    if "activation_checkpointing" in left:
        said = _is_yes(left.pop("activation_checkpointing"), "activation_checkpointing", flag)
        plan = replace(plan, activation_checkpointing=said)
    plan = _with_units(plan, left, flag)
    left = {name: value for name, value in left.items() if not name.startswith("xla_")}
    if left:
        raise UserError(
            f"{flag}: there is no setting {sorted(left)[0]!r}; there are transformer_layer_cls_to_wrap, min_num_params, "
            "auto_wrap_policy, reshard_after_forward and activation_checkpointing"
        )
    return replace(plan, notes=tuple(notes))


def _with_units(plan: FSDPPlan, left: dict[str, Any], flag: str) -> FSDPPlan:
    """Takes out of `left` what says which parts of the model are gathered at once."""
    policy = str(left.pop("auto_wrap_policy", "")).lower()
    if policy and policy not in _WRAPPING:
        raise UserError(
            f"{flag} auto_wrap_policy: there is no {policy!r}; there are {', '.join(name.upper() for name in _WRAPPING)}"
        )
    classes = _names(left.pop("transformer_layer_cls_to_wrap", None), flag)
    size = left.pop("min_num_params", 0)
    if not (str(size).isascii() and str(size).isdecimal()):
        raise UserError(f"{flag} min_num_params: got {size!r}, expected a number of weights, 0 or more")
    smallest = int(size)
    if classes and smallest:
        raise UserError(
            f"{flag}: transformer_layer_cls_to_wrap and min_num_params were both given, and each says what is gathered "
            "at once; give one"
        )
    units = _WRAPPING.get(policy) or ("size" if smallest else "layers")
    if units == "size" and not smallest:
        raise UserError(f"{flag} auto_wrap_policy SIZE_BASED_WRAP: needs min_num_params; give that too")
    return replace(
        plan,
        units=units,
        layer_classes=classes if units == "layers" else (),
        min_num_params=smallest if units == "size" else 0,
    )


def _names(value: Any, flag: str) -> tuple[str, ...]:
    if value is None:
        return ()
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise UserError(
            f"{flag} transformer_layer_cls_to_wrap: got {value!r}, expected the name of a class of layers, or a list of them"
        )
    return tuple(word.strip() for word in words if word.strip())


def _reshard(value: Any, flag: str) -> bool:
    word = str(value).lower()
    word = _BY_NUMBER.get(word, word) if word != "1" else "full_shard"
    _refuse_strategy(word, flag)
    return _STRATEGIES[word] if word in _STRATEGIES else _is_yes(word, "reshard_after_forward", flag)


def _is_yes(value: Any, name: str, flag: str) -> bool:
    word = str(value).lower()
    if word not in (*_YES, *_NO):
        raise UserError(f"{flag} {name}: got {value!r}, expected true or false")
    return word in _YES
