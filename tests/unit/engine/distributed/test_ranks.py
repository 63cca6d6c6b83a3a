"""What several processes share, tested in one: how they meet, their parts of a batch, their mean gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastt2i.config import Config, LossConfig, TrainConfig
from fastt2i.data.loaders.loader import Batch
from fastt2i.devices.selection import choose_device
from fastt2i.engine.build import check_batch_sharing
from fastt2i.engine.distributed import gradient_mean as gradients
from fastt2i.engine.distributed.gradient_mean import GradientMean
from fastt2i.engine.distributed.rendezvous import OTHER_LAUNCHERS, VARIABLES, join
from fastt2i.engine.distributed.world import World
from fastt2i.engine.inputs import InputSource
from fastt2i.engine.losses import discriminator_adversarial
from fastt2i.engine.step import StepInputs
from fastt2i.errors import UserError
from fastt2i.text.cache import TextCache


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*VARIABLES, *OTHER_LAUNCHERS.values(), "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_torchrun_there_is_one_process(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MASTER_ADDR", "somewhere")  # a cluster's prologue may set it for everybody
    world = join()
    assert (type(world), world.size, world.is_first, world.restarted) == (World, 1, True, False)
    assert not dist.is_initialized()


@pytest.mark.parametrize(("launcher", "variable"), OTHER_LAUNCHERS.items())
def test_several_processes_that_do_not_know_of_each_other(
    launcher: str, variable: str, environment: pytest.MonkeyPatch
) -> None:
    for alone in ("1", "", "some"):
        environment.setenv(variable, alone)
        assert join().size == 1
    environment.setenv(variable, "4")
    with pytest.raises(UserError, match=f"^{launcher} started 4 processes, each of which would train alone, as RANK"):
        join()


def test_one_process_of_torchrun_needs_no_others(environment: pytest.MonkeyPatch) -> None:
    values = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": 1}
    for name, value in (values | {"TORCHELASTIC_RESTART_COUNT": 2}).items():
        environment.setenv(name, str(value))
    assert type(join()) is World and join().restarted


def test_one_process_needs_nothing_but_its_number(environment: pytest.MonkeyPatch) -> None:
    """As a job system sets it, without LOCAL_RANK."""
    environment.setenv("RANK", "0")
    environment.setenv("WORLD_SIZE", "1")
    assert type(join()) is World


def test_without_local_rank_it_is_0(environment: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "here", "MASTER_PORT": 1}.items():
        environment.setenv(name, str(value))
    given: list[int] = []
    environment.setattr("fastt2i.engine.distributed.ranks.Ranks", lambda rank, size, local, **_: given.append(local))
    join()
    assert given == [0]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"MASTER_PORT": None}, "the environment has RANK, .* but not MASTER_PORT: start them with torchrun"),
        ({"LOCAL_RANK": None, "WORLD_SIZE": None}, "but not WORLD_SIZE: start"),
        ({"RANK": "first"}, "RANK is 'first' in the environment; torchrun sets it to a number"),
        ({"RANK": "2"}, "RANK is 2; of WORLD_SIZE 2 processes it must be at least 0 and less than 2"),
        ({"MASTER_ADDR": "nowhere.invalid"}, "rank 1 cannot reach nowhere.invalid:29500, where the ranks meet"),
    ],
)
def test_an_environment_that_does_not_fit_is_one_sentence(
    environment: pytest.MonkeyPatch, changed: dict[str, str | None], sentence: str
) -> None:
    values = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (values | changed).items():
        if value is not None:
            environment.setenv(name, value)
    with pytest.raises(UserError, match=sentence):
        join()
    assert not dist.is_initialized()


class Three(World):
    """A process of three, as far as it can be told without the others."""

    rank, size, local_rank = 2, 3, 2


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    def check(batch: int, gather: bool = True, accumulate: int = 1) -> None:
        train = TrainConfig(batch_size=batch, accumulate=accumulate)
        check_batch_sharing(Config(train=train, loss=LossConfig(gather=gather)), Three())

    check(3)
    check(6, gather=False)
    with pytest.raises(UserError, match="train.batch_size is 7, which 3 processes cannot share evenly; .* as 6"):
        check(7)
    with pytest.raises(UserError, match="train.batch_size is 2, which 3 processes .* as 3"):
        check(2)
    with pytest.raises(UserError, match="train.batch_size is 3, one image for each of 3 processes"):
        check(3, gather=False)
    check(12, accumulate=2)
    with pytest.raises(UserError, match="train.accumulate is 3, but each of 3 processes has 2 images .* divisor of 2"):
        check(6, accumulate=3)


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"process 3 of its machine, on which torch sees 2 GPUs; .*nproc-per-node=2"):
        choose_device("auto", Three.local_rank)
    assert choose_device("cpu", Three.local_rank).type == "cpu"


@pytest.mark.parametrize("kind", ["hinge", "nonsaturating"])
@pytest.mark.parametrize("valid", [[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
def test_parts_of_a_batch_have_the_mean_loss_of_the_whole(kind: str, valid: list[int]) -> None:
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor(valid, dtype=torch.bool)
    whole = discriminator_adversarial(kind, *logits, mask, 0.5)
    count = mask.sum().clamp(min=1) / 3
    parts = [
        discriminator_adversarial(kind, *logits[:, k : k + 2], mask[k : k + 2], 0.5, valid_count=count)
        for k in (0, 2, 4)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one: what is summed over it stays what it is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Net(nn.Module):
    """Called twice, differentiated twice, in channels-last, with a weight that not every loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 3)
        self.unused = nn.Linear(2, 2)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.silu(self.first(x)))


@pytest.mark.parametrize("bucket", [1, 300, 2**20])
def test_the_mean_gradient_is_taken_of_a_whole_backward(
    alone: None, monkeypatch: pytest.MonkeyPatch, bucket: int
) -> None:
    """In a group of one that is said to be two, the mean is half of the sum."""
    monkeypatch.setattr(gradients, "BUCKET", bucket)
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 3, 8, 8, requires_grad=True)

    def backward() -> None:
        net.zero_grad(set_to_none=True)
        y = net(x)
        (slope,) = torch.autograd.grad(net(x.flip(0)).sum(), x, create_graph=True)
        (y.square().sum() + slope.square().sum()).backward()

    backward()
    plain = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    assert set(plain) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    mean = GradientMean(net.parameters(), size=2)
    backward()
    assert all(torch.equal(p.grad, plain[name]) for name, p in net.named_parameters() if p.grad is not None)
    for _ in range(2):
        with mean:
            backward()
        for name, parameter in net.named_parameters():
            if name in plain:
                assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
                torch.testing.assert_close(parameter.grad, plain[name] / 2)
            else:
                assert parameter.grad is None


def test_a_backward_that_fails_leaves_nobody_waiting(alone: None) -> None:
    net = Net()
    mean = GradientMean(net.parameters(), size=1)
    with pytest.raises(ZeroDivisionError), mean:
        raise ZeroDivisionError
    with mean:
        net(torch.ones(1, 3, 8, 8)).sum().backward()
    assert net.first.weight.grad is not None


def test_nothing_of_torch_distributed_is_touched_by_one_process() -> None:
    assert os.environ.get("RANK") is None
    with join() as world:
        assert world.group is None and world.all_gather_object("x") == ["x"] and world.run_on_rank0(lambda: 3) == 3
    assert not dist.is_initialized()


def test_ranks_draw_the_rows_of_one_process() -> None:
    """Noise and augmentation of the ranks, one after the other, are those of a single process."""

    class Rank(World):
        def __init__(self, rank: int, size: int) -> None:
            super().__init__()
            self.rank, self.size = rank, size

    arrays = {"sentence": np.zeros((8, 2), np.float16), "keywords": np.zeros((8, 1, 2), np.float16)}
    features = TextCache(arrays | {"mask": np.ones((8, 1), np.bool_)})

    def drawn(world: World) -> list[StepInputs]:
        images, ids = torch.zeros(6 // world.size, 4, 4, 3, dtype=torch.uint8), torch.zeros(6 // world.size).long()
        batches = [Batch(images, ids, ids, ids)] * 2
        settings = {"noise_dim": 5, "draws": 4, "seed": 3, "first_step": 7, "device": torch.device("cpu")}
        return list(InputSource(batches, features, None, **settings, world=world))  # type: ignore[arg-type]

    whole = drawn(World())
    assert not torch.equal(whole[0].noise, whole[1].noise)
    for size in (2, 3, 6):
        parts = [drawn(Rank(rank, size)) for rank in range(size)]
        for step in range(2):
            assert torch.equal(torch.cat([part[step].noise for part in parts]), whole[step].noise)
            assert torch.equal(torch.cat([part[step].augmentation for part in parts], dim=1), whole[step].augmentation)
