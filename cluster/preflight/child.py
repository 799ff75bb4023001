"""What only torch knows, asked of one child process for a whole chain, and remembered.

Good answers are kept in ~/.cache/paltrain/preflight.json ($XDG_CACHE_HOME counts) under a
fingerprint of the environment: the interpreter, what is installed in which version, and paltrain's
own code. A bad answer is never kept: what was mended is seen at once. The child costs some seconds,
what is remembered costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.freeze import PROJECT
from cluster.local import own_environment
from paltrain.files import write_atomically
from paltrain.log import get_logger

log = get_logger(__name__)

Question = Mapping[str, Any]
Answers = dict[str, dict[str, Any]]  # by the question's key
Then = Callable[[dict[str, Any]], None]
LIMIT_S = 180.0  # a cold file system takes a minute to import torch
KEPT_ENVIRONMENTS = 4


class Child:
    """Collects questions, and puts them all at once to `paltrain.train.preflight`.

    environment: the child's further variables (`Job.environment`). started: children it took.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._asked: list[tuple[Question, Then]] = []
        self.started = 0

    def ask(self, question: Question, then: Then) -> None:
        """Call `then` with {"answer": {...}} or {"error": "why not"} once it is known."""
        self._asked.append((question, then))

    def settle(self) -> None:
        """Answer everything that was asked."""
        if not self._asked:
            return
        environment = fingerprint()
        known = _read_cache().get(environment, {})
        unknown = {key_of(q): q for q, _ in self._asked if key_of(q) not in known}
        fresh = self._put(unknown) if unknown else {}
        if unknown:
            good = {key: answer for key, answer in fresh.items() if "answer" in answer}
            _keep(environment, {**known, **good})
        asked, self._asked = self._asked, []
        for question, then in asked:
            key = key_of(question)
            then(known[key] if key in known else fresh[key])

    def _put(self, questions: Mapping[str, Question]) -> Answers:
        self.started += 1
        command = [sys.executable, "-P", "-m", "paltrain.train.preflight"]
        environment = {**own_environment(), **self._environment, "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                command,
                input=json.dumps(list(questions.values())).encode(),
                capture_output=True,
                env=environment,
                check=False,
                timeout=LIMIT_S,
            )
            said, end = done.stdout, f"ended with exit code {done.returncode}"
            end += _last_lines(done.stderr)
        except subprocess.TimeoutExpired as error:
            said, end = error.stdout or b"", f"took longer than {LIMIT_S:g} s"
        answers = [json.loads(line) for line in said.decode().splitlines()]
        keys = list(questions)
        blamed = {"error": f"the process that tried it {end}"}
        rest = {"error": "not looked at, for the process that would have died before"}
        missing = [blamed, *[rest] * len(keys)]
        return dict(zip(keys, answers + missing, strict=False))


def key_of(question: Question) -> str:
    """What an answer is found by again."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:24]


def fingerprint() -> str:
    """Names the environment: interpreter, distributions and their versions, paltrain's code."""
    variables = [os.environ.get(name, "") for name in ("LD_LIBRARY_PATH", "PYTHONPATH")]
    parts = [sys.executable, sys.version, *variables, *_distributions(), *_code()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(folder) / "paltrain" / "preflight.json"


def _distributions() -> list[str]:
    """Their metadata's folder names, which say name and version (reading all takes far longer)."""
    names: set[str] = set()
    for folder in set(sys.path):
        with suppress(OSError):
            names.update(os.listdir(folder or "."))
    return sorted(name for name in names if name.endswith((".dist-info", ".egg-info")))


def _code() -> Iterator[str]:
    for path in sorted((PROJECT / "paltrain").rglob("*.py")):
        stat = path.stat()
        yield f"{path} {stat.st_size} {stat.st_mtime_ns}"


def _read_cache() -> dict[str, Answers]:
    try:
        kept: Any = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(environment: str, answers: Answers) -> None:
    kept = _read_cache()
    kept.pop(environment, None)
    newest = dict([*kept.items(), (environment, answers)][-KEPT_ENVIRONMENTS:])
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache_file(), json.dumps(newest))
    except OSError as error:  # a full or read-only home: it is asked again the next time
        log.info("%s cannot be written: %s", cache_file(), error.strerror)


def _last_lines(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return f" ({' / '.join(lines[-2:])})" if lines else ""
