"""What estimator and model share: their parts, which are given to the constructor, and how both are saved."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from pyspark.ml.util import DefaultParamsReader, MLReadable, MLReader, MLWritable, MLWriter

from fatwood.errors import OptionError, UserError
from fatwood.ml.params import ModelParams
from fatwood.ml.parts import Unsayable, read_part, say_part
from fatwood.ml.storing import network_file, read_metadata, write_metadata, write_network
from fatwood.model import SparkModel

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Stage"]

_log = logging.getLogger("fatwood.ml")
_S = TypeVar("_S", bound="Stage")


class Stage(ModelParams, MLWritable, MLReadable["Stage"]):
    """A stage of a pipeline that has a network."""

    PARTS: ClassVar[tuple[str, ...]]
    """The attributes beside network and Params that are saved."""

    network: torch.nn.Module | None
    preprocessing: Any
    _missing: dict[str, str]
    """Why a part is not there, by name, where a file could not hold it."""
    _saved_at: str | None

    def give(self, **parts: Any) -> Self:
        """Give what a file could not hold: functions of a program, and networks whose class it could not name.

        Args:
            parts: By the names of the constructor's arguments. A network gets the saved parameters.

        Returns:
            The same stage.

        Raises:
            OptionError: There is no part of a name.
            UserError: The network does not fit the saved parameters.
            StorageError: The saved parameters are no longer where they were.
        """
        for name, part in parts.items():
            if name not in ("network", *self.PARTS):
                text = f"give: expected one of network, {', '.join(self.PARTS)}, received {name!r}"
                raise OptionError(text)
            if name == "network":
                _require_network(type(self).__name__, part)
                if "network" in self._missing and self._saved_at is not None:
                    from pyspark.sql import SparkSession

                    with network_file(self._saved_at, SparkSession.active()) as file:
                        self.preprocessing = SparkModel.load(file, network=part).preprocessing
            setattr(self, name, part)
            self._missing = {other: why for other, why in self._missing.items() if other != name}
        return self

    def _init_params(self) -> None:
        """Make the Params, without parts."""
        raise NotImplementedError

    def _begin(self, parts: dict[str, Any]) -> None:
        network = parts["network"]
        _require_network(type(self).__name__, network)
        self._init_params()
        self._missing, self._saved_at = {}, None
        for name, part in parts.items():
            setattr(self, name, part)
        # What the model makes of it is checked now, and not first when a long pipeline comes to this stage.
        self.preprocessing = SparkModel(network, preprocessing=self.preprocessing).preprocessing

    def _need(self, name: str) -> Any:
        """A part that has to be there.

        Raises:
            OptionError: It is not.
        """
        part = getattr(self, name)
        if part is None or name in self._missing:
            why = f", because {self._missing[name]}" if name in self._missing else ""
            text = f"{type(self).__name__}: expected {name}, received none{why}"
            hint = f"stage.give({name}=...)" if why else f"{type(self).__name__}({name}=..., ...)"
            raise OptionError(text, hint=hint)
        return part

    def _require_whole(self) -> None:
        for name in self._missing:
            self._need(name)

    def write(self) -> MLWriter:
        """Spark ML's writer."""
        return _Writer(self)

    @classmethod
    def read(cls) -> MLReader[Self]:
        """Spark ML's reader."""
        return _Reader(cls)

    @classmethod
    def load(cls, path: str) -> Self:
        """Read a stage that was saved.

        What its file could not hold is missing until it is given: a loss, an optimizer or an option that is a function or a
        class of a program, and a network whose class cannot be named or imported.

        Args:
            path: On any file system that Hadoop knows.

        Raises:
            StorageError: There is no such stage, or it is damaged.
        """
        return cls.read().load(path)


class _Writer(MLWriter):
    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def saveImpl(self, path: str) -> None:
        """Write a stage to a folder that does not exist."""
        stage, parts, missing = self._stage, {}, []
        network = stage._need("network")
        for name in stage.PARTS:
            try:
                stage_part = None if name in stage._missing else say_part(getattr(stage, name))
                parts[name] = stage_part
            except Unsayable:
                missing.append(name)
        missing += [name for name in stage._missing if name != "network"]
        if missing:
            _log.warning(
                "%s: %s cannot be saved, as files hold no functions of a program; give(...) them after loading",
                stage.uid,
                ", ".join(missing),
            )
        write_metadata(stage, path, self.sparkSession, {"version": 1, "parts": parts, "missing": missing})
        with tempfile.TemporaryDirectory(prefix="fatwood-ml-") as folder:
            local = Path(folder) / "network"
            SparkModel(network, preprocessing=stage.preprocessing).save(local)
            write_network(local, path, self.sparkSession)


class _Reader(MLReader[_S], Generic[_S]):
    def __init__(self, cls: type[_S]) -> None:
        super().__init__()
        self._cls = cls

    def load(self, path: str) -> _S:
        """Read a stage; a part that the file could not hold is missing until it is given."""
        metadata, extra = read_metadata(path, self.sparkSession)
        stage = self._cls.__new__(self._cls)
        stage._init_params()
        stage._missing, stage._saved_at, stage.preprocessing = {}, path, {}
        for name in self._cls.PARTS:
            setattr(stage, name, read_part(extra["parts"].get(name)))
        for name in extra.get("missing", []):
            if name in self._cls.PARTS:
                stage._missing[name] = "it is a function or a class of a program, which files do not hold"
        with network_file(path, self.sparkSession) as file:
            try:
                model = SparkModel.load(file)
                stage.network, stage.preprocessing = model.network, model.preprocessing
            except UserError as error:
                stage.network, stage._missing["network"] = None, error.message
        stage._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(stage, metadata)
        return stage


def _require_network(where: str, network: object) -> None:
    if not isinstance(network, torch.nn.Module):
        text = f"{where}: network: expected a torch.nn.Module, received {network!r}"
        raise OptionError(text, hint="pass an instance, not the class: Net() instead of Net")
