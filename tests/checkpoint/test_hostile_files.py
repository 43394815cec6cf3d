"""Files made to do harm: each is a clear error, in less than a second, in little memory, and runs nothing."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.checkpoint.forging import believable, framed, manifest_of, members_of, retold, rezip
from torch import nn

from fatwood.archive.frame import Entry, descriptor, directory, local_header
from fatwood.blueprint import describe
from fatwood.checkpoint import write_model
from fatwood.program import trace

NETWORK = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
MEGABYTE = 2**20
LIMIT_BYTES = 300 * MEGABYTE
LIMIT_SECONDS = 1.0

CHILD = """
import resource, sys, time
import torch
from torch import nn
from fatwood import SparkModel
from fatwood.errors import StorageError, UserError

def used():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

SparkModel.load(sys.argv[1])  # whatever is imported on the way
before = used()
limit = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024 + 2**31
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[2:]:
    start = time.process_time()
    try:
        SparkModel.load(path)
        said = "LOADED"
    except (StorageError, UserError) as error:
        said = f"{type(error).__name__} {error}"
    print(repr((round(time.process_time() - start, 3), used() - before, said)), flush=True)
"""


def _content() -> bytes:
    file = io.BytesIO()
    torch.manual_seed(0)
    program = trace(NETWORK, torch.zeros(1, 3))
    write_model(file, state_dict=NETWORK.state_dict(), blueprint=describe(NETWORK), extra={}, program=program)
    return file.getvalue()


CONTENT = _content()


def _header(**entries: Any) -> bytes:
    """A part of tensors with this header, and a byte of data."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + b"\0"


def _weights(content: bytes) -> bytes:
    return believable(CONTENT, weights__safetensors=content)


def _tensor(dtype: Any = "U8", shape: Any = (1,), offsets: Any = (0, 1)) -> bytes:
    return _weights(_header(x={"dtype": dtype, "shape": shape, "data_offsets": offsets}))


def _zip(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def _overlapping(place: int) -> bytes:
    """The second entry is said to be at a place within the first, where there is a header like its own."""
    content = bytearray(_zip(("a", _zip(("b", bytes(1000)))), ("b", bytes(1000))))
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = place.to_bytes(4, "little")
    return bytes(content)


def _many_entries() -> bytes:
    """A million entries that all stand for the same bytes."""
    one = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0x21, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    )
    rows = one * 1_000_000
    return rows + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(rows), 0, 0)


def _manifest(text: bytes) -> bytes:
    return rezip(CONTENT, manifest__json=text)


def _claimed_size(size: int) -> bytes:
    """A directory that says the weights are so large."""
    content = bytearray(CONTENT)
    row = content.index(b"PK\x01\x02", content.rindex(b"PK\x07\x08"))
    row = content.index(b"weights.safetensors", row) - 46
    at = row + 46 + len("weights.safetensors") + 4
    content[at : at + 16] = struct.pack("<2Q", size, size)
    return bytes(content)


def _blueprint(node: Any) -> bytes:
    members = {name: members_of(CONTENT)[name] for name in ("weights.safetensors",)}
    manifest = manifest_of(CONTENT) | {
        "blueprint": node,
        "parts": sorted(members),
    }
    return framed({**members, "manifest.json": json.dumps(manifest).encode()})


def _layer(**arguments: Any) -> dict[str, Any]:
    return {"class": "torch.nn:Linear", "arguments": arguments}


def _nested(depth: int) -> dict[str, Any]:
    node: dict[str, Any] = {"class": "torch.nn:Sequential", "children": []}
    for _ in range(depth):
        node = {"class": "torch.nn:Sequential", "children": [["0", node]]}
    return node


def _graph(**changes: Any) -> bytes:
    """Without a way but its operators."""
    graph = json.loads(members_of(CONTENT)["program.json"]) | changes
    changed = believable(CONTENT, program__json=json.dumps(graph).encode())
    return retold(changed, blueprint=None)


def _called(operator: str, *arguments: Any, **keywords: Any) -> bytes:
    return _graph(nodes=[["y", operator, list(arguments), keywords]], output={"v": "y"})


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a zip bomb": (
        lambda: _zip(
            ("manifest.json", b"{}"), ("w", bytes(200 * MEGABYTE)), compression=zipfile.ZIP_DEFLATED
        ),
        "expected stored bytes",
    ),
    "a compressed manifest": (
        lambda: _zip(("manifest.json", b"[" * 10**8), compression=zipfile.ZIP_DEFLATED),
        "expected stored bytes",
    ),
    "a bomb in an entry": (
        lambda: framed({"weights.safetensors": _zip(("x", bytes(1000)))}),
        "manifest.json",
    ),
    "two entries for the same bytes": (lambda: _overlapping(0), "b: expected its header at 0"),
    "an entry within another": (lambda: _overlapping(31), "b: expected entries one behind another"),
    "a million entries": (_many_entries, "zip directory"),
    "two entries of one name": (
        lambda: _two_of_one_name(),
        "weights.safetensors: expected one entry of that name",
    ),
    "an absolute path": (lambda: _zip(("/etc/passwd", b"x"), ("manifest.json", b"{}")), "plain file names"),
    "a parent path": (lambda: _zip(("../up", b"x"), ("manifest.json", b"{}")), "plain file names"),
    "a parent path in an archive of ours": (
        lambda: framed({**members_of(CONTENT), "../up": b"x"}),
        "plain file names of entries, received '../up'",
    ),
    "an entry of 2^63 bytes": (lambda: _claimed_size(2**63 - 1), "weights.safetensors: expected at most"),
    "an entry of 2^64 - 1 bytes": (lambda: _claimed_size(2**64 - 1), "weights.safetensors"),
    "a manifest of 1 GB": (lambda: b"a gigabyte", "manifest.json: expected at most 67108864"),
    "a manifest of lists": (lambda: _manifest(b"[" + b"[]," * 20_000_000 + b"[]]"), "expected fewer values"),
    "a manifest of numbers": (lambda: _manifest(b"[" + b"1," * 30_000_000 + b"1]"), "expected fewer values"),
    "a manifest with depth": (lambda: _manifest(b"[" * 100_000), "RecursionError|Expecting value"),
    "a manifest with a huge number": (lambda: _manifest(b'{"a":' + b"9" * 10_000_000 + b"}"), "ValueError"),
    "a network with depth": (lambda: _blueprint(_nested(230)), "three ways|nested|RecursionError"),
    "a network of 4 TB": (
        lambda: _blueprint(_layer(in_features=10**6, out_features=10**6)),
        r"three ways.*expected a network of at most \d+ bytes",
    ),
    "a network of 4 TB in ones": (
        lambda: _blueprint({"class": "torch.nn:LayerNorm", "arguments": {"normalized_shape": [10**12]}}),
        "three ways.*expected a network of at most",
    ),
    "a network of a billion layers": (
        lambda: _blueprint(
            {
                "class": "torch.nn:LSTM",
                "arguments": {"input_size": 1, "hidden_size": 1, "num_layers": 10**9},
            }
        ),
        "three ways.*expected a network of at most",
    ),
    "a class that is a function": (
        lambda: _blueprint({"class": "os:system", "arguments": {"command": "touch PROOF"}}),
        "expected a subclass of torch.nn.Module",
    ),
    "a class of a module that does things": (
        lambda: _blueprint({"class": "antigravity:Net", "arguments": {}}),
        "expected a subclass of torch.nn.Module",
    ),
    "no header": (lambda: _weights(b"\0\0"), "safetensors header"),
    "a header of 2^63 bytes": (
        lambda: _weights(struct.pack("<Q", 2**63) + b"{}"),
        "safetensors header of at most",
    ),
    "a header that is larger than the part": (
        lambda: _weights(struct.pack("<Q", 3) + b"{}"),
        "header of at most 2",
    ),
    "a header of bytes": (
        lambda: _weights(struct.pack("<Q", 2) + b"\xff\xfe"),
        "weights.safetensors.*Unicode",
    ),
    "a header that is no JSON": (lambda: _weights(struct.pack("<Q", 2) + b"{x"), "weights.safetensors.*JSON"),
    "a header that is a list": (lambda: _weights(struct.pack("<Q", 2) + b"[]"), "expected a JSON object"),
    "a header with depth": (
        lambda: _weights(struct.pack("<Q", 200_000) + b"[" * 200_000),
        "weights.safetensors.*(RecursionError|Expecting)",
    ),
    "a header of many values": (
        lambda: _weights(struct.pack("<Q", 30_000_001) + b"[" + b"[]," * 10_000_000),
        "fewer values in the safetensors header",
    ),
    "a header with a name twice": (
        lambda: _weights(
            struct.pack("<Q", 101)
            + b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'[
                :101
            ]
            + b"\0"
        ),
        "weights.safetensors",
    ),
    "a giant shape": (lambda: _tensor("F32", (2**40, 2**20)), "expected .* bytes from 0 within 1"),
    "a shape beyond all numbers": (
        lambda: _tensor("F32", (2**62,) * 60),
        "expected .* bytes from 0 within 1",
    ),
    "a shape of many dimensions": (lambda: _tensor("U8", (1,) * 100_000), "expected a shape"),
    "a negative shape": (lambda: _tensor("U8", (-1, -1)), "expected a shape"),
    "a shape of nothing and a lot": (lambda: _tensor("U8", (0, 2**62, 2**62), (0, 0)), "weights.safetensors"),
    "a shape of texts": (lambda: _tensor("U8", ("1",)), "expected a shape"),
    "an unknown dtype": (lambda: _tensor("F128"), "expected a dtype of safetensors, received 'F128'"),
    "a dtype that is a dict": (lambda: _tensor({"a": 1}), "expected a dtype of safetensors"),
    "another dtype": (lambda: _tensor("F64"), "expected 8 bytes"),
    "offsets backwards": (lambda: _tensor("U8", (1,), (1, 0)), r"expected data_offsets \[begin, end\]"),
    "offsets beyond the part": (lambda: _tensor("U8", (2**40,), (0, 2**40)), "within 1"),
    "offsets that are negative": (lambda: _tensor("U8", (2,), (-1, 1)), "expected data_offsets"),
    "offsets that overlap": (
        lambda: _weights(
            _header(
                x={"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                y={"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            )
        ),
        "'y': expected 1 bytes from 1",
    ),
    "bytes that belong to no tensor": (lambda: _weights(_header()), "expected 0 bytes of tensors"),
    "another tensor than the manifest's": (lambda: _tensor(), "expected the tensors of the manifest"),
    "an operator that reads files": (
        lambda: _called("aten.from_file.default", "/etc/passwd", True, 10),
        "not known here, or not one a file may name",
    ),
    "an operator of Python": (lambda: _called("os.system", "touch PROOF"), "not known here"),
    "an operator by a way round": (lambda: _called("aten.add.__class__", 1), "not known here"),
    "an operator that changes its argument": (
        lambda: _called("aten.add_.Tensor", {"v": "input"}, 1),
        "not known",
    ),
    "a graph with other fields": (lambda: _graph(more=1), "rebuild the network from its operators"),
    "a graph of texts": (lambda: _graph(nodes="abc"), "rebuild the network from its operators"),
    "a graph of unknown tensors": (lambda: _graph(state={"a": "nothing"}), "unknown"),
    "a graph with depth": (
        lambda: believable(CONTENT, program__json=b'{"nodes":' + b"[" * 100_000),
        "program.json: expected JSON",
    ),
    "a pickle": (lambda: pickle.dumps(os.getcwd), "expected a saved model"),
    "a pickle in a zip": (lambda: _zip(("archive/data.pkl", pickle.dumps(os.getcwd))), "plain file names"),
    "a preprocessing that is none": (lambda: retold(CONTENT, extra={"preprocessing": [1]}), "preprocessing"),
}


def _two_of_one_name() -> bytes:
    content = framed({**members_of(CONTENT), "weightsXsafetensors": b"x"})
    return content.replace(b"weightsXsafetensors", b"weights.safetensors")


def _write(path: Path, name: str, content: bytes) -> None:
    if name != "a manifest of 1 GB":
        path.write_bytes(content)
        return
    size = 2**30  # of zeros, which take no place on the disk
    with path.open("wb") as file:
        head = local_header("manifest.json", 0)
        entry = Entry(name="manifest.json", offset=0, data=len(head), size=size, crc=zlib.crc32(b""))
        file.write(head)
        file.seek(size, os.SEEK_CUR)
        file.write(descriptor(entry))
        file.write(directory([entry], file.tell()))


def test_each_is_a_clear_error_in_a_second_and_in_little_memory(tmp_path) -> None:
    good = tmp_path / "good"
    good.write_bytes(CONTENT)
    paths = []
    for number, (name, (make, _)) in enumerate(HOSTILE.items()):
        paths.append(tmp_path / f"{number}")
        _write(paths[-1], name, make())
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(good), *map(str, paths)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(HOSTILE)
    wrong = {}
    for name, line in zip(HOSTILE, lines, strict=True):
        seconds, taken, said = ast.literal_eval(line)
        expected = HOSTILE[name][1]
        if not re.search(f"(?s){expected}", said) or "hint:" not in said:
            wrong[name] = said[:400]
        elif taken > LIMIT_BYTES or seconds > LIMIT_SECONDS:
            wrong[name] = f"{seconds} s, {taken / MEGABYTE:.0f} MiB"
    assert wrong == {}
    assert not (tmp_path / "PROOF").exists()
    left = {path.name for path in tmp_path.iterdir()} - {"good", *map(str, range(len(HOSTILE)))}
    assert left == set()
