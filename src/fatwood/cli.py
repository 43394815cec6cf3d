"""The command ``fatwood``: parse, call, print. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path

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
