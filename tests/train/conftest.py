from tests.train.plain import comm  # noqa: F401 - a fixture
