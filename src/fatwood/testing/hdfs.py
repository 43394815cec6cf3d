"""A real HDFS on loopback, for tests: a NameNode and DataNodes, in processes of their own.

::

    with hdfs_cluster() as hdfs:
        write_atomic(f"{hdfs.uri}/model", write)            hdfs://127.0.0.1:port
        read_bytes(f"{hdfs.web}/model")                     webhdfs://127.0.0.1:port

Needs Java 17. The servers' jars come from two places, once for each Python environment: a PySpark 2.4 holds a whole Hadoop 2.7
(:func:`hdfs_jars` keeps 34 MB of it), and Debian has the libraries of WebHDFS.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fatwood.errors import ClusterError
from fatwood.testing.daemons import Daemon

__all__ = ["Hdfs", "hdfs_cluster", "hdfs_jars"]

_HOST = "127.0.0.1"
_START_SECONDS = 120.0
_FETCH_SECONDS = 600.0
_PYSPARK = "pyspark==2.4.8"
_JARS = re.compile(
    r"(hadoop-(annotations|auth|common|hdfs)-2|commons-(cli-1\.2|collections-3|configuration-1\.6|io|lang-2|logging|codec"
    r"|httpclient|net|math3)|guava-14|protobuf-java-2|jetty.*-6|log4j-1\.2|slf4j-(api|log4j12)|htrace-core|netty-(3|all)"
    r"|xercesImpl|jackson-.*-asl|leveldbjni|javax\.servlet-api|xmlenc|httpclient|httpcore|avro-1|jaxb-api-2|activation-1)"
    r".*\.jar"
)
_WEB_PACKAGES = (
    "libjersey1-core-java",
    "libjersey1-server-java",
    "libjersey1-servlet-java",
    "libjsr311-api-java",
)
_WEB_JARS = ("jersey1-core.jar", "jersey1-server.jar", "jersey1-servlet.jar", "jsr311-api.jar")
_OPENED = ("java.lang", "java.util", "java.net", "sun.nio.ch", "java.nio", "jdk.internal.ref")
"""Packages of java.base that a Hadoop of 2016 looks into."""
_WEB_XML = '<?xml version="1.0"?><web-app xmlns="http://java.sun.com/xml/ns/javaee" version="2.5"></web-app>'
_LOG4J = """log4j.rootLogger=INFO,c
log4j.appender.c=org.apache.log4j.ConsoleAppender
log4j.appender.c.layout=org.apache.log4j.PatternLayout
log4j.appender.c.layout.ConversionPattern=%p %c{1}: %m%n
"""


@dataclass(frozen=True, kw_only=True)
class Hdfs:
    """A running HDFS, from :func:`hdfs_cluster`."""

    uri: str
    """``hdfs://127.0.0.1:port``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """``storage_options`` for it: none."""
    web: str | None
    """``webhdfs://127.0.0.1:port``; None where the libraries of WebHDFS are missing."""


def hdfs_jars() -> Path:
    """The folder of the servers' jars, within this Python environment; they are fetched the first time, once for all processes.

    Raises:
        ClusterError: They cannot be fetched.
    """
    home = Path(sys.prefix) / "share" / "fatwood-testing"
    jars = home / "hdfs-2.7.3"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not jars.is_dir():
                with tempfile.TemporaryDirectory(dir=home) as scratch:
                    _fetch(Path(scratch)).rename(jars)
    except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace")[-500:]
        message = f"HDFS for tests: cannot fetch the servers' jars: {error} {said}"
        raise ClusterError(message, hint=f"it needs pip and a package index that has {_PYSPARK}") from error
    return jars


def _fetch(scratch: Path) -> Path:
    """Fetch the jars into a folder in `scratch`; without those of WebHDFS where there is no apt-get."""
    venv.create(
        scratch / "venv", with_pip=True
    )  # the package's setup asks for older tools than this environment has
    pip = [scratch / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "install", "setuptools<70", "wheel"], scratch)
    _run([*pip, "download", "--no-deps", "--no-build-isolation", _PYSPARK], scratch)
    jars = scratch / "jars"
    jars.mkdir()
    with tarfile.open(next(scratch.glob("pyspark-*.tar.gz"))) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if member.isfile() and "/deps/jars/" in member.name and _JARS.fullmatch(name):
                content = archive.extractfile(member)
                if content is not None:
                    (jars / name).write_bytes(content.read())
    if shutil.which("apt-get") and shutil.which("dpkg"):
        try:
            _run(["apt-get", "download", "--quiet", *_WEB_PACKAGES], scratch)
            for package in scratch.glob("*.deb"):
                _run(["dpkg", "-x", package, scratch / "debian"], scratch)
        except subprocess.SubprocessError:
            return jars
        for name in _WEB_JARS:
            shutil.copyfile(scratch / "debian" / "usr" / "share" / "java" / name, jars / name)
    return jars


def _run(command: Sequence[object], folder: Path) -> None:
    subprocess.run(  # noqa: S603
        list(map(str, command)), cwd=folder, check=True, timeout=_FETCH_SECONDS, capture_output=True
    )


@contextmanager
def hdfs_cluster(datanodes: int = 1, *, parent: Path | None = None) -> Iterator[Hdfs]:
    """An empty HDFS on free ports; it ends with this process, and its files with it.

    Args:
        datanodes: How many; each block has as many copies.
        parent: Where its folder is made; None for that of temporary files.

    Raises:
        ClusterError: There is no Java, the jars cannot be fetched, or a server did not come up.
    """
    from fatwood.spark.session import find_java

    jars, java = hdfs_jars(), find_java()
    if java is None:
        message = "HDFS for tests: expected Java 17 on PATH or in JAVA_HOME, found none"
        raise ClusterError(message, hint="install it, e.g. with apt-get install openjdk-17-jre-headless")
    folder = Path(tempfile.mkdtemp(prefix="fatwood-hdfs-", dir=parent))
    command = _prepared(folder, str(java), jars, copies=datanodes)
    servers: list[Daemon] = []
    try:
        name_node = "org.apache.hadoop.hdfs.server.namenode.NameNode"
        subprocess.run(  # noqa: S603
            [*command, name_node, "-format", "-nonInteractive", "-force"],
            check=True,
            timeout=_START_SECONDS,
            capture_output=True,
        )
        servers.append(Daemon("NameNode of HDFS", [*command, name_node], folder=folder))
        web = servers[0].wait_for(r"Jetty bound to port (\d+)", seconds=_START_SECONDS)
        port = servers[0].wait_for(rf"NameNode RPC up at: \S*?{_HOST}:(\d+)", seconds=_START_SECONDS)
        for number in range(datanodes):
            servers.append(_data_node(command, folder / f"datanode-{number}", f"{_HOST}:{port}"))
        # The line comes once for each; without this the first writes would find no DataNode.
        arrived = r"(?s)" + r".*?Adding a new node" * datanodes + r".*?Adding new storage ID"
        servers[0].wait_for(arrived, seconds=_START_SECONDS)
        web_works = all((jars / name).is_file() for name in _WEB_JARS)
        yield Hdfs(uri=f"hdfs://{_HOST}:{port}", web=f"webhdfs://{_HOST}:{web}" if web_works else None)
    finally:
        for server in reversed(servers):
            server.close()
        shutil.rmtree(folder, ignore_errors=True)


def _prepared(folder: Path, java: str, jars: Path, *, copies: int) -> list[str]:
    """Write the servers' settings; the command that starts one, but for its class."""
    settings, classes = folder / "conf", folder / "classes"
    settings.mkdir()
    for name in (
        "hdfs",
        "datanode",
        "static",
        "secondary",
    ):  # the servers look for webapps/NAME on the class path
        place = classes / "webapps" / name / "WEB-INF"
        place.mkdir(parents=True)
        (place / "web.xml").write_text(_WEB_XML)
    (settings / "log4j.properties").write_text(_LOG4J)
    core = {
        "fs.defaultFS": f"hdfs://{_HOST}:0",
        "hadoop.tmp.dir": folder / "tmp",
        "hadoop.security.group.mapping": "org.apache.hadoop.security.ShellBasedUnixGroupsMapping",
    }
    (settings / "core-site.xml").write_text(_settings(core))
    hdfs = {
        "dfs.replication": copies,
        "dfs.namenode.name.dir": f"file://{folder}/name",
        "dfs.namenode.rpc-address": f"{_HOST}:0",
        "dfs.namenode.http-address": f"{_HOST}:0",
        "dfs.namenode.rpc-bind-host": _HOST,
        "dfs.namenode.safemode.extension": 0,
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.namenode.fs-limits.min-block-size": 65536,
        "dfs.webhdfs.enabled": "true",
        "dfs.permissions.enabled": "false",
        "dfs.heartbeat.interval": 1,
    }
    (settings / "hdfs-site.xml").write_text(_settings(hdfs))
    opened = [part for name in _OPENED for part in ("--add-opens", f"java.base/{name}=ALL-UNNAMED")]
    options = ["-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.net.preferIPv4Stack=true"]
    return [java, *options, *opened, "-cp", os.pathsep.join([str(settings), str(classes), f"{jars}/*"])]


def _settings(values: Mapping[str, object]) -> str:
    lines = [
        f"<property><name>{name}</name><value>{value}</value></property>" for name, value in values.items()
    ]
    return "\n".join(["<configuration>", *lines, "</configuration>"])


def _data_node(command: list[str], folder: Path, name_node: str) -> Daemon:
    folder.mkdir()
    options = {
        "fs.defaultFS": f"hdfs://{name_node}",
        "dfs.namenode.rpc-address": name_node,
        "dfs.datanode.data.dir": f"file://{folder}/data",
        "dfs.datanode.address": f"{_HOST}:0",
        "dfs.datanode.ipc.address": f"{_HOST}:0",
        "dfs.datanode.http.address": f"{_HOST}:0",
        "dfs.datanode.hostname": _HOST,
    }
    given = [f"-D{name}={value}" for name, value in options.items()]
    return Daemon(
        "DataNode of HDFS",
        [*command, "org.apache.hadoop.hdfs.server.datanode.DataNode", *given],
        folder=folder,
    )
