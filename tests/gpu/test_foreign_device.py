"""What trains on a GPU, on a device that is none: other memory to PyTorch, and an error where tensors of both are mixed.

It finds what no test on tensors of the CPU can: a tensor that was left behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

COMPILER = shutil.which("g++")
HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(COMPILER is None, reason="needs g++"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs ELF libraries"),
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13),
        reason="PyTorch's interface of devices, as of 2.13",
    ),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built, torch_folder = tmp_path_factory.mktemp("far") / "far.so", Path(torch.__file__).parent
    folders = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    flags = ["-std=c++20", "-O0", "-w", "-shared", "-fPIC", *(f"-I{folder}" for folder in folders)]
    flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}")
    linked = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = [COMPILER, *flags, HERE / "foreign.cpp", "-o", built, *linked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return built


def test_everything_is_on_the_device_and_gives_the_bits_of_the_cpu(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "foreign.py", library],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 20
    assert [name for name, equal in found.items() if not equal] == []
