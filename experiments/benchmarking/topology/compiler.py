"""Compiles jobs in a worker process, so that the environment and the JAX of this process stay unchanged."""

import os
import re
import subprocess
import sys
import tempfile
from typing import Any

import msgspec

from ... import _commands
from ...compiled import targets
from ...records.benchmarks.topology import Figures
from .messages import Answer, Job, asked


class Compiler:
    """A worker process that compiles for one target, to be used as a context manager.

    If a compilation ends the worker process, its job fails, and the next job gets a new process.
    """

    def __init__(self, target: targets.Target):
        """Opens the log of the worker process; the first job starts the process.

        Args:
          target: the devices to compile for. If their compiler is not installed, every job returns a text that tells
            how to install it.
        """
        self._target = target
        self._missing = targets.missing(target)
        self._process: Any = None  # A subprocess.Popen; not typed, because a type checker takes its pipes for None.
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()
        self._log.close()

    def figures(self, job: Job) -> Figures | str:
        """Returns the figures of a job's program, or a text that tells why there are none."""
        if self._missing:
            return f"not compiled: {self._missing}"
        answer = self._ask(asked(job))
        return answer.figures or f"not compiled: {_first_sentence(answer.error)}"

    def _ask(self, line: str) -> Answer:
        process = self._process = self._process or self._start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return msgspec.json.decode(answer, type=Answer)
        self._end()
        self._log.seek(0)
        last = [text for text in self._log.read().splitlines() if text.strip()][-1:]
        return Answer(error=f"its process ended with exit status {process.returncode} {' '.join(last)}".rstrip())

    def _start(self) -> Any:
        return subprocess.Popen(
            [sys.executable, "-m", _commands.module("benchmarking.topology.worker")],
            env={**os.environ, **self._target.environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def _end(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
        self._process = None


def _first_sentence(error: str) -> str:
    """Returns an error's first line, without the trace that a compiler appends."""
    return re.split(r"\n|\s+Largest program allocations", error.strip())[0][:300]
