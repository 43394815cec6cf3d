"""The command line of a submission, and how it is shown."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from fatwood.submission.cluster import Kind
from fatwood.submission.memory import ASSUMED_PARAMETERS
from fatwood.submission.options import Submission
from fatwood.submission.settings import Setting, settings_of

__all__ = ["Command", "command_of"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is run."""

    program: str
    """The path of ``spark-submit``."""
    options: tuple[tuple[str, str], ...]
    """Each option with its value."""
    script: tuple[str, ...]
    """The script and its arguments."""
    environment: Mapping[str, str]
    """Variables that the process gets beside its own."""
    settings: tuple[Setting, ...]
    """What the options named ``--conf`` say, with reasons."""
    notes: tuple[str, ...]
    """What else is to be known."""

    @property
    def arguments(self) -> list[str]:
        """The argument list, beginning with the program."""
        return [self.program, *(word for option in self.options for word in option), *self.script]

    def text(self) -> str:
        """A shell script: the reasons as comments, then the command with one option a line."""
        reasons = [*self.notes, *(f"{setting.key}: {setting.why}" for setting in self.settings)]
        lines = ["# " + " ".join(reason.split()) for reason in reasons]  # a line break would end the comment
        variables = [shlex.quote(f"{name}={value}") for name, value in self.environment.items()]
        command = [" ".join([*(["env", *variables] if variables else []), shlex.quote(self.program)])]
        command += [shlex.join(option) for option in self.options]
        command += [shlex.join(self.script)]
        return "\n".join(lines) + "\n" + " \\\n  ".join(command) + "\n"


def command_of(
    submission: Submission, program: str = "spark-submit", environment: Mapping[str, str] | None = None
) -> Command:
    """The command that submits.

    Args:
        submission: What is wanted.
        program: The path of ``spark-submit``.
        environment: Variables that `program` needs.
    """
    s = submission
    settings = settings_of(s)
    options = [("--master", _master(s))]
    if s.kind is not Kind.LOCAL:
        options.append(("--deploy-mode", "cluster" if s.kind.driver_in_cluster else "client"))
    options += [("--conf", f"{setting.key}={setting.value}") for setting in settings]
    # A driver in the cluster has its variables from settings; one that starts here has those of this process.
    own = {} if s.kind.driver_in_cluster else s.environment
    return Command(
        program=program,
        options=tuple(options),
        script=(s.script, *s.arguments),
        environment={**(environment or {}), **own},
        settings=settings,
        notes=tuple(_notes(s)),
    )


def _master(s: Submission) -> str:
    return f"local[{s.workers * s.cores_per_worker}]" if s.master == "local" else s.master


def _notes(s: Submission) -> list[str]:
    memory = s.executor_memory
    notes = [
        f"{s.kind.value}; workers: {s.workers}, cores of each: {s.cores_per_worker}, executors: {s.executors}"
    ]
    if s.kind is not Kind.LOCAL:
        notes.append(
            f"each executor takes {memory.total} MiB: heap {memory.heap}, its JVM {memory.jvm}, "
            f"Python workers {memory.python}, to spare {memory.spare}"
        )
    if s.kind is Kind.STANDALONE:
        notes.append(
            f"a standalone Worker counts the heap alone: leave {memory.overhead} MiB of its machine for each executor"
        )
    if s.parameters is None:
        whose = "memory is" if s.memory_per_worker_mib is None else "the driver's memory is"
        notes.append(
            f"{whose} for a network of {ASSUMED_PARAMETERS:,} parameters; --parameters says how many it has"
        )
    return notes
