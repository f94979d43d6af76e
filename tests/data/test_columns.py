"""Numbers and uids that came with the pairs: read, joined, restricting a pool, reaching policies and cascades."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import rows_of, summary_of
from photos import caption, jpeg, tar_of

from jestbench.batch import DataError, Selection
from jestbench.data.cascade import Cascade, CascadePlan
from jestbench.data.fetch import WorkerFetch
from jestbench.data.loader import Loader
from jestbench.data.sources.columns import keys_of
from jestbench.data.sources.csv_tables import Csv
from jestbench.data.sources.hugging_face import HuggingFace
from jestbench.data.sources.lanes import START, LaneReader
from jestbench.data.sources.source import Source
from jestbench.data.sources.stream import Stream
from jestbench.data.sources.web_dataset import WebDataset
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.data.synthetic import Synthetic
from jestbench.engine.scorer import Scorer
from jestbench.launch.command import main
from jestbench.model.tokenizer_choice import TokenizerChoice
from jestbench.select import top_k
from policies import registry

COUNT = 12
UIDS = [f"{i * (2**120 + 3):032x}" for i in np.random.default_rng(0).permutation(COUNT).tolist()]
SIMILARITY = [round(0.05 * ((7 * i) % COUNT), 2) for i in range(COUNT)]
FIELDS = [{"caption": caption(i), "uid": UIDS[i], "similarity": SIMILARITY[i]} for i in range(COUNT)]


def shards_at(path: Path, fields: list[dict[str, Any]] = FIELDS) -> str:
    members = [(f"{i:03d}.jpg", jpeg(i)) for i in range(len(fields))]
    texts = [(f"{i:03d}.json", json.dumps(held).encode()) for i, held in enumerate(fields)]
    return str(tar_of(path, [member for pair in zip(members, texts, strict=True) for member in pair]))


def source(kind: type[Source], tmp_path: Path, pool: Any, **bound: Any) -> Any:
    tokenizer = TokenizerChoice(length=8, vocab_size=300)
    common = {"image_size": 16, "cache_dir": str(tmp_path / "cache"), "tokenizer": tokenizer, "max_damaged": 1.0}
    made = kind(pool=pool, **common | ({"caption": "json.caption"} if kind is WebDataset else {}) | bound)
    made.prepare()
    return made


def opened(kind: type[Source], tmp_path: Path, pool: Any, **bound: Any) -> Any:
    return source(kind, tmp_path, pool, **bound).split("pool")


def table_at(path: Path, columns: dict[str, list[Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)
    else:
        rows = zip(*columns.values(), strict=True)
        shown = [",".join("" if cell is None else str(cell) for cell in row) for row in (tuple(columns), *rows)]
        path.write_text("\n".join(shown) + "\n", encoding="utf-8")
    return str(path)


def of_each_format(tmp_path: Path, similarity: list[Any]) -> dict[str, Any]:
    """The same pairs and numbers by every way in."""
    count = len(similarity)
    for i in range(count):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    texts = [caption(i) for i in range(count)]
    shards = shards_at(tmp_path / "x.tar", [{**FIELDS[i], "similarity": similarity[i]} for i in range(count)])
    csv = {"filepath": [f"{i}.jpg" for i in range(count)], "title": texts, "similarity": similarity, "uid": UIDS}
    rows = {"image": [jpeg(i) for i in range(count)], "text": texts, "similarity": similarity, "uid": UIDS}
    return {
        "webdataset": (WebDataset, shards, {"columns": ("json.similarity",)}),
        "csv": (Csv, table_at(tmp_path / "x.csv", {k: v[:count] for k, v in csv.items()}), {"columns": "similarity"}),
        "huggingface": (
            HuggingFace,
            table_at(tmp_path / "x.parquet", {k: v[:count] for k, v in rows.items()}),
            {"columns": ["similarity"]},
        ),
        "stream": (Stream, shards, {"columns": ("json.similarity",)}),
    }


def streamed(pool: str, **bound: Any) -> Any:
    stream = Stream(pool, Synthetic(eval=4), image_size=16, caption="json.caption", lanes=1, buffer=100, **bound)
    return LaneReader(stream.split("pool").shards)((0, 0, START, 100))


def lost_in(chunk: Any) -> Counter[str]:
    """What a chunk left out."""
    return sum(map(Counter, (*chunk.lost_N, chunk.rest)), Counter())


# Reading


@pytest.mark.parametrize("name", ["webdataset", "csv", "huggingface", "stream"])
def test_numbers_come_with_the_pairs_by_every_way_in(tmp_path, name):
    pytest.importorskip("pyarrow")
    kind, pool, bound = of_each_format(tmp_path, SIMILARITY)[name]
    if kind is Stream:
        chunk = streamed(pool, **bound)
        order = [int(text.rpartition(" ")[2]) for text in chunk.captions]
        assert sorted(order) == list(range(COUNT))
        assert np.allclose(chunk.value_NC[:, 0], np.array(SIMILARITY)[order])
        stream = Stream(pool, Synthetic(eval=4), image_size=16, caption="json.caption", lanes=1, **bound)
        assert stream.split("pool").column_names == tuple(stream.split("pool").example().columns) == ("similarity",)
        return
    split = opened(kind, tmp_path, pool, **bound)
    assert split.columns["similarity"].tolist() == SIMILARITY
    index = torch.tensor([5, 0, 11])
    batch = split.batch(index)
    assert torch.equal(batch.columns["similarity"], torch.tensor(SIMILARITY)[index])
    assert torch.equal(batch.take(torch.tensor([2, 0])).columns["similarity"], torch.tensor(SIMILARITY)[[11, 5]])
    without = opened(kind, tmp_path, pool, **bound | {"columns": ()})
    assert not without.columns
    assert without.fingerprint != split.fingerprint


@pytest.mark.parametrize("name", ["webdataset", "csv", "huggingface", "stream"])
def test_a_missing_number_is_damage_that_is_counted_never_zero(tmp_path, name):
    pytest.importorskip("pyarrow")
    gaps: list[Any] = [*SIMILARITY[:4], None, float("inf"), *SIMILARITY[6:]]
    kind, pool, bound = of_each_format(tmp_path, gaps)[name]
    whole = [i for i in range(COUNT) if i not in (4, 5)]
    if kind is Stream:
        chunk = streamed(pool, **bound)
        assert sorted(chunk.captions) == sorted(caption(i) for i in whole)
        assert lost_in(chunk)["damaged"] == 2
        assert "no value of similarity" in chunk.examples
        return
    split = opened(kind, tmp_path, pool, **bound)
    assert [*split.captions] == [caption(i) for i in whole]
    assert split.columns["similarity"].tolist() == [SIMILARITY[i] for i in whole]
    assert split.facts["damaged_when_indexed"] == {"pool": {"no value of similarity": 2}}
    with pytest.raises(DataError, match="2 × no value of similarity of 12, the first: "):
        opened(kind, tmp_path, pool, **bound | {"max_damaged": 0.0})


def test_a_split_of_which_no_pair_has_the_number_is_one_without_it(tmp_path):
    bare = shards_at(tmp_path / "bare.tar", [{"caption": caption(i)} for i in range(4)])
    made = source(WebDataset, tmp_path, shards_at(tmp_path / "x.tar"), curated=bare, columns=("json.similarity",))
    assert tuple(made.split("pool").columns) == ("similarity",)
    assert len(made.split("curated")) == 4
    assert not made.split("curated").columns
    assert not made.split("pool+curated").columns


def test_a_column_that_no_pair_has_is_refused_with_what_was_found(tmp_path):
    found = r"names 'json.sim', of which no pair has a number: its json has the fields caption, similarity, uid"
    with pytest.raises(DataError, match=found):
        opened(WebDataset, tmp_path, shards_at(tmp_path / "x.tar"), columns=("json.sim",))
    with pytest.raises(DataError, match=r"'json\.caption', of which .* holds 'a red car number 0', no number"):
        opened(WebDataset, tmp_path, shards_at(tmp_path / "x.tar"), columns=("json.caption",))
    table = table_at(tmp_path / "x.csv", {"filepath": ["0.jpg"], "title": ["a"], "score": [1]})
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    with pytest.raises(DataError, match="line 2: the columns are filepath, title, score"):
        opened(Csv, tmp_path, table, columns="sim")
    with pytest.raises(ValueError, match=r"webdataset\.columns names two columns 'sim'"):
        WebDataset(columns=("json.sim", "meta.sim"))


# Uids


def npy_of(path: Path, uids: list[str]) -> str:
    """A list as DataComp's code writes it."""
    np.save(path, np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], np.dtype("u8,u8")))
    return str(path)


def test_numbers_beside_the_shards_are_joined_by_uid_and_uids_without_any_are_counted(tmp_path):
    pytest.importorskip("pyarrow")
    known = [9, 3, 0, 7, 1, 2, 5]
    rows = {"uid": [UIDS[i] for i in known], "clip": [i / 10 for i in known], "text": ["-"] * 7}
    table_at(tmp_path / "meta" / "a.parquet", {name: cells[:4] for name, cells in rows.items()})
    table_at(tmp_path / "meta" / "b.parquet", {name: cells[4:] for name, cells in rows.items()})
    shards = shards_at(tmp_path / "x.tar")
    bound = {"columns": ("clip", "json.similarity"), "metadata": "meta/*.parquet"}
    split = opened(WebDataset, tmp_path, shards, **bound)
    assert [*split.captions] == [caption(i) for i in sorted(known)]
    assert split.columns["clip"].tolist() == [i / 10 for i in sorted(known)]
    assert split.columns["similarity"].tolist() == [SIMILARITY[i] for i in sorted(known)]
    assert split.facts["damaged_when_indexed"]["pool"] == {"no value of clip": COUNT - len(known)}
    with pytest.raises(DataError, match="no column 'klip'; did you mean 'clip'"):
        opened(WebDataset, tmp_path, shards, **bound | {"columns": ("klip",)})
    with pytest.raises(DataError, match=r"no such file, neither beside the shards"):
        opened(WebDataset, tmp_path, shards, **bound | {"metadata": "*.pq"})


@pytest.mark.parametrize("ending", ["npy", "txt", "parquet"])
def test_a_list_of_uids_restricts_the_pool_alone(tmp_path, ending):
    pytest.importorskip("pyarrow")
    wanted, path = [8, 2, 5], tmp_path / f"uids.{ending}"
    uids = [UIDS[i] for i in wanted] + [f"{2**127 + 5:032x}"] + [UIDS[8]]
    if ending == "npy":
        npy_of(path, uids)
    elif ending == "txt":
        path.write_text("\ufeff" + "\r\n".join(uids) + "\n\n", encoding="utf-8")
    else:
        table_at(path, {"uid": uids})
    for kind, pool, _ in of_each_format(tmp_path, SIMILARITY).values():
        if kind is Stream:
            chunk = streamed(pool, uids=str(path))
            assert sorted(chunk.captions) == sorted(caption(i) for i in wanted)
            assert lost_in(chunk) == {"outside_uids": COUNT - 3}
            continue
        made = source(kind, tmp_path, pool, eval=pool, uids=str(path))
        split = made.split("pool")
        assert [*split.captions] == [caption(i) for i in sorted(wanted)]
        assert split.facts["beside"]["pool"] == {"outside_uids": COUNT - 3, "uids_without_pair": 1}
        assert len(made.split("eval")) == COUNT


def test_numbers_are_joined_to_the_pairs_of_a_stream_as_to_those_of_an_index(tmp_path):
    pytest.importorskip("pyarrow")
    known = [9, 3, 0, 7, 1, 2, 5]
    table_at(tmp_path / "a.parquet", {"uid": [UIDS[i] for i in known], "clip": [i / 10 for i in known]})
    shards, bound = shards_at(tmp_path / "x.tar"), {"columns": ("clip", "json.similarity"), "metadata": "*.parquet"}
    indexed, chunk = opened(WebDataset, tmp_path, shards, **bound), streamed(shards, **bound)
    stream = Stream(shards, Synthetic(eval=4), image_size=16, caption="json.caption", lanes=1, **bound).split("pool")
    assert set(stream.column_names) == set(stream.example().columns) == set(indexed.columns)
    order = [indexed.captions[:].index(text) for text in chunk.captions]
    assert sorted(order) == list(range(len(known)))
    for column, name in enumerate(stream.column_names):
        assert np.allclose(chunk.value_NC[:, column], indexed.columns[name][order])
    assert lost_in(chunk) == {"damaged": COUNT - len(known), "damaged/no value of clip": COUNT - len(known)}
    lacking = [f"{shards}: {i:03d}: uid {UIDS[i]}" for i in range(COUNT) if i not in known]
    assert chunk.examples["no value of clip"] in lacking
    assert set(chunk.uids) == {UIDS[i] for i in known}
    with pytest.raises(DataError, match=r"stream\.metadata = '\*\.pq': no such file, neither beside the shards"):
        streamed(shards, **bound | {"metadata": "*.pq"})
    with pytest.raises(DataError, match=r"stream\.metadata = '\*\.pq': no such file$"):
        streamed(f"pipe:cat {shards}", **bound | {"metadata": "*.pq"})


def test_a_stream_whose_lists_changed_is_other_data(tmp_path):
    pytest.importorskip("pyarrow")
    shards, path = shards_at(tmp_path / "x.tar"), tmp_path / "uids.txt"

    def fingerprint() -> str:
        return (
            Stream(shards, Synthetic(eval=4), caption="json.caption", lanes=1, uids=str(path)).split("pool").fingerprint
        )

    path.write_text(UIDS[3], encoding="utf-8")
    before = fingerprint()
    assert before == fingerprint()
    path.write_text(f"{UIDS[3]}\n{UIDS[4]}", encoding="utf-8")
    assert fingerprint() != before


def test_a_stream_whose_shard_was_packed_anew_is_other_data(tmp_path):
    shards = shards_at(tmp_path / "x.tar")

    def fingerprint(url: str) -> str:
        return Stream(url, Synthetic(eval=4), caption="json.caption", lanes=1).split("pool").fingerprint

    before = [fingerprint(url) for url in (shards, f"file:{shards}", f"pipe:cat {shards}")]
    assert before == [fingerprint(url) for url in (shards, f"file:{shards}", f"pipe:cat {shards}")]
    shards_at(tmp_path / "x.tar", [FIELDS[1], FIELDS[0], *FIELDS[2:]])
    after = [fingerprint(url) for url in (shards, f"file:{shards}", f"pipe:cat {shards}")]
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, False], (
        "a pipe is not known"
    )


SIGNED = ["-" + "a" * 31, "+" + "a" * 31, "0x" + "a" * 30, "a" * 30 + "_a", "0" * 31 + "a"]


@pytest.mark.parametrize(
    "uids", [["0" * 32, "f" * 32, "1" * 31], ["0" * 32, "é" * 32], ["ab " * 10 + "ab", "0" * 32], SIGNED]
)
def test_a_uid_has_the_same_key_alone_and_among_others(uids):
    assert [keys_of([uid])[0].tolist() for uid in uids] == keys_of(uids).tolist()
    assert len(np.unique(keys_of(uids))) == len(uids)


def test_uids_that_are_no_hexadecimal_digits_and_a_list_of_none_of_the_pool(tmp_path):
    shards = shards_at(tmp_path / "x.tar", [{"caption": caption(i), "id": f"photo/{i}"} for i in range(4)])
    (tmp_path / "some.txt").write_text("photo/3\nphoto/1\n", encoding="utf-8")
    split = opened(
        WebDataset, tmp_path, shards, uid="json.id", uids="~/none.txt".replace("~/none", str(tmp_path / "some"))
    )
    assert [*split.captions] == [caption(1), caption(3)]
    (tmp_path / "none.txt").write_text("x\n", encoding="utf-8")
    said = r"no pair whose json\.id webdataset\.uids lists: 4 are left out"
    with pytest.raises(DataError, match=said):
        opened(WebDataset, tmp_path, shards, uid="json.id", uids=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="there is no file"):
        opened(WebDataset, tmp_path, shards, uids=str(tmp_path / "gone.txt"))
    np.save(tmp_path / "floats.npy", np.zeros(3))
    with pytest.raises(DataError, match="it holds float64, not two unsigned 64-bit halves"):
        opened(WebDataset, tmp_path, shards, uids=str(tmp_path / "floats.npy"))


def test_uids_of_joined_splits_are_those_of_their_images_where_one_split_has_none(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    pool, curated = (
        table_at(tmp_path / f"{name}.csv", {"filepath": [f"{i}.jpg" for i in rows], "title": ["x", "y"], "uid": uids})
        for name, rows, uids in (("pool", (0, 1), [None, None]), ("curated", (2, 3), ["two", "three"]))
    )
    split = source(Csv, tmp_path, pool, curated=curated, uid="uid").split("pool+curated")
    assert split.uid_of(split.image_key_N) == [None, None, "two", "three"]


def test_a_list_or_metadata_that_changed_is_read_anew(tmp_path):
    pytest.importorskip("pyarrow")
    shards, path = shards_at(tmp_path / "x.tar"), tmp_path / "uids.txt"
    path.write_text(UIDS[3], encoding="utf-8")
    assert [*opened(WebDataset, tmp_path, shards, uids=str(path)).captions] == [caption(3)]
    path.write_text(f"{UIDS[3]}\n{UIDS[4]}", encoding="utf-8")
    assert [*opened(WebDataset, tmp_path, shards, uids=str(path)).captions] == [caption(3), caption(4)]


# Policies and cascades


@dataclass(frozen=True)
class ByColumn:
    """The pairs of the largest number."""

    needs: ClassVar[frozenset[str]] = frozenset({"column:similarity"})
    prefers: ClassVar[dict[str, int]] = {"column:similarity": 1}

    def select(self, scores, count, generator):
        return Selection(top_k(scores.values["column:similarity"], count))


def test_a_column_reaches_a_policy_as_a_value_without_any_pass():
    batch = Synthetic(columns=("similarity", "other")).split("pool").batch(torch.arange(60, 90))
    scores = Scorer({}, "sigmoid")(batch, ByColumn.needs)
    assert list(scores.values) == ["column:similarity"], "what is not needed is not there"
    assert torch.equal(scores.values["column:similarity"], batch.columns["similarity"])
    assert sum(item.macs for item in scores.passes) == 0


def test_columns_follow_their_pairs_through_workers_and_replacements(tmp_path):
    contents = [jpeg(i) for i in range(COUNT)]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.jpg").write_bytes(content[:-60] if i in (2, 7) else content)
    cells = {"filepath": [f"{i}.jpg" for i in range(COUNT)], "title": [caption(i) for i in range(COUNT)]}
    table = table_at(tmp_path / "x.csv", cells | {"similarity": SIMILARITY})
    split = opened(Csv, tmp_path, table, columns="similarity")
    plan = EpochPlan(split, 9, 0)
    fetch = WorkerFetch(split, 0, 2, Loader(workers=2, part=2))
    here, there = SuperBatches(plan), SuperBatches(plan, fetch)
    try:
        for step in range(3):
            one, other = here.at(step), there.at(step)
            assert torch.equal(one.columns["similarity"], other.columns["similarity"])
            numbers = [int(text.rpartition(" ")[2]) for text in one.captions]
            assert torch.allclose(one.columns["similarity"], torch.tensor(SIMILARITY)[numbers])
            assert not {2, 7} & set(numbers)
        assert here.counts(2)["data/damaged"] > 2
    finally:
        there.close()


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_cascade_by_a_column_reads_nothing_and_is_a_plain_top_k(deterministic):
    pairs = Synthetic(pool=200, columns=("similarity",)).split("pool")
    cascade = Cascade(candidates=4, deterministic=deterministic, score="column:similarity", temperature=0.1)
    plan, candidates = CascadePlan(pairs, 20, 0, cascade, None), EpochPlan(pairs, 80, 0)

    def never(positions):
        raise AssertionError("nothing is read")

    share = []
    for step in range(4):
        found, index_C = plan.positions(step, never), candidates.positions(step).index_B
        assert found.passes == ()
        value_C = torch.from_numpy(pairs.columns["similarity"])[index_C]
        if deterministic:
            assert set(found.index_B.tolist()) == set(index_C[value_C.topk(20).indices].tolist())
        assert len(set(found.index_B.tolist()) & set(index_C.tolist())) == 20
        share.append(float(pairs.marks["noisy"][found.index_B.numpy()].mean()))
    assert np.mean(share) < 0.1 < pairs.marks["noisy"].mean()


POLICY = '''
from dataclasses import dataclass
from typing import ClassVar
from jestbench.batch import Selection
from jestbench.select import top_k
from policies.registry import register

@register("of_the_largest")
@dataclass(frozen=True)
class OfTheLargest:
    """The pairs of the largest number."""

    needs: ClassVar[frozenset[str]] = frozenset({"column:similarity"})
    prefers: ClassVar[dict[str, int]] = {"column:similarity": 1}

    def select(self, scores, count, generator):
        return Selection(top_k(scores.values["column:similarity"], count))
'''


def test_a_run_of_a_policy_that_selects_by_a_column(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    registry.available()  # loads all policies, before the dictionary of them is set aside
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    (tmp_path / "of_the_largest_policy.py").write_text(POLICY, encoding="utf-8")
    (tmp_path / "x.gin").write_text(
        'import of_the_largest_policy\ninclude "gin/run/tiny.gin"\nrun.policy = "of_the_largest"\n', encoding="utf-8"
    )
    sizes = ["run.batch_size=16", "run.super_batch_size=64"]
    assert run_of(tmp_path, *sizes, "--run_dir", str(tmp_path / "bare")) == 2
    assert "OfTheLargest needs the column 'similarity', which the pairs of synthetic/pool" in capsys.readouterr().err
    column = "synthetic.columns=('similarity',)"
    assert run_of(tmp_path, *sizes, column, "--run_dir", str(tmp_path / "run")) == 0
    rows = rows_of(tmp_path / "run")[1:]
    assert sum(row["select/share_noisy"] for row in rows) / len(rows) < 0.05
    assert rows[-1]["select/share_noisy_super_batch"] > 0.2
    assert rows[-1]["flops/learner_score"] == rows[-1]["flops/reference_score"] == 0


def run_of(tmp_path: Path, *more: str) -> int:
    quick = ["run.device=cpu", "log.progress=False", "log.every=1", "evaluate.points=1", "wandb.mode=disabled"]
    sizes = ["run.batch_size=4", "run.super_batch_size=4", "run.budget=None", "budget.steps=3"]
    return main(["--gin_file", str(tmp_path / "x.gin"), *quick, *sizes, *more])


def test_a_run_cascades_by_a_column_of_its_shards_and_pays_for_no_reference(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    pool = shards_at(tmp_path / "x.tar")
    (tmp_path / "x.gin").write_text(
        f'include "gin/run/webdataset.gin"\nwebdataset.pool = webdataset.eval = "{pool}"\n'.replace(
            "webdataset.pool = ", f'webdataset.pool = "{pool}"\n'
        )
        + 'webdataset.caption = "json.caption"\nwebdataset.columns = ("json.similarity",)\nrun.cascade = @cascade()\n'
        'cascade.score = "column:similarity"\ncascade.candidates = 3\ncascade.deterministic = True\n',
        encoding="utf-8",
    )
    assert run_of(tmp_path, "--check") == 0
    assert run_of(tmp_path, "--price") == 0
    assert run_of(tmp_path, "--run_dir", str(tmp_path / "run")) == 0
    last, end = rows_of(tmp_path / "run")[-1], summary_of(tmp_path / "run")
    assert last["flops/reference_score"] == 0
    assert last["flops/total"] == last["flops/learner_train"] + last["flops/pairwise"]
    assert end["data"]["counts"]["read"] == 12, "only what is trained on is decoded"
    capsys.readouterr()
    assert run_of(tmp_path, 'cascade.score="column:clip"', "--run_dir", str(tmp_path / "other")) == 2
    said = "cascade.score = 'column:clip' draws by the column 'clip', which the pairs of webdataset/pool do not have"
    assert said in capsys.readouterr().err
    assert run_of(tmp_path, "cascade.score=similarity", "--check") == 2
    assert "a column such as 'column:similarity'" in capsys.readouterr().err
