from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint.forging import believable, members_of, retold, rezip
from torch import nn

from fatwood.blueprint import build, describe
from fatwood.checkpoint import FORMAT_VERSION, SavedModel, read_model, write_model
from fatwood.errors import StorageError, UserError
from fatwood.storage import open_read, write_atomic


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def _bytes(state_dict: Any, blueprint: Any = None, extra: Any = None) -> bytes:
    file = io.BytesIO()
    write_model(file, state_dict=state_dict, blueprint=blueprint, extra=extra or {})
    return file.getvalue()


def _read(content: bytes) -> SavedModel:
    return read_model(io.BytesIO(content))


def _again(saved: SavedModel) -> bytes:
    return _bytes(saved.state_dict, saved.blueprint, saved.extra)


NETWORK = _network()
CONTENT = _bytes(NETWORK.state_dict(), describe(NETWORK), {"classes": 2, "history": [0.5, 0.25]})


def test_everything_comes_back() -> None:
    saved = _read(CONTENT)
    assert list(saved.state_dict) == list(NETWORK.state_dict())
    for name, value in NETWORK.state_dict().items():
        assert saved.state_dict[name].dtype == value.dtype
        assert torch.equal(saved.state_dict[name], value)
    assert saved.extra == {"classes": 2, "history": [0.5, 0.25]}
    assert saved.manifest["format_version"] == FORMAT_VERSION
    assert saved.manifest["versions"]["torch"] == torch.__version__
    rebuilt = build(saved.blueprint)
    rebuilt.load_state_dict(saved.state_dict)
    rows = torch.randn(5, 3)
    assert torch.equal(rebuilt.eval()(rows), NETWORK.eval()(rows))


def test_loaded_tensors_can_be_written_to_and_own_their_memory() -> None:
    saved = _read(CONTENT)
    saved.state_dict["0.weight"].add_(1.0)
    assert torch.equal(saved.state_dict["0.weight"], NETWORK.state_dict()["0.weight"] + 1.0)
    assert torch.equal(saved.state_dict["3.weight"], NETWORK.state_dict()["3.weight"])


def test_save_load_save_gives_equal_bytes_through_files(tmp_path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_atomic(first, lambda file: file.write(CONTENT) and None)
    with open_read(first) as file:
        saved = read_model(file)
        assert not file.closed
    write_atomic(
        second,
        lambda file: write_model(
            file, state_dict=saved.state_dict, blueprint=saved.blueprint, extra=saved.extra
        ),
    )
    assert first.read_bytes() == second.read_bytes() == CONTENT


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    ),
    st.dictionaries(
        st.text(max_size=3).filter(lambda text: text.isascii()) | st.integers(0, 20),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.lists(st.text("äβ", max_size=2)),
        max_size=4,
    ),
)
def test_save_load_save_gives_equal_bytes_for_any_state(shapes, extra) -> None:
    state = {
        name: torch.arange(math.prod(shape)).reshape(shape).to(dtype)
        for name, (dtype, shape) in shapes.items()
    }
    content = _bytes(state, extra=extra)
    saved = _read(content)
    assert list(saved.state_dict) == list(state)
    assert all(torch.equal(saved.state_dict[name], value) for name, value in state.items())
    assert all(saved.state_dict[name].dtype == value.dtype for name, value in state.items())
    assert _again(saved) == content


def test_the_bytes_do_not_depend_on_the_clock_or_the_layout_in_memory() -> None:
    state = NETWORK.state_dict()
    flat = torch.cat([value.flatten().double() for value in state.values()])
    views, at = {}, 0
    for name, value in state.items():
        views[name] = flat[at : at + value.numel()].reshape(value.shape).to(value.dtype)
        at += value.numel()
    weight = views["0.weight"]
    views["0.weight"] = weight.t().contiguous().t()
    assert not views["0.weight"].is_contiguous()
    assert _bytes(views, describe(NETWORK), _read(CONTENT).extra) == CONTENT
    with zipfile.ZipFile(io.BytesIO(CONTENT)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == ["weights.safetensors", "manifest.json"]


def test_parameters_that_are_views_of_one_vector() -> None:
    vector = torch.arange(10.0)
    state = {"a": vector[:4].view(2, 2), "b": vector[4:], "overlap": vector[2:6]}
    saved = _read(_bytes(state))
    assert all(torch.equal(saved.state_dict[name], value) for name, value in state.items())


def test_shared_tensors_are_stored_once_and_shared_again() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.decoder.weight = self.encoder.weight

    content = _bytes(Tied().state_dict())
    assert len(content) < 64 * 64 * 4 + 2000
    saved = _read(content)
    assert saved.state_dict["decoder.weight"] is saved.state_dict["encoder.weight"]
    assert saved.manifest["tensors"] == [
        ["encoder.weight", "encoder.weight"],
        ["decoder.weight", "encoder.weight"],
    ]
    assert _again(saved) == content


def test_a_network_without_tensors() -> None:
    saved = _read(_bytes({}))
    assert (saved.state_dict, saved.blueprint, saved.extra) == ({}, None, {})


def test_a_loss_that_is_nan_can_be_kept() -> None:
    assert math.isnan(_read(_bytes({}, extra={"loss": math.nan})).extra["loss"])


@pytest.mark.parametrize(
    ("state", "extra", "words"),
    [
        ({"x": object()}, {}, "'x': expected a dense tensor"),
        ({"x": torch.eye(2).to_sparse()}, {}, "'x': expected a dense tensor"),
        ({"x": torch.empty(2, device="meta")}, {}, "on meta"),
        ({"x": torch.zeros(1, dtype=torch.complex128)}, {}, "complex128"),
        ({}, {"x": object()}, "JSON"),
        ({}, {"x": {1, 2}}, "JSON"),
        ({}, {(1, 2): 3}, "JSON"),
        ({}, {"x": "\ud800"}, "JSON"),
        ({}, {"x": "long" * 1000}, "at most 2000 bytes"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(state, extra, words, monkeypatch) -> None:
    monkeypatch.setattr("fatwood.archive.writing.MAX_MANIFEST_BYTES", 2000)
    file = io.BytesIO()
    with pytest.raises(UserError, match=words):
        write_model(file, state_dict=state, blueprint=None, extra=extra)
    assert file.getvalue() == b""


@pytest.mark.parametrize("size", [0, 1, 100, len(CONTENT) // 2, len(CONTENT) - 22, len(CONTENT) - 1])
def test_truncated_file(size) -> None:
    with pytest.raises(StorageError, match="hint: the file is damaged, incomplete"):
        _read(CONTENT[:size])


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100, b"\x80\x04\x95pickle", bytes(1000)])
def test_no_saved_model(content) -> None:
    with pytest.raises(StorageError, match="model file: expected a saved model"):
        _read(content)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_an_error_that_names_the_entry(position, mask) -> None:
    damaged = bytearray(CONTENT)
    damaged[position] ^= mask
    with pytest.raises(StorageError, match=r"weights\.safetensors|manifest\.json|zip directory"):
        _read(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(CONTENT) - 1))
def test_any_truncation_is_an_error_that_names_the_entry(size) -> None:
    with pytest.raises(StorageError, match=r"zip directory.*weights\.safetensors" if size >= 49 else "hint:"):
        _read(CONTENT[:size])


def test_altered_weights_of_version_2_with_a_right_crc() -> None:
    content = (Path(__file__).parent / "golden" / "model-2.fatwood").read_bytes()
    weights = bytearray(members_of(content)["weights.safetensors"])
    weights[-1] ^= 1
    with pytest.raises(StorageError, match=r"expected sha256 .*, received"):
        _read(rezip(content, weights__safetensors=bytes(weights)))


def test_newer_version_names_both() -> None:
    with pytest.raises(StorageError, match=r"version 3 or older, received version 4.*\nhint: install"):
        _read(retold(CONTENT, format_version=4, tensors="in some other way"))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"format_version": 0},
        {"format_version": 1},
        {"format_version": "1"},
        {"format_version": True},
        {"blueprint": 5},
        {"extra": None},
        {"format_version": 2},
        {"format_version": 2, "sha256_of_pieces": {"weights.safetensors": 5}},
        {"parts": []},
        {"parts": {}},
        {"parts": None},
        {"parts": [["weights.safetensors"]]},
        {"parts": ["weights.safetensors"] * 2},
        {"run": 5},
        {"schema": []},
        {"tensors": None},
        {"tensors": [["a"]]},
        {"tensors": [["a", 5]]},
        {"tensors": []},
        {"tensors": [["0.weight", "nothing"]]},
    ],
)
def test_manifest_that_makes_no_sense(changes) -> None:
    with pytest.raises(StorageError, match="hint:"):
        _read(retold(CONTENT, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest__json": None},
        {"weights__safetensors": None},
        {"manifest__json": b"{"},
        {"manifest__json": b"[]"},
        {"manifest__json": b"\xff"},
        {"manifest__json": b"[" * 100_000},
        {"data__pkl": b"more"},
    ],
)
def test_archive_with_other_members(changes) -> None:
    with pytest.raises(StorageError, match="hint:"):
        _read(rezip(CONTENT, **changes))


def test_weights_that_are_no_safetensors() -> None:
    with pytest.raises(StorageError, match=r"weights.safetensors: expected the tensors of the manifest"):
        _read(believable(CONTENT, weights__safetensors=b"\xff" * 64))


def test_nothing_is_unpickled(tmp_path, monkeypatch) -> None:
    proof = tmp_path / "proof"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (proof,)

    torch.save({"0.weight": Evil()}, tmp_path / "model")
    with (
        open_read(tmp_path / "model") as file,
        pytest.raises(StorageError, match=f"model file {tmp_path}/model"),
    ):
        read_model(file)
    assert not proof.exists()


def test_a_file_of_another_process_whose_class_is_not_here(tmp_path, monkeypatch) -> None:
    code, path = tmp_path / "code", tmp_path / "model"
    code.mkdir()
    (code / "nets_of_another_process.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, size):\n"
        "        super().__init__()\n"
        "        self.size = size\n"
        "        self.layer = nn.Linear(size, size)\n"
    )
    script = f"""if True:
        import torch
        from nets_of_another_process import Net
        from fatwood.blueprint import describe
        from fatwood.checkpoint import write_model
        from fatwood.storage import write_atomic
        network = Net(3)
        torch.nn.init.constant_(network.layer.weight, 2.0)
        write_atomic({str(path)!r}, lambda file: write_model(
            file, state_dict=network.state_dict(), blueprint=describe(network), extra={{"from": "there"}}))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(code)])}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=100)
    with open_read(path) as file:
        saved = read_model(file)
    assert torch.equal(saved.state_dict["layer.weight"], torch.full((3, 3), 2.0))
    assert _again(saved) == path.read_bytes()
    with pytest.raises(
        UserError, match=r"cannot import 'nets_of_another_process'.*\nhint: make the network's class"
    ):
        build(saved.blueprint)
    monkeypatch.syspath_prepend(code)
    network = build(saved.blueprint)
    network.load_state_dict(saved.state_dict)
    assert torch.equal(network.layer.weight, torch.full((3, 3), 2.0))
    assert _bytes(network.state_dict(), describe(network), saved.extra) == path.read_bytes()
    monkeypatch.delitem(sys.modules, "nets_of_another_process")
