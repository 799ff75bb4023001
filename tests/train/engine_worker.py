"""Run by test_engine.py, once a rank: `engine_worker OUT_JSON CHECKPOINTS OTHERS_CHECKPOINTS`.

Trains the tiny Llama in several ways and writes what came out; the test compares.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from paltrain.comm import Comm
from paltrain.train.checkpoint import Checkpoints, Progress, frozen_hash
from paltrain.train.deepspeed_engine import DeepSpeedEngine
from paltrain.train.engine import Engine
from paltrain.train.stages import ParameterGroup, parameter_groups, set_trainable
from tests.train.tiny import TinyModel, micro_batches

STEPS = 20
SAVED_AT = 7
N_TARGETS = 12 * 8
MAX_GRAD_NORM = 0.7
COUNTS = (1, 3, 2)  # micro-batches a rank, in successive steps


def tiny_model(dtype: torch.dtype = torch.float32) -> tuple[TinyModel, list[ParameterGroup]]:
    model = TinyModel(dtype)
    set_trainable(model, ["attention", "embeddings", "head", "norms"])
    lrs = {"embeddings": 3e-2, "head": 1e-3}
    return model, parameter_groups(model, lr=5e-3, weight_decay=0.1, lr_by_pattern=lrs)


def engine(comm: Comm, *, stage: int, dtype: str = "float32") -> DeepSpeedEngine:
    model, groups = tiny_model(getattr(torch, dtype))
    return DeepSpeedEngine(
        model,
        groups,
        comm,
        zero_stage=stage,
        dtype=dtype,
        betas=(0.9, 0.95),
        eps=1e-8,
        max_grad_norm=MAX_GRAD_NORM,
        param_persistence_threshold=0,
    )


def factor(step: int) -> float:
    return 1.0 - step / (2 * STEPS)


def steps(engine: Engine, comm: Comm, which: Iterable[int]) -> tuple[list[float], list[float]]:
    losses, norms = [], []
    for step in which:
        n = COUNTS[step % len(COUNTS)]
        mine = micro_batches(step, n * comm.world_size)[comm.rank :: comm.world_size]
        loss = sum(
            float(engine.forward_backward(ids, scale=1 / N_TARGETS, last=i == n - 1))
            for i, ids in enumerate(mine)
        )
        losses.append(comm.sum([loss])[0] / N_TARGETS)
        norms.append(engine.step(factor(step)))
    return losses, norms


def plain_torch() -> tuple[list[float], list[float]]:
    """The reference: one process, the whole step as one batch, torch's AdamW and clipping."""
    model, groups = tiny_model()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters[n] for n in g.names], "lr": g.lr, "weight_decay": g.weight_decay}
            for g in groups
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses, norms = [], []
    for step in range(STEPS):
        (ids,) = micro_batches(step, 1)
        loss = model(ids).loss_sum / N_TARGETS
        optimizer.zero_grad()
        loss.backward()
        trained = [p for p in parameters.values() if p.requires_grad]
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)))
        for group, its in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = factor(step) * its.lr
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, norms


def skipping_nonfinite(comm: Comm, stage: int) -> dict[str, Any]:
    """A step with a poisoned batch on one rank between two good ones, and the same without it."""
    out = {}
    for poisoned in (True, False):
        trained = engine(comm, stage=stage)
        losses, _ = steps(trained, comm, [0])
        if poisoned:
            (ids, *_) = micro_batches(0, 2)
            scale = float("nan") if comm.rank == comm.world_size - 1 else 1 / N_TARGETS
            trained.forward_backward(ids, scale=1 / N_TARGETS, last=False)
            trained.forward_backward(ids, scale=scale, last=True)
            out["norm"] = trained.step(1.0)
        after, _ = steps(trained, comm, [1, 2])
        out[f"losses_{poisoned}"] = losses + after
        out[f"applied_{poisoned}"] = trained.n_applied_steps
        trained.close()
    return {**out, "norm": str(out["norm"])}


def progress(engine: Engine, comm: Comm, base: str) -> Progress:
    return Progress(
        step=SAVED_AT,
        data={},
        n_applied_steps=engine.n_applied_steps,
        n_nonfinite=0,
        frozen_hash=base,
        world_size=comm.world_size,
        config={},
        code_version="test",
    )


def resumed(comm: Comm, folder: Path, *, stage: int, dtype: str = "float32") -> dict[str, Any]:
    """Unbroken and saved on the way; and again from what was saved. The curves and the rest."""
    base = frozen_hash(tiny_model()[0])
    checkpoints = Checkpoints(folder, comm, keep=2)
    checkpoints.clean()
    unbroken = engine(comm, stage=stage, dtype=dtype)
    first = steps(unbroken, comm, range(SAVED_AT))
    saved = checkpoints.save(unbroken, progress(unbroken, comm, base))
    before = time.monotonic()
    rest = steps(unbroken, comm, range(SAVED_AT, STEPS))
    step_ms = (time.monotonic() - before) / (STEPS - SAVED_AT) * 1e3
    weights = unbroken.full_weights()
    unbroken.close()

    again = engine(comm, stage=stage, dtype=dtype)
    checkpoints.load(saved, again, frozen_hash=base)
    after = steps(again, comm, range(SAVED_AT, STEPS))
    same = all(torch.equal(weights[n], w) for n, w in again.full_weights().items())
    n_applied = again.n_applied_steps
    again.close()
    return {
        "losses": first[0] + rest[0],
        "norms": first[1] + rest[1],
        "after": after,
        "same_weights": same,
        "n_weights": len(weights),
        "n_applied": n_applied,
        "step_ms": step_ms,
    }


def from_another_world(comm: Comm, folder: Path) -> tuple[list[float], list[float]]:
    """The rest of the curve from a checkpoint that another number of ranks saves meanwhile."""
    deadline = time.monotonic() + 60
    while comm.max([float((folder / "latest").exists())]) == [0.0]:
        assert time.monotonic() < deadline, "the other world saved nothing"
        time.sleep(0.2)
    elsewhere = Checkpoints(folder, comm, keep=2)
    found = elsewhere.latest()
    assert found is not None
    again = engine(comm, stage=3)
    saved = elsewhere.load(found, again, frozen_hash=frozen_hash(tiny_model()[0]))
    assert saved.world_size != comm.world_size
    after = steps(again, comm, range(SAVED_AT, STEPS))
    again.close()
    return after


def main() -> None:
    started = time.monotonic()
    out, folder, other = (Path(word) for word in sys.argv[1:])
    comm = Comm.from_environment(timeout_s=60)
    result: dict[str, Any] = {"plain": plain_torch(), "start_s": time.monotonic() - started}
    result["zero3"] = resumed(comm, folder / "zero3", stage=3)
    if comm.world_size > 1:
        for stage in (2, 0):
            result[f"zero{stage}"] = resumed(comm, folder / f"zero{stage}", stage=stage)
        for stage in (3, 1):
            result[f"bf16_{stage}"] = resumed(
                comm, folder / f"bf16_{stage}", stage=stage, dtype="bfloat16"
            )
        for stage in (3, 2, 0):
            result[f"skipping{stage}"] = skipping_nonfinite(comm, stage)
    result["from_other"] = from_another_world(comm, other / "zero3")
    if comm.rank == 0:
        out.write_text(json.dumps({**result, "total_s": time.monotonic() - started}))
    comm.close()


if __name__ == "__main__":
    main()
