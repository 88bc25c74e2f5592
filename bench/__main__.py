"""`python -m bench`: flatvars against its peers, every one in its own process and behind a gate.

python -m bench                         the full tables, on a GPU if there is one, else at CPU sizes
python -m bench --quick                 every kernel once: within 9 minutes on a GPU, 5 on a CPU
python -m bench --out bench/results     and a JSON and a CSV file
python -m bench --case tail --on 1000x1024 --peer flatvars --peer "torch fused"
python -m bench plot                    figures of the results in bench/results
python -m bench readme                  the tables and figures of bench/README.md from those results
python -m bench compare A B             two result files, or two commits in one run
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.cases.cell import STEPPING, Cell
from bench.harness.isolate import PeerProcess
from bench.harness.machine import machine
from bench.harness.record import Results, Row
from bench.peers import FULL, PEERS, QUICK
from bench.plan import CASES, cells
from bench.report.table import print_cell, print_summary, print_table
from bench.run import Runner, limits

FOLDER = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--case", choices=list(CASES), action="append", help="repeatable; all if not given")
    made.add_argument("--on", action="append", help="workload: NxM, NxRxC or a model of bench/workloads.py; repeatable")
    made.add_argument("--peer", choices=list(PEERS), action="append", help="repeatable; the copy always runs")
    made.add_argument("--quick", action="store_true", help="every kernel once, fewer rounds, fewer peers")
    made.add_argument("--out", type=Path, help="folder for the results, as JSON and CSV")
    made.add_argument("--name", help="of the files, after the date and the device; the whole run's have none")
    return made


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """The cells of the plan that were asked for; a workload the plan has not, with AdamW in float32."""
    planned = cells(options.device, options.quick)
    found = [
        cell
        for cell in planned
        if (not options.case or cell.case in options.case) and (not options.on or cell.on in options.on)
    ]
    for on in options.on or []:
        for case in options.case or ["tail"]:
            if not any(cell.case == case and cell.on == on for cell in found):
                stepping = case in (*STEPPING, "save", "load")
                found.append(Cell(case, on, "adamw" if stepping else ""))
    for cell in found:
        cell.workload  # noqa: B018  (an unknown name is an error now, not after minutes)
    return found


def run(options: argparse.Namespace, command: str) -> Results:
    """The benchmark itself; prints each cell when it is done."""
    everyone = (QUICK if options.quick else FULL)[options.device]
    names = list(dict.fromkeys(["copy", *options.peer])) if options.peer else list(everyone)
    todo = chosen_cells(options)
    facts = machine(options.device, command)
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))
    left_out = [name for name in PEERS if name not in names]
    if left_out:
        print(f"not asked: {', '.join(left_out)}")
    processes = [PeerProcess(name, PEERS[name], options.device) for name in names]
    try:
        # Peers' processes import this file as well, and only flatvars' own may import flatvars.
        from flatvars.checkpoint.progress import Progress

        with Progress("cell", describe="{}/{}".format) as progress:
            progress.start(len(todo))

            def after(done: int, cell: Cell, rows: list[Row]) -> None:
                print_cell(rows)
                progress.advance(note=cell.text)

            rows = Runner(processes, options.device, limits(options.device, options.quick)).run(todo, after)
    finally:
        for process in processes:
            process.close()
    return Results(facts, rows, [] if options.case or options.on else host_costs(options.quick))


def host_costs(quick: bool) -> list[dict[str, float]]:
    """The table of `bench/host.py`."""
    from bench import host  # here, for the reason above

    return host.table(host.COUNTS[:3] if quick else host.COUNTS)


def benchmark(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "bench", *arguments])
    results = run(options, command)
    if results.host:
        columns = list(results.host[0])
        lines = [[f"{line[c]:,.0f}" for c in columns] for line in results.host]
        print_table("Host: microseconds of the parts of a step that walk the variables", columns, lines)
    print_summary(results)
    if options.out:
        ending = options.name or ("quick" if options.quick else "")
        name = "-".join(filter(None, [results.machine["date"], options.device, ending]))
        print(f"written: {results.save(options.out, name)}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Runs a command of `python -m bench`.

    Returns:
        The exit status: 1 where `compare` found a slowdown.
    """
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "plot":
        from bench.plot import command as plot

        return plot(rest)
    if command == "readme":
        from bench.report.readme import command as readme

        return readme(rest)
    if command == "compare":
        from bench.compare import command as compare

        return compare(rest)
    return benchmark(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
