"""`gaudi_spawn.py`: optimum-habana's launcher by its own flags, planned and run as `rlhf-hw launch` does.

python gaudi_spawn.py --world_size 8 --use_mpi finetune_clm.py …          8 Gaudis of this machine, with mpirun
python gaudi_spawn.py --world_size 8 --use_deepspeed reward_modeling.py … … with DeepSpeed
python gaudi_spawn.py --world_size 8 rl_training.py …                     … with torchrun
python gaudi_spawn.py --hostfile hosts.txt --use_mpi finetune_clm.py …    several machines; slots are processes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launchers import deepspeed
from launchers.errors import LaunchError
from launchers.hosts import Host, Machines, read_hostfile
from launchers.records import LaunchRequest
from launchers.script_arguments import FALSE_WORDS, TRUE_WORDS, device_of
from launchers.start import start

SWITCHES = ("--use_mpi", "--use_deepspeed", "--dry_run")
WITH_VALUE = ("--world_size", "--hostfile", "--master_port")


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, print, run; the exit code of what ran, or 2 where the request cannot be met."""
    arguments = build_parser().parse_args(joined(sys.argv[1:] if argv is None else argv))
    try:
        return start(request_from(arguments), dry_run=arguments.dry_run)
    except LaunchError as error:
        print(f"gaudi_spawn.py: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The flags before the script; everything after it belongs to the script."""
    parser = argparse.ArgumentParser(
        prog="gaudi_spawn.py",
        description="Start a script with one process a Gaudi, on this machine or on several. The command that runs is "
        "printed first. Without a Gaudi it runs on emulated ones if habana-torch-plugin-emulator is installed, or on "
        "the CPU if the script itself is given --device cpu; else it stops.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(__doc__ or "").partition("\n\n")[2],
        allow_abbrev=False,
    )
    switch = {"nargs": "?", "const": True, "default": False, "type": _boolean, "metavar": "True|False"}
    parser.add_argument(
        "--world_size",
        "--world-size",
        type=int,
        default=None,
        metavar="N",
        help="processes (default: 1, or the slots)",
    )
    parser.add_argument("--hostfile", metavar="FILE", help="several machines: lines of 'host slots=8'")
    parser.add_argument("--use_mpi", "--use-mpi", help="start the processes with mpirun", **switch)  # type: ignore[arg-type]
    parser.add_argument("--use_deepspeed", "--use-deepspeed", help="… with DeepSpeed", **switch)  # type: ignore[arg-type]
    parser.add_argument(
        "--master_port",
        "--master-port",
        type=int,
        metavar="P",
        help="where they meet (default: any, or 29500)",
    )
    parser.add_argument("--dry_run", "--dry-run", help="print the command and run nothing", **switch)  # type: ignore[arg-type]
    parser.add_argument("script", metavar="SCRIPT.py", help="the training script")
    parser.add_argument(
        "arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="passed on to it as they are"
    )
    return parser


def joined(argv: Sequence[str]) -> list[str]:
    """Write every switch as `--use_mpi=True`: argparse would take the script of `--use_mpi train.py` for its value."""
    words, rest = [], list(argv)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        name = word.replace("-", "_").replace("__", "--", 1)
        if name in SWITCHES:
            follows = bool(rest) and rest[0].lower() in (*TRUE_WORDS, *FALSE_WORDS)
            word = f"{word}={rest.pop(0) if follows else True}"
        words.append(word)
        if name in WITH_VALUE and rest:
            words.append(rest.pop(0))
    return [*words, *rest]


def _boolean(word: str) -> bool:
    if word.lower() not in (*TRUE_WORDS, *FALSE_WORDS):
        raise argparse.ArgumentTypeError(f"'{word}' is neither True nor False")
    return word.lower() in TRUE_WORDS


def request_from(arguments: argparse.Namespace) -> LaunchRequest:
    """Turn parsed flags into a request for Gaudis, or for the CPU where the script is told so.

    Raises:
        LaunchError: flags contradict each other, or a file is not there.
    """
    if arguments.use_mpi and arguments.use_deepspeed:
        raise LaunchError("--use_mpi, --use_deepspeed: give one of them")
    if not Path(arguments.script).is_file():
        raise LaunchError(
            f"{arguments.script}: no such file; give the training script after gaudi_spawn's own flags"
        )
    device = device_of(arguments.arguments)
    if device not in (None, "auto", "cpu", "hpu"):
        raise LaunchError(
            f"{arguments.script} is given --device {device}: gaudi_spawn.py starts it on Gaudis; use rlhf-hw launch"
        )
    request = LaunchRequest(
        script=arguments.script,
        script_args=tuple(arguments.arguments),
        backend="cpu" if device == "cpu" else "hpu",
        processes=1 if arguments.world_size is None else arguments.world_size,
        master_port=arguments.master_port,
        launcher=_launcher(arguments),
    )
    if arguments.hostfile is None:
        return request
    return replace(
        request, machines=_with_slots(read_hostfile(arguments.hostfile), arguments.world_size), processes=None
    )


def _launcher(arguments: argparse.Namespace) -> str:
    """mpirun and DeepSpeed by their flags; torchrun without, but DeepSpeed on several machines, as the original does."""
    if arguments.use_deepspeed:
        return "deepspeed"
    if arguments.hostfile is None and arguments.world_size in (None, 1):
        return "auto"  # one process needs no launcher
    if arguments.use_mpi:
        return "mpirun"
    if arguments.hostfile is not None and deepspeed.installed(sys.executable):
        return "deepspeed"
    return "torchrun"


def _with_slots(machines: Machines, world_size: int | None) -> Machines:
    """Divide --world_size, all processes of all machines, among hosts that have no slots; check it against those that do.

    Raises:
        LaunchError: it cannot be divided, or the slots say otherwise.
    """
    slots = [host.slots for host in machines.hosts]
    if None not in slots:
        total = sum(slot or 0 for slot in slots)
        if world_size not in (None, total):
            raise LaunchError(
                f"--world_size {world_size}: the hostfile's slots add up to {total}; leave it out"
            )
        return machines
    if world_size is None or world_size % machines.count or any(slots):
        raise LaunchError(
            "--hostfile: write 'host slots=8' on every line, or on none and give a --world_size that the machines can share"
        )
    share = world_size // machines.count
    hosts = tuple(Host(host.name, share) for host in machines.hosts)
    return replace(machines, hosts=hosts)


if __name__ == "__main__":
    sys.exit(main())
