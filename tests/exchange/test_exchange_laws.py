"""All exchanges keep all laws."""

from __future__ import annotations

import functools

import pytest

from fatwood.exchange import in_process_group
from fatwood.exchange.tls import new_identity
from fatwood.testing.exchange import EXCHANGE_LAWS
from fatwood.testing.groups import local_tcp_group

_identity = functools.cache(new_identity)


def encrypted_tcp_group(size, *, ranks=None):
    return local_tcp_group(size, ranks=ranks, tls=_identity())


@pytest.mark.parametrize("law", EXCHANGE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("make_group", [in_process_group, local_tcp_group, encrypted_tcp_group])
def test_exchange_keeps_the_law(law, make_group):
    law(make_group)
