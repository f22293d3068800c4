"""The Engine protocol on ONNX Runtime's CPU provider."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from edgeapp import errors, paths
from edgeapp.records import Tensors, TensorSpec
from edgeapp.tensors import check_names, check_shape, convert

HOST_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in ("float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64",
                 "uint64", "bool")
}  # fmt: skip
EXTERNAL_FOLDER, NO_FOLDER = "session.model_external_initializers_file_folder_path", "/dev/null/no-folder"
ORT_NAMES = {"float": "float32", "double": "float64"}


class CpuEngine:
    """An ONNX model, ready to run.

    Args:
        path: an .onnx file.
        data: what is run in place of the file's contents: bytes that were checked. Weights outside of them, in
            another file, are refused; with the file itself they are read from beside it.
        threads: of one inference; 0 for one on each core.

    Raises:
        DataError: ONNX Runtime cannot load it.
        SystemRefusedError: there is not enough memory.

    Attributes:
        inputs, outputs: the model's tensors.
        metadata: texts that the exporter put into the file.
    """

    def __init__(self, path: str, data: bytes | None = None, *, threads: int = 0) -> None:
        # Since 1.31 ONNX Runtime for Linux writes a session file into TMPDIR and reports to its maker.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import onnxruntime as ort  # late: 0.1 s, and only CPU runs need it
        except ModuleNotFoundError as error:
            raise errors.DataError(
                f"cannot run {paths.printable(path)}: this program carries no ONNX Runtime",
                "it was frozen with --slim, for plans only",
                "use the full edgeapp, or build a TensorRT plan of it",
            ) from error

        options = ort.SessionOptions()
        options.log_severity_level = 4  # its exceptions say the same again
        options.intra_op_num_threads = threads
        # Its threads would wait by turning, on the cores that decode (measured on two: 200 photos through a tiny model
        # take 0.36 s instead of 0.52 s; through the demo's about as long, with a fifth less CPU time).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if data is not None:
            # Else weights would be taken from whatever lies in the working directory (measured with 1.23 and 1.31).
            # 1.23, for Python 3.10 only, still follows absolute paths that the checked model itself names.
            options.add_session_config_entry(EXTERNAL_FOLDER, NO_FOLDER)
        try:
            self._session = ort.InferenceSession(
                path if data is None else data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception types share no base class
            if (why := errors.starved(error)) is not None:
                raise errors.SystemRefusedError(
                    f"cannot run {paths.printable(path)}: not enough memory", why, "free some, or raise the limit"
                ) from error
            if type(error).__module__.startswith("onnxruntime") or isinstance(error, RuntimeError | ValueError):
                if NO_FOLDER in str(error):
                    raise errors.DataError(
                        f"cannot run {paths.printable(path)}: its weights lie in another file",
                        "neither the signature nor the SHA-256 of the model covers them",
                        "save the model with its weights inside, as one file",
                    ) from error
                raise errors.DataError(
                    f"cannot run {paths.printable(path)}: ONNX Runtime {ort.__version__} refuses it",
                    _first_line(error),
                    "check the model, e.g. with onnx.checker, or export it again",
                ) from error
            raise
        self.inputs = tuple(self._spec(arg, is_input=True) for arg in self._session.get_inputs())
        self.outputs = tuple(self._spec(arg, is_input=False) for arg in self._session.get_outputs())
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.name = f"ONNX Runtime {ort.__version__} on the CPU"

    @staticmethod
    def _spec(arg: Any, *, is_input: bool) -> TensorSpec:
        dtype = arg.type.removeprefix("tensor(").removesuffix(")")
        shape = tuple(n if isinstance(n, int) and n >= 0 else -1 for n in arg.shape or ())
        return TensorSpec(arg.name, shape, ORT_NAMES.get(dtype, dtype), is_input)

    def infer(self, tensors: Tensors) -> Tensors:
        """Run the model once; several threads may do so at a time.

        Args:
            tensors: an array for every input.

        Returns:
            an array for every output; they belong to the caller.

        Raises:
            DataError: names, shapes or dtypes do not fit, or the model fails on these values.
        """
        check_names(tensors, self.inputs)
        feed = {}
        for spec in self.inputs:
            if spec.dtype not in HOST_DTYPES:
                raise errors.DataError(f"input tensor {spec}: this dtype cannot be fed on the CPU")
            check_shape(tensors[spec.name], spec)
            feed[spec.name] = convert(tensors[spec.name], spec, HOST_DTYPES)
        try:
            arrays = self._session.run(None, feed)
        except Exception as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feed.items())
            raise errors.DataError(
                f"the model failed on {shapes}",
                _first_line(error),
                "check that the model takes these shapes and values",
            ) from error
        return dict(zip((spec.name for spec in self.outputs), map(np.asarray, arrays), strict=True))

    def enter(self) -> None:
        """Nothing: ONNX Runtime works on any thread."""

    def leave(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Free the session."""
        del self._session


def _first_line(error: Exception) -> str:
    """What ONNX Runtime says, in one line of bearable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
