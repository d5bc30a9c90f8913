"""Arrays of PyTorch, on a GPU; on the processor only to be tried where there is no GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psutil

from indexd.ann.gpu.arrays import DeviceFullError, DeviceLostError, DeviceMemory, Dtype

FULL: Final = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "cudaMalloc", "bad_alloc")
"""What a message says where memory is short, of PyTorch, faiss and cuVS."""


class TorchArrays:
    """See `Arrays`.

    Args:
        torch: the module, which is large and imported only where a device is asked for.
        number: of the GPU; None: the processor.
    """

    def __init__(self, torch: Any, number: int | None) -> None:
        self._torch = torch
        self._number = number
        self._device = torch.device("cpu" if number is None else f"cuda:{number}")
        # Whole numbers below 128 are exact in TF32, and so are their sums below 2**24.
        torch.backends.cuda.matmul.allow_tf32 = True

    @property
    def name(self) -> str:
        """See `Arrays`."""
        return "cpu" if self._number is None else f"gpu:{self._number}"

    @property
    def title(self) -> str:
        """See `Arrays`."""
        if self._number is None:
            return "processor"
        title: str = self._torch.cuda.get_device_name(self._number)
        return title

    def use(self) -> None:
        """See `Arrays`."""
        if self._number is not None:
            self._torch.cuda.set_device(self._number)

    def memory(self) -> DeviceMemory:
        """See `Arrays`."""
        if self._number is None:
            memory = psutil.virtual_memory()
            return DeviceMemory(memory.available, memory.total)
        free, total = self._torch.cuda.mem_get_info(self._number)
        # What PyTorch keeps for later counts as free: it is given out first.
        held = self._torch.cuda.memory_reserved(self._number)
        used = self._torch.cuda.memory_allocated(self._number)
        return DeviceMemory(free + held - used, total)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """See `Arrays`."""
        try:
            yield
        # All three libraries raise RuntimeError or what is derived from it.
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or any(word in str(error) for word in FULL):
                if self._number is not None:
                    self._torch.cuda.empty_cache()
                raise DeviceFullError(str(error)) from error
            raise DeviceLostError(str(error)) from error

    def zeros(self, shape: tuple[int, ...], dtype: Dtype) -> Any:
        """See `Arrays`."""
        return self._torch.zeros(shape, dtype=getattr(self._torch, dtype), device=self._device)

    def normal(self, shape: tuple[int, ...], seed: int) -> Any:
        """See `Arrays`."""
        generator = self._torch.Generator(device=self._device)
        generator.manual_seed(seed)
        return self._torch.randn(shape, generator=generator, device=self._device)

    def put(self, array: npt.NDArray[Any]) -> Any:
        """See `Arrays`."""
        # PyTorch wants arrays that may be written to and whose strides are not negative.
        ready = np.require(array, requirements=["C", "W"])
        return self._torch.from_numpy(ready).to(self._device, copy=True)

    def get(self, array: Any) -> npt.NDArray[Any]:
        """See `Arrays`."""
        copied: npt.NDArray[Any] = array.cpu().numpy()
        return copied

    def widen(self, array: Any, dtype: Dtype) -> Any:
        """See `Arrays`."""
        return array.to(getattr(self._torch, dtype))

    def take(self, array: Any, rows: Any) -> Any:
        """See `Arrays`."""
        return array.index_select(0, rows)

    def root(self, array: Any) -> Any:
        """See `Arrays`."""
        return array.sqrt()

    def top(self, values: Any, count: int) -> tuple[Any, Any]:
        """See `Arrays`."""
        found = self._torch.topk(values, min(count, values.shape[1]), dim=1, sorted=False)
        return found.values, found.indices

    def pick(self, array: Any, places: Any) -> Any:
        """See `Arrays`."""
        return self._torch.gather(array, 1, places)

    def joined(self, arrays: list[Any]) -> Any:
        """See `Arrays`."""
        return self._torch.cat(arrays, dim=1)
