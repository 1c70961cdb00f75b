"""`cupola serve --swap-memory`: more answers at once than the K/V memory holds, and a folder that stays empty."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.runtime.server.harness import COMPLETIONS, run_server


def test_answers_that_give_way_are_the_same(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "swap"
    folder.mkdir()
    with run_server(tiny, tmp_path, "--kv-memory", "4096", "--swap-memory", "1MB", "--swap-folder", str(folder)) as server:

        def answer(i: int) -> str:  # four take more than the 512 tokens of 4,096 bytes
            done = server.post({"prompt": [40 + i] * 100, "max_tokens": 150, "temperature": 1, "seed": i, "ignore_eos": True}, COMPLETIONS)
            assert done.status_code == 200, done.text
            return str(done.json()["choices"][0]["text"])

        alone = [answer(i) for i in range(4)]
        assert server.metrics()["num_swapped_out_total"] == 0
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(answer, range(4)))
        assert together == alone
        server.wait_idle()
        figures = server.metrics()
        assert figures["num_swapped_out_total"] >= figures["num_swapped_in_total"] > 0
        assert list(folder.iterdir()) == []
        assert not server.errors()
        assert server.stop() == 0
