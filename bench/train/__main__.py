"""The main job: train one GPT on real text twice, with flatvars and with torch's own optimizer, and compare.

    python -m bench.train                           # a small GPT, about two minutes on two CPU cores
    python -m bench.train --preset gpt2             # 124M parameters, for a GPU
    python -m bench.train --quick                   # 30 steps, to see that everything works
    python -m bench.train --ranks 2                 # flatvars on ranks that share state, beside one process

Both runs start from the same weights and see the same batches, step by step in turn. The text is the source of
Python's standard library, so nothing is downloaded. A second, short comparison trains a model of a thousand small
tensors. Where nothing is said of steps, a machine that is busy takes fewer of them, so that three minutes are enough.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

import torch

from bench.train import checkpoint, pace, plot, ranks, report
from bench.train.gpt import generate
from bench.train.loop import Record, bits_per_byte, train
from bench.train.many import compare
from bench.train.options import Job, JobError, parse_job
from bench.train.sides import Side, build_sides
from bench.train.text import Text, draw_batch, read_text
from flatvars.checkpoint.progress import Progress

PROMPT = b"class "
SAMPLE_BYTES = 400


def _make_deterministic() -> None:
    # cuBLAS reads this when it starts; torch refuses deterministic matrix products without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor finds reads of uninitialized memory, but would be timed with the rest.
    torch.utils.deterministic.fill_uninitialized_memory = False


def _start(job: Job, sides: list[Side], generator: torch.Generator, text: Text) -> tuple[int, dict[str, Record]]:
    if job.resume:
        step, records = checkpoint.resume(job.resume, sides, generator, job)
        print(f"Resumed {job.resume} after step {step}.")
        return step, records
    return 0, {side.name: Record(bits_before=bits_per_byte(side, text, job)) for side in sides}


def _run(job: Job, sides: list[Side], text: Text, deadline: float) -> dict[str, Record]:
    generator = torch.Generator().manual_seed(job.seed)
    first_step, records = _start(job, sides, generator, text)
    if first_step >= job.stop_at:
        raise JobError(f"{first_step} steps are done already; give a larger --steps or --stop-at than {job.stop_at}")

    with Progress("step", describe="{}/{}".format) as progress:
        progress.start(job.stop_at, first_step)

        def draw() -> tuple[torch.Tensor, torch.Tensor]:
            return draw_batch(text.train, job.batch, job.model.context, generator)

        def after_step(done: int) -> bool:
            losses = "  ".join(f"{name} {record.losses[-1]:.3f}" for name, record in records.items())
            progress.advance(note=f"loss: {losses}")
            is_due = job.save_every and done % job.save_every == 0
            if job.save and (is_due or done == job.stop_at):
                checkpoint.save(job.save, sides, records, generator, job, done)
            late = job.paced and done >= pace.FEWEST and time.perf_counter() > deadline
            if late:
                print(f"\nThe machine became slower: stopped after {done} of {job.stop_at} steps.")
            return not late

        train(sides, records, draw, job, first_step, after_step)
    for side in sides:
        records[side.name] = replace(records[side.name], bits_after=bits_per_byte(side, text, job))
    return records


def _paced(job: Job, text: Text, start: float) -> Job:
    """The job with as many steps as there is time for, where it does not say how many."""
    if not job.paced:
        return job
    steps = pace.affordable(job, text, start)
    if steps < job.steps:
        print(f"The machine is busy, or slow: {steps} steps instead of {job.steps}, so as to end within three minutes.")
    return replace(job, steps=steps, stop_at=steps)


def _sample(side: Side, seed: int) -> str:
    written = generate(side.model, PROMPT, SAMPLE_BYTES, seed).decode("utf-8", "replace")
    # A model that has not learned much writes control characters, which a terminal would obey.
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in written)


def main(argv: list[str]) -> int:
    """Run the job the command line describes, and return the exit status."""
    start = time.perf_counter()
    job = parse_job(argv)
    if job.threads:
        torch.set_num_threads(job.threads)
    if job.deterministic:
        _make_deterministic()
    try:
        if job.ranks:
            found = ranks.compare(job)
            print(ranks.table(found))
            return int(found["largest_loss_difference"] > ranks.TOLERANCE)
        text = read_text(job.device)
        print(f"Text: {text.describe()}")
        job = _paced(job, text, start)
        sides = build_sides(job)
        parameters = sum(param.numel() for param in sides[0].model.parameters())
        print(f"Model: {parameters:,} parameters, {job.preset} preset, on {job.device.type}")
        records = _run(job, sides, text, start + pace.LIMIT - pace.AFTERWARDS)
        many, many_records = compare(job) if len(sides) == 2 and job.stop_at == job.steps else (None, None)
    except (JobError, FileNotFoundError) as error:
        print(f"bench.train: {error}", file=sys.stderr)
        return 2
    sample = _sample(sides[-1], job.seed)
    result = report.figures(job, records, parameters, text.describe(), time.perf_counter() - start)
    if many is not None:
        result["many"] = many
    figures_path = job.out / f"{job.label}.json"
    report.write_json(result, records, figures_path)
    print(f"\n{report.table(result)}")
    if many is not None:
        print(f"\n{report.many_table(many)}")
    print(f"\nWritten by the {sides[-1].name} model:\n\n{sample}\n\nFigures: {figures_path}")
    if job.plot:
        title = f"GPT, {parameters:,} parameters, {job.device.type}, batch {job.batch} x {job.model.context} bytes"
        print(plot.draw(records, title, figures_path.with_suffix(".png")))
        if many_records is not None:
            title = f"{many['tensors']:,} small tensors, {many['parameters']:,} parameters, {job.device.type}"
            path = figures_path.with_name(f"{figures_path.stem}-many.png")
            print(plot.draw(many_records, title, path, "mean squared error"))
    print(f"Total: {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
