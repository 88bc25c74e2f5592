"""`python -m bench.formats`: the main job in all storage formats; `... simulate`: what they do to an update."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bench.formats import figure, simulate
from bench.formats.job import joined, run
from bench.formats.sides import FORMATS, PEERS
from bench.formats.table import table
from bench.train.options import parse_job

RESULTS = Path(__file__).parents[1] / "results" / "formats"


def main(argv: list[str]) -> int:
    """Runs what is asked for, prints its table, and keeps results where a folder is given."""
    parser = argparse.ArgumentParser(prog="python -m bench.formats", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("job", "simulate", "draw"), default="job")
    parser.add_argument("--steps", type=int, help="of the run; 200 of the job, which are its learning-rate schedule")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; another tells what chance does")
    parser.add_argument("--quick", action="store_true", help="a tiny model, or 100 steps of the simulation")
    parser.add_argument("--only", choices=(*FORMATS, *PEERS), action="append", help="may be repeated")
    parser.add_argument("--add", action="store_true", help="to the results in --out, with a format that is there too")
    parser.add_argument("--out", type=Path, help=f"a folder for JSON and the figure, such as {RESULTS.name}")
    args = parser.parse_args(argv)
    if args.what == "simulate":
        print(simulate.table(args.steps or (100 if args.quick else simulate.STEPS)))
        return 0
    if args.what == "draw":
        for path in sorted((args.out or RESULTS).glob("*.json")):
            figure.draw(json.loads(path.read_text()), path.with_suffix(".svg"))
        return 0
    job = parse_job(["--steps", str(args.steps or 200), "--seed", str(args.seed), *(["--quick"] if args.quick else [])])
    if job.threads:
        torch.set_num_threads(job.threads)
    # Which formats were trained, in how many parts, is told by the rows.
    told = ["--quick"] * args.quick + ["--steps", str(job.steps)] + ["--seed", str(job.seed)] * bool(job.seed)
    told += ["--out", str(args.out)] if args.out else []
    command = shlex.join(["python", "-m", "bench.formats", *told])
    path = None if args.out is None else args.out / f"{job.preset}-{job.device.type}.json"
    result = {**run(replace(job, amp=False), args.only or [*FORMATS, *PEERS], command), "ours": list(FORMATS)}
    if args.add and path is not None:
        result = joined(json.loads(path.read_text()), result)
    print(table(result))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        figure.draw(result, path.with_suffix(".svg"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
