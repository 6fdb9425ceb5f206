"""The update rules against references in float64, and what all of them have in common."""

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torchvision.models import resnet50

from imgnet.config import AccumAdamConfig, AdamConfig, Decay, OptimizerConfig, SgdConfig
from imgnet.optim.accum_adam import AccumAdam, AccumAdamW
from imgnet.optim.factory import build_optimizer, decay_groups
from imgnet.optim.kernels import check_layouts
from imgnet.optim.quasi_global import QuasiGlobalSGD

SHAPES = [(4, 3, 3, 3), (5,), (7, 6), (1, 9)]
CONFIGS: dict[str, OptimizerConfig] = {
    "sgd": SgdConfig(name="sgd", lr=0.1, weight_decay=0.01, momentum=0.9),
    "nesterov": SgdConfig(name="sgd", lr=0.1, weight_decay=0.01, momentum=0.9, nesterov=True),
    "plain_sgd": SgdConfig(name="sgd", lr=0.1, weight_decay=0.01),
    "adam": AdamConfig(name="adam", lr=0.01, weight_decay=0.01),
    "adamw": AdamConfig(name="adamw", lr=0.01, weight_decay=0.01),
    "accum_adam": AccumAdamConfig(name="accum_adam", lr=0.01, weight_decay=0.01, accum_iter=3),
    "accum_adamw": AccumAdamConfig(name="accum_adamw", lr=0.01, weight_decay=0.01, accum_iter=3),
    "accum_adam_1": AccumAdamConfig(name="accum_adam", lr=0.01, weight_decay=0.01, accum_iter=1),
}
Build = Callable[[list[Parameter]], torch.optim.Optimizer]


def named(params: list[Parameter]) -> list[tuple[str, Parameter]]:
    return [(str(number), param) for number, param in enumerate(params)]


def from_config(config: OptimizerConfig) -> Build:
    return lambda params: build_optimizer(named(params), config)


BUILDS: dict[str, Build] = {
    **{name: from_config(config) for name, config in CONFIGS.items()},
    "quasi_global": lambda params: QuasiGlobalSGD(decay_groups(named(params), 0.01), lr=0.1, momentum=0.9),
}


def make_params(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def set_gradients(params: list[Parameter], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype) * scale


def state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    saved = optimizer.state_dict()
    states = [value for state in saved["state"].values() for value in state.values()]
    return [value for value in [*states, *(v for g in saved["param_groups"] for v in g.values())] if is_tensor(value)]


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def snapshot(params: list[Parameter], optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in [*params, *state_tensors(optimizer)]]


def assert_same_bits(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first, second)


class AccumAdamReference:
    """The equations in float64, on one array."""

    def __init__(self, start: np.ndarray, decay: float, accum_iter: int, decoupled: bool) -> None:
        self.x = start.astype(np.float64)
        self.m, self.v, self.a = np.zeros_like(self.x), np.zeros_like(self.x), np.zeros_like(self.x)
        self.decay, self.s, self.decoupled, self.t = decay, accum_iter, decoupled, 0

    def step(self, grad: np.ndarray, lr: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> None:
        self.t += 1
        k = -(-self.t // self.s)
        g = grad.astype(np.float64) + (0 if self.decoupled else self.decay * self.x)
        if self.decoupled:
            self.x *= 1 - lr * self.decay
        self.a += g / self.s
        mean = (b1 * self.m + (1 - b1) * g) / (1 - b1**k)
        square = (b2 * self.v + (1 - b2) * g**2) / (1 - b2**k)
        self.x -= lr * mean / (np.sqrt(square) + eps)
        if self.t % self.s == 0:
            self.m = b1 * self.m + (1 - b1) * self.a
            self.v = b2 * self.v + (1 - b2) * self.a**2
            self.a = np.zeros_like(self.a)


@pytest.mark.parametrize("accum_iter", [1, 2, 5])
@pytest.mark.parametrize("name", ["accum_adam", "accum_adamw"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
@pytest.mark.parametrize("with_found_inf", [False, True])
def test_accum_adam_follows_the_equations(name, accum_iter, dtype, tolerance, with_found_inf):
    params = make_params(dtype)
    config = AccumAdamConfig(name=name, lr=1e-3, weight_decay=0.01, accum_iter=accum_iter)
    optimizer: Any = from_config(config)(params)
    references = [
        AccumAdamReference(p.detach().numpy(), 0.01 if p.ndim > 1 else 0.0, accum_iter, name == "accum_adamw")
        for p in params
    ]
    for step in range(200):
        lr = 1e-3 * (1 - step / 300)
        set_gradients(params, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        if with_found_inf:
            optimizer.found_inf = torch.zeros(1)
        optimizer.step()
        for param, reference in zip(params, references, strict=True):
            assert param.grad is not None
            reference.step(param.grad.numpy(), lr)
    for param, reference in zip(params, references, strict=True):
        error = np.linalg.norm(param.detach().numpy() - reference.x) / np.linalg.norm(reference.x)
        assert error < tolerance


@pytest.mark.parametrize(("ours", "theirs"), [(AccumAdam, torch.optim.Adam), (AccumAdamW, torch.optim.AdamW)])
def test_accum_iter_1_is_adam(ours, theirs):
    params, expected = make_params(), make_params()
    optimizer = ours(decay_groups(named(params), 0.01), lr=0.01, accum_iter=1)
    reference = theirs(decay_groups(named(expected), 0.01), lr=0.01, fused=True)
    for step in range(50):
        set_gradients(params, step)
        set_gradients(expected, step)
        optimizer.step()
        reference.step()
    assert_same_bits([p.detach() for p in params], [p.detach() for p in expected])


@pytest.mark.filterwarnings("ignore:Use _accelerator_graph_capture_health_check:DeprecationWarning")
@pytest.mark.parametrize("name", ["accum_adam", "accum_adamw"])
def test_accum_adam_equals_decent_dp(name):
    theirs = pytest.importorskip("decent_dp.optim")
    params, expected = make_params(torch.float64), make_params(torch.float64)
    optimizer = from_config(CONFIGS[name])(params)
    kind = {"accum_adam": theirs.AccumAdam, "accum_adamw": theirs.AccumAdamW}[name]
    reference = kind(decay_groups(named(expected), 0.01), lr=0.01, accum_iter=3)
    for step in range(20):
        set_gradients(params, step)
        set_gradients(expected, step)
        optimizer.step()
        reference.step()
    for param, other in zip(params, expected, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-12, atol=1e-12)


def test_gradients_are_left_alone():
    for name, build in BUILDS.items():
        params = make_params()
        optimizer = build(params)
        for step in range(4):
            set_gradients(params, step)
            before = [param.grad.clone() for param in params if param.grad is not None]
            optimizer.step()
            after = [param.grad for param in params if param.grad is not None]
            assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True)), name


def test_a_parameter_without_gradient_is_left_alone():
    for name, build in BUILDS.items():
        params = make_params()
        optimizer = build(params)
        before = params[2].detach().clone()
        for step in range(4):
            set_gradients(params, step)
            params[2].grad = None
            optimizer.step()
        assert torch.equal(params[2], before), name
        optimizer.zero_grad()
        optimizer.step()


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("skipped", [(0,), (0, 1, 2), (4,), (2, 3, 5, 8)])
def test_found_inf_skips_a_step_whole(name, skipped):
    """With overflow in some steps: the same bits as never having had those steps."""
    params, expected = make_params(), make_params()
    optimizer: Any = BUILDS[name](params)
    reference: Any = BUILDS[name](expected)
    reference.found_inf = torch.tensor(0.0)
    for step in range(12):
        set_gradients(params, step)
        if step in skipped:
            for number, param in enumerate(params):
                param.grad = torch.full_like(param, [torch.inf, torch.nan][number % 2])
            before = snapshot(params, optimizer)
            optimizer.found_inf = torch.tensor(1.0)
            optimizer.step()
            if step > 0:
                assert_same_bits(before, snapshot(params, optimizer))
            continue
        set_gradients(expected, step)
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        reference.step()
    assert_same_bits(snapshot(params, optimizer), snapshot(expected, reference))


@pytest.mark.parametrize("name", BUILDS)
def test_with_found_inf_or_without_is_the_same(name):
    params, expected = make_params(), make_params()
    optimizer: Any = BUILDS[name](params)
    reference = BUILDS[name](expected)
    for step in range(20):
        set_gradients(params, step)
        set_gradients(expected, step)
        optimizer.found_inf = None if step in (7, 8, 15) else torch.tensor(0.0)
        optimizer.step()
        reference.step()
    assert_same_bits(snapshot(params, optimizer), snapshot(expected, reference))


@pytest.mark.parametrize("name", BUILDS)
def test_grad_scale_divides(name):
    params, expected = make_params(), make_params()
    optimizer: Any = BUILDS[name](params)
    reference = BUILDS[name](expected)
    for step in range(7):
        set_gradients(params, step, scale=1024.0)
        set_gradients(expected, step)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        optimizer.step()
        reference.step()
        torch.testing.assert_close([p.grad for p in params], [p.grad for p in expected])
    assert_same_bits(snapshot(params, optimizer), snapshot(expected, reference))


@pytest.mark.parametrize("name", BUILDS)
def test_grad_scaler_drives_it(name):
    params, expected = make_params(), make_params()
    optimizer, reference = BUILDS[name](params), BUILDS[name](expected)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(6):
        set_gradients(params, step, scale=256.0 * scaler.get_scale() / 256.0)
        if step == 2 and params[0].grad is not None:
            params[0].grad[0] = torch.inf
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            set_gradients(expected, step)
            reference.step()
    assert scaler.get_scale() == 128.0
    assert_same_bits(snapshot(params, optimizer), snapshot(expected, reference))


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("saved_at", [1, 4, 6])
def test_state_round_trip_resumes_the_same_bits(name, saved_at):
    params = make_params()
    optimizer = BUILDS[name](params)
    for step in range(saved_at):
        set_gradients(params, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save((params, optimizer.state_dict()), file)
    file.seek(0)
    resumed, state = torch.load(file, weights_only=True)
    again = BUILDS[name](resumed)
    again.load_state_dict(state)
    assert_same_bits(snapshot(params, optimizer), snapshot(resumed, again))
    for step in range(saved_at, 12):
        set_gradients(params, step)
        set_gradients(resumed, step)
        optimizer.step()
        again.step()
    assert_same_bits(snapshot(params, optimizer), snapshot(resumed, again))


@pytest.mark.parametrize("name", BUILDS)
def test_a_state_can_be_loaded_over_another(name):
    params = make_params()
    optimizer = BUILDS[name](params)
    set_gradients(params, 0)
    optimizer.step()
    start = copy.deepcopy((params, optimizer.state_dict()))
    runs = []
    for _ in range(2):
        for step in range(1, 6):
            set_gradients(params, step)
            optimizer.step()
        runs.append(snapshot(params, optimizer))
        with torch.no_grad():
            for param, value in zip(params, start[0], strict=True):
                param.copy_(value)
        optimizer.load_state_dict(copy.deepcopy(start[1]))
    assert_same_bits(*runs)


@pytest.mark.parametrize("name", ["accum_adam", "quasi_global"])
def test_deepcopy_goes_on_alike(name):
    params = make_params()
    optimizer = BUILDS[name](params)
    for step in range(4):
        set_gradients(params, step)
        optimizer.step()
    copied_params, copied = copy.deepcopy((params, optimizer))
    for step in range(4, 8):
        set_gradients(params, step)
        set_gradients(copied_params, step)
        optimizer.step()
        copied.step()
    assert_same_bits(snapshot(params, optimizer), snapshot(copied_params, copied))


@pytest.mark.parametrize("name", BUILDS)
def test_bits_do_not_depend_on_threads_or_layout(name):
    def run(memory_format: torch.memory_format, threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        params = [Parameter(torch.linspace(-1, 1, 64 * 32 * 9).reshape(64, 32, 3, 3).to(memory_format=memory_format))]
        optimizer = BUILDS[name](params)
        for step in range(4):
            set_gradients(params, step)
            assert params[0].grad is not None
            params[0].grad = params[0].grad.to(memory_format=memory_format)
            optimizer.step()
        return [params[0].detach()]

    one = run(torch.contiguous_format, 1)
    assert_same_bits(one, run(torch.contiguous_format, 2))
    assert_same_bits(one, run(torch.channels_last, 2))


@pytest.mark.parametrize("name", BUILDS)
def test_gradients_in_another_layout_are_refused(name):
    params = [Parameter(torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last))]
    params[0].grad = torch.zeros(4, 3, 5, 5)
    with pytest.raises(RuntimeError, match=r"has strides \(75, 25, 5, 1\), its parameter \(75, 1, 15, 3\)"):
        BUILDS[name](params).step()


def test_strides_of_single_elements_do_not_matter():
    check_layouts([torch.zeros(4, 3, 1, 1).to(memory_format=torch.channels_last)], [torch.zeros(4, 3, 1, 1)])


def test_decay_groups():
    params = make_params()
    optimizer = BUILDS["sgd"](params)
    decayed, plain = optimizer.param_groups
    assert [param.ndim for param in decayed["params"]] == [4, 2, 2]
    assert decayed["weight_decay"] == 0.01
    assert [param.ndim for param in plain["params"]] == [1]
    assert plain["weight_decay"] == 0.0
    assert len(BUILDS["adam"]([params[1]]).param_groups) == 1
    assert len(BUILDS["adam"]([params[0]]).param_groups) == 1


def test_decay_by_name_is_that_of_the_papers_code():
    with torch.device("meta"):
        model = resnet50()
    names = {id(param): name for name, param in model.named_parameters()}
    groups = decay_groups(model.named_parameters(), 0.01, Decay.by_name)
    decayed, plain = ([names[id(param)] for param in group["params"]] for group in groups)
    assert decayed == [name for name in names.values() if "bn" not in name and "bias" not in name]
    by_shape = decay_groups(model.named_parameters(), 0.01)[0]["params"]
    more = set(decayed) - {names[id(param)] for param in by_shape}
    assert more == {f"layer{layer}.0.downsample.1.weight" for layer in (1, 2, 3, 4)}
    assert len(decayed) + len(plain) == len(names)


@pytest.mark.parametrize("name", ["sgd", "adam", "accum_adam"])
def test_what_is_decayed_decays(name):
    for decay in Decay:
        config = replace(CONFIGS[name], decay=decay)
        norm = Parameter(torch.full((3,), 2.0))
        optimizer = build_optimizer([("downsample.1.weight", norm), ("bn1.weight", Parameter(torch.ones(3)))], config)
        norm.grad = torch.zeros(3)
        optimizer.step()
        assert (norm.detach() < 2.0).all() == (decay is Decay.by_name)


def test_all_are_fused_on_cpu():
    for name in ("sgd", "nesterov", "plain_sgd", "adam", "adamw"):
        assert all(group["fused"] for group in BUILDS[name](make_params()).param_groups)


def test_momentum_from_zeros_is_torch_sgd():
    params, expected = make_params(), make_params()
    optimizer = BUILDS["nesterov"](params)
    reference = torch.optim.SGD(decay_groups(named(expected), 0.01), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    for step in range(5):
        set_gradients(params, step)
        set_gradients(expected, step)
        optimizer.step()
        reference.step()
    assert_same_bits(snapshot(params, optimizer), snapshot(expected, reference))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            AdamConfig(name="adm", lr=0.1, weight_decay=0.0),
            "optimizer.name=adm: there is no such optimizer; did you mean 'adam'",
        ),
        (
            AdamConfig(name="lion", lr=0.1, weight_decay=0.0),
            "there is no such optimizer; known: accum_adam, accum_adamw, adam, adamw, sgd",
        ),
        (
            AdamConfig(name="sgd", lr=0.1, weight_decay=0.0),
            "optimizer.name=sgd stands among the settings of adam and adamw",
        ),
        (
            AdamConfig(name="adam", lr=0.1, weight_decay=0.0, betas=[0.9]),
            r"optimizer.betas=\[0.9\] must be two numbers",
        ),
        (AccumAdamConfig(name="accum_adam", lr=0.1, weight_decay=0.0, accum_iter=0), "accum_iter=0 must be 1 or more"),
        (AccumAdamConfig(name="accum_adam", lr=0.1, weight_decay=0.0, betas=[0.9, 1.0]), "must both be at least 0"),
    ],
)
def test_refusals(config, message):
    with pytest.raises(ValueError, match=message):
        from_config(config)(make_params())


def test_nothing_to_optimize():
    with pytest.raises(ValueError, match="no parameters"):
        build_optimizer([], CONFIGS["sgd"])


def test_other_devices():
    params = [Parameter(torch.zeros(3, device="meta"))]
    assert all(group["foreach"] for group in from_config(CONFIGS["adam"])(params).param_groups)
    with pytest.raises(ValueError, match="optimizer=accum_adam runs on cpu and cuda; parameters are on meta"):
        from_config(CONFIGS["accum_adam"])(params)


@pytest.mark.parametrize("kind", [AccumAdam, QuasiGlobalSGD])
def test_no_closures(kind):
    optimizer: Any = kind(make_params(), lr=0.1, **({"momentum": 0.9} if kind is QuasiGlobalSGD else {}))
    with pytest.raises(TypeError, match="takes no closure"):
        optimizer.step(lambda: 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", BUILDS)
def test_no_step_waits_for_the_gpu(name):
    params = [Parameter(param.detach().cuda()) for param in make_params()]
    optimizer: Any = BUILDS[name](params)
    generator = torch.Generator(device="cuda").manual_seed(1)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, device="cuda")
    optimizer.step()
    for found_inf in (None, torch.zeros((), device="cuda")):
        optimizer.found_inf = found_inf
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(8):
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
