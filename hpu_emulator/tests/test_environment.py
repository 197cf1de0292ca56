"""What is decided before or while torch is imported: mode, notice, MPI's variables, refusal, graph report."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
TORCH = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))
PRINT_VARIABLES = f"""
    import json, os
    print(json.dumps({{name: os.environ.get(name) for name in {list(TORCH)}}}))
"""


def test_importing_the_plugin_under_mpi_sets_torchs_variables(run_python):
    done = run_python(
        "import habana_frameworks.torch\n" + PRINT_VARIABLES.replace("\n    ", "\n"), **TORCH, **MPI
    )
    assert json.loads(done.stdout) == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "12345",
    }


def test_variables_that_are_set_already_win_over_mpis(run_python):
    given = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
    }
    done = run_python(
        "import habana_frameworks.torch\n" + PRINT_VARIABLES.replace("\n    ", "\n"), **given, **MPI
    )
    assert json.loads(done.stdout) == given


def test_without_a_launcher_nothing_is_set(run_python):
    done = run_python("import habana_frameworks.torch\n" + PRINT_VARIABLES.replace("\n    ", "\n"), **TORCH)
    assert set(json.loads(done.stdout).values()) == {None}


def test_importing_the_plugin_makes_hccl_available_and_tells_ranks(run_python):
    done = run_python(
        """
        import torch.distributed
        from habana_frameworks.torch.distributed.hccl import initialize_distributed_hpu
        print(torch.distributed.Backend.backend_list, initialize_distributed_hpu())
        """,
        **TORCH,
        **MPI,
    )
    assert "'hccl'" in done.stdout
    assert done.stdout.strip().endswith("(2, 1, 1)")


@pytest.mark.parametrize(("value", "lazy"), [("1", True), ("0", False), (None, True)])
def test_lazy_mode_is_the_default_and_zero_turns_it_off(run_python, value, lazy):
    done = run_python(
        """
        from habana_frameworks.torch.utils.internal import is_lazy
        print(is_lazy())
        """,
        PT_HPU_LAZY_MODE=value,
    )
    assert done.stdout.strip() == str(lazy)


def test_mark_step_ends_a_graph_in_lazy_mode_and_nothing_in_eager(run_python):
    program = """
        import torch
        import habana_frameworks.torch.core as htcore
        from habana_torch_plugin_emulator.accounting import count_graphs
        x = torch.ones(3, device="hpu")
        with count_graphs() as count:
            for _ in range(4):
                y = x * 2 + 1
                htcore.mark_step()
        print(count.distinct, count.flushes)
    """
    assert run_python(program, PT_HPU_LAZY_MODE="1").stdout.split() == ["1", "4"]
    assert run_python(program, PT_HPU_LAZY_MODE="0").stdout.split() == ["2", "8"]


@pytest.mark.parametrize(
    "first", ["import habana_frameworks.torch", "import torch; torch.ones(1, device='hpu')"]
)
def test_the_first_use_says_once_on_stderr_that_this_is_an_emulation(run_python, first):
    code = f"{first}\nimport habana_frameworks.torch.core, torch\ntorch.ones(1, device='hpu')"
    done = run_python(code, HPU_EMULATOR_QUIET="0", RANK=None, LOCAL_RANK=None)
    assert done.stderr.count("emulated on CPU memory") == 1
    assert done.stdout == ""
    assert "emulat" not in run_python(code, HPU_EMULATOR_QUIET="1").stderr


def test_importing_torch_alone_says_nothing(run_python):
    assert "emulat" not in run_python("import torch", HPU_EMULATOR_QUIET="0").stderr


def test_the_emulator_can_be_kept_out_of_a_process(run_python):
    done = run_python("import torch; print(hasattr(torch, 'hpu'))", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout.strip() == "False"


def test_beside_the_real_plugin_it_refuses_with_the_reason(run_python, tmp_path):
    metadata = tmp_path / "site" / "habana_torch_plugin-1.22.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: habana-torch-plugin\nVersion: 1.22.0\n")
    done = run_python(
        "import torch; torch.ones(1, device='hpu')", check=False, PYTHONPATH=str(tmp_path / "site")
    )
    assert done.returncode != 0
    assert "habana-torch-plugin 1.22.0 is installed" in done.stderr


def test_the_version_is_one_that_optimum_habana_accepts():
    major, minor, *_ = (int(part) for part in version("habana-torch-plugin-emulator").split(".")[:2])
    assert (major, minor) >= (1, 13)  # its torch.compile support asks for that


def test_the_report_comes_at_exit_and_the_json_says_the_same(run_python, tmp_path):
    program = """
        import torch
        import habana_frameworks.torch.core as htcore
        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = torch.nn.Linear(2, 2)
            def forward(self, x):
                return self.inner(x).relu()
        block = Block().to("hpu")
        for rows in (1, 1, 3):
            x = torch.empty(rows, 2, device="hpu")
            htcore.mark_step()
            block(x)
            htcore.mark_step()
    """
    path = tmp_path / "reports" / "graphs.json"
    done = run_python(
        program, HPU_EMULATOR_GRAPHS=str(path), PT_HPU_LAZY_MODE="1", RANK=None, WORLD_SIZE=None
    )
    assert "hpu emulator: " in done.stderr
    assert "inner (Linear of Block), program.py:" in done.stderr
    report = json.loads(path.read_text())
    linear = [graph for graph in report["graphs"] if "inner (Linear of Block)" in graph["location"]]
    assert [graph["runs"] for graph in linear] == [2, 1]
    assert report["distinct"] == len(report["graphs"])


def test_a_process_that_never_used_the_device_reports_nothing(run_python):
    assert "hpu emulator" not in run_python("import torch", HPU_EMULATOR_GRAPHS="1").stderr


@pytest.mark.slow
def test_each_rank_writes_its_own_report(run_python, tmp_path):
    run_python(
        """
        import torch
        torch.ones(2, device="hpu") + 1
        """,
        processes=2,
        HPU_EMULATOR_GRAPHS=str(tmp_path / "graphs.json"),
    )
    ranks = [json.loads(Path(tmp_path / f"graphs.rank{rank}.json").read_text())["rank"] for rank in (0, 1)]
    assert ranks == [0, 1]
