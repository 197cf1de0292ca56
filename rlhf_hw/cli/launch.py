"""`rlhf-hw launch`: start a stage or a script with as many processes as the machine has accelerators.

rlhf-hw launch sft --model_name_or_path …                  one process per GPU, or one on a CPU
rlhf-hw launch --processes 2 --device cpu train.py …       two processes on a CPU
rlhf-hw launch --hostfile hosts.txt ppo …                  several machines: on each, the same line
rlhf-hw launch --dry_run reward …                          print the command and run nothing
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launchers import LAUNCHERS, LaunchError, LaunchRequest
from launchers.hosts import parse_machines, read_hostfile
from launchers.script_arguments import device_of
from launchers.start import start

STAGES = ("sft", "reward", "ppo")


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, print, run; return the exit code of what ran, or 2 where the request cannot be met."""
    arguments = build_parser().parse_args(argv)
    try:
        return start(request_from(arguments), dry_run=arguments.dry_run)
    except LaunchError as error:
        print(f"rlhf-hw launch: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The flags of launch; everything after the stage or script belongs to that."""
    parser = argparse.ArgumentParser(
        prog="rlhf-hw launch",
        description="Start a training stage or a script with one process per accelerator, here or on several "
        "machines. The command that runs is printed first.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="on each machine (default: its accelerators)"
    )
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--machines", metavar="N|HOST,HOST", help="how many machines, or which (default: this)"
    )
    several.add_argument("--hostfile", metavar="FILE", help="lines of 'host slots=8'; slots are processes")
    parser.add_argument(
        "--machine_rank", type=int, metavar="R", help="this machine's place among them, from 0"
    )
    parser.add_argument(
        "--master_addr", metavar="A", help="the first machine's address (default: first host)"
    )
    parser.add_argument(
        "--master_port", type=int, metavar="P", help="a free port there (default: 29500, or any)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "hpu"), default="auto")
    parser.add_argument("--launcher", choices=("auto", *LAUNCHERS), default="auto")
    parser.add_argument(
        "--dry_run", action="store_true", help="print every machine's command and run nothing"
    )
    parser.add_argument("target", metavar="STAGE|SCRIPT.py", help=f"{', '.join(STAGES)}, or a Python file")
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="passed on to it")
    return parser


def request_from(arguments: argparse.Namespace) -> LaunchRequest:
    """Turn parsed flags into a request.

    A stage is told the device that launch was told, and launch the one that a stage is told.

    Raises:
        LaunchError: the target or the host file is not there, or --machines cannot be read.
    """
    target, passed_on = arguments.target, list(arguments.arguments)
    is_stage = target in STAGES
    if not is_stage and not Path(target).is_file():
        raise LaunchError(f"{target}: neither a stage ({', '.join(STAGES)}) nor a file")
    device = arguments.device
    told = device_of(passed_on)
    if not is_stage and told != "hpu":  # another script's --device may mean anything, but hpu has one meaning
        told = None
    if device == "auto":
        device = told or "auto"
    elif is_stage and told is None:
        passed_on += ["--device", device]
    elif told not in (None, "auto", device):
        raise LaunchError(f"--device {device}: {target} is given --device {told}; give one of them")
    machines = None
    if arguments.hostfile is not None:
        machines = read_hostfile(arguments.hostfile)
    elif arguments.machines is not None:
        machines = parse_machines(arguments.machines)
    return LaunchRequest(
        module=f"rlhf_hw.cli.{target}" if is_stage else None,
        script=None if is_stage else target,
        script_args=tuple(passed_on),
        backend=device,
        processes=arguments.processes,
        machines=machines,
        machine_rank=arguments.machine_rank,
        master_addr=arguments.master_addr,
        master_port=arguments.master_port,
        launcher=arguments.launcher,
    )


if __name__ == "__main__":
    sys.exit(main())
