import os
import uuid

import pytest

pytest.register_assert_rewrite("tests.engines.contract")

# before anything imports Ray, which would make a token in the home folder
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
