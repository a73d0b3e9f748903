"""The mixture-of-experts backbone: where experts stand, what it reports, and how routers hear of the load."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sequences import TINY, build, mixed, part_spec
from torch.testing import assert_close

from mmkit.backbones.moe import SparseBlock
from mmkit.errors import ContractError


def moe(**options: Any) -> Any:
    router = part_spec("router", "top_k", **options.pop("router", {}))
    return build("moe", **{**TINY, **options}, router=router)


@pytest.mark.parametrize(
    ("options", "sparse"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"every": 2}, [1, 3, 5]),
        ({"first_dense": 1}, [1, 2, 3, 4, 5]),
        ({"first_dense": 1, "every": 2}, [2, 4]),
    ],
)
def test_where_the_experts_stand(options: dict[str, int], sparse: list[int]) -> None:
    backbone = moe(depth=6, experts=2, **options)
    assert [i for i, block in enumerate(backbone.blocks) if isinstance(block, SparseBlock)] == sparse
    assert set(backbone(mixed(backbone)[1]).losses) == {"balance"}


def test_one_expert_that_everyone_reads_is_the_dense_mlp() -> None:
    sparse, dense = moe(experts=1, router={"k": 1}), build("dense", **TINY)
    own = dense.state_dict()
    for name in list(own):
        if ".mlp." in name:
            own[name.replace(".mlp.", ".mlp.pools.all.").removesuffix(".weight")] = own.pop(name)[None]
    assert not sparse.load_state_dict(own, strict=False).unexpected_keys
    packed = mixed(dense)[1]
    assert_close(sparse(packed).x_TD, dense(packed).x_TD, atol=1e-5, rtol=1e-5)


def test_losses_are_the_mean_over_layers() -> None:
    backbone = moe(experts=4, router={"z_loss": 0.1})
    reports: list[Any] = []
    for mixture in backbone.mixtures():
        mixture.register_forward_hook(lambda module, given, out: reports.append(out[1]))
    losses = backbone(mixed(backbone)[1]).losses
    assert set(losses) == {"balance", "router_z"}
    for name, value in losses.items():
        assert_close(value, (reports[0].losses[name] + reports[1].losses[name]) / 2)


@pytest.mark.parametrize("recompute", [False, True])
def test_loads_add_up_over_passes_until_the_step_is_over(recompute: bool) -> None:
    backbone = moe(experts=4, router={"balance": "bias", "bias_rate": 0.5})
    backbone.recompute = recompute
    packed = mixed(backbone)[1]
    heard: list[torch.Tensor] = []
    for mixture in backbone.mixtures():
        mixture.pools["all"].router.rebalance = heard.append
    for _ in range(3):
        backbone(packed).x_TD.sum().backward()
    backbone.after_step()
    one = torch.stack([mixture.load_E for mixture in backbone.mixtures()])
    assert one.sum(1).tolist() == [2 * len(packed.x_TD)] * 2
    assert torch.equal(torch.stack(heard), 3 * one)
    backbone.after_step()
    assert len(heard) == 2, "nothing new was read"


def test_the_bias_is_remembered_and_only_training_moves_it() -> None:
    backbone = moe(experts=4, router={"balance": "bias", "bias_rate": 0.5})
    packed = mixed(backbone)[1]
    backbone.eval()(packed)
    backbone.after_step()
    names = [name for name in backbone.state_dict() if name.endswith("bias_E")]
    assert len(names) == 2
    assert not any(backbone.state_dict()[name].any() for name in names)
    backbone.train()(packed)
    backbone.after_step()
    assert all(backbone.state_dict()[name].abs().max() == 0.5 for name in names)


def test_ranks_answer_to_the_load_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank stands in: it had all the load on the last expert."""
    backbone = moe(experts=4, router={"balance": "bias", "bias_rate": 1.0})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda load: load[:, 3].add_(10_000))
    backbone(mixed(backbone)[1])
    backbone.after_step()
    backbone.after_step()
    for mixture in backbone.mixtures():
        assert mixture.pools["all"].router.bias_E.tolist() == [2, 2, 2, -2], "without a batch of its own, too"


def test_a_stream_chooses_among_its_own_experts_alone() -> None:
    backbone = moe(experts={"text": 2, "image": 4}, streams=("text", "image"))
    layout, packed = mixed(backbone)
    images = int((packed.stream_T == 1).sum())
    backbone(packed)
    for mixture in backbone.mixtures():
        load = mixture.load_E
        assert (load[:2].sum(), load[2:].sum()) == (2 * (len(layout) - images), 2 * images)


@pytest.mark.parametrize(
    ("options", "place", "fact"),
    [
        ({"experts": {"text": 4}}, "experts", "'image', 'memory' is in no group"),
        ({"experts": {"text": 4, "image": 2, "memory": 2, "sound": 2}}, "experts", "'sound' is no stream"),
        ({"experts": 2, "router": {"k": 3}}, "router.k", "cannot choose 3 of 2"),
        ({"every": 3}, "every", "none of the 2 blocks"),
        ({"first_dense": 2}, "every", "none of the 2 blocks"),
    ],
)
def test_mistakes(options: dict[str, Any], place: str, fact: str) -> None:
    with pytest.raises(ContractError, match=fact) as caught:
        moe(**options)
    assert caught.value.problem.place == place


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("experts", [4, {"text": 2, "image": 3, "memory": 2}])
def test_it_tells_which_experts_read_which_tokens(experts: Any, recompute: bool) -> None:
    backbone = moe(experts=experts, every=2, depth=4, router={"k": 2}).train()
    backbone.recompute = recompute
    packed = mixed(backbone)[1]
    given = backbone(packed)
    assert backbone.routes and sorted(given.routes) == [1, 3]
    for mixture, routes in zip(backbone.mixtures(), given.routes.values(), strict=True):
        loads = [torch.bincount(route.expert_A, minlength=route.experts).float() for route in routes]
        assert torch.equal(torch.cat(loads), mixture.load_E)
        read = torch.cat([route.token_A for route in routes]).bincount()
        assert (read == 2).all() and len(read) == len(packed.x_TD)
        if isinstance(experts, dict):
            pools = [packed.stream_T[route.token_A].unique().tolist() for route in routes]
            assert all(set(streams) <= {number} for number, streams in enumerate(pools))
