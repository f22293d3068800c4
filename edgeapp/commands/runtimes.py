"""`edgeapp runtimes`: the TensorRT libraries inside this program and on this machine, and the plans that each runs."""

from __future__ import annotations

import json

from edgeapp import paths
from edgeapp.gpu import runtimes as table
from edgeapp.log import tell


def runtimes(as_json: bool, library: str | None) -> int:
    """Print a line for each runtime; needs neither GPU nor driver.

    JSON Lines have the keys name, plans (oldest, newest), lean, origin (bundled, system, given) and libraries.

    Raises:
        EdgeappError: --tensorrt-library cannot be used.
    """
    found = [*table.catalogue(), *table.of_this_machine()]
    if library:
        found.append(table.given(library))
    lines = []
    for runtime in found:
        files = [paths.text(table.file_of(file)) for file in runtime.files]
        if as_json:
            plans = {"oldest": table.text(runtime.oldest), "newest": table.text(runtime.newest)}
            facts = {"name": runtime.name, "plans": plans, "lean": runtime.lean, "origin": runtime.origin,
                     "libraries": files}  # fmt: skip
            lines.append(json.dumps(facts) + "\n")
        else:
            condition = ", built version compatible" if runtime.lean else ""
            lines.append(f"{runtime.name:20s} plans of {runtime.plans}{condition}\n")
            lines += [f"    {paths.printable(file)}\n" for file in files]
    tell(lines or ["this program carries no TensorRT\n"])
    return 0
