"""A generated pool for all tests of the hosts."""

import pytest

from .pool import Pool, write_pool

pytest.register_assert_rewrite(f"{__package__}.contract")


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return write_pool(tmp_path_factory.mktemp("pool"))
