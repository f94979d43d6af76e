"""Files of foreign models: a named model with weights of its own; what is missing, damaged, of another kind, unsafe."""

from __future__ import annotations

import builtins
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from foreign_models import CLIP, TEXTS, WORDS, clip_folder, open_clip_folder, pictures, siglip_folder, uint8_of
from helpers import own_surroundings, small_world
from safetensors.torch import load_file, save_file

import jestbench
from jestbench.disk import DataError
from jestbench.engine.foreign import Foreign
from jestbench.engine.hugging_face_clip import HuggingFaceClip
from jestbench.engine.open_clip_model import CONFIG, OpenClip
from jestbench.launch.command import main


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No hub is asked, so that none is waited for."""
    with own_surroundings(tmp_path_factory), pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("small")
    return {
        "clip": open_clip_folder(root / "clip"),
        "hf": clip_folder(root / "hf"),
        "siglip": siglip_folder(root / "siglip"),
    }


@pytest.fixture
def copied(small: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(small[name], tmp_path / name))


def of(folder: Path, **more: Any) -> Foreign:
    if folder.name == "clip":
        return OpenClip(model=f"local-dir:{folder}", **more)
    return HuggingFaceClip(path=str(folder), **more)


# A model by name, with weights of its own


@pytest.fixture(scope="module")
def vit_b_32(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """open_clip's ViT-B-32 of random weights, as a file, and the library's own model."""
    folder = tmp_path_factory.mktemp("vit_b_32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = open_clip.create_model("ViT-B-32")
    save_file(net.state_dict(), folder / "weights.safetensors")
    yield folder / "weights.safetensors", net.eval()
    shutil.rmtree(folder)


def test_vit_b_32_by_name(vit_b_32: tuple[Path, Any]) -> None:
    """A file and its folder; the library's forward pass, preprocessing included; DataComp's price."""
    file, net = vit_b_32
    model, transform = jestbench.load_model(f"open_clip:ViT-B-32:{file.parent}"), open_clip.image_transform(224, False)
    images, texts = pictures((300, 200), (64, 64)), TEXTS[:2]
    with torch.no_grad():
        expected = net.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        torch.testing.assert_close(model.encode_image(images), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.encode_image(uint8_of(images[1:])), expected[1:], rtol=0, atol=1e-5)
        expected = net.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts), normalize=True)
        torch.testing.assert_close(model.encode_text(texts), expected, rtol=0, atol=1e-5)
    image, text = (
        jestbench.forward_macs(*parts)
        for parts in ((model.model.image, uint8_of(images[1:])), (model.model.text, model.tokenize(texts[:1])))
    )
    assert (image + text) / 1e9 == pytest.approx(7.39, abs=0.005)


def test_zero_shot_by_a_loaded_model(small: dict[str, Path]) -> None:
    model, images = jestbench.load_model(f"hf:{small['siglip']}"), pictures((40, 40), (40, 40), (40, 40))
    found = model.zero_shot(images, ["cat", "red dog"], templates=["a {}", "a photo of the {}"])
    text_CD = torch.stack(
        [model.encode_text([f"a {name}", f"a photo of the {name}"]).mean(0) for name in ("cat", "red dog")]
    )
    cosine = model.encode_image(images) @ torch.nn.functional.normalize(text_CD, dim=1).T
    torch.testing.assert_close(found, (model.scale_and_bias[0] * cosine).softmax(1))
    with pytest.raises(ValueError, match="uint8"):
        model.encode_image(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="list of strings"):
        model.encode_text("cat")


def test_siglip_as_it_is_released_with_a_vocabulary_of_sentencepiece(copied: Callable[[str], Path]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    import transformers

    folder, plain = copied("siglip"), " ".join(WORDS)
    for file in folder.glob("token*"):
        file.unlink()
    (folder / "words.txt").write_text("\n".join([plain] * 50), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "words.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=32,
        pad_id=3,
        hard_vocab_limit=False,
    )
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"))
    tokenizer.save_pretrained(folder)
    found = of(folder).load().tokens(TEXTS)
    expected = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")["input_ids"]
    assert torch.equal(found, expected)
    assert len(found.unique()) > 5


# What is wrong


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncated(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1000])

    return cut


def other_architecture(name: str) -> Callable[[Path], None]:
    def exchange(folder: Path) -> None:
        weights = load_file(folder / name)
        first = next(iter(sorted(weights)))
        weights[f"{first}.more"] = weights.pop(first)
        save_file(weights, folder / name)

    return exchange


def reshaped(name: str, weight: str, *shape: int) -> Callable[[Path], None]:
    def exchange(folder: Path) -> None:
        weights = load_file(folder / name)
        weights[weight] = torch.zeros(shape)
        save_file(weights, folder / name)

    return exchange


def no_weights_of_a_model(folder: Path) -> None:
    save_file({"a": torch.zeros(2)}, folder / SAFE)


def described_as(name: str, part: str, **wrong: Any) -> Callable[[Path], None]:
    """The configuration with wrong values in a part of it."""

    def write(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        held = config.get("model_cfg", config)
        held[part].update(wrong)
        (folder / name).write_text(json.dumps(config))

    return write


def other_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "blip"}))


SAFE, HF_SAFE = "open_clip_model.safetensors", "model.safetensors"


@pytest.mark.parametrize(
    ("name", "harm", "status", "said"),
    [
        ("clip", without("open_clip_config.json"), 3, "holds no open_clip_config.json, as open_clip's push"),
        ("clip", without(SAFE), 3, "holds no weights, such as open_clip_model.safetensors"),
        ("clip", truncated(SAFE), 3, "cannot be read"),
        ("clip", other_architecture(SAFE), 2, "does not hold a local-dir:"),
        ("clip", reshaped(SAFE, "positional_embedding", 20, 7), 2, "does not hold a local-dir:"),
        ("clip", reshaped(SAFE, "visual.positional_embedding", 10, 7), 2, "does not hold a local-dir:"),
        ("clip", reshaped(SAFE, "visual.positional_embedding", 3), 2, "does not hold a local-dir:"),
        ("clip", no_weights_of_a_model, 2, "does not hold a local-dir:"),
        ("clip", described_as(CONFIG, "vision_cfg", patch_size=0), 2, "cannot be built: ZeroDivisionError"),
        ("clip", described_as(CONFIG, "text_cfg", heads=5), 2, "cannot be built: AssertionError"),
        ("clip", described_as(CONFIG, "vision_cfg", depth=2), 2, "cannot be built: TypeError"),
        ("hf", described_as("config.json", "vision_config", num_attention_heads=5), 2, "describes no CLIPModel"),
        ("hf", without(HF_SAFE), 3, "holds no weights"),
        ("hf", truncated(HF_SAFE), 3, "cannot be read"),
        ("hf", other_architecture(HF_SAFE), 2, "is of another architecture than config.json"),
        ("hf", without("config.json"), 3, "config.json: No such file"),
        ("hf", without("preprocessor_config.json"), 3, "holds no image processor"),
        ("siglip", without("tokenizer.json"), 3, "holds no tokenizer"),
        ("siglip", other_kind, 2, "is of the type 'blip'"),
    ],
)
def test_one_message(
    name: str, harm: Callable[[Path], None], status: int, said: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(name)
    harm(folder)
    with pytest.raises(DataError) as found:
        of(folder).load()
    assert (found.value.exit_status, said in str(found.value)) == (status, True), str(found.value)
    assert len(str(found.value).replace(str(folder), "")) < 600


def test_the_folder_of_another_library_is_bound_as_the_message_says(
    small: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="of transformers, it is bound as hugging_face_clip"):
        OpenClip(model=f"local-dir:{small['hf']}").load()
    with pytest.raises(ValueError, match=f"'local-dir:{small['clip']}'"):
        OpenClip(model=str(small["clip"]))
    words = ["--gin_file", "gin/run/tiny.gin", "run.policy=clip_score", f"run.reference={small['clip']}", "--check"]
    assert main(words) == 3
    assert "(a model of another library is bound as @open_clip() or @hugging_face" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "status", "said"),
    [
        (OpenClip(model="ViT-B-23", pretrained="openai"), 2, "did you mean ViT-B-32"),
        (OpenClip(model="ViT-B-32", pretrained="laion2b_s34b_b79"), 2, "did you mean laion2b_s34b_b79k"),
        (OpenClip(model="ViT-B-32", pretrained="laion2b_s34b_b79k"), 3, "cannot be fetched"),
        (OpenClip(model="hf-hub:nobody/nothing"), 3, "cannot be fetched"),
        (OpenClip(model="local-dir:nowhere"), 3, "nowhere"),
        (HuggingFaceClip(path="nobody/nothing"), 3, "cannot be fetched from the hub"),
        (HuggingFaceClip(path="facebook/metaclip-h14-fullcc2.5b"), 3, "cannot be fetched from the hub"),
        (HuggingFaceClip(path="./nowhere"), 3, "no such folder"),
        (HuggingFaceClip(path="weights/model.safetensors"), 3, "no such folder"),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_without_a_network(model: Foreign, status: int, said: str) -> None:
    with pytest.raises(DataError) as found:
        model.load()
    assert (found.value.exit_status, said in str(found.value)) == (status, True), str(found.value)


def test_a_stand_in_scores_nothing_alone() -> None:
    """Its random weights would pass for those on the hub."""
    model = HuggingFaceClip(path="nobody/nothing")
    found = model.stand_in("meta")
    assert (found, found.identity, found.remote) == (model, model.identity, model.remote)
    assert found.frozen(None) is None  # type: ignore[arg-type]
    assert model.shapes_on is None


@pytest.mark.parametrize(("name", "package"), [("clip", "open_clip"), ("hf", "transformers")])
def test_without_the_library(name: str, package: str, small: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(asked: str, *more: Any, **named: Any) -> Any:
        if asked == package:
            raise ImportError(f"No module named {package!r}")
        return real(asked, *more, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match=r"pip install 'jestbench\[(open_clip|hugging_face)\]'") as found:
        of(small[name]).load()
    assert found.value.exit_status == 2


# What is not trusted


class Harm:
    """An object whose pickle runs code when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "file", "safe"), [("clip", "open_clip_pytorch_model.bin", SAFE), ("hf", "pytorch_model.bin", HF_SAFE)]
)
def test_a_pickle_is_refused_or_read_as_weights_only(
    name: str, file: str, safe: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(name)
    expected = of(folder).load()
    torch.save(load_file(folder / safe), folder / file)
    (folder / safe).unlink()
    with pytest.raises(DataError, match=r"a pickle can run code .* trust_pickle = True"):
        of(folder).load()
    found = of(folder, trust_pickle=True).load()
    for key, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[key]), key
    (folder / file).write_bytes(pickle.dumps({"harm": Harm(tmp_path / "harmed")}))
    with pytest.raises(DataError, match="cannot be read"):
        of(folder, trust_pickle=True).load()
    assert not (tmp_path / "harmed").exists()
    pickle.loads((folder / file).read_bytes())
    assert (tmp_path / "harmed").exists(), "the harm is real"


# What is not fetched


def test_a_check_fetches_nothing_and_prices_what_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-XS", CLIP)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-XS", {"some": {"hf_hub": "nobody/nothing/"}})
    world = ["--gin_file", "gin/run/tiny.gin", *small_world(1, 2), "run.loss=softmax", "run.policy=jest"]
    words = [*world, "run.reference=@open_clip()", "open_clip.model=ViT-XS", "run.budget=1e14"]
    assert main([*words, "open_clip.pretrained=some", "--check"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not checked: the weights of open_clip ViT-XS some" in said
    assert "what its training took is not known" in said
    for tag, status in (("some", 3), ("same", 2)):
        assert main([*words, f"open_clip.pretrained={tag}", "--run_dir", str(tmp_path / tag)]) == status
    assert "did you mean some?" in capsys.readouterr().err
    assert not (tmp_path / "same").exists()
    assert main([*words, "open_clip.pretrained=same", "--check"]) == 2
