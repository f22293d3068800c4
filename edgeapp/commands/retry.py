"""`edgeapp retry`: put failed inputs back, to be tried again."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress

from edgeapp import errors, paths
from edgeapp.log import Talk
from edgeapp.service.durable import rename_new, sync_folder
from edgeapp.service.spool import ERROR_SUFFIX, Spool, free_name, stamp_of
from edgeapp.settings import Settings


def retry(names: Sequence[str], settings: Settings, talk: Talk) -> int:
    """Move inputs from failed/ into the watched folder; their reports go.

    Args:
        names: in failed/; empty for all.

    Returns:
        0, or 1 when some could not be moved.

    Raises:
        EdgeappError: there is no such spool, or none of the names could be moved.
    """
    root = settings.spool or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if not root:
        raise errors.UsageError("no --spool given", "", "edgeapp retry --spool /var/lib/edgeapp")
    spool = Spool.at(root, settings.watch)
    try:
        found = os.listdir(spool.failed)
    except OSError as error:
        raise paths.refusal(f"cannot look into {paths.printable(spool.failed)}", error) from error
    wrong: list[errors.EdgeappError] = []
    reported = sorted(name for name in found if name + ERROR_SUFFIX in found)
    reports = {name + ERROR_SUFFIX for name in reported}
    wanted = [name for name in map(os.path.basename, names) if name not in reports] if names else reported
    for name in wanted:
        try:
            if name not in found:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            _put_back(spool, name)
        except OSError as error:
            wrong.append(paths.refusal(f"cannot put back {paths.printable(name)}", error))
            talk.error(wrong[-1])
    for folder in (spool.watched, spool.failed):
        with suppress(OSError):
            sync_folder(folder)
    talk.note(f"edgeapp: {len(wanted) - len(wrong)} put back into {paths.printable(spool.watched)}")
    if not wrong:
        return 0
    return 1 if len(wrong) < len(wanted) else wrong[0].exit_code


def _put_back(spool: Spool, name: str) -> None:
    path = os.path.join(spool.failed, name)
    target = free_name(spool.watched, name, stamp_of(os.lstat(path)))
    rename_new(path, spool.input(target))
    with suppress(FileNotFoundError):
        os.unlink(path + ERROR_SUFFIX)
