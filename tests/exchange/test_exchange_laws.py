"""All exchanges keep all laws."""

from __future__ import annotations

import functools

import pytest

from fatwood.exchange import in_process_group
from fatwood.exchange.grid import LEAST_WORKERS
from fatwood.exchange.tls import new_identity
from fatwood.testing.exchange import EXCHANGE_LAWS
from fatwood.testing.groups import local_tcp_group

_identity = functools.cache(new_identity)


def encrypted_tcp_group(size, **options):
    return local_tcp_group(size, tls=_identity(), **options)


def in_two_rounds(make_group):
    """The same group, whose larger sizes gather in two rounds."""
    made = functools.partial(make_group, two_level_from=LEAST_WORKERS)
    return pytest.param(made, id=f"{make_group.__name__}_in_two_rounds")


GROUPS = (in_process_group, local_tcp_group, encrypted_tcp_group)


@pytest.mark.parametrize("law", EXCHANGE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("make_group", [*GROUPS, *map(in_two_rounds, GROUPS)])
def test_exchange_keeps_the_law(law, make_group):
    law(make_group)
