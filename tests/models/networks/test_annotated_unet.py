"""The tutorial's U-Net against the labml-nn package itself, and its training under DDP."""

import importlib

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from models.config import ModelConfig
from models.diffusion import GaussianDiffusion
from models.networks.table import build_model, build_on_meta
from tests.support.reference import models_reference as reference

TUTORIAL = ModelConfig(
    architecture="annotated", base_channels=64, channel_multipliers=(1, 2, 2, 4), attention_resolutions=(4,)
)
SMALL = ModelConfig(
    architecture="annotated",
    image_size=8,
    base_channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
)


def _labml():
    # labml-nn's U-Net imports torch alone; its package pulls in a dozen others, so it is installed without them.
    return importlib.import_module("labml_nn.diffusion.ddpm.unet")


def test_it_has_the_tutorials_parameters_name_by_name():
    model = build_on_meta(TUTORIAL)
    assert sum(p.numel() for p in model.parameters()) == 167_777_987
    with torch.device("meta"):
        theirs = _labml().UNet(ch_mults=(1, 2, 2, 4), is_attn=(False, False, False, True))
    assert {n: p.shape for n, p in model.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("channels", "multipliers", "attention", "num_blocks"),
    [(3, (1, 2, 2, 2), (4,), 2), (1, (2, 1, 2), (8, 32), 1), (3, (1, 1), (), 3)],
)
def test_outputs_equal_labml_within_1e_5(channels, multipliers, attention, num_blocks):
    config = ModelConfig(
        architecture="annotated",
        image_channels=channels,
        base_channels=32,
        channel_multipliers=multipliers,
        num_res_blocks=num_blocks,
        attention_resolutions=attention,
    )
    attends = [32 // 2**level in attention for level in range(len(multipliers))]
    torch.manual_seed(0)
    # Weights as labml starts them: without a norm before its attention, wilder ones amplify rounding in any order.
    theirs = reference.perturb(_labml().UNet(channels, 32, multipliers, attends, num_blocks)).eval()
    ours = build_model(config).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3, 999])
    with torch.no_grad():
        expected = theirs(x, t)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(ours(x, t), expected, rtol=0, atol=1e-5)


def test_the_norm_that_is_never_applied_does_not_matter_but_has_a_gradient():
    model = reference.randomise(build_model(SMALL)).double().train()
    x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([1, 900])
    torch.manual_seed(0)
    before = model(x, t)
    before.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    norm = model.middle.attn.norm
    assert not norm.weight.grad.any()
    with torch.no_grad():
        norm.weight.fill_(7.0)
    torch.manual_seed(0)
    assert torch.equal(model(x, t), before)


def test_gradient_checkpointing_and_other_dtypes_work():
    model = reference.randomise(build_model(ModelConfig(**{**vars(SMALL), "gradient_checkpointing": True})))
    plain = build_model(SMALL)
    plain.load_state_dict(model.state_dict())
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 900])
    gradients = []
    for network in (model, plain):
        torch.manual_seed(0)
        network.train()(x, t).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        expected = plain.eval()(x, t)
        low = plain.bfloat16()(x, t)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


def _train(rank, init_file, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=2)
    model = DistributedDataParallel(reference.randomise(build_model(ModelConfig(**{**vars(SMALL), "dropout": 0.0}))))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        x_0, noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        t = torch.tensor([0, 300, 600, 999])
        mine = slice(2 * rank, 2 * rank + 2)
        optimizer.zero_grad()
        loss = GaussianDiffusion().loss_per_image(model, x_0[mine], t[mine], noise[mine]).mean()
        loss.backward()
        optimizer.step()
        dist.all_reduce(loss := loss.detach())
        losses.append(float(loss) / 2)
    queue.put(losses)
    dist.destroy_process_group()


def test_it_trains_under_ddp_as_in_one_process(tmp_path):
    context = mp.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_train, args=(rank, tmp_path / "init", queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    together = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    model = reference.randomise(build_model(ModelConfig(**{**vars(SMALL), "dropout": 0.0})))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    alone = []
    for step in range(3):
        x_0, noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = GaussianDiffusion().loss_per_image(model, x_0, torch.tensor([0, 300, 600, 999]), noise).mean()
        loss.backward()
        optimizer.step()
        alone.append(loss.item())
    assert together[0] == together[1] == pytest.approx(alone, rel=1e-4)
    assert alone[2] != pytest.approx(alone[0], rel=1e-3)
