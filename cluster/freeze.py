"""Keep in a job's folder what it needs and what made it: code, configuration, profile, versions.

A later edit of the checkout, an upgrade of the profile or another working directory does not reach
a job that waits in a queue: it runs `code/` and reads `config.yaml`, both in its folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import paltrain
from cluster.folder import JobFolder
from cluster.profiles import FOLDER, Profile
from paltrain.config.load import save_config

PROJECT = Path(paltrain.__file__).parents[1]
PACKAGES = ("paltrain", "cluster", "tools")
PROFILES = FOLDER.relative_to(PROJECT)  # a job may launch others on its node


def freeze(folder: JobFolder, profile: Profile) -> None:
    """Copy the code, and note what it is and what is installed beside it."""
    if folder.code.exists():
        shutil.rmtree(folder.code)
    for package in (*PACKAGES, PROFILES):
        shutil.copytree(
            PROJECT / package, folder.code / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    folder.code_diff.write_text(_git("diff", "HEAD", "--", *PACKAGES), encoding="utf-8")
    folder.packages.write_text("\n".join(installed()) + "\n", encoding="utf-8")
    save_config(profile, folder.profile)


def launch_record(**fields: Any) -> dict[str, Any]:
    """What `launch.json` says, with further fields."""
    return {
        "code_version": code_version(),
        "arguments": sys.argv,
        "python": sys.executable,
        "directory": str(Path.cwd()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **fields,
    }


def installed() -> list[str]:
    """`name==version` of every installed package, sorted."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions()}, key=str.lower)


def code_version() -> str:
    """The commit of the code, marked if there are uncommitted changes; else its version."""
    return _git("describe", "--always", "--dirty").strip() or f"v{paltrain.__version__}"


def _git(*words: str) -> str:
    """What git says of the project; empty where it is no checkout, or there is no git."""
    try:
        asked = subprocess.run(
            ["git", "-C", str(PROJECT), *words], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return asked.stdout
