"""``log.chosen``: what a run chose, counted exactly, and taken up by the next run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import kill_before, summary_of
from photos import jpeg, tar_of

from jestbench.batch import Batch, Selection
from jestbench.data.pairs import content_key
from jestbench.disk import key_text
from jestbench.launch.command import main
from jestbench.runs import chosen
from jestbench.runs.chosen import Chosen

parquet = pytest.importorskip("pyarrow.parquet")
QUICK = ["run.device=cpu", "log.progress=False", "evaluate.points=1", "wandb.mode=disabled", "log.chosen=True"]


def batch_of(keys: list[tuple[int, int]]) -> Batch:
    image_key_B, text_key_B = torch.tensor(keys).T.contiguous()
    return Batch(torch.zeros(len(keys), 3, 1, 1, dtype=torch.uint8), {}, image_key_B, text_key_B)


@pytest.mark.parametrize("held", [0, 3, 10**6])
def test_choices_are_counted_and_the_last_score_is_kept(tmp_path, monkeypatch, held):
    monkeypatch.setattr(chosen, "HELD", held)
    rng, tally = np.random.default_rng(0), Chosen(True)
    times, last = Counter[tuple[int, int]](), dict[tuple[int, int], float]()
    for step in range(30):
        keys = [(int(image) - 3, int(text)) for image, text in rng.integers(0, 6, (8, 2))]
        index_K, score_B = torch.from_numpy(rng.permutation(8)[:4]), torch.from_numpy(rng.random(8)).float()
        tally.add(batch_of(keys), Selection(index_K, score_B=score_B if step % 7 else None))
        for at in index_K.tolist():
            times[keys[at]] += 1
            last[keys[at]] = float(score_B[at]) if step % 7 else float("nan")
        if step == 11:  # as a checkpoint would
            again = Chosen(True)
            again.load_state_dict(tally.state_dict())
            tally = again
    tally.write(tmp_path / "x.parquet", lambda key_K: [f"u{key}" if key > 0 else None for key in key_K.tolist()])
    rows = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert {(row["key"], row["text_key"]): row["times"] for row in rows} == {
        (key_text(image), key_text(text)): count for (image, text), count in times.items()
    }
    assert [row["times"] for row in rows] == sorted(times.values(), reverse=True)
    scores = {(row["key"], row["text_key"]): row["score"] for row in rows}
    for (image, text), score in last.items():
        assert scores[key_text(image), key_text(text)] == (None if np.isnan(score) else pytest.approx(score))
    assert all((row["uid"] is not None) == (row["key"] in {key_text(key) for key in (1, 2)}) for row in rows)


def table_of(tmp_path: Path, uid: str = "") -> list[str]:
    for i in range(20):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    rows = [f"{i}.jpg,a photo of number {i},photo-{i}" for i in range(20)]
    (tmp_path / "x.csv").write_text("filepath,title,uid\n" + "\n".join(rows) + "\n", encoding="utf-8")
    csv = [f"csv.pool='{tmp_path / 'x.csv'}'", f"csv.eval='{tmp_path / 'x.csv'}'", "csv.image_size=16"]
    csv += [f"csv.uid={uid!r}"] if uid else []
    sizes = ["run.batch_size=3", "run.super_batch_size=9", "run.budget=None", "budget.steps=7", "run.checkpoints=2"]
    policy = ["--gin_file", "gin/policy/hard_learner.gin", "model.image_size=16", "model.patch_size=8"]
    return ["--gin_file", "gin/run/csv.gin", *policy, *csv, *sizes, *QUICK]


def rows_in(path: Path) -> list[dict[str, Any]]:
    return parquet.read_table(path / "chosen.parquet").to_pylist()


def test_what_a_run_chose_is_exact_over_a_resume_and_is_the_next_runs_pool(tmp_path, monkeypatch):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    command = table_of(tmp_path, "uid")
    assert main([*command, "--run_dir", str(tmp_path / "whole")]) == 0
    kill_before(5, [*command, "--run_dir", str(tmp_path / "cut")])
    assert main([*command, "--run_dir", str(tmp_path / "cut"), "--resume"]) == 0
    rows = rows_in(tmp_path / "whole")
    assert rows == rows_in(tmp_path / "cut")
    assert sum(row["times"] for row in rows) == summary_of(tmp_path / "whole")["pairs_trained"] == 21
    number_of = {key_text(content_key(jpeg(i))): i for i in range(20)}
    assert all(row["uid"] == f"photo-{number_of[row['key']]}" for row in rows)
    assert all(row["score"] is not None for row in rows)
    chosen_file = str(tmp_path / "whole" / "chosen.parquet")
    for uid, next_run in (("uid", tmp_path / "next"), ("key", tmp_path / "by_key")):
        more = [f"csv.uids={chosen_file!r}", f"csv.uid={uid!r}", "run.super_batch_size=3", "run.policy=uniform"]
        assert main([*command, *more, "--run_dir", str(next_run)]) == 0
        end = summary_of(next_run)["data"]
        assert end["pairs"] == len(rows)
        assert end["beside"]["pool"] == {"outside_uids": 20 - len(rows), "uids_without_pair": 0}


def stream_of(tmp_path: Path) -> list[str]:
    """A run over 4 shards of 6 pairs each, of which a list of uids names 20."""
    for shard in range(4):
        members = []
        for i in range(6 * shard, 6 * shard + 6):
            text = json.dumps({"uid": f"photo-{i}", "caption": f"a photo of number {i}"}).encode()
            members += [(f"{i:03d}.jpg", jpeg(i)), (f"{i:03d}.json", text)]
        tar_of(tmp_path / f"{shard}.tar", members)
    (tmp_path / "uids.txt").write_text("".join(f"photo-{i}\n" for i in range(24) if i % 6 != 4), encoding="utf-8")
    lines = ['include "gin/run/tiny.gin"', "run.data = @stream()", "stream.beside = @synthetic()"]
    lines += [f'stream.shards = "{tmp_path}/{{0..3}}.tar"', "stream.image_size = 16", 'stream.caption = "json.caption"']
    lines += ["stream.lanes = 2", "stream.buffer = 4", f'stream.uids = "{tmp_path / "uids.txt"}"']
    (tmp_path / "stream.gin").write_text("\n".join(lines), encoding="utf-8")
    sizes = ["run.batch_size=3", "run.super_batch_size=8", "run.budget=None", "budget.steps=7", "run.checkpoints=2"]
    return ["--gin_file", str(tmp_path / "stream.gin"), "--gin_file", "gin/policy/hard_learner.gin", *sizes, *QUICK]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_counts_what_a_list_leaves_out_and_exports_the_uids_exactly_over_a_resume(
    tmp_path, monkeypatch, workers
):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    command = [*stream_of(tmp_path), f"loader.workers={workers}"]
    assert main([*command, "--run_dir", str(tmp_path / "whole")]) == 0
    kill_before(5, [*command, "--run_dir", str(tmp_path / "cut")])
    assert main([*command, "--run_dir", str(tmp_path / "cut"), "--resume"]) == 0
    rows = rows_in(tmp_path / "whole")
    assert rows == rows_in(tmp_path / "cut")
    number_of = {key_text(content_key(jpeg(i))): i for i in range(24)}
    assert all(row["uid"] == f"photo-{number_of[row['key']]}" for row in rows)
    assert not {f"photo-{i}" for i in range(24) if i % 6 == 4} & {row["uid"] for row in rows}
    counts = [summary_of(tmp_path / name)["data"]["counts"] for name in ("whole", "cut")]
    assert counts[0] == counts[1]
    # Seven steps of 8 are two epochs of 20 (2 steps each, 4 pairs left over) and three steps of one that is begun.
    whole_epochs = 3
    assert whole_epochs * 4 <= counts[0]["outside_uids"] <= (whole_epochs + 1) * 4
    assert counts[0]["damaged"] == 0


def test_without_uids_or_scores_there_are_none_and_nothing_is_written_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    command = [*table_of(tmp_path), "run.policy=uniform", "run.super_batch_size=3"]
    assert main([*command, "--run_dir", str(tmp_path / "run")]) == 0
    assert {(row["uid"], row["score"]) for row in rows_in(tmp_path / "run")} == {(None, None)}
    assert main([*command, "log.chosen=False", "--run_dir", str(tmp_path / "silent")]) == 0
    assert not (tmp_path / "silent" / "chosen.parquet").exists()


def test_a_resumed_run_that_did_not_count_before_says_from_where_it_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    command = [*table_of(tmp_path), "--run_dir", str(tmp_path / "run")]
    kill_before(5, [*command, "log.chosen=False"])
    assert main([*command, "--resume"]) == 0
    table = parquet.read_table(tmp_path / "run" / "chosen.parquet")
    assert table.schema.metadata[b"counted_since_step"] == b"4"
    assert sum(table.column("times").to_pylist()) == 9
