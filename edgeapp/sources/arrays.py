"""Tensors of .npy and .npz files."""

from __future__ import annotations

import os
import zipfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgeapp import errors, literals, paths
from edgeapp.records import Tensors, nbytes
from edgeapp.sources.regular import Opened, open_regular

MOST_TENSOR_BYTES = 2 << 30


def read_tensors(path: str, opened: Opened | None = None) -> Tensors:
    """Arrays of a .npz file by name, or of a .npy file under the name "".

    Raises:
        EdgeappError: it cannot be opened, is damaged, holds objects or claims too many bytes.
    """
    what = f"cannot read {paths.printable(path)}"
    fix = "write it with numpy.save or numpy.savez"
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if opened is not None:
                opened(file, size)
            if size == 0:
                raise ValueError("it is empty")
            if path.lower().endswith(".npy"):
                return {"": _read_array(file, size)}
            tensors: Tensors = {}
            with zipfile.ZipFile(file) as archive:
                total = sum(entry.file_size for entry in archive.infolist())
                if total > MOST_TENSOR_BYTES:
                    raise ValueError(f"it claims {total} bytes, the limit is {MOST_TENSOR_BYTES}")
                for entry in archive.infolist():
                    with archive.open(entry) as member:
                        tensors[entry.filename.removesuffix(".npy")] = _read_array(member, entry.file_size)
            if not tensors:
                raise ValueError("it holds no arrays")
            return tensors
        except OSError as error:
            if error.errno is not None:
                raise paths.refusal(what, error) from error
            raise errors.DataError(what, f"it is damaged: {error}", fix) from error
        except (
            ValueError,
            EOFError,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            SyntaxError,
        ) as error:
            raise errors.DataError(what, f"it is no NumPy file: {error}", fix) from error
        except Exception as error:
            if type(error).__module__ in ("zlib", "_lzma", "tokenize"):  # damaged inside
                raise errors.DataError(what, f"it is damaged: {error}", fix) from error
            raise


def _read_array(file: IO[bytes], size: int) -> NDArray[Any]:
    """One array in NumPy's format, checked by its header before memory is taken for it."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is unknown")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with literals.PARSING:
        shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, not numbers")
    wanted = nbytes(shape, dtype)
    if wanted > size:
        raise ValueError(f"its header claims {wanted} bytes, it has {size}")
    data = file.read(wanted)
    if len(data) < wanted:
        raise ValueError(f"{len(data)} of {wanted} bytes are there")
    array = np.frombuffer(bytearray(data), dtype)
    return array.reshape(shape, order="F" if fortran else "C")
