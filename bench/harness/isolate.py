"""Starting a peer's process, asking it, and making a row of it when it dies or takes too long."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.cases.cell import Cell
from bench.harness.worker import Refused, serve
from bench.peers import load

START_SECONDS = 120.0
# Under Linux, processes begin as copies of one that has imported torch and done nothing else: importing it and what its
# first optimizer wants takes a core three to five seconds. Nothing of flatvars is among it, nor of a peer.
START = "forkserver" if sys.platform == "linux" else "spawn"
SHARED_IMPORTS = ("bench.harness.worker", "torch._dynamo")


class PeerProcess:
    """A peer in a process of its own, started when first asked and again after it died.

    Args:
        name: In tables.
        where: The peer, as `module:attribute`.
        source: Checkout whose flatvars is measured, if not this one.
    """

    def __init__(self, name: str, where: str, device: str, source: str | None = None) -> None:
        self.name, self.where, self.device, self.source = name, where, device, source
        self.version = ""
        self.broken: Refused | None = None  # it does not even start
        self._process: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="flatvars-bench-")
        self.log = Path(self._folder.name) / "log"

    def ask(self, method: str, *arguments: object, seconds: float) -> Any:
        """Calls a method of the peer's `Bench`; a crash, an error or a time-out comes back as `Refused`."""
        if self.broken is not None:
            return self.broken
        self.start()
        if not self.version:
            answer = self._receive("start", START_SECONDS)
            if isinstance(answer, Refused):
                self.broken = answer
                return answer
            self.version = answer
        try:
            self._connection.send((method, arguments))
        except OSError:
            return self._died(method)
        return self._receive(method, seconds)

    def why_not(self, cell: Cell) -> str | None:
        """Why the peer has no way to run a cell, as far as its description says: no process is started for that."""
        # A description imports nothing of its peer, but ours imports flatvars, and not that of another checkout.
        return None if self.source is not None else load(self.where).why_not(cell, self.device)

    def start(self) -> None:
        """Starts the process without waiting for it."""
        if self._process is not None:
            return
        context: Any = multiprocessing.get_context(START)
        if START == "forkserver":
            context.set_forkserver_preload(list(SHARED_IMPORTS))
        self._connection, theirs = context.Pipe()
        arguments = (self.where, self.device, theirs, str(self.log), self.source)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def _receive(self, method: str, seconds: float) -> Any:
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
        except (EOFError, OSError):
            return self._died(method)
        self.stop(kill=True)
        return Refused("failed", f"{method} took more than {seconds:.0f} s")

    def _died(self, method: str) -> Refused:
        self._process.join(10)
        code = self._process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
        self.stop(kill=True)
        return Refused("failed", f"its process ended in {method} ({how}): {self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1][:160] if lines else "it printed nothing"

    def stop(self, kill: bool = False) -> None:
        """Ends the process; the next question starts another."""
        if self._process is None:
            return
        try:
            if not kill:
                self._connection.send(None)
        except OSError:
            kill = True
        if kill:
            self._process.kill()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()
        self._process, self.version = None, ""

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()
