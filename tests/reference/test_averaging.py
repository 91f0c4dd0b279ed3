import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_tr.errors import UserError
from lit_tr.reference.averaging import check_models, checksum, distance, soft_update, soft_update_tensors
from lit_tr.reference.precision import LowOrderBits, MasterWeights, PlainAverage


class Net(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.a = nn.Parameter(torch.full((3,), float(value)))
        self.b = nn.Linear(2, 2)
        self.register_buffer("count", torch.tensor(int(value)))


def test_soft_update_by_hand():
    policy, reference = Net(8), Net(4)
    soft_update(policy, reference, alpha=0.25)
    assert reference.a.tolist() == [5.0, 5.0, 5.0]
    assert reference.count == 8  # buffers are copied
    assert policy.a.tolist() == [8.0, 8.0, 8.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_hard_update_is_equal_bit_for_bit(dtype):
    policy, reference = nn.Linear(40, 30).to(dtype), nn.Linear(40, 30).to(dtype)
    soft_update(policy, reference, alpha=1.0)
    assert all(torch.equal(p, r) for p, r in zip(policy.parameters(), reference.parameters(), strict=True))


def test_many_soft_updates_are_the_geometric_sum():
    policy, reference = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    start = reference.weight.detach().clone()
    for _ in range(10):
        soft_update(policy, reference, alpha=0.3)
    left = 0.7**10
    torch.testing.assert_close(reference.weight.detach(), (1 - left) * policy.weight.detach() + left * start)


@pytest.mark.parametrize("average", [LowOrderBits, MasterWeights])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_thousand_small_updates_in_half_precision_are_those_of_float32(average, dtype):
    torch.manual_seed(0)
    policy, average = {"a.w": torch.randn(300, 40).to(dtype)}, average()
    start = torch.randn(300, 40).to(dtype)
    exact, plain, float32 = {"a.w": start.clone()}, {"a.w": start.clone()}, {"a.w": start.float()}
    for _ in range(1000):
        soft_update_tensors(policy, exact, 0.001, average)
        soft_update_tensors(policy, plain, 0.001)
        soft_update_tensors(policy, float32, 0.001, average=PlainAverage())
    left = 0.999**1000
    expected = (1 - left) * policy["a.w"].double() + left * start.double()

    def error(reference):
        return ((reference["a.w"].double() - expected).norm() / expected.norm()).item()

    assert error(exact) < torch.finfo(dtype).eps / 2
    assert torch.equal(exact["a.w"], float32["a.w"].to(dtype))
    assert error(plain) > 100 * error(exact)  # what is lost without


@settings(max_examples=50, deadline=None)
@given(
    shape=st.sampled_from([(), (3,), (2, 5), (4, 1, 3)]),
    weights=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=6),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
    seed=st.integers(0, 9),
)
def test_low_order_bits_make_float32_of_bfloat16(shape, weights, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    goal, start = (scale * torch.randn(shape, generator=draw) for _ in range(2))
    upper, average = {"w": start.bfloat16()}, LowOrderBits()
    float32 = {"w": upper["w"].float()}
    for weight in weights:
        soft_update_tensors({"w": goal}, upper, weight, average)
        soft_update_tensors({"w": goal}, float32, weight)
    value = ((upper["w"].view(torch.int16).int() << 16) + average.of("w")).view(torch.float32)
    torch.testing.assert_close(value, float32["w"], rtol=1e-6, atol=0.0)


def test_an_average_begins_anew_where_the_precision_is_another_one():
    """Only what is kept for this precision goes on: a cast leaves no low-order bits of what was before."""
    average, goal = LowOrderBits(), {"w": torch.full((4,), 0.3)}
    first = {"w": torch.ones(4, dtype=torch.bfloat16)}
    soft_update_tensors(goal, first, 0.001, average)
    assert average.of("w").dtype == torch.int16
    for dtype, kept in ((torch.float32, None), (torch.float16, torch.float32), (torch.float64, None)):
        reference = {"w": torch.ones(4, dtype=dtype)}
        soft_update_tensors(goal, reference, 0.001, average)
        assert getattr(average.of("w"), "dtype", None) == kept
        expected = (torch.ones(4) + 0.001 * (goal["w"] - 1)).to(dtype)
        torch.testing.assert_close(reference["w"], expected)


def test_what_is_no_number_stays_none_in_low_order_bits():
    policy = {"w": torch.tensor([0x7FFFFFFF, 0x7FC00000], dtype=torch.int32).view(torch.float32)}  # CUDA's NaN, a CPU's
    reference, kept = {"w": torch.ones(2, dtype=torch.bfloat16)}, LowOrderBits()
    soft_update_tensors(policy, reference, 0.5, kept)
    assert reference["w"].isnan().all()
    soft_update_tensors({"w": torch.ones(2)}, reference, 0.5, kept)
    assert reference["w"].isnan().all()


def test_the_distance_by_hand():
    policy, reference = Net(8), Net(4)
    reference.b.load_state_dict(policy.b.state_dict())
    assert distance(policy, reference).item() == pytest.approx(48**0.5)  # three times 8 - 4


def test_each_tensor_may_have_an_alpha_of_its_own():
    policy, reference = Net(8), Net(4)
    frozen = reference.b.weight.detach().clone()
    soft_update(policy, reference, lambda name: {"a": 0.25, "b.bias": 1.0}.get(name, 0.0))
    assert reference.a.tolist() == [5.0, 5.0, 5.0]
    assert torch.equal(reference.b.bias, policy.b.bias)
    assert torch.equal(reference.b.weight, frozen)


def test_frozen_layers_are_blended_too():
    policy, reference = Net(8), Net(4)
    policy.a.requires_grad_(False)
    soft_update(policy, reference, alpha=0.5)
    assert reference.a.tolist() == [6.0, 6.0, 6.0]


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_packed_codes_are_not_blended_whatever_they_are_stored_as(storage):
    policy, reference = (Linear4bit(64, 64, bias=False, quant_type="nf4", quant_storage=storage) for _ in range(2))
    for model in (policy, reference):
        nn.init.normal_(model.weight)
        model.to("cpu")  # quantises
    codes = reference.weight.detach().view(torch.uint8).clone()
    assert policy.weight.dtype == storage
    soft_update(policy, reference, alpha=0.5)
    assert torch.equal(reference.weight.view(torch.uint8), codes)


def test_tied_weights_move_once():
    def tied(value):
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        nn.init.constant_(model[0].weight, value)
        return model

    policy, reference = tied(8.0), tied(4.0)
    soft_update(policy, reference, alpha=0.5)
    assert reference[1].weight.tolist() == [[6.0, 6.0], [6.0, 6.0]]


def test_a_compiled_policy_has_the_names_of_the_plain_one():
    policy, reference = Net(8), Net(4)
    soft_update(torch.compile(policy), reference, alpha=0.5)
    assert reference.a.tolist() == [6.0, 6.0, 6.0]


def test_the_reference_gets_no_gradient():
    policy, reference = Net(8), Net(4).requires_grad_(False)
    soft_update(policy, reference, alpha=0.5)
    assert not reference.a.requires_grad
    assert reference.a.grad_fn is None


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), lambda name: 2.0])
def test_alpha_out_of_range(alpha):
    with pytest.raises(UserError, match=r"alpha must be in \[0, 1\]"):
        soft_update(Net(1), Net(1), alpha)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_0_changes_nothing(dtype):
    policy, reference, average = Net(8).to(dtype), Net(4).to(dtype), LowOrderBits()
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    soft_update(policy, reference, 0.0, average)
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert not vars(average.kept)


@pytest.mark.parametrize(("buffers", "mean", "count"), [("copy", 8.0, 8), ("average", 5.0, 8), ("leave", 4.0, 4)])
def test_buffers_are_copied_averaged_or_left(buffers, mean, count):
    """As a batch norm has them: a running mean, and a count that is no floating-point number."""
    policy, reference = (nn.BatchNorm1d(3) for _ in range(2))
    for model, value in ((policy, 8), (reference, 4)):
        model.running_mean.fill_(value)
        model.num_batches_tracked.fill_(value)
        model.register_buffer("constant", torch.tensor(float(value)), persistent=False)  # no checkpoint holds it
    soft_update(policy, reference, 0.25, buffers=buffers)
    assert reference.constant == 4
    assert reference.running_mean.tolist() == [mean] * 3
    assert reference.num_batches_tracked == count


def test_different_models_name_the_first_parameter():
    with pytest.raises(UserError, match="the reference has no parameter 'a'"):
        check_models(Net(1), nn.Linear(2, 2))


def test_different_shapes_are_named():
    with pytest.raises(UserError, match=r"'weight' has the shape \(2, 2\) in the policy, \(2, 3\) in the reference"):
        check_models(nn.Linear(2, 2), nn.Linear(3, 2))


def test_a_policy_that_is_not_trained_is_an_error():
    with pytest.raises(UserError, match="no parameter of the policy is trained"):
        check_models(Net(1).requires_grad_(False), Net(1))


def test_a_wrong_pair_changes_nothing():
    reference = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(UserError):
        soft_update_tensors({"a": torch.ones(2), "b": torch.ones(2)}, reference, 0.5)
    assert reference["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("make", [PlainAverage, LowOrderBits, MasterWeights])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_reference_on_another_device_stays_there(make, alpha):
    """On tensors without values, which refuse to be computed with across devices as a GPU's do."""
    with FakeTensorMode():
        policy = {"w": torch.ones(3, 4, device="cuda")}
        with pytest.raises(RuntimeError, match="two( different)? devices"):
            torch.ones(3, 4).lerp_(policy["w"], 0.5)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            reference, average = {"w": torch.ones(3, 4, dtype=dtype)}, make()
            for goal in (policy["w"], policy["w"].to(dtype)):
                soft_update_tensors({"w": goal}, reference, alpha, average)
            assert {one.device.type for one in (reference["w"], *vars(average.kept).values())} == {"cpu"}


def test_a_checksum_knows_bits_and_order():
    one, other = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0])
    assert checksum([one, other]) == checksum([one.clone(), other.clone()])
    assert checksum([one, other]) != checksum([other, one])
    assert checksum([one, other]) != checksum([one, -other])
    assert checksum([]) == 0


def test_a_checksum_copies_nothing_to_the_device_of_its_tensors():
    class Called(TorchDispatchMode):
        names = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    weights = torch.empty(3, 5, dtype=torch.bfloat16, device="meta")
    with Called() as called:
        assert checksum([weights, weights]).device == weights.device
    assert "sum" in called.names
    assert "_to_copy" not in called.names
