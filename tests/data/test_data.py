"""The loader, the noise, the planted world, pairs and tokenizers."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from jestbench.batch import Batch, DataError
from jestbench.data.caption_noise import exchange_captions, normalised
from jestbench.data.pairs import ArrayPairs
from jestbench.data.super_batches import EpochPlan, SuperBatches
from jestbench.data.synthetic import SPLITS, Synthetic
from jestbench.disk import content_key
from jestbench.model.tokenizer import END, PAD, Tokenizer, train_bpe

CAPTIONS = ["a red cat", "a blue dog", "two green fish by the sea", "a red dog"]
BACKEND = train_bpe(CAPTIONS * 3, 290)
TOKENIZER = Tokenizer(BACKEND.to_str(), 8)


def pairs_of(count: int, captions: list[str] | None = None) -> ArrayPairs:
    return ArrayPairs(
        name="test/pool",
        fingerprint="0",
        images_NHWC=np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3),
        row_N=np.arange(count),
        captions=captions or [CAPTIONS[i % 4] for i in range(count)],
        tokenizer=TOKENIZER,
        image_key_N=np.arange(count),
    )


# The loader


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 3))
def test_a_pass_is_one_permutation_with_its_tail_counted(size, extra, seed):
    plan = EpochPlan(pairs_of(size + extra), size, seed)
    for epoch in range(2):
        steps = range(epoch * plan.per_epoch, (epoch + 1) * plan.per_epoch)
        drawn = torch.cat([plan.positions(step).index_B for step in steps]).tolist()
        assert {plan.positions(step).epoch for step in steps} == {epoch}
        assert len(drawn) == len(set(drawn)) == plan.per_epoch * size, "no pair twice in a pass"
        assert plan.skipped(steps[-1]) == epoch * (size + extra - len(drawn))
        assert plan.skipped(steps[-1] + 1) == (epoch + 1) * (size + extra - len(drawn))


def test_the_order_is_a_function_of_the_seed_and_the_step():
    first, second, other = (EpochPlan(pairs_of(50), 8, seed) for seed in (0, 0, 1))
    torch.manual_seed(3)
    forwards = [first.positions(step).index_B for step in range(20)]
    backwards = [second.positions(step).index_B for step in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert not torch.equal(forwards[0], other.positions(0).index_B)


def test_each_pass_leaves_out_another_tail():
    plan = EpochPlan(pairs_of(50), 8, 0)
    tails = set()
    for epoch in range(5):
        seen = {i for step in range(6) for i in plan.positions(6 * epoch + step).index_B.tolist()}
        tails.add(frozenset(set(range(50)) - seen))
    assert {len(tail) for tail in tails} == {2}
    assert len(tails) == 5


def test_a_split_smaller_than_a_super_batch_is_refused():
    EpochPlan(pairs_of(8), 8, 0)
    with pytest.raises(DataError, match=r"holds 7 pairs.*super_batch_size"):
        EpochPlan(pairs_of(7), 8, 0)


def test_batches_carry_what_belongs_together():
    pairs = pairs_of(12)
    batch = SuperBatches(EpochPlan(pairs, 5, 0)).at(1)
    for row, key in enumerate(batch.image_key_B.tolist()):
        assert batch.images_BCHW[row].unique().tolist() == [key]
        assert batch.captions[row] == CAPTIONS[key % 4]
        assert batch.text_key_B[row] == content_key(CAPTIONS[key % 4].encode())
        assert torch.equal(batch.tokens(TOKENIZER.identity)[row], TOKENIZER.encode([CAPTIONS[key % 4]])[0])
    taken = batch.take(torch.tensor([3, 0]))
    assert taken.captions == (batch.captions[3], batch.captions[0])
    assert torch.equal(taken.images_BCHW, batch.images_BCHW[[3, 0]])


def test_a_batch_whose_parts_differ_in_length_is_refused():
    images, keys = torch.zeros(3, 3, 2, 2, dtype=torch.uint8), torch.arange(3)
    with pytest.raises(ValueError, match="length"):
        Batch(images, {}, keys, torch.arange(4))
    with pytest.raises(ValueError, match="uint8"):
        Batch(images.float(), {}, keys, keys)


# ArrayPairs


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("ahead", [True, False])
def test_pairs_sent_to_another_process_are_the_same(tmp_path, offset, ahead):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    pairs = replace(pairs_of(9), images_NHWC=mapped[offset:] if offset else mapped, ahead=ahead)
    sent = pickle.dumps(pairs)
    assert (len(sent) > mapped[offset:].nbytes) == bool(offset), "a map goes by its place, a part of one by its content"
    index = torch.tensor([8, 0, 3])
    there, here, plain = pickle.loads(sent).batch(index), pairs.batch(index), replace(pairs, ahead=True).batch(index)
    assert torch.equal(there.images_BCHW, here.images_BCHW)
    assert torch.equal(here.images_BCHW.permute(0, 2, 3, 1), torch.from_numpy(mapped[offset + index.numpy()]))
    for batch in (there, here):
        assert torch.equal(batch.tokens(TOKENIZER.identity), plain.tokens(TOKENIZER.identity))
        assert batch.captions == plain.captions


@pytest.mark.parametrize("empty", ["", " ", "\t\n", "\u3000"])
def test_empty_captions_are_refused(empty):
    with pytest.raises(DataError, match="pair 2 is empty"):
        pairs_of(4, ["a", "b", empty, "d"])


def test_content_keys_are_signed_64_bit_and_stable():
    assert content_key(b"a red cat") == -3037774535702438454
    keys = [content_key(bytes([i])) for i in range(200)]
    assert len(set(keys)) == 200
    assert min(keys) < 0 <= max(keys) < 2**63


# Noise


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["a b", "A  b", "c", "d", "e f", "g"]), min_size=1, max_size=60),
    st.floats(0, 0.99),
    st.integers(0, 5),
)
def test_noise_is_exact_or_refused(captions, share, seed):
    count = round(share * len(captions))
    classes = Counter(normalised(caption) for caption in captions)
    # Among those who take part no class may hold more than half: each must find a stranger.
    if sum(min(size, count // 2) for size in classes.values()) < count:
        with pytest.raises(DataError, match="too many are equal"):
            exchange_captions(captions, share, seed)
        return
    found, noisy = exchange_captions(captions, share, seed)
    assert noisy.sum() == count, "the share is exact"
    for before, after, changed in zip(captions, found, noisy, strict=True):
        assert (normalised(before) != normalised(after)) == changed, "each noisy caption is truly wrong, no other is"
    assert Counter(found) == Counter(captions), "captions keep their frequencies"
    again, noisy_again = exchange_captions(captions, share, seed)
    assert again == found
    assert np.array_equal(noisy, noisy_again)


def test_no_wrong_caption_can_be_learned():
    """The wrong captions of a class are spread over all others, not paired with one of them."""
    captions = [str(i % 10) for i in range(2000)]
    found, noisy = exchange_captions(captions, 0.6, 0)
    for name in set(captions):
        wrong = Counter(found[i] for i in np.flatnonzero(noisy).tolist() if captions[i] == name)
        assert len(wrong) == 9
        assert max(wrong.values()) < 2.5 * wrong.total() / 9


def test_another_seed_is_other_noise():
    captions = [str(i) for i in range(100)]
    assert exchange_captions(captions, 0.5, 0)[0] != exchange_captions(captions, 0.5, 1)[0]


# The planted world


WORLD = Synthetic(pool=1000, curated=300, holdout=300, eval=200)


def true_captions(world: Synthetic, pairs: ArrayPairs) -> list[str]:
    """What each image shows, told from the images of the clean split alone."""
    clean = replace(world, curated=2000).split("curated")
    names = sorted(set(clean.captions))
    row = np.array([names.index(caption) for caption in clean.captions])
    images = clean.images_NHWC.astype(np.float64).reshape(len(row), -1)
    mean = np.stack([images[row == i].mean(0) for i in range(len(names))])
    asked = pairs.images_NHWC.astype(np.float64).reshape(len(pairs), -1)
    distance = (mean**2).sum(1) - 2 * asked @ mean.T
    return [names[i] for i in distance.argmin(1)]


@pytest.mark.parametrize("split", SPLITS)
def test_the_noisy_mark_is_the_truth(split):
    pairs = WORLD.split(split)
    wrong = [shown != caption for shown, caption in zip(true_captions(WORLD, pairs), pairs.captions, strict=True)]
    assert pairs.marks["noisy"].tolist() == wrong
    if split in ("curated", "eval"):
        assert not any(wrong), "clean splits are clean"
    if split == "holdout":
        assert sum(wrong) == round(WORLD.noise * len(pairs))


def test_the_other_marks_are_the_truth():
    pairs = WORLD.split("pool")
    content = [(image.tobytes(), caption) for image, caption in zip(pairs.images_NHWC, pairs.captions, strict=True)]
    originals = {pair for pair, copy in zip(content, pairs.marks["duplicate"], strict=True) if not copy}
    assert all(pair in originals for pair in content), "what is marked a copy copies a pair of the pool"
    assert len(originals) == int((~pairs.marks["duplicate"]).sum()), "and what is not, does not"
    shown = np.array(true_captions(WORLD, pairs))
    assert len(set(shown[pairs.marks["easy"]])) == 4
    assert pairs.marks["easy"].mean() == pytest.approx(WORLD.easy, abs=0.05)
    assert pairs.marks["duplicate"].mean() == pytest.approx(WORLD.duplicates, abs=0.05)
    assert not pairs.marks["curated"].any()
    assert WORLD.split("curated").marks["curated"].all()


def test_no_image_stands_in_two_splits():
    keys = [set(WORLD.split(split).image_key_N.tolist()) for split in SPLITS]
    assert len(set.union(*keys)) == sum(map(len, keys))


def test_every_concept_can_be_evaluated_and_no_caption_is_empty():
    assert all(caption.strip() for split in SPLITS for caption in WORLD.split(split).captions)
    assert set(WORLD.split("eval").captions) <= set(WORLD.split("curated").captions)
    assert len(set(WORLD.split("curated").captions)) == WORLD.concepts


def test_splits_can_be_joined():
    joined = WORLD.split("curated+eval")
    parts = [WORLD.split("curated"), WORLD.split("eval")]
    assert list(joined.captions) == [caption for part in parts for caption in part.captions]
    assert joined.image_key_N.tolist() == [key for part in parts for key in part.image_key_N.tolist()]
    assert joined.fingerprint not in {part.fingerprint for part in parts}


def test_an_unknown_split_is_named():
    with pytest.raises(DataError, match=r"'trian'.*pool, curated, holdout, eval"):
        WORLD.split("pool+trian")


def test_the_world_is_a_function_of_its_parameters():
    again = Synthetic(pool=1000, curated=300, holdout=300, eval=200).split("pool")
    assert np.array_equal(again.images_NHWC, WORLD.split("pool").images_NHWC)
    assert again.captions == WORLD.split("pool").captions
    other = replace(WORLD, seed=1).split("pool")
    assert other.fingerprint != again.fingerprint
    assert other.tokenizer.identity != again.tokenizer.identity
    noisier = replace(WORLD, noise=0.6).split("pool")
    assert noisier.fingerprint != again.fingerprint
    assert noisier.tokenizer.identity == again.tokenizer.identity, "noise leaves the tokenizer alone"


@pytest.mark.parametrize(
    "wrong", [{"noise": 1.0}, {"easy": -0.1}, {"concepts": 3}, {"image_size": 3}, {"pool": 0}, {"duplicates": 1.5}]
)
def test_a_world_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"synthetic.{next(iter(wrong))}"):
        Synthetic(**wrong)


# Tokenizers


def test_training_a_tokenizer_does_not_depend_on_the_order_of_captions():
    assert train_bpe(CAPTIONS * 3, 290).to_str() == train_bpe(list(reversed(CAPTIONS * 3)), 290).to_str()


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), min_size=2, max_size=6), st.integers(0, 5))
def test_normalised_captions_within_the_length_never_share_their_ids(captions, blanks):
    normalise = BACKEND.normalizer.normalize_str
    close = [*captions, captions[0] + "\U0001f600", captions[0] + "\U0001f643", " " * blanks + captions[0].upper()]
    roomy = Tokenizer(BACKEND.to_str(), 256)
    rows = {caption: tuple(ids) for caption, ids in zip(close, roomy.encode(close).tolist(), strict=True)}
    assert len(set(rows.values())) == len({normalise(caption) for caption in close})
    for caption, ids in rows.items():
        spelt = [i for i in ids if i not in (roomy.pad_id, BACKEND.token_to_id(END))]
        assert BACKEND.decode(spelt) == normalise(caption), "the ids spell the caption"
        assert bool(spelt) == bool(normalise(caption).strip())


def test_texts_of_no_token_are_counted():
    ids_NL = TOKENIZER.encode(["", " \u3000", "\U0001f600", "a red cat"])
    assert TOKENIZER.wordless(ids_NL) == 2
    words = {word: i for i, word in enumerate(("[CLS]", "[SEP]", "[PAD]", "[UNK]", "cat"))}
    backend = Backend(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 0), ("[SEP]", 1)])
    other = Tokenizer(backend.to_str(), 6, "[PAD]", "[SEP]")
    assert other.wordless(other.encode(["cat", "dog", "a dog", "dog cat", ""])) == 3, "unknown tokens are no text"


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.integers(2, 12))
def test_every_text_ends_with_its_end_token_and_padding(captions, length):
    tokenizer = Tokenizer(BACKEND.to_str(), length)
    end = BACKEND.token_to_id(END)
    ids_NL = tokenizer.encode([*captions, f"{PAD} a {END} red {PAD} cat", "a red cat " * 20])
    assert ids_NL.shape == (len(captions) + 2, length)
    for ids in ids_NL.tolist():
        stop = ids.index(end)
        assert tokenizer.pad_id not in ids[:stop], "a caption cannot spell padding"
        assert set(ids[stop + 1 :]) <= {tokenizer.pad_id}
    assert ids_NL[-1, -1] == end, "a long text is cut, its end token is not"
    assert int(ids_NL.max()) < tokenizer.vocab_size


def test_a_text_is_cut_at_its_end():
    long, short = (Tokenizer(BACKEND.to_str(), length).encode(["two green fish by the sea"])[0] for length in (32, 4))
    assert torch.equal(short[:3], long[:3])


def test_case_and_width_do_not_matter():
    assert torch.equal(TOKENIZER.encode(["A Red CAT"]), TOKENIZER.encode(["a red cat"]))


def test_the_identity_is_definition_and_length():
    assert Tokenizer(BACKEND.to_str(), 8) == TOKENIZER
    others = [Tokenizer(BACKEND.to_str(), 9), Tokenizer(train_bpe(CAPTIONS, 290).to_str(), 8)]
    assert len({TOKENIZER.identity, *(other.identity for other in others)}) == 3


def test_a_tokenizer_is_read_from_its_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text(BACKEND.to_str(), encoding="utf-8")
    assert Tokenizer.load(tmp_path / "tokenizer.json", 8) == TOKENIZER


def test_a_tokenizer_without_room_or_end_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Tokenizer(BACKEND.to_str(), 1)
    with pytest.raises(ValueError, match=END):
        Tokenizer(BACKEND.to_str().replace(END, "<eos>"), 8)
