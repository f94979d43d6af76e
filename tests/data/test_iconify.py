"""All of Iconify: a made-up package through the whole preparation, its splits, its shards, and what can go wrong."""

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
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jestbench.batch import DataError
from jestbench.data.file_pairs import FilePairs
from jestbench.data.icons import icon_drawings, icon_folder
from jestbench.data.icons import iconify as all_icons
from jestbench.data.icons.icon_folder import prepare_folder, spoken
from jestbench.data.icons.icon_looks import LOOK_BITS, NEAR, near_hashes, perceptual_hash
from jestbench.data.icons.icon_render import Form, IconPart, encode, halve, render_part
from jestbench.data.icons.iconify import Iconify
from jestbench.data.icons.packages import Collection, fetch
from jestbench.data.icons.recipe import ICONIFY, Recipe
from jestbench.data.pairs import ArrayPairs
from jestbench.disk import content_key
from jestbench.launch import command
from jestbench.launch.prepare import main

TESTED, PLACES = ICONIFY.tested, ICONIFY.places
CLEAN = (*TESTED, *ICONIFY.curated)
SPLITS = ("pool", *PLACES)

EMOJI = ("ea", "eb", "ec", "ed")
HELD_OUT = "held"
BROAD = ("ba", "bb", "bc", "bd", "be")
FACES = tuple(f"face-{word}" for word in "joy fear awe calm rage hope grief pride shame love".split())
THINGS = tuple("cat dog home star moon sun tree boat lamp door".split())

FAKE_NPM = """#!{python}
import json, pathlib, shutil, sys
registry = pathlib.Path({registry!r})
specs = [argument for argument in sys.argv[2:] if not argument.startswith("--")]
with open(registry / "calls", "a") as calls:
    calls.write(json.dumps(specs) + "\\n")
for spec in specs:
    package, _, version = spec.rpartition("@")
    name = package[1:].replace("/", "-") + "-" + version + ".tgz"
    shutil.copy(registry / name, name)
"""


def pattern(*seed: object, fill: str = "black") -> str:
    """Squares on a grid: far from all others, whatever the colour."""
    bits = hashlib.blake2b(repr(seed).encode(), digest_size=8).digest()
    cells = [i for i in range(64) if bits[i // 8] >> (i % 8) & 1]
    return "".join(f'<rect x="{2 * (i % 8)}" y="{2 * (i // 8)}" width="2" height="2" fill="{fill}"/>' for i in cells)


def bodies(name: str) -> dict[str, str]:
    """The icons of one made-up set."""
    made = {}
    for concept in FACES if name in (*EMOJI, HELD_OUT) else THINGS:
        made[concept] = pattern(name, concept)
        # Other versions of one drawing, that do not look the same.
        made[f"{concept}-dark-skin-tone"] = pattern(name, concept, "dark", fill="brown")
        made[f"{concept}-outline"] = pattern(name, concept, "outline")
    if name == BROAD[0]:  # one that recolours what the emoji hands drew
        made |= {f"look-{hand}-{face}": pattern(hand, face, fill="red") for hand in EMOJI for face in FACES}
    if name == HELD_OUT:
        made["nobody-elses"] = pattern(name, "nobody")
    return made | {
        "nothing": "",
        "twin": pattern(name, "cat"),
        "same": pattern(name, "same"),
        "same-01": pattern(name, "same"),
    }


def write_package(folder: Path) -> tuple[Collection, int]:
    """Write the tarball as npm would; how many icons are in it."""
    tarball = folder / "iconify-json-1.0.0.tgz"
    count = 0
    with tarfile.open(tarball, "w:gz") as archive:
        for name in ("package", *EMOJI, HELD_OUT, *BROAD):
            content: dict[str, Any] = {"icons": {n: {"body": body} for n, body in bodies(name).items()}}
            content |= {"prefix": name, "info": {"name": name, "author": {"name": f"Hand {name}"}, "palette": True}}
            content["info"] |= {"license": {"title": "MIT", "spdx": "MIT"}}
            path = f"package/json/{name}.json"
            if name == "package":
                content, path = {"name": "@iconify/json"}, "package/package.json"
            count += len(content.get("icons", ()))
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    return Collection("1.0.0", f"sha512-{digest}"), count


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry, and an npm that knows no other."""
    folder = tmp_path_factory.mktemp("registry")
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(FAKE_NPM.format(python=sys.executable, registry=str(folder)))
    npm.chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def _fake_npm(registry: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "network" not in request.keywords:
        monkeypatch.setenv("PATH", f"{registry / 'bin'}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture(scope="module")
def recipe(registry: Path) -> Recipe:
    collection, icons = write_package(registry)
    assert ICONIFY.emoji_sizes is not None
    return dataclasses.replace(
        ICONIFY,
        packages=(collection,),
        icons=icons,
        emoji=(*EMOJI, HELD_OUT),
        transfer=(HELD_OUT,),
        emoji_sizes=dataclasses.replace(ICONIFY.emoji_sizes, eval_classes=4, holdout_share=0.1),
        sizes=dataclasses.replace(
            ICONIFY.sizes, core_hands=4, eval_classes=4, eval_drawings=1, curated_pairs=8, holdout_share=0.1
        ),
        shard=30,
    )


@pytest.fixture(scope="module")
def made(registry: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iconify:
    """Prepared once, and not to be changed."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PATH", f"{registry / 'bin'}{os.pathsep}{os.environ['PATH']}")
    iconify = Iconify(cache_dir=str(tmp_path_factory.mktemp("made")), vocab_size=300, recipe=recipe)
    iconify.prepare()
    patch.undo()
    return iconify


@pytest.fixture
def copy(made: Iconify, tmp_path: Path) -> Iconify:
    """The same, to be damaged."""
    shutil.copytree(made.folder.parent, tmp_path / "copy")
    return dataclasses.replace(made, cache_dir=str(tmp_path / "copy"))


@pytest.fixture
def fresh(made: Iconify, tmp_path: Path) -> Iconify:
    """Not prepared yet."""
    return dataclasses.replace(made, cache_dir=str(tmp_path / "fresh"))


def samples(iconify: Iconify, place: str) -> list[tuple[dict[str, Any], Image.Image]]:
    """What any reader of WebDataset shards finds."""
    found = []
    for shard in sorted(iconify.folder.glob(f"{place}-*.tar")):
        with tarfile.open(shard) as archive:
            members = archive.getmembers()
            for png, text in zip(members[::2], members[1::2], strict=True):
                assert Path(png.name).stem == Path(text.name).stem
                image, facts = archive.extractfile(png), archive.extractfile(text)
                assert image is not None
                assert facts is not None
                found.append((json.load(facts), Image.open(io.BytesIO(image.read())).convert("RGB")))
    return found


def calls(registry: Path) -> int:
    return len((registry / "calls").read_text().splitlines())


# --- what is prepared ------------------------------------------------------------------------------------------------


def test_every_split_is_there_and_the_counts_are_true(made: Iconify) -> None:
    manifest = made.manifest()
    for name in SPLITS:
        pairs = made.split(name)
        counts = manifest["splits"][name]
        assert len(pairs) == counts["pairs"] > 0
        plain = dataclasses.replace(made, captions="plain").split(name)
        assert len(set(plain.captions)) == counts["captions"]  # type: ignore[attr-defined]
    assert manifest["splits"]["eval"] == {"pairs": 8, "captions": 4, "groups": 8, "sets": 4} | {
        "sets": manifest["splits"]["eval"]["sets"]
    }
    total = sum(manifest["splits"][name]["pairs"] for name in PLACES)
    assert total + sum(manifest["left_out"].values()) == made.recipe.icons
    assert manifest["left_out"]["blank"] == 10
    assert manifest["left_out"]["equal in pixels and caption"] == 10
    assert manifest["splits"]["pool"]["pairs"] == sum(
        manifest["splits"][name]["pairs"] for name in ("curated", "other")
    )
    rows = json.loads((made.folder / "licences.json").read_text())
    assert [(row["set"], row["spdx"]) for row in rows] == [(name, "MIT") for name in (*EMOJI, HELD_OUT, *BROAD)]
    assert sum(row["count"] for row in rows) == total
    assert sorted(path.name for path in made.folder.parent.iterdir()) == ["iconify", made.folder.name, "iconify.lock"]


def test_any_reader_of_shards_finds_what_the_splits_hold(made: Iconify) -> None:
    webdataset = pytest.importorskip("webdataset")
    decoded = dataclasses.replace(made, pixels=64, captions="plain")
    for name in PLACES:
        pairs, found = decoded.split(name), samples(made, name)
        assert isinstance(pairs, FilePairs)
        assert list(pairs.captions) == [facts["caption"] for facts, _ in found]
        batch = pairs.batch(torch.arange(len(pairs)))
        for image, (facts, shown) in zip(batch.images_BCHW, found, strict=True):
            assert (image.permute(1, 2, 0).numpy() == np.asarray(shown)).all()
            assert facts.keys() == {"caption", "name", "style", "set", "hand", "licence", "palette", "group"}
        small = made.split(name).batch(torch.arange(len(pairs))).images_BCHW
        assert (small.permute(0, 2, 3, 1).numpy() == halve(batch.images_BCHW.permute(0, 2, 3, 1).numpy())).all()
    shards = [str(path) for path in sorted(made.folder.glob("other-*.tar"))]
    assert len(shards) > 1
    streamed = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).to_tuple("png", "json")
    assert sum(1 for _ in streamed) == len(made.split("other"))


def test_the_small_images_are_keyed_by_their_pixels_and_the_large_by_their_bytes(made: Iconify) -> None:
    small, large = made.split("pool"), dataclasses.replace(made, pixels=64).split("pool")
    assert isinstance(small, ArrayPairs)
    assert small.image_key_N.tolist() == [content_key(image.tobytes()) for image in small.images_NHWC[small.row_N]]
    assert isinstance(large, FilePairs)
    assert large.image_key_N.tolist() == [content_key(large.source.read(i)) for i in range(len(large))]
    assert small.fingerprint != large.fingerprint
    sent = pickle.dumps(small)
    assert len(sent) < small.images_NHWC.nbytes / 4  # a worker opens the file by itself
    index = torch.tensor([3, 1])
    there, here = pickle.loads(sent).batch(index), small.batch(index)
    assert (there.images_BCHW == here.images_BCHW).all()
    assert there.captions == here.captions == tuple(small.captions[i] for i in (3, 1))
    assert there.text_key_B.tolist() == [content_key(caption.encode()) for caption in here.captions]


# --- splits ----------------------------------------------------------------------------------------------------------


def reference_hash(image: Image.Image) -> int:
    """The usual 64-bit difference hash, by Pillow: independent of the one that the preparation goes by."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    return int("".join("01"[int(bit)] for bit in (grey[:, :-1] > grey[:, 1:]).ravel()), 2)


def test_no_drawing_and_no_look_is_in_a_tested_split_and_in_one_trained_on(made: Iconify) -> None:
    found = {name: samples(made, name) for name in PLACES}
    homes = defaultdict(set)
    for name, rows in found.items():
        for facts, _ in rows:
            homes[facts["group"]].add("pool" if name in ("curated", "other") else name)
    assert all(len(places) == 1 for places in homes.values())
    hashes = {name: [reference_hash(image) for _, image in rows] for name, rows in found.items()}
    for tested in TESTED:
        for trained in set(PLACES) - set(TESTED):
            assert not [1 for a in hashes[tested] for b in hashes[trained] if (a ^ b).bit_count() <= 2]
    assert set(made.manifest()["copies_left"].values()) == {0}
    # The recoloured versions of what is tested were there, and are gone; those of what is not are in the pool.
    tested_faces = {f"look {facts['set']} {facts['caption']}" for facts, _ in found["eval"]}
    pool = {facts["caption"] for facts, _ in found["other"]}
    assert not tested_faces & pool
    assert {f"look {facts['set']} {facts['caption']}" for facts, _ in found["curated"] if not facts["style"]} & pool
    assert made.manifest()["left_out"]["look like what is tested"] >= len(tested_faces)


def test_the_held_out_hand_is_in_no_other_split(made: Iconify) -> None:
    for name in PLACES:
        assert {facts["set"] == HELD_OUT for facts, _ in samples(made, name)} == {name == "transfer"}
    transfer, curated = made.split("transfer"), made.split("curated")
    captions = [*transfer.captions]  # type: ignore[attr-defined]
    assert len(set(captions)) == len(captions)
    assert set(captions) <= set(curated.captions)  # type: ignore[attr-defined]


def test_emoji_are_curated_and_the_rest_is_not(made: Iconify) -> None:
    for name in ("curated", "eval"):
        assert {facts["set"] for facts, _ in samples(made, name)} <= set(EMOJI)
    for name in ("broad_curated", "broad_eval"):
        assert {facts["set"] for facts, _ in samples(made, name)} <= set(BROAD)
    pool = made.split("pool")
    assert pool.batch(torch.arange(len(pool))).marks["curated"].sum() == len(made.split("curated"))


def test_noise_captions_and_hands(made: Iconify) -> None:
    noisy = dataclasses.replace(made, noise=0.5, noise_seed=3)
    for name in SPLITS:
        before, after = made.split(name), noisy.split(name)
        assert isinstance(before, ArrayPairs)
        assert isinstance(after, ArrayPairs)
        assert after.marks["noisy"].sum() == (0 if name in CLEAN else round(0.5 * len(before)))
        changed = np.array([a != b for a, b in zip(before.captions, after.captions, strict=True)])
        assert (changed == after.marks["noisy"]).all()
        assert (before.fingerprint == after.fingerprint) == (name in CLEAN)
    named = {facts["name"] for facts, _ in samples(made, "curated") + samples(made, "other")}
    assert set(made.split("pool").captions) == {spoken(name) for name in named}  # type: ignore[attr-defined]
    plain = dataclasses.replace(made, captions="plain", min_hands=4).split("pool")
    assert {word for caption in plain.captions for word in caption.split()} & {"outline", "dark", "look"} == set()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"iconify\.min_hands = 50 leaves nothing of other"):
        dataclasses.replace(made, min_hands=50).split("other")


def test_splits_joined_hold_no_pair_twice(made: Iconify) -> None:
    both = made.split("pool+curated+broad_curated")
    assert isinstance(both, ArrayPairs)
    assert len(set(both.row_N.tolist())) == len(both) == len(made.split("pool")) + len(made.split("broad_curated"))
    with pytest.raises(DataError, match="iconify has no split 'train': there are pool, eval"):
        made.split("pool+train")


# --- looks -----------------------------------------------------------------------------------------------------------


def image(body: str) -> np.ndarray[Any, Any]:
    from jestbench.data.icons.icon_render import render

    text = f'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64" viewBox="0 0 16 16">{body}</svg>'
    return render([text], 64)


def look(body: str) -> np.ndarray[Any, Any]:
    return perceptual_hash(image(body))


def test_colour_does_not_change_the_look() -> None:
    black = look(pattern("one"))
    assert near_hashes(look(pattern("one", fill="tomato")), black).all()
    assert not near_hashes(look(pattern("two")), black).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2 * NEAR))
def test_alike_is_at_most_so_many_bits(seed: int, flips: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (3, LOOK_BITS), dtype=np.uint8)
    other = bits.copy()
    other[1, rng.choice(LOOK_BITS, flips, replace=False)] ^= 1
    packed = np.packbits(bits, axis=1)
    assert near_hashes(np.packbits(other[1:2], axis=1), packed).tolist() == [flips <= NEAR]
    assert near_hashes(np.packbits(1 - bits, axis=1), packed[:1])[0] == np.False_


@pytest.mark.parametrize("fill", ["black", "red"])
def test_an_encoded_image_has_the_very_pixels(fill: str) -> None:
    pixels = image(pattern("any", fill=fill))[0]
    assert (np.asarray(Image.open(io.BytesIO(encode(pixels))).convert("RGB")) == pixels).all()


# --- faults ----------------------------------------------------------------------------------------------------------

PREPARE = """
if __name__ == "__main__":  # workers import this file
    import pickle, sys
    from jestbench.data.icons import icon_drawings
    from jestbench.batch import DataError
    icon_drawings.PART = int(sys.argv[2])
    if len(sys.argv) > 3:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        iconify = pickle.load(open(sys.argv[1], "rb"))
        iconify.prepare()
        print(iconify.split("pool").fingerprint)
    except DataError as error:
        sys.exit(str(error))
"""


def started(iconify: Iconify, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that prepares."""
    (folder / "iconify.pickle").write_bytes(pickle.dumps(iconify))
    (folder / "script.py").write_text(PREPARE)
    command = [sys.executable, str(folder / "script.py"), str(folder / "iconify.pickle"), *map(str, arguments)]
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_killed_preparation_goes_on_and_makes_the_same(
    made: Iconify, fresh: Iconify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started(fresh, tmp_path, 4)
    parts = fresh.folder.with_name(f"{fresh.folder.name}.parts")
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.npz"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the workers end by themselves
    there = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert not fresh.is_prepared()
    (parts / ".00000.npz.99.partial").write_bytes(b"half a part")
    monkeypatch.setattr(icon_drawings, "PART", 4)
    seen: dict[str, int] = {}

    def gather(rendered: icon_drawings.Rendered) -> icon_drawings.Drawings:
        seen.update({path.name: path.stat().st_mtime_ns for path, _ in rendered.parts})
        assert seen.keys() == {path.name for path in parts.iterdir()}
        return original(rendered)

    original = icon_drawings.gather
    monkeypatch.setattr(icon_folder, "gather", gather)
    fresh.prepare()
    assert there.items() <= seen.items()
    assert len(seen) > len(there)
    for path in made.folder.iterdir():
        assert path.read_bytes() == (fresh.folder / path.name).read_bytes(), path.name
    assert sorted(path.name for path in fresh.folder.parent.iterdir()) == ["iconify", made.folder.name, "iconify.lock"]


def test_a_damaged_part_is_rendered_again(tmp_path: Path) -> None:
    path = tmp_path / "part.npz"
    text = '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64" viewBox="0 0 16 16">{}</svg>'
    assert render_part([text.format(pattern(1)), text.format("")], ICONIFY.form, path) == 2
    whole = path.read_bytes()
    part, pngs, images = IconPart.read(path), IconPart.pngs(path), IconPart.images(path)
    assert part is not None
    assert pngs is not None
    assert images is not None
    assert part.count == 2
    assert part.which_N.tolist() == [0]
    assert [len(png) for png in pngs] == part.size_N.tolist()
    assert images.shape == (1, 32, 32, 3)
    path.write_bytes(whole[: len(whole) // 2])
    assert IconPart.read(path) is None
    assert IconPart.pngs(path) is None
    assert IconPart.images(path) is None
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_message_and_what_is_rendered_is_kept(fresh: Iconify, tmp_path: Path) -> None:
    process = started(fresh, tmp_path, 30, 150_000)  # a part fits, the small images do not
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "cannot be prepared in" in said
    assert "JESTBENCH_CACHE" in said
    assert "Traceback" not in said
    assert sorted(path.suffix for path in fresh.folder.parent.iterdir()) == ["", ".lock", ".parts"]


def test_a_disk_too_small_is_found_before_anything_is_fetched(
    fresh: Iconify, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = calls(registry)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(icon_folder.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"GB are needed while it is made and 0\.0 GB are free"):
        fresh.prepare()
    assert calls(registry) == before


def test_two_processes_prepare_once(fresh: Iconify, made: Iconify, registry: Path, tmp_path: Path) -> None:
    before = calls(registry)
    processes = [started(fresh, tmp_path, 1000) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {made.split("pool").fingerprint}
    assert calls(registry) == before + 1


def test_a_tarball_cut_off_is_fetched_again_and_one_that_stays_so_is_named(
    fresh: Iconify, registry: Path, tmp_path: Path
) -> None:
    (collection,) = fresh.recipe.packages
    folder = tmp_path / "tarballs"
    folder.mkdir()
    whole = (registry / collection.tarball).read_bytes()
    (folder / collection.tarball).write_bytes(whole[:1000])
    fetch([collection], folder)
    assert (folder / collection.tarball).read_bytes() == whole
    wrong = dataclasses.replace(collection, integrity="sha512-AAAA")
    with pytest.raises(DataError, match=r"@iconify/json@1\.0\.0 came damaged twice"):
        fetch([wrong], folder)


def test_a_damaged_folder_is_noticed_and_made_anew(copy: Iconify, caplog: pytest.LogCaptureFixture) -> None:
    shard = next(copy.folder.glob("eval-*.tar"))
    whole = bytearray(shard.read_bytes())
    whole[600] ^= 0xFF  # inside the first PNG
    shard.write_bytes(whole)
    assert copy.damaged() == [shard.name]
    large = dataclasses.replace(copy, pixels=64).split("eval")
    with pytest.raises(DataError, match="iconify/eval: pair 0: changed file"):
        large.batch(torch.tensor([0]))
    copy.prepare(thorough=True)
    assert "is damaged: preparing it anew" in caplog.text
    assert copy.damaged() == []
    anew = dataclasses.replace(copy, pixels=64).split("eval")
    assert anew.batch(torch.tensor([0])).images_BCHW.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", ["other-00000.tar", "images-32.npy", "index.npz", "manifest.json", "names.txt"])
def test_what_is_cut_off_is_not_prepared(copy: Iconify, name: str) -> None:
    assert copy.is_prepared()
    whole = (copy.folder / name).read_bytes()
    (copy.folder / name).write_bytes(whole[: len(whole) // 2])
    assert not copy.is_prepared()
    with pytest.raises(DataError, match=r"run python tools/prepare\.py iconify"):
        copy.split("pool")


def test_without_the_renderer_nothing_is_fetched(fresh: Iconify, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icon_folder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"resvg_py, which is not installed: pip install 'jestbench\[icons\]'"):
        prepare_folder(fresh.folder, fresh.recipe, 256, fresh.folder.parent)


def test_a_package_without_the_emoji_is_refused(fresh: Iconify, registry: Path) -> None:
    recipe = dataclasses.replace(fresh.recipe, emoji=("ea", "gone"))
    with pytest.raises(DataError, match=r"@iconify/json@1\.0\.0 has no set gone"):
        dataclasses.replace(fresh, recipe=recipe).prepare()


# --- the command and the configuration -------------------------------------------------------------------------------


def test_the_command_prints_what_it_made(
    made: Iconify, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(all_icons, "Iconify", lambda cache_dir: made)
    assert main(["iconify"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["folder"] == str(made.folder)
    assert shown["splits"] == made.manifest()["splits"]
    assert set(shown["copies_left"].values()) == {0}


def test_the_command_exits_with_3_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["iconify", "--out", str(tmp_path / "file" / "cache")]) == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("prepare.py: the icons cannot be prepared in")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"noise": 1.0}, r"iconify\.noise is a share of the pairs in \[0, 1\), got 1\.0"),
        ({"noise_seed": -1}, r"iconify\.noise_seed must not be negative"),
        ({"captions": "long"}, r"iconify\.captions must be 'name' or 'plain'"),
        ({"pixels": 48}, r"iconify\.pixels must be 32 or 64"),
        ({"length": 1}, r"iconify\.length: a text needs at least 2 tokens"),
        ({"min_hands": 0}, r"iconify\.min_hands must be at least 1"),
        ({"vocab_size": 3}, r"iconify\.vocab_size must be at least"),
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Iconify(**wrong)


@pytest.mark.parametrize("name", ["iconify", "iconify_reference", "iconify_noise", "iconify_noise_reference"])
def test_a_run_is_checked_without_anything_prepared(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--gin_file", f"gin/run/{name}.gin", f"iconify.cache_dir={tmp_path}", "run.device=cpu", "--check"]
    assert command.main(argv) == 0, capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert Iconify().stand_in().split("transfer").batch(torch.arange(2)).images_BCHW.shape == (2, 3, 32, 32)


def test_a_run_trains_on_what_was_prepared(made: Iconify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_icons.Iconify, "recipe", made.recipe)
    monkeypatch.setattr(all_icons.Iconify, "folder", made.folder)
    bindings = ["run.device=cpu", "run.budget=2e9", "run.batch_size=8", "run.super_batch_size=32", "log.progress=False"]
    argv = ["--gin_file", "gin/run/iconify.gin", "run.policy=hard_learner", "evaluate.points=1", *bindings]
    assert command.main([*argv, "--run_dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert 0 <= summary["metrics"]["eval/zero_shot_top1"] <= 1


# --- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.network
def test_the_real_package(tmp_path: Path) -> None:
    (collection,) = ICONIFY.packages
    fetch([collection], tmp_path)
    sets = {icon_set.name: content for icon_set, content in collection.read(tmp_path)}
    assert len(sets) == 243
    assert sum(len(content.names()) for content in sets.values()) == ICONIFY.icons
    assert set(ICONIFY.emoji) <= sets.keys()
    noto = sets["noto"]
    names = noto.names()[:50]
    render_part([noto.svg(name, 64) for name in names], Form(encoded=True), tmp_path / "noto.npz")
    part = IconPart.read(tmp_path / "noto.npz")
    assert part is not None
    assert (part.size_N > 100).all()
