"""Where results go."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import PurePath
from typing import Protocol

from edgeapp import errors, paths
from edgeapp.records import Result
from edgeapp.sinks.csv_file import CsvSink
from edgeapp.sinks.jsonl import JsonlSink
from edgeapp.sinks.npz import NpzSink


class Sink(Protocol):
    """Takes results one by one."""

    def write(self, result: Result) -> None: ...


def open_sinks(outputs: tuple[str, ...], save: str | None, *, many_inputs: bool, stack: ExitStack) -> list[Sink]:
    """Open what --output and --save name; the stack closes it.

    Args:
        outputs: "-" or FILE.jsonl, .csv, .npz; none means JSON Lines on standard output.
        save: folder for annotated pictures.
        many_inputs: whether keys of .npz files need the input's name.

    Raises:
        UsageError: an unknown ending. CannotWriteError, NotPermittedError: it cannot be created.
    """
    sinks: list[Sink] = []
    for output in outputs:
        if outputs.count(output) > 1:
            raise errors.UsageError(f"--output {paths.printable(output)} is given twice", "", "give it once")
    for output in outputs or ("-",):
        suffix = PurePath(output).suffix.lower()
        if output == "-":
            if sys.stdout is None:
                raise errors.InputOutputError("cannot write results: standard output is closed")
            sinks.append(stack.enter_context(JsonlSink(None)))
        elif suffix in (".jsonl", ".json", ".ndjson"):
            sinks.append(stack.enter_context(JsonlSink(output)))
        elif suffix == ".csv":
            sinks.append(stack.enter_context(CsvSink(output)))
        elif suffix == ".npz":
            sinks.append(stack.enter_context(NpzSink(output, many_inputs=many_inputs)))
        else:
            raise errors.UsageError(
                f"--output {paths.printable(output)}: unknown ending {suffix!r}",
                "",
                "use .jsonl, .csv or .npz",
            )
    if save is not None:
        from edgeapp.sinks.pictures import PictureSink  # late: what draws takes time to load

        sinks.append(PictureSink(save))
    return sinks
