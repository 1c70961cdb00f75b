from __future__ import annotations

from tvm.script import relax as R
from tvm.script import tirx as T

from cupola.passes.share_tensors import share_tensors
from tests.passes.harness import becomes, stays


def test_the_same_tensor_is_made_once() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32")):
        n = T.int64()
        R.func_attr({"relax.force_pure": True})
        s = R.memory.alloc_storage(R.shape([32 * n]), 0, "global", "float32")
        a = R.memory.alloc_tensor(s, 0, R.shape([n, 8]), "float32")
        y = a
        z = R.reshape(y, R.shape([n, 4, 2]))
        b = R.memory.alloc_tensor(s, 0, R.shape([n, 8]), "float32")
        c = R.reshape(b, R.shape([n, 4, 2]))
        return (x, y, z, b, c)

    @R.function
    def expected(x: R.Tensor(("n", 8), "float32")):
        n = T.int64()
        R.func_attr({"relax.force_pure": True})
        s = R.memory.alloc_storage(R.shape([32 * n]), 0, "global", "float32")
        a = R.memory.alloc_tensor(s, 0, R.shape([n, 8]), "float32")
        z = R.reshape(a, R.shape([n, 4, 2]))
        return (x, a, z, a, z)

    becomes(share_tensors(), before, expected)


def test_other_storage_shape_or_type_is_another_tensor() -> None:
    @R.function
    def before(x: R.Tensor(("n", 8), "float32")):
        n = T.int64()
        R.func_attr({"relax.force_pure": True})
        s = R.memory.alloc_storage(R.shape([32 * n]), 0, "global", "float32")
        t = R.memory.alloc_storage(R.shape([32 * n]), 0, "global", "float32")
        a = R.memory.alloc_tensor(s, 0, R.shape([n, 8]), "float32")
        b = R.memory.alloc_tensor(t, 0, R.shape([n, 8]), "float32")
        c = R.memory.alloc_tensor(s, 0, R.shape([n, 2, 4]), "float32")
        d = R.memory.alloc_tensor(s, 0, R.shape([n, 8]), "int32")
        e = R.reshape(a, R.shape([8, n]))
        return (x, a, b, c, d, e)

    stays(share_tensors(), before)
