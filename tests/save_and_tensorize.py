"""Saves a module and tensorizes a loop; both segfault under apache-tvm-ffi 0.1.15.post1 and later (in ToJSONGraph)."""

import tvm
from tvm import s_tir
from tvm.script import tirx as T


@T.prim_func(s_tir=True)
def add_one(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32")):
    for i in range(64):
        with T.sblock("add"):
            v = T.axis.spatial(64, i)
            b[v] = a[v] + T.float32(1)


@T.prim_func(s_tir=True)
def described(a: T.Buffer((16,), "float32", offset_factor=1), b: T.Buffer((16,), "float32", offset_factor=1)):
    with T.sblock("root"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        for i in range(16):
            with T.sblock("add"):
                v = T.axis.spatial(16, i)
                b[v] = a[v] + T.float32(1)


@T.prim_func(s_tir=True)
def implemented(a: T.Buffer((16,), "float32", offset_factor=1), b: T.Buffer((16,), "float32", offset_factor=1)):
    with T.sblock("root"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        b[T.Ramp(0, 1, 16)] = a[T.Ramp(0, 1, 16)] + T.Broadcast(T.float32(1), 16)


tvm.ir.assert_structural_equal(tvm.ir.load_json(tvm.ir.save_json(add_one)), add_one)
s_tir.TensorIntrin.register("add_one_16", described, implemented)
schedule = s_tir.Schedule(tvm.IRModule({"main": add_one}))
(loop,) = schedule.get_loops(schedule.get_sblock("add"))
_, inner = schedule.split(loop, [None, 16])
schedule.tensorize(inner, "add_one_16")
assert "T.Broadcast" in schedule.mod.script()
print("both work")
