"""Both exchanges keep all laws."""

from __future__ import annotations

import pytest

from fatwood.exchange import in_process_group
from fatwood.testing.exchange import EXCHANGE_LAWS
from fatwood.testing.groups import local_tcp_group


@pytest.mark.parametrize("law", EXCHANGE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("make_group", [in_process_group, local_tcp_group])
def test_exchange_keeps_the_law(law, make_group):
    law(make_group)
