"""Weak scaling: what the bench counts and forecasts, and the cost model that it is held against."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT

from jestbench.bench import scale_model
from jestbench.bench.run_bench import main
from jestbench.parallel.traffic import TRAFFIC, Traffic, gathered, reduced


@pytest.mark.slow  # it starts processes three times
def test_what_two_processes_send_is_what_is_forecast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "scale --rounds 1 --steps 4 --batch 8 --arms jest --json".split()
    assert main([*words, str(tmp_path / "scale.json")]) == 0
    report, printed = json.loads((tmp_path / "scale.json").read_text()), capsys.readouterr().out
    found = report["arms"]["jest"]
    sent, expected = found["sent"], found["sent, forecast"]
    width = 4 * 64  # bytes of an embedding: two of each model for a pair of B, two for a pair that is trained on
    assert sent["embeddings"] == expected["embeddings"] == 40 * 4 * width + 8 * 2 * width
    assert sent["weight_gradients"] == pytest.approx(expected["weight_gradients"], rel=1e-4)
    assert sent["chosen_pairs"] == pytest.approx(expected["chosen_pairs"], rel=0.8)
    assert sent["bookkeeping"] > expected["bookkeeping"] > 0
    assert found["efficiency"]["value"] > 0 < found["efficiency, forecast"]
    assert found["waits, seconds"][0] > 0
    assert [len(seconds) for seconds in found["seconds"].values()] == [1, 1, 1]
    assert found["apart"]["value"] > 0
    assert min(found["memory"].values()) > 2**27
    for line in ("efficiency", "waits of the host", "memory of a process", "sent, weight gradients", "sent, in all"):
        assert line in printed


def test_bytes_are_those_of_rings() -> None:
    """Each process passes on, n − 1 times, a part of an all-gather; and twice so, a slice of an all-reduce."""
    for size in (1, 2, 3, 8):
        assert gathered(10, size) == sum(10 for _ in range(size - 1))
        slices = [240 // size] * size
        assert reduced(240, size) == 2 * sum(slices[1:])


def test_a_collective_is_counted_with_the_seconds_that_it_takes_and_once() -> None:
    traffic = Traffic()
    with traffic.collective("strip_sums", 5):
        pass
    with pytest.raises(RuntimeError), traffic.collective("strip_sums", 7):
        raise RuntimeError
    first, second = traffic.since_last(), traffic.since_last()
    assert (first["strip_sums"], first["calls"], first["embeddings"]) == (12, 2, 0)
    assert first["seconds"] > 0
    assert not any(second.values())


def test_what_two_threads_send_for_is_named_by_each() -> None:
    """The purpose of one is not left to the other, in whichever order their contexts end."""
    traffic, begun, ended = Traffic(), threading.Event(), threading.Event()

    def other() -> None:
        with traffic.sending("embeddings"):
            begun.set()
            assert ended.wait(10)

    thread = threading.Thread(target=other)
    with traffic.sending("strip_sums"):
        thread.start()
        assert begun.wait(10)
        with traffic.collective("bookkeeping", 3):
            pass
    ended.set()
    thread.join()
    with traffic.collective("bookkeeping", 4):
        pass
    sent = traffic.since_last()
    assert (sent["strip_sums"], sent["bookkeeping"], sent["embeddings"]) == (3, 4, 0)


def test_one_process_sends_nothing() -> None:
    sizes = scale_model.paper_sizes(selects=True)
    assert not any(sizes.sent(1).values())
    assert TRAFFIC.since_last().keys() >= sizes.sent(1).keys()


def test_the_step_of_the_cost_model_by_hand() -> None:
    link = {"seconds of a call": 0.001, "bytes/s": 1e6}
    assert scale_model.step_seconds(1.0, 0.1, 4, calls=20, sent=5e5, link=link) == pytest.approx(1.0 + 0.3 + 0.02 + 0.5)


def test_twice_the_gpus_halve_the_work_and_neither_embeddings_nor_gradients() -> None:
    sizes, gpu = scale_model.paper_sizes(selects=True), replace(scale_model.Gpu(), retrain=1634.0)
    four, eight = (scale_model.forecast(sizes, processes, gpu, 1) for processes in (4, 8))
    for part in ("scoring", "choice", "training", "loss"):
        assert eight.seconds[part] == pytest.approx(four.seconds[part] / 2)
    assert eight.memory["embeddings"] == four.memory["embeddings"] > 163_840 * 4 * 768 * 4
    assert eight.sent["weight_gradients"] / four.sent["weight_gradients"] == pytest.approx((7 / 8) / (3 / 4), rel=1e-3)
    assert eight.seconds["exchange"] == pytest.approx(sum(eight.sent.values()) / gpu.near)
    beyond = scale_model.forecast(sizes, 16, gpu, 1)
    assert beyond.seconds["exchange"] == pytest.approx(sum(beyond.sent.values()) / gpu.far)


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", "--paper"]) == 0
    printed = capsys.readouterr().out.strip()
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- python tools/bench.py scale --paper -->\n```\n")
    assert rest.partition("\n```")[0] == printed
