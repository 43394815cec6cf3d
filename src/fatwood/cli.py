"""The command ``fatwood``: parse, call, print. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from fatwood.errors import FatwoodError, OptionError, StorageError

__all__ = ["main"]

_MAX_STATS_BYTES = 1 << 30


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fatwood")
def cli() -> None:
    """Train PyTorch models on the Apache Spark cluster you already have."""


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of stdout.")
@click.option(
    "--save-to",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("digits.fatwood"),
    show_default=True,
    help="Where to save the trained model.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=None, help="Passes over the training rows.")
def demo(*, as_json: bool, save_to: Path, epochs: int | None) -> None:
    """Train, evaluate, predict and save on real digits (MNIST), with two Spark workers on this machine."""
    from fatwood.demo.run import EPOCHS, run

    result = run(save_to, lambda line: click.echo(line, err=as_json), epochs=epochs or EPOCHS)
    ratio = result.dense_bytes_per_step / result.bytes_per_step
    click.echo(
        f"\nTest accuracy {result.accuracy:.2%} after {result.rows_trained:,} rows in {result.seconds:.0f} s; "
        f"{result.bytes_per_step:,.0f} bytes sent a step and worker, dense float32 would be "
        f"{result.dense_bytes_per_step:,} ({ratio:,.0f} times more)",
        err=as_json,
    )
    if as_json:
        click.echo(json.dumps(result.to_json()))


@cli.command()
@click.argument("file")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Where to write the page.  [default: FILE with .html instead of its ending, in this folder]",
)
@click.option("--title", default="Fatwood training report", help="Of the page.", show_default=True)
@click.option(
    "--open/--no-open", "show", default=True, help="Open the page in the browser.", show_default=True
)
def report(*, file: str, output: Path | None, title: str, show: bool) -> None:
    """Make an HTML page from FILE, the statistics that fit.stats.save(...) wrote; FILE may be a URI."""
    from fatwood import storage
    from fatwood.report import decode, page

    path = output or Path(Path(file.rstrip("/")).name).with_suffix(".html")
    try:
        content = page(decode(storage.read_bytes(file, max_bytes=_MAX_STATS_BYTES)), title=title).encode()
    except OptionError as error:
        text = f"cannot read {file}: {error.message}"
        raise StorageError(text, hint=error.hint) from error
    storage.write_atomic(path, lambda opened: opened.writelines([content]))
    click.echo(path)
    if show and click.launch(path.resolve().as_uri()) != 0:
        click.echo("no browser could be started; open the file yourself", err=True)


@cli.command()
@click.argument("file")
@click.option(
    "--out", default=None, help="Write a model file of Fatwood; may be a URI, such as model.fatwood."
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as one JSON object.")
def migrate(*, file: str, out: str | None, as_json: bool) -> None:
    """Print a network that Deeplearning4j saved in FILE, layer by layer; FILE may be a URI."""
    from fatwood.migrate import from_dl4j

    old = from_dl4j(file)
    click.echo(json.dumps(old.to_json()) if as_json else old)
    if out is not None:
        from fatwood.model import SparkModel

        SparkModel(old.network, preprocessing=old.preprocessing or None).save(out)
        click.echo(f"wrote {out}", err=True)


@cli.command()
@click.argument("archive", default="environment.tar.gz")
@click.option("--check", "only_check", is_flag=True, help="Check an archive instead of making one.")
@click.option(
    "--requirements",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    default=None,
    help="Pack what this file for pip names instead of this environment.",
)
@click.option(
    "--platform", default=None, help="The machines, such as manylinux_2_28_x86_64.  [default: this]"
)
@click.option(
    "--torch", type=click.Choice(["cpu", "cuda"]), default=None, help="Refuse another build of torch."
)
@click.option("--exclude", multiple=True, help="A distribution to leave out; may be repeated.")
@click.option("--drop-tests", is_flag=True, help="Leave out folders of tests.")
@click.option("--level", type=click.IntRange(0, 9), default=1, show_default=True, help="Of gzip.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where to keep packed parts.",
)
def pack(*, archive: str, only_check: bool, **options: Any) -> None:
    """Pack this environment and its Python in ARCHIVE (.tar.gz) for machines that have none."""
    from fatwood import packing

    if only_check:
        checked = packing.check(archive)
        click.echo("".join(f"{name} {version}\n" for name, version in checked.versions.items()), nl=False)
        click.echo(
            f"{archive}: all {len(checked.manifest['parts'])} parts are well; it starts and imports them"
        )
        return
    options["exclude"] = [name.lower().replace("_", "-") for name in options["exclude"]]
    done = packing.pack(archive, tell=lambda line: click.echo(line, err=True), **options)
    facts = done.manifest
    click.echo(
        f"{archive}: {done.bytes / 1e6:.1f} MB in {done.seconds:.1f} s, Python {facts['python']}, torch for "
        f"{facts['torch_build']}, needs glibc {facts['glibc_needed']}\nsha256 {done.sha256}"
    )
    if facts["libraries_needed"]:
        click.echo(f"of the system it needs: {', '.join(facts['libraries_needed'])}", err=True)


@cli.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--master", default="local", show_default=True, help="local, spark://HOST:PORT, yarn or k8s://URL."
)
@click.option("--deploy-mode", help="Where the driver runs: client or cluster.  [default: cluster on k8s]")
@click.option("--workers", type=int, default=2, show_default=True, help="Tasks that train together.")
@click.option("--cores-per-worker", type=int, default=1, show_default=True, help="Cores and threads of each.")
@click.option("--workers-per-executor", type=int, help="They share one PyTorch in memory.  [default: 1]")
@click.option("--parameters", type=int, help="Of the network: memory follows it.  [default: 20000000]")
@click.option("--memory-per-worker", help="Of a Python worker, as 3g.  [default: from --parameters]")
@click.option("--executor-memory-total", help="What an executor may take in all.  [default: what it needs]")
@click.option("--archive", help="An environment, .tar.gz; path or URI.")
@click.option("--python", help="Python of the executors, where there is no archive.")
@click.option("--gpus-per-worker", type=float, help="Whole GPUs, or a part of one of at most 0.5.")
@click.option("--gpu-discovery-script", help="On the executors' machines; prints their GPUs. yarn and k8s.")
@click.option("--node-label", help="Where executors may run: a label of yarn, NAME=VALUE of a k8s node.")
@click.option("--image", help="Container image. k8s.")
@click.option("--namespace", help="k8s.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Variable of driver and executors.")
@click.option(
    "--conf", multiple=True, metavar="NAME=VALUE", help="Setting of Spark; wins over a computed one."
)
@click.option("--dry-run", is_flag=True, help="Print the command and the reasons, and run nothing.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def submit(
    *,
    memory_per_worker: str | None,
    executor_memory_total: str | None,
    env: tuple[str, ...],
    conf: tuple[str, ...],
    dry_run: bool,
    **given: Any,
) -> None:
    """Run SCRIPT on a cluster with spark-submit, with memory, cores and settings that training needs."""
    from fatwood import submission as room

    sizes = {"memory_per_worker": memory_per_worker, "executor_memory_total": executor_memory_total}
    for name, text in sizes.items():
        given[f"{name}_mib"] = None if text is None else room.parse_mib(text, f"--{name.replace('_', '-')}")
    submission = room.Submission(
        driver_python=sys.executable,
        environment=room.pairs("--env", env),
        conf=room.pairs("--conf", conf),
        **given,
    )
    submission.require_cluster_files(os.environ)
    command = room.command_of(submission, *room.find_spark_submit(os.environ))
    if dry_run:
        click.echo(command.text(), nl=False)
    else:
        sys.exit(room.run(command))


@cli.command()
@click.option(
    "--master", default=None, help="As for spark-submit.  [default: what Spark's configuration says]"
)
@click.option(
    "--conf", multiple=True, metavar="NAME=VALUE", help="Setting of Spark, as the job will have it."
)
@click.option("--storage", default=None, help="URI of a folder that driver and executors try to use.")
@click.option(
    "--timeout-seconds", type=float, default=180.0, show_default=True, help="How long the job may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print findings and facts as one JSON object.")
def doctor(
    *, master: str | None, conf: tuple[str, ...], storage: str | None, timeout_seconds: float, as_json: bool
) -> None:
    """Examine a cluster: driver, executors and the ways between them. Ends with code 1 if something is wrong."""
    from fatwood.doctor import examination

    settings = dict(examination.setting(text) for text in conf)
    found = examination.examine_cluster(
        master, settings, storage_uri=storage, timeout_seconds=timeout_seconds
    )
    click.echo(json.dumps(found.to_json()) if as_json else found)
    if not found.healthy:
        sys.exit(1)


@cli.command()
@click.argument("network")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Rows of a step."
)
@click.option("--features-shape", help="Of a row, as 784 or 1x28x28: random numbers are made.")
@click.option("--ids", type=click.IntRange(min=1), help="Features are whole numbers below this one.")
@click.option("--classes", type=click.IntRange(min=1), help="Labels are classes; the loss is cross-entropy.")
@click.option("--label-shape", help="Labels are numbers of this shape; the loss is the mean squared error.")
@click.option(
    "--optimizer",
    type=click.Choice(["sgd", "momentum", "adam", "adamw"]),
    default="adam",
    show_default=True,
    help="What it keeps takes memory.",
)
@click.option("--workers", type=int, default=2, show_default=True, help="Tasks that train together.")
@click.option("--link", default="1Gbit", show_default=True, help="Of each worker, in both directions.")
@click.option("--latency-ms", type=float, default=0.5, show_default=True, help="Round trip of two workers.")
@click.option("--cores-per-worker", type=int, default=1, show_default=True, help="Threads of each.")
@click.option("--workers-per-executor", type=int, default=1, show_default=True, help="Beside one JVM.")
@click.option("--sharing", type=float, default=1.0, show_default=True, help="Workers on the same core.")
@click.option("--rows", type=int, help="Of an epoch, to have its time.")
@click.option(
    "--strategy",
    "chosen",
    type=click.Choice(["allreduce", "sharing", "averaging", "diloco"]),
    multiple=True,
    help="May be repeated.  [default: all]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
def plan(
    *, network: str, link: str, latency_ms: float, chosen: tuple[str, ...], as_json: bool, **given: Any
) -> None:
    """Say what NETWORK needs of a cluster's memory and whether it would train faster there.

    NETWORK is a model file, or MODULE:FUNCTION, which returns a network or a dict of arguments of fatwood.plan. Steps are really
    taken, on this machine.
    """
    from fatwood import planning
    from fatwood.planning.given import STRATEGIES, arguments

    rows = ("batch_size", "features_shape", "ids", "classes", "label_shape", "optimizer")
    told = {
        "batch_size": given["batch_size"],
        **arguments(network, **{name: given.pop(name) for name in rows}),
    }
    found = planning.plan(
        **given,
        mbit=planning.parse_mbit(link),
        round_trip_seconds=latency_ms / 1000,
        strategies=[STRATEGIES[name]() for name in chosen] or None,
        **told,
    )
    click.echo(json.dumps(found.to_json()) if as_json else found)


def main() -> None:
    """Run the command; errors of Fatwood are printed without a traceback and end with code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except FatwoodError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
