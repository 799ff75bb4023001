"""An ablation's report: `report`.md for people, `report`.json with every seed's figures.

The same results give the same text: no dates, nothing of the machine that writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from paltrain.ablation.results import Results, Row, Share
from paltrain.ablation.sentences import rule, sentences
from paltrain.eval.table import ScoreTable, percent
from paltrain.files import write_atomically, write_json
from paltrain.markdown import ABSENT


def write_report(
    path: Path, results: Results, *, title: str, caption: str, command: str
) -> tuple[Path, Path]:
    """Write `path`.md and `path`.json. command: what made the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text, data = path.with_name(f"{path.name}.md"), path.with_name(f"{path.name}.json")
    write_atomically(text, markdown(results, title=title, caption=caption, command=command))
    write_json(data, figures(results, title=title, caption=caption, command=command))
    return text, data


def markdown(results: Results, *, title: str, caption: str, command: str) -> str:
    parts = [f"# {title}", caption, *_accuracy(results), *_costs(results), *_words(results)]
    parts.append("## How it was made\n\n" + "\n".join(_made(results, command)))
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def accuracy_table(results: Results, *, deaf: bool = False) -> ScoreTable:
    """Right answers in percent, mean ± standard deviation over seeds; the last row is chance."""
    header = ("arm", "seeds", *results.tasks, *([] if deaf else ["mean"]))
    rows = []
    for row in results.rows:
        shares = row.deaf if deaf else row.heard
        n_there = max((len(share.by_seed) for share in shares.values()), default=0)
        seeds = str(n_there) if n_there == row.n_trials else f"{n_there} of {row.n_trials}"
        cells = [_share(shares.get(task)) for task in results.tasks]
        rows.append((row.variant.name, seeds, *cells, *([] if deaf else [percent(row.mean)])))
    mean_chance = fmean(results.chance.values()) if results.chance else None
    chance = [percent(results.chance[task]) for task in results.tasks]
    rows.append(("chance", "", *chance, *([] if deaf else [percent(mean_chance)])))
    return ScoreTable(header, tuple(rows))


def cost_table(results: Results) -> ScoreTable:
    """What a training step of each row costs, beside its baseline's."""
    times = f"x {results.baseline_arm}"
    header = (
        "arm", "trained in the last stage", "parameters", "step time, ms", times,
        "peak memory, MiB", times,
    )  # fmt: skip
    rows = []
    for row in results.rows:
        own, other = row.costs, (results.baseline_of(row) or row).costs
        rows.append(
            (
                row.variant.name,
                _number(own.n_trained),
                _number(own.n_parameters),
                _figure(own.step_time_s, 1e3),
                _ratio(own.step_time_s, other.step_time_s),
                _figure(own.memory_mib),
                _ratio(own.memory_mib, other.memory_mib),
            )
        )
    return ScoreTable(header, tuple(rows))


def figures(results: Results, *, title: str, caption: str, command: str) -> dict[str, Any]:
    """Everything as plain values; shares lie in 0..1."""
    return {
        "title": title,
        "caption": caption,
        "baseline_arm": results.baseline_arm,
        "questions": dict(results.n_questions),
        "chance": dict(results.chance),
        "rows": [_row_figures(row) for row in results.rows],
        "rule": rule(results),
        "expect": dict(results.expect),
        "sentences": sentences(results),
        "remarks": list(results.remarks),
        "missing_trials": list(results.missing),
        "machine": results.machine,
        "commits": list(results.commits),
        "command": command,
    }


def _accuracy(results: Results) -> Iterator[str]:
    questions = ", ".join(f"{task} {n}" for task, n in results.n_questions.items())
    yield "## Accuracy"
    yield (
        "Right answers in percent: the mean over seeds ± their standard deviation. "
        f"Test questions: {questions or 'none answered yet'}."
    )
    yield accuracy_table(results).to_markdown()
    if any(row.deaf for row in results.rows):
        yield "## The deaf control"
        yield (
            "The same questions, asked about another clip's recording: what is above chance here "
            "was not heard."
        )
        yield accuracy_table(results, deaf=True).to_markdown()


def _costs(results: Results) -> Iterator[str]:
    yield "## Costs"
    on = f" {results.cost_reference[:1].upper()}{results.cost_reference[1:]}." if (
        results.cost_reference
    ) else ""  # fmt: skip
    yield (
        "A training step (forward and backward) of each arm's last stage, all arms in turns on the "
        "same questions; peak memory is what comes beyond weights and gradients. "
        f'"x {results.baseline_arm}": as a multiple of {results.baseline_arm}\'s.{on}'
    )
    yield cost_table(results).to_markdown()


def _words(results: Results) -> Iterator[str]:
    noted = {row.variant.arm: row.variant.note for row in results.rows if row.variant.note}
    if noted:
        yield "## The arms"
        yield "\n".join(f"- {arm}: {note}" for arm, note in noted.items())
    yield f"## Against {results.baseline_arm}"
    yield rule(results)
    yield "\n".join(f"- {sentence}" for sentence in sentences(results)) or "No results yet."
    if results.missing:
        yield f"Not there yet: {', '.join(results.missing)}."


def _made(results: Results, command: str) -> Iterator[str]:
    yield f"- Command: `{command}`"
    yield f"- Code: {', '.join(results.commits) or ABSENT}"
    yield f"- Steps timed on: {results.machine or ABSENT}"
    yield from (f"- {remark}" for remark in results.remarks)


def _row_figures(row: Row) -> dict[str, Any]:
    return {
        "name": row.variant.name,
        "arm": row.variant.arm,
        "values": dict(row.variant.values),
        "note": row.variant.note,
        "reason": row.variant.reason,
        "accuracy": {task: _share_figures(share) for task, share in row.heard.items()},
        "deaf": {task: _share_figures(share) for task, share in row.deaf.items()},
        **vars(row.costs),
    }


def _share_figures(share: Share) -> dict[str, Any]:
    by_seed = {str(seed): value for seed, value in share.by_seed.items()}
    return {
        "mean": share.mean, "std": share.std, "by_seed": by_seed, "n_answers": share.n_answers
    }  # fmt: skip


def _share(share: Share | None) -> str:
    if share is None:
        return ABSENT
    spread = "" if share.std is None else f" ± {percent(share.std)}"
    return percent(share.mean) + spread


def _number(count: int | None) -> str:
    return ABSENT if count is None else f"{count:,}"


def _figure(value: float | None, factor: float = 1.0) -> str:
    """Three digits, or all those before the point."""
    if value is None:
        return ABSENT
    return f"{factor * value:.3g}" if factor * value < 1000 else f"{factor * value:.0f}"


def _ratio(own: float | None, other: float | None) -> str:
    return ABSENT if own is None or not other else f"{own / other:.2f}"
