"""What a run of all formats says, in a table; without flatvars, so that pages are made where it is not."""

from __future__ import annotations

from typing import Any


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table, with what did not run below it."""
    lines = [
        f"| format | library | mean loss of the last {result['last']} steps | bytes a parameter | optimizer, ms "
        "| step, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in result["rows"]:
        times = ["" if one[key] is None else f"{one[key]:.2f}" for key in ("optimizer_ms", "step_ms")]
        lines.append(
            f"| {one['name']} | {one['library']} | {one['loss']:.4f} | {one['bytes']:.2f} | {' | '.join(times)} |"
        )
    facts = result["machine"]
    told = (
        f"{facts.get('gpu') or facts['processor']}; torch {facts['torch']}, {facts['date']}, `{facts['command']}`: "
        f"{result['parameters']:,} parameters, {result['steps']} steps; values and state, without gradients."
    )
    failed = [f"Did not run: {name}: {why}" for name, why in result["failed"].items()]
    return "\n\n".join(["\n".join(lines), told, *failed])
