"""The memory that a step's results are written to."""

from __future__ import annotations

from cupola.runtime.artifact.tensors import TensorSpec
from cupola.runtime.device.tvm_executor import ALIGNMENT, SPARE_BYTES, _Results, load_runtime


def test_results_have_the_rows_of_the_step_and_large_memory_goes_back() -> None:
    load_runtime()
    specs = [("logits", "float32", ("r", 1000)), ("maxima", "float32", ("r", 16)), ("argmax", "int32", (8, "r"))]
    results, most = _Results([TensorSpec(*spec) for spec in specs]), SPARE_BYTES // 4000
    memory = []
    for num_rows in (0, 3, 3, 0, 2, 2 * most, 1, 0):  # a chunk of a prompt wants none
        tensors = results.hold(num_rows)
        arrays = results.logits.values, results.logits.maxima, results.logits.argmax
        shapes = [(num_rows, 1000), (num_rows, 16), (8, num_rows)]
        assert [array.shape for array in arrays] == [tuple(tensor.shape) for tensor in tensors] == shapes
        assert [str(array.dtype) for array in arrays] == [str(tensor.dtype) for tensor in tensors] == [spec[1] for spec in specs]
        for array, tensor in zip(arrays, tensors, strict=True):
            assert num_rows == 0 or array.ctypes.data == tensor.data_ptr()
        memory.append(results.logits.values.base.nbytes - ALIGNMENT)
    assert memory[:5] == [4000, *[12000] * 4] and memory[5] > SPARE_BYTES and memory[6] == memory[7] == 4000
