from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmkit.contracts.options import Sampling
from mmkit.contracts.port import Port, TargetPort
from mmkit.contracts.values import Feed, Prepared, Request
from mmkit.contracts.vocabulary import Vocabulary
from mmkit.errors import ContractError
from mmkit.nn.codes import CodeOutput, Wanted, joint_vocabulary

TEXT = TargetPort("text", Port("text", "codes", codebook_size=5), open=True)
IMAGE = TargetPort("image", Port("image", "codes", codebook_size=3))


def test_marks_stand_last_and_only_where_there_are_any():
    assert [s.owner for s in joint_vocabulary((TEXT, IMAGE), 2).slices] == ["text", "image", "marks"]
    assert [s.owner for s in joint_vocabulary((TEXT, IMAGE), 0).slices] == ["text", "image"]


def test_a_stream_that_cannot_be_predicted_is_named():
    with pytest.raises(
        ContractError, match=r"streams.image: this head predicts codes, and the stream carries image latents"
    ):
        joint_vocabulary((TEXT, TargetPort("image", Port("image", "latents", width=4))), 2)


def test_what_is_wanted_is_the_streams_own_and_the_end():
    vocabulary = joint_vocabulary((TEXT, IMAGE), 2)
    logits = torch.arange(20.0).reshape(2, 10)
    request = Request("image", (4,), torch.Generator(), Sampling(), torch.device("cpu"), torch.float32)
    wanted = Wanted.by(request, vocabulary)
    assert wanted.logits(logits).tolist() == [[5, 6, 7], [15, 16, 17]]
    assert wanted.ids(torch.tensor([0, 2])).tolist() == [5, 7]
    wanted = Wanted.by(replace(request, stream="text", end=9), vocabulary)
    assert wanted.logits(logits.bfloat16()).tolist() == [[0, 1, 2, 3, 4, 9], [10, 11, 12, 13, 14, 19]]
    assert wanted.ids(torch.tensor([4, 5])).tolist() == [4, 9]


def test_logits_are_the_slices_end_to_end():
    torch.manual_seed(0)
    output = CodeOutput(Vocabulary.lay_out([("a", 4), ("b", 3)]), 8, depth=2, width=16)
    x = torch.randn(5, 8)
    inner = output.hidden(x)
    expected = torch.cat([inner @ output.weight[o].T + output.bias[o] for o in "ab"], -1)
    torch.testing.assert_close(output(x), expected)


def test_the_loss_is_that_of_the_logits():
    torch.manual_seed(0)
    output = CodeOutput(Vocabulary.lay_out([("a", 4), ("b", 3)]), 8, depth=2, width=16)
    x, ids, weight = torch.randn(7, 8), torch.arange(7), torch.rand(7)
    loss = output.loss(x, Prepared(Feed(ids), ids, weight), smoothing=0.2, z_loss=1e-2)
    logits = output(x)
    expected = cross_entropy(logits, ids, reduction="none", label_smoothing=0.2) + 1e-2 * logits.logsumexp(1).square()
    assert torch.equal(loss.value_S, expected) and loss.weight_S is weight
    assert torch.equal(loss.nats_S, cross_entropy(logits, ids, reduction="none")) and not loss.nats_S.requires_grad
