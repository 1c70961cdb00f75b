"""A worker's job goes to a new process if its own was ended from outside, and only a job that is to blame is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cupola.runtime.artifact.verified import identify
from cupola.runtime.errors import EngineError
from cupola.runtime.worker_process import HOST, TooExpensiveError, WorkerProcess
from tests.runtime.tokenizers_for_tests import byte_level, save
from tests.systems import needs

SCRIPT = """
import os, signal
MAX_MEMORY_BYTES = 1 << 30
def prepare(mark):
    def answer(job):
        if job["do"] == "die" or (job["do"] == "die once" and not os.path.exists(mark)):
            open(mark, "w").close()
            os.kill(os.getpid(), getattr(signal, job["signal"]))
        while job["do"] == "work":
            pass
        return {"pid": os.getpid()}
    return answer
"""


@pytest.fixture
def worker(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    worker = WorkerProcess(tmp_path / "script.py", str(tmp_path / "mark"), max_seconds=2)
    yield worker
    worker.close()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", pytest.param("SIGSTOP", marks=needs("to know another process's time")), "SIGSEGV"])
def test_a_process_that_is_ended_or_stopped_costs_no_answer(worker: WorkerProcess, name: str):
    first = worker.ask({"do": "answer"})["pid"]
    assert worker.ask({"do": "die once", "signal": name})["pid"] != first


def test_a_process_that_is_ended_between_jobs_is_started_again(worker: WorkerProcess):
    first = int(str(worker.ask({"do": "answer"})["pid"]))
    os.kill(first, signal.SIGKILL)
    assert worker.ask({"do": "answer"})["pid"] != first


def test_what_ends_every_time_is_no_fault_of_the_job(worker: WorkerProcess):
    with pytest.raises(EngineError, match="ended from outside, twice"):
        worker.ask({"do": "die", "signal": "SIGKILL"})
    assert worker.ask({"do": "answer"})


def test_a_job_that_takes_too_long_is_not_tried_again(worker: WorkerProcess):
    with pytest.raises(TooExpensiveError, match="more than 2 s"):
        worker.ask({"do": "work"})
    assert worker.ask({"do": "answer"})


def test_a_job_whose_process_gives_up_is_not_tried_again(worker: WorkerProcess):
    with pytest.raises(TooExpensiveError):
        worker.ask({"no": "such job"})  # an exception that the script does not catch, as native code's panics are
    assert worker.ask({"do": "answer"})


def test_threads_share_a_process(worker: WorkerProcess):
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(worker.ask({"do": "answer"})["pid"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8 and len(set(answers)) == 1
    with pytest.raises(TypeError):
        worker.ask({"do": object()})


def run_limited(kilobytes: int, script: str, *arguments: str, job: object) -> dict[str, object]:
    """A worker's answer when it was started under hard limits that are lower than those that it sets itself."""
    file = HOST.parent / "text" / script
    command = ["sh", "-c", f'ulimit -v {kilobytes}; ulimit -t 5; exec "$@"', "sh", sys.executable, "-P", HOST, file, "9", *arguments]
    done = subprocess.run(command, input=f"{json.dumps(job)}\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere address space can't be limited, or takes other amounts")
def test_templates_are_rendered_under_lower_limits() -> None:
    job = {"template": "{{ word }}!", "variables": {"word": "hi"}}
    answer = run_limited(600_000, "template_worker.py", job=job)
    assert answer == {"text": "hi!"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere address space can't be limited, or takes other amounts")
def test_texts_are_encoded_under_lower_limits(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    file = tmp_path / "tokenizer.json"
    job = {"text": "hi", "add_special_tokens": False}
    answer = run_limited(1_500_000, "tokenizer_worker.py", str(file), identify(file), job=job)
    assert answer == {"ids": byte_level().encode("hi", add_special_tokens=False).ids}
