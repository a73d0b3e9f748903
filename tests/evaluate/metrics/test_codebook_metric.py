"""Use of a tokenizer's book."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn import TEXTS_ONLY, images, record, subject
from scipy.stats import entropy

from mmkit.compose import spec

SMALL = {"stride": 8, "base_dim": 8, "multipliers": [1, 1, 1, 1], "num_res_blocks": 1}
CODEBOOK = spec("metric", "codebook").build()


@pytest.fixture(scope="module")
def tokenizers():
    torch.manual_seed(0)
    return {
        "text": spec("tokenizer", "bytes").build(),
        "codes": spec("tokenizer", "fsq", levels=[5, 5], **SMALL).build().eval(),
        "book": spec("tokenizer", "vq", codebook_size=32, **SMALL).build().eval(),
        "latents": spec("tokenizer", "kl_vae", channels=4, **SMALL).build().eval(),
    }


def found(tokenizers, *names, group="reconstruction", count=6):
    chosen = {name: tokenizers[name] for name in names}
    drawn = [record(image, image, name=str(i), group=group) for i, image in enumerate(images(count))]
    return CODEBOOK.whole(drawn, subject(chosen))


def test_it_is_the_entropy_of_the_codes(tokenizers):
    figures = found(tokenizers, "text", "codes")
    codes = torch.cat([c.flatten() for c in tokenizers["codes"].encode(images(6))])
    counts = np.bincount(codes.numpy(), minlength=25)
    assert figures["codebook_use"].value == (counts > 0).mean() and figures["codebook_use"].unit == "share"
    assert figures["codebook_perplexity"].value == pytest.approx(np.exp(entropy(counts)))
    assert figures["codebook_perplexity"].better == "more" and figures["codebook_perplexity"].n == 6


def test_batches_do_not_matter(tokenizers):
    drawn = [record(image, image) for image in images(5)]
    one = subject({"codes": tokenizers["codes"]})
    assert spec("metric", "codebook", batch=2).build().whole(drawn, one) == CODEBOOK.whole(drawn, one)


def test_several_books(tokenizers):
    figures = found(tokenizers, "codes", "book", "latents")
    assert set(figures) == {f"{n}.{f}" for n in ("codes", "book") for f in ("codebook_use", "codebook_perplexity")}
    own = found(tokenizers, "codes", "book", "latents", group="reconstruction/book")
    assert own["codebook_use"] == figures["book.codebook_use"] and len(own) == 2
    assert found(tokenizers, "codes", "latents", group="reconstruction/latents") == {}


def test_texts_have_no_book():
    assert CODEBOOK.why_not([TEXTS_ONLY]) == "only texts among the targets"
