"""A team of threads for a whole step: they wait for parallel regions beside each other, and not for TVM's pool to start each one.

Every library carries the function `repeat_in_team(times, function, *arguments)`, which calls `function` so often in one region of the pool:
the first thread makes the calls, the others serve the regions that begin meanwhile on it. To begin one takes a write to a line of memory
that they all watch, where the pool's queue takes several, and to end it one for each of them. Regions that begin elsewhere go to the pool
as ever.

Written in LLVM's assembly, since TIR has neither atomic operations nor threads. The struct that TVM hands to regions and the type of
functions are those of `tvm/runtime/c_backend_api.h` and `tvm/ffi/c_api.h`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tvm

from cupola.runtime.artifact.manifest import REPEAT_IN_TEAM
from cupola.targets.cpu.isa import ISA

# How a core says that it waits for another one, and how often it does before it lets other programs run.
_WAIT = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()", 128),  # 140 cycles each
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)", 4096),
}


def team(isa: ISA, target: tvm.target.Target) -> tvm.runtime.Module:
    """The module to link into a library. TVM would only inline what a kernel imports, so it is one of its own."""
    declaration, wait, patience = _WAIT[isa.architecture]
    description = str(target).replace('"', r"\22")
    code = _TEAM.format(repeat_in_team=REPEAT_IN_TEAM, declaration=declaration, wait=wait, patience=patience, target=description)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "team.ll"
        file.write_text(code, encoding="utf-8")
        return tvm.runtime.load_module(str(file))


_TEAM = """
; Lines of 64 bytes, so that no two threads write to one. The first, which only the leader writes to: the number of the latest region,
; what to run there (null: the step is over), its data, and TVM's TVMParallelGroupEnv: the barriers' counters and the number of threads.
; Then one for each thread, the last region that it finished and what that returned; then one for each, its barriers' counter.
%Team = type {{ i64, ptr, ptr, ptr, i32, [28 x i8] }}
%Member = type {{ i64, i32, [52 x i8] }}
; Calls on their way: the team, once there is one, the function, its arguments and their number, where its result goes, what it returned,
; how often it is called.
%Call = type {{ ptr, ptr, ptr, i32, ptr, i32, i64 }}

@__TVMBackendParallelLaunch = weak global ptr null
@cupola_pool = internal global ptr null
@cupola_team = internal thread_local global ptr null
@cupola_error_kind = internal constant [13 x i8] c"RuntimeError\\00"
@cupola_error = internal constant [46 x i8] c"a thread failed in a kernel's parallel region\\00"

{declaration}
declare i32 @sched_yield()
declare i32 @TVMFFIFunctionCall(ptr, ptr, i32, ptr)
declare void @TVMFFIErrorSetRaisedFromCStr(ptr, ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; Returns once the number at %place is no longer %old.
define internal i64 @cupola_await(ptr %place, i64 %old) nounwind {{
start:
  br label %look
look:
  %count = phi i64 [ 0, %start ], [ %more, %wait ], [ %more, %yield ]
  %now = load atomic i64, ptr %place acquire, align 8
  %more = add i64 %count, 1
  %changed = icmp ne i64 %now, %old
  br i1 %changed, label %done, label %patience
patience:
  %patient = icmp ult i64 %count, {patience}
  br i1 %patient, label %wait, label %yield
wait:
  {wait}
  br label %look
yield:
  %ignored = call i32 @sched_yield()
  br label %look
done:
  ret i64 %now
}}

; What kernels call for TVMBackendParallelLaunch. The number of tasks that they ask for is always 0: as many as there are threads.
define internal i32 @cupola_launch(ptr %function, ptr %data, i32 %num_tasks) {{
  %team = load ptr, ptr @cupola_team
  %alone = icmp eq ptr %team, null
  br i1 %alone, label %pool, label %begin
pool:
  %launch = load ptr, ptr @cupola_pool
  %pooled = call i32 %launch(ptr %function, ptr %data, i32 %num_tasks)
  ret i32 %pooled
begin:
  %code = call i32 @cupola_begin(ptr %team, ptr %function, ptr %data)
  ret i32 %code
}}

; Begins a region, does the leader's part (none of null), waits for the others. Their errors are said to have been: each thread has its own.
define internal i32 @cupola_begin(ptr %team, ptr %function, ptr %data) {{
  %function_at = getelementptr %Team, ptr %team, i64 0, i32 1
  %data_at = getelementptr %Team, ptr %team, i64 0, i32 2
  %env = getelementptr %Team, ptr %team, i64 0, i32 3
  %num_at = getelementptr %Team, ptr %team, i64 0, i32 4
  %old = load i64, ptr %team
  %region = add i64 %old, 1
  store ptr %function, ptr %function_at
  store ptr %data, ptr %data_at
  store atomic i64 %region, ptr %team release, align 8
  %over = icmp eq ptr %function, null
  br i1 %over, label %others, label %lead
lead:
  %own = call i32 %function(i32 0, ptr %env, ptr %data)
  br label %others
others:
  %first = phi i32 [ 0, %0 ], [ %own, %lead ]
  %num = load i32, ptr %num_at
  br label %next
next:
  %i = phi i32 [ 1, %others ], [ %line, %finish ]
  %codes = phi i32 [ %first, %others ], [ %all, %finish ]
  %more = icmp slt i32 %i, %num
  br i1 %more, label %wait, label %done
wait:
  %line = add i32 %i, 1
  %member = getelementptr %Member, ptr %team, i32 %line
  %finished = call i64 @cupola_await(ptr %member, i64 %old)
  %code_at = getelementptr %Member, ptr %member, i64 0, i32 1
  %code = load i32, ptr %code_at
  %all = or i32 %codes, %code
  %failed = icmp ne i32 %code, 0
  br i1 %failed, label %fail, label %finish
fail:
  call void @TVMFFIErrorSetRaisedFromCStr(ptr @cupola_error_kind, ptr @cupola_error)
  br label %finish
finish:
  br label %next
done:
  ret i32 %codes
}}

; Calls a function that often, or until it fails.
define internal i32 @cupola_repeat(i64 %times, ptr %function, ptr %arguments, i32 %count, ptr %result) {{
start:
  br label %look
look:
  %done = phi i64 [ 0, %start ], [ %more, %run ]
  %last = phi i32 [ 0, %start ], [ %code, %run ]
  %failed = icmp ne i32 %last, 0
  %enough = icmp sge i64 %done, %times
  %ends = or i1 %failed, %enough
  br i1 %ends, label %end, label %run
run:
  %code = call i32 @TVMFFIFunctionCall(ptr %function, ptr %arguments, i32 %count, ptr %result)
  %more = add i64 %done, 1
  br label %look
end:
  ret i32 %last
}}

; What each thread of the pool does.
define internal i32 @cupola_member(i32 %task, ptr %pool_env, ptr %call) {{
  %leads = icmp eq i32 %task, 0
  br i1 %leads, label %lead, label %serve

lead:
  %num_at = getelementptr {{ ptr, i32 }}, ptr %pool_env, i64 0, i32 1
  %num = load i32, ptr %num_at
  %num_wide = zext i32 %num to i64
  %twice = shl i64 %num_wide, 1
  %lines = add i64 %twice, 1
  %team = alloca %Team, i64 %lines, align 64
  %num_bytes = shl i64 %lines, 6
  call void @llvm.memset.p0.i64(ptr align 64 %team, i8 0, i64 %num_bytes, i1 false)
  %first_counter = add i64 %num_wide, 1
  %counters = getelementptr %Team, ptr %team, i64 %first_counter
  %counters_at = getelementptr %Team, ptr %team, i64 0, i32 3
  store ptr %counters, ptr %counters_at
  %team_num_at = getelementptr %Team, ptr %team, i64 0, i32 4
  store i32 %num, ptr %team_num_at
  store atomic ptr %team, ptr %call release, align 8
  store ptr %team, ptr @cupola_team
  %function_at = getelementptr %Call, ptr %call, i64 0, i32 1
  %function = load ptr, ptr %function_at
  %arguments_at = getelementptr %Call, ptr %call, i64 0, i32 2
  %arguments = load ptr, ptr %arguments_at
  %count_at = getelementptr %Call, ptr %call, i64 0, i32 3
  %count = load i32, ptr %count_at
  %result_at = getelementptr %Call, ptr %call, i64 0, i32 4
  %result = load ptr, ptr %result_at
  %times_at = getelementptr %Call, ptr %call, i64 0, i32 6
  %times = load i64, ptr %times_at
  %code = call i32 @cupola_repeat(i64 %times, ptr %function, ptr %arguments, i32 %count, ptr %result)
  store ptr null, ptr @cupola_team
  %code_at = getelementptr %Call, ptr %call, i64 0, i32 5
  store i32 %code, ptr %code_at
  %over = call i32 @cupola_begin(ptr %team, ptr null, ptr null)
  ret i32 0

serve:
  %founded = call i64 @cupola_await(ptr %call, i64 0)
  %ours = inttoptr i64 %founded to ptr
  %line = add i32 %task, 1
  %own = getelementptr %Member, ptr %ours, i32 %line
  %what_at = getelementptr %Team, ptr %ours, i64 0, i32 1
  %data_at = getelementptr %Team, ptr %ours, i64 0, i32 2
  %env = getelementptr %Team, ptr %ours, i64 0, i32 3
  %own_code_at = getelementptr %Member, ptr %own, i64 0, i32 1
  br label %watch
watch:
  %last = phi i64 [ 0, %serve ], [ %region, %run ]
  %region = call i64 @cupola_await(ptr %ours, i64 %last)
  %what = load ptr, ptr %what_at
  %is_over = icmp eq ptr %what, null
  br i1 %is_over, label %leave, label %run
run:
  %data = load ptr, ptr %data_at
  %own_code = call i32 %what(i32 %task, ptr %env, ptr %data)
  store i32 %own_code, ptr %own_code_at
  store atomic i64 %region, ptr %own release, align 8
  br label %watch
leave:
  store i32 0, ptr %own_code_at
  store atomic i64 %region, ptr %own release, align 8
  ret i32 0
}}

; As functions of TVM are called: the first arguments are how often and the function, the others are its own. What it raises is raised.
define i32 @__tvm_ffi_{repeat_in_team}(ptr %self, ptr %arguments, i32 %count, ptr %result) {{
  %times_at = getelementptr i64, ptr %arguments, i64 1
  %times = load i64, ptr %times_at
  %handle_at = getelementptr i64, ptr %arguments, i64 3
  %function = load ptr, ptr %handle_at
  %others = getelementptr i64, ptr %arguments, i64 4
  %num_others = sub i32 %count, 2
  %team = load ptr, ptr @cupola_team
  %nested = icmp ne ptr %team, null
  br i1 %nested, label %direct, label %found
direct:
  %direct_code = call i32 @cupola_repeat(i64 %times, ptr %function, ptr %others, i32 %num_others, ptr %result)
  ret i32 %direct_code
found:
  %launch = load atomic ptr, ptr @__TVMBackendParallelLaunch acquire, align 8
  %taken = icmp eq ptr %launch, @cupola_launch
  br i1 %taken, label %call, label %take
take:
  store ptr %launch, ptr @cupola_pool
  store atomic ptr @cupola_launch, ptr @__TVMBackendParallelLaunch release, align 8
  br label %call
call:
  %frame = alloca %Call, align 64
  store %Call zeroinitializer, ptr %frame
  %function_at = getelementptr %Call, ptr %frame, i64 0, i32 1
  store ptr %function, ptr %function_at
  %others_at = getelementptr %Call, ptr %frame, i64 0, i32 2
  store ptr %others, ptr %others_at
  %count_at = getelementptr %Call, ptr %frame, i64 0, i32 3
  store i32 %num_others, ptr %count_at
  %result_at = getelementptr %Call, ptr %frame, i64 0, i32 4
  store ptr %result, ptr %result_at
  %frame_times_at = getelementptr %Call, ptr %frame, i64 0, i32 6
  store i64 %times, ptr %frame_times_at
  %pool = load ptr, ptr @cupola_pool
  %pool_code = call i32 %pool(ptr @cupola_member, ptr %frame, i32 0)
  %failed = icmp ne i32 %pool_code, 0
  br i1 %failed, label %pool_failed, label %end
pool_failed:
  ret i32 %pool_code
end:
  %code_at = getelementptr %Call, ptr %frame, i64 0, i32 5
  %code = load i32, ptr %code_at
  ret i32 %code
}}

!llvm.module.flags = !{{!0}}
!0 = !{{i32 2, !"tvm_target", !"{target}"}}
"""
