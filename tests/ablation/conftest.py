"""One small world a session: making it costs seconds, trials on it cost more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ablation.material import write_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation")
    write_world(folder)
    return folder
