"""Copy in -> enqueue -> copy out: the Engine protocol on TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pycuda.driver as cuda
from numpy.typing import NDArray

from edgeapp import errors
from edgeapp.gpu import faults
from edgeapp.gpu.buffers import Buffer
from edgeapp.gpu.driver import Driver
from edgeapp.gpu.engine import create_context, describe, tensor_specs
from edgeapp.records import Shape, Tensors, TensorSpec, nbytes
from edgeapp.tensors import bfloat16_values, check_names, check_shape, convert

HOST_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),  # NumPy has none: the bits; converted at the border
    "float8": np.dtype(np.uint8),  # NumPy has none: the bits, as the caller gives them
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}


class GpuEngine:
    """A TensorRT engine with its buffers on one stream.

    Needs the CUDA context current on the calling thread, from `__init__` to `close`; other threads `enter` first.

    Args:
        trt: TensorRT's Python module.
        engine, context: ICudaEngine and an IExecutionContext of its own.
        log: the logger of their runtime.
        cuda_context: PyCUDA's object of the context.
        name: for messages, "TensorRT lean 8.6.0 on NVIDIA H200".
        free_bytes: what was free on the GPU before TensorRT was loaded.
        guest: the engine belongs to a runtime of an older major version inside the bindings'.

    Attributes:
        inputs, outputs: the engine's I/O tensors.
        bound: the key of the last `bind`, None when something else was run or asked for since.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        context: Any,
        log: Any,
        driver: Driver,
        *,
        cuda_context: Any,
        name: str,
        guest: bool,
        free_bytes: int,
    ) -> None:
        self.name = name
        self._free_bytes = free_bytes
        self._guest = guest
        self._trt = trt
        self._engine = engine
        self._context = context
        self._contexts = {0: context}
        self._cuda_context = cuda_context
        self._log = log
        self.driver = driver
        self._stream: Any = cuda.Stream()
        self._profile = 0
        specs = tensor_specs(trt, engine)
        self.inputs = tuple(spec for spec in specs if spec.is_input)
        self.outputs = tuple(spec for spec in specs if not spec.is_input)
        self._buffers = {spec.name: Buffer(spec.name, driver) for spec in specs}
        self._on_host = {spec.name for spec in specs if engine.is_shape_inference_io(spec.name)}
        self._allocators: dict[str, Any] = {}
        self._shapes: dict[str, Shape] = {}
        self._settled: dict[str, Shape | None] | None = None
        self.bound: object = None

    def another(self) -> GpuEngine:
        """The same engine with an execution context and buffers of its own; close it before this one."""
        return GpuEngine(
            self._trt, self._engine, create_context(self._engine, self._log), self._log, self.driver,
            cuda_context=self._cuda_context, name=self.name, guest=self._guest, free_bytes=self._free_bytes,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What the engine tells of itself, see engine.describe, and the bytes that are used on the GPU since."""
        used = self._free_bytes - cuda.mem_get_info()[0]
        return {**describe(self._trt, self._engine, guest=self._guest), "device_used_bytes": used}

    def infer(self, tensors: Tensors, *, views: bool = False) -> Tensors:
        """Run the engine once and wait for it.

        Args:
            tensors: an array for every input. A bfloat16 input takes floats, a float8 input its
                bits as uint8.
            views: give the page-locked buffers themselves, without a copy; the next run
                overwrites them, `close` frees them.

        Returns:
            an array for every output; bfloat16 comes as float32, float8 as its bits.

        Raises:
            DataError: names, shapes or dtypes do not fit the engine.
            GpuLostError: the CUDA context is broken; the process has to end.
        """
        check_names(tensors, self.inputs)
        arrays: Tensors = {}
        for spec in self.inputs:
            check_shape(tensors[spec.name], spec)
            arrays[spec.name] = convert(tensors[spec.name], spec, HOST_DTYPES)
        try:
            if (
                self._settled is None
                or self._on_host
                or any(self._shapes[n] != array.shape for n, array in arrays.items())
            ):
                self._settled, self.bound = None, None
                self._use_profile(self._fitting_profile(arrays))
                self._set_inputs(arrays)
                self._settled = self._set_outputs()
            assert self._settled is not None
            shapes = dict(self._settled)
            for name, array in arrays.items():
                self._fill(name, array)
            self._log.errors.clear()
            if not self._context.execute_async_v3(self._stream.handle):
                raise self._failed("execute_async_v3")
            for name, shape in shapes.items():
                if shape is not None and name not in self._on_host:
                    self._buffers[name].download(self._size(name, shape), self._stream)
            self._stream.synchronize()
            self._fetch_late(shapes)
        except cuda.Error as error:
            raise faults.from_cuda(error, self.driver.context_code(), "running the engine") from error
        return {spec.name: self._result(spec, shapes[spec.name], views=views) for spec in self.outputs}

    def enter(self) -> None:
        """Make the CUDA context current on this thread, for PyCUDA too."""
        self._cuda_context.push()

    def leave(self) -> None:
        self._cuda_context.pop()

    def output_shapes(self, shape: Shape) -> dict[str, Shape]:
        """The shapes of the outputs when the only input has this one.

        Raises:
            DataError: no profile takes it, or a shape depends on the values of the input.
        """
        (spec,) = self.inputs
        self._settled, self.bound = None, None
        self._use_profile(self._fitting_profile({spec.name: np.empty(shape, HOST_DTYPES[spec.dtype])}))
        if not self._context.set_input_shape(spec.name, shape):
            raise self._failed(f"set_input_shape({spec.name}, {shape})")
        shapes = {out.name: tuple(self._context.get_tensor_shape(out.name)) for out in self.outputs}
        if open_ended := [name for name, found in shapes.items() if -1 in found]:
            raise errors.DataError(f"the shape of {', '.join(open_ended)} depends on the values of the input")
        return shapes

    def bind(self, addresses: Mapping[str, int], key: object) -> None:
        """Have the next `enqueue` read and write these device addresses, one for each I/O tensor.

        Args:
            key: what `bound` is from now on.
        """
        self._settled, self.bound = None, key
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._failed(f"set_tensor_address({name})")

    def enqueue(self, stream: int) -> None:
        """Put one run with what was bound on a stream, given by its handle; wait for nothing."""
        if not self._context.execute_async_v3(stream):
            raise self._failed("execute_async_v3")

    @property
    def pictures_only(self) -> bool:
        """Whether the engine has one input of four dimensions, and no tensor that TensorRT wants on the host."""
        return len(self.inputs) == 1 and len(self.inputs[0].shape) == 4 and not self._on_host

    def _fitting_profile(self, arrays: Tensors) -> int:
        """The first profile that takes these shapes, the current one first.

        Raises:
            DataError: no profile does; all of them are named.
        """
        count = self._engine.num_optimization_profiles
        for p in sorted(range(count), key=lambda p: p != self._profile):
            if all(_within(arrays[s.name].shape, s.profiles[p]) for s in self.inputs if s.profiles):
                return p
        shapes = ", ".join(f"{s.name} {arrays[s.name].shape}" for s in self.inputs if s.profiles)
        allowed = "; ".join(
            f"profile {p}: "
            + ", ".join(f"{s.name} {s.profiles[p][0]} to {s.profiles[p][2]}" for s in self.inputs if s.profiles)
            for p in range(count)
        )
        raise errors.DataError(
            f"no optimisation profile takes {shapes}",
            f"the plan was built for {allowed}",
            "use such shapes, or rebuild the plan with trtexec --minShapes, --optShapes, --maxShapes",
        )

    def _use_profile(self, profile: int) -> None:
        """Each profile has an execution context of its own: what was recorded with one stays as it is."""
        if profile == self._profile:
            return
        if profile not in self._contexts:
            self._contexts[profile] = self._make_context(profile)
        self._context, self._profile = self._contexts[profile], profile
        self._shapes.clear()

    def _make_context(self, profile: int) -> Any:
        try:
            context = create_context(self._engine, self._log)
        except errors.SystemRefusedError:  # no memory for another one
            context = self._contexts.pop(self._profile)
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise self._failed(f"set_optimization_profile_async({profile})")
        self._stream.synchronize()
        return context

    def _fill(self, name: str, array: NDArray[Any]) -> None:
        """Put the values of one input where TensorRT reads them: shape tensors on the host."""
        if name in self._on_host:
            np.copyto(self._buffers[name].host(array.shape, array.dtype), array)
        else:
            self._buffers[name].upload(array, self._stream)

    def _set_inputs(self, arrays: Tensors) -> None:
        """Give every input its shape and its address."""
        for name, array in arrays.items():
            buffer = self._buffers[name]
            buffer.reserve(array.nbytes)
            if name in self._on_host:
                self._fill(name, array)  # the shapes that follow depend on the values
            address = buffer.host_address if name in self._on_host else buffer.address
            if not self._context.set_input_shape(name, array.shape):
                raise self._failed(f"set_input_shape({name}, {array.shape})")
            self._shapes[name] = array.shape
            if not self._context.set_tensor_address(name, address):
                raise self._failed(f"set_tensor_address({name})")
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            why, *_ = faults.explain_log([*self._log.errors] or [str(error)])
            raise errors.DataError(f"the input shapes do not fit each other: {shapes}", why) from error
        if missing:
            raise errors.DataError(f"the engine still misses the shapes or values of {', '.join(missing)}")

    def _set_outputs(self) -> dict[str, Shape | None]:
        """Give every output an address; returns its shape, None where only the run tells it."""
        shapes: dict[str, Shape | None] = {}
        for spec in self.outputs:
            shape = tuple(self._context.get_tensor_shape(spec.name))
            buffer = self._buffers[spec.name]
            if -1 in shape:
                if self._guest:
                    # Measured: an IOutputAllocator of the 10.16 bindings crashes a lean 8.6 engine.
                    raise errors.DataError(
                        f"output tensor {spec.name}: its shape depends on the values of the inputs",
                        "the runtime of TensorRT 8.6 inside this program cannot give such outputs",
                        "rebuild the plan with TensorRT 10, or freeze edgeapp with --tensorrt full",
                    )
                if spec.name not in self._allocators:
                    self._allocators[spec.name] = _make_allocator(self._trt, buffer)
                if not self._context.set_output_allocator(spec.name, self._allocators[spec.name]):
                    raise self._failed(f"set_output_allocator({spec.name})")
                shapes[spec.name] = None
                continue
            buffer.reserve(self._size(spec.name, shape))
            address = buffer.host_address if spec.name in self._on_host else buffer.address
            if not self._context.set_tensor_address(spec.name, address):
                raise self._failed(f"set_tensor_address({spec.name})")
            shapes[spec.name] = shape
        return shapes

    def _fetch_late(self, shapes: dict[str, Shape | None]) -> None:
        """Copy out the outputs whose shape the run decided."""
        late = [name for name, shape in shapes.items() if shape is None]
        for name in late:
            shape = shapes[name] = self._allocators[name].shape
            size = self._size(name, shape)
            self._buffers[name].reserve_host(size)
            self._buffers[name].download(size, self._stream)
        if late:
            self._stream.synchronize()

    def _size(self, name: str, shape: Shape) -> int:
        spec = next(s for s in (*self.inputs, *self.outputs) if s.name == name)
        return nbytes(shape, HOST_DTYPES[spec.dtype])

    def _result(self, spec: TensorSpec, shape: Shape | None, *, views: bool) -> NDArray[Any]:
        assert shape is not None
        array = self._buffers[spec.name].host(shape, HOST_DTYPES[spec.dtype])
        if spec.dtype == "bfloat16":
            return bfloat16_values(array)
        return array if views else array.copy()

    def _failed(self, call: str) -> errors.EdgeappError:
        for allocator in self._allocators.values():
            if allocator.error is not None:
                refused: errors.EdgeappError = allocator.error
                allocator.error = None
                return refused
        code = self.driver.context_code()
        if code != 0:
            return faults.from_cuda(RuntimeError(f"{call} failed"), code, "running the engine")
        return faults.refused(f"TensorRT refused {call}", list(self._log.errors), self.driver.memory())

    def close(self) -> None:
        """Wait for the stream and free the buffers; the TensorRT objects are the caller's."""
        try:
            if self._stream is not None:
                self._stream.synchronize()
        finally:
            self._stream = None
            self._allocators.clear()
            for buffer in self._buffers.values():
                buffer.free()
            self._contexts.clear()
            self._context = self._engine = self._cuda_context = None


def _within(shape: Shape, profile: tuple[Shape, Shape, Shape]) -> bool:
    low, _, high = profile
    return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))


def _make_allocator(trt: Any, buffer: Buffer) -> Any:
    """An IOutputAllocator that grows a buffer; `.shape` is the shape of the last run."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: Shape = ()
            self.error: errors.EdgeappError | None = None

        def reallocate_output(self, _name: str, _memory: int, size: int, _alignment: int) -> int:
            try:
                buffer.reserve_device(size)
            except errors.EdgeappError as error:  # none may cross TensorRT's C++ code
                self.error = error
                return 0
            return buffer.address

        def reallocate_output_async(self, name: str, memory: int, size: int, alignment: int, _stream: int) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def notify_shape(self, _name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()
