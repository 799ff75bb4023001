"""Room at a place: free space, and what the site's quota commands say in their own words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paltrain.disk import KIB, Room, room_at

LUSTRE = "     {path}  1200  2000  3000       -     12       0       0       -"
OVER = "     {path}  3200*  2000  3000  6d23h     12       0       0       -"
NFS = """Disk quotas for user ada (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
nas:/home         1200*    2000       0              12       0       0"""
NO_LIMIT = "     {path}  1200  0  0       -     12       0       0       -"


def put_command(folder: Path, name: str, says: str) -> None:
    command = folder / name
    command.write_text(f"#!/bin/sh\ncat <<'EOF'\n{says}\nEOF\n")
    command.chmod(0o755)


@pytest.mark.parametrize(
    ("command", "says", "left"),
    [
        ("lfs", LUSTRE, 1800 * KIB),
        ("lfs", OVER, 0),
        ("lfs", NO_LIMIT, None),
        ("lfs", "Unexpected quotactl error: Operation not supported", None),
        ("quota", NFS, 800 * KIB),
    ],
)
def test_what_quota_commands_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, says: str, left: int | None
) -> None:
    put_command(tmp_path, command, says.format(path=tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert room_at(tmp_path / "not" / "yet").n_bytes_of_quota == left


def test_without_a_quota_the_free_space_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    room = room_at(tmp_path)
    assert room.n_bytes_of_quota is None
    assert abs(room.n_bytes - shutil.disk_usage(tmp_path).free) < 1 << 30
    assert Room(n_bytes_free=100, n_bytes_of_quota=7).n_bytes == 7
