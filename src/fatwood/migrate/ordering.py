"""The topological order in which a ComputationGraph lays the parameters of its vertices one after another.

Files of the last versions name it. Before that every program computed it anew, with Kahn's algorithm over numbers of vertices: inputs first,
then vertices as they stand in the file. Among vertices that become free at once the order is that of a Java ``HashSet`` of their
numbers, which is kept here: by the lowest bits, of which there are as many as the table has, then by when they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from fatwood.errors import UserError

__all__ = ["topological_order"]


def topological_order(
    inputs: Sequence[str], sources: Mapping[str, Sequence[str]], written: Any = None
) -> tuple[str, ...]:
    """The names of the vertices, each after those it takes.

    Args:
        inputs: Of the graph, by name.
        sources: By vertex, in the order of the file: the names it takes, of inputs or vertices.
        written: What the file says the order is, inputs included, if it does.

    Raises:
        UserError: A name of nothing, twice the same, a cycle, or an order that is none of this graph.
    """
    numbers = {name: i for i, name in enumerate([*inputs, *sources])}
    if len(numbers) != len(inputs) + len(sources):
        problem = "expected inputs and vertices of different names, received a name twice"
        raise _wrong(problem)
    for name, taken in sources.items():
        unknown = [source for source in taken if source not in numbers]
        if unknown:
            problem = f"vertex {name!r:.80}: expected inputs that there are, received {unknown!r:.200}"
            raise _wrong(problem)
    order = _computed(numbers, sources) if written is None else _checked(written, numbers, sources)
    return tuple(name for name in order if name in sources)


def _checked(written: Any, numbers: Mapping[str, int], sources: Mapping[str, Sequence[str]]) -> list[str]:
    names = written if isinstance(written, list) else []
    if not all(isinstance(name, str) for name in names) or sorted(names) != sorted(numbers):
        problem = f"topologicalOrderStr: expected each input and vertex once, received {written!r:.200}"
        raise _wrong(problem)
    seen: set[str] = set()
    for name in names:
        if any(source not in seen for source in sources.get(name, ())):
            problem = f"topologicalOrderStr: expected {name!r:.80} after what it takes, received it before"
            raise _wrong(problem)
        seen.add(name)
    return names


def _computed(numbers: Mapping[str, int], sources: Mapping[str, Sequence[str]]) -> list[str]:
    names = list(numbers)
    waiting = {i: {numbers[source] for source in sources.get(name, ())} for name, i in numbers.items()}
    followers: dict[int, list[int]] = {}
    for name, taken in sources.items():
        for source in dict.fromkeys(taken):
            followers.setdefault(numbers[source], []).append(numbers[name])
    free = deque(i for i in waiting if not waiting[i])
    order = []
    while free:
        number = free.popleft()
        order.append(names[number])
        for follower in _as_hash_set(followers.get(number, [])):
            waiting[follower].discard(number)
            if not waiting[follower]:
                free.append(follower)
    if len(order) != len(names):
        problem = (
            f"expected vertices without a cycle, received one around {sorted(set(names) - set(order))!r:.200}"
        )
        raise _wrong(problem)
    return order


def _as_hash_set(numbers: list[int]) -> list[int]:
    """In the order in which Java's ``HashSet`` gives different integers that came one after another.

    Example:
        >>> _as_hash_set([3, 16, 17])
        [16, 17, 3]
    """
    table = 16
    while len(numbers) > table * 3 // 4:
        table *= 2
    return sorted(numbers, key=lambda number: (number ^ number >> 16) & (table - 1))


def _wrong(problem: str) -> UserError:
    hint = "pass a file that ModelSerializer.writeModel or save(File) of Deeplearning4j wrote, unchanged"
    return UserError(f"configuration.json: {problem}", hint=hint)
