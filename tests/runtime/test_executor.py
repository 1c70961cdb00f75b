"""The memory that a step's results are written to."""

from __future__ import annotations

from cupola.runtime.executor import ALIGNMENT, SPARE_BYTES, _Results, load_runtime


def test_results_have_the_rows_of_the_step_and_large_memory_goes_back() -> None:
    load_runtime()
    results, most = _Results([1000, 16]), SPARE_BYTES // 4000
    memory = []
    for num_rows in (0, 3, 3, 0, 2, 2 * most, 1, 0):  # a chunk of a prompt wants none
        tensors = results.hold(num_rows)
        arrays = results.logits.values, results.logits.maxima
        assert [array.shape for array in arrays] == [tuple(tensor.shape) for tensor in tensors] == [(num_rows, 1000), (num_rows, 16)]
        for array, tensor in zip(arrays, tensors, strict=True):
            assert num_rows == 0 or array.ctypes.data == tensor.data_ptr()
        memory.append(results.logits.values.base.nbytes - ALIGNMENT)
    assert memory[:5] == [4000, *[12000] * 4] and memory[5] > SPARE_BYTES and memory[6] == memory[7] == 4000
