import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from subq_jax.parallel import MESH_AXES, activation_mesh, logical_spec, parse_mesh, put_batch, state_shardings
from subq_jax.parallel.sharding import check_mesh_is_used


class Device:
    """Stands in for a device where only their number matters."""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("model:2", r"mesh axis must be one of \('data', 'fsdp', 'tensor'\), got 'model'"),
        ("data:1,data:2", "mesh axis 'data' is given twice"),
        ("data:0", "sizes >= 1, got 'data:0'"),
        ("data:two", "sizes >= 1, got 'data:two'"),
        ("data", "axis:size .* got 'data'"),
        ("data:2,fsdp:4", "mesh sizes must multiply to the 6 devices present, got 'data:2,fsdp:4'"),
    ],
)
def test_wrong_mesh_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_mesh(spec, devices=[Device()] * 6)


@pytest.mark.parametrize("spec", ["", "fsdp:1", " data:1 , tensor:1 "])
def test_one_device(spec):
    mesh = parse_mesh(spec, devices=jax.devices()[:1])
    assert mesh.axis_names == MESH_AXES
    assert mesh.size == 1


def test_logical_names_become_mesh_axes():
    mesh = AbstractMesh((2, 4, 2), MESH_AXES)
    assert logical_spec(("vocab", "embed"), (64, 32), mesh) == PartitionSpec("tensor", "fsdp")
    assert logical_spec(("embed", "heads", "head_dim"), (32, 4, 8), mesh) == PartitionSpec("fsdp", "tensor", None)
    assert logical_spec(("batch", None), (16, 128), mesh) == PartitionSpec(("data", "fsdp"), None)
    # Sizes that do not divide are replicated, and no mesh axis is used twice.
    assert logical_spec(("embed", "heads"), (30, 1), mesh) == PartitionSpec(None, None)
    assert logical_spec(("heads", "mlp"), (4, 8), mesh) == PartitionSpec("tensor", None)
    with pytest.raises(ValueError, match=r"must name each of the 2 dimensions of \(4, 8\), got \('heads',\)"):
        logical_spec(("heads",), (4, 8), mesh)


def test_a_mesh_axis_that_cuts_nothing_is_named():
    mesh = AbstractMesh((1, 2, 8), MESH_AXES)
    cut = lambda shape: NamedSharding(mesh, logical_spec(("embed", "heads"), shape, mesh))
    check_mesh_is_used([cut((4, 8)), cut((4, 3))], mesh)
    with pytest.raises(ValueError, match="mesh axis tensor:8 divides no parameter of this model"):
        check_mesh_is_used([cut((4, 4)), cut((4, 3))], mesh)


def test_a_mesh_for_activations_has_the_axes_of_the_rules():
    wanted = pytest.raises(ValueError, match=r"mesh must have axes \['data', 'fsdp'\], .* got \('tensor', 'x'\)")
    with wanted, activation_mesh(AbstractMesh((2, 2), ("tensor", "x"))):
        pass


def test_optimiser_state_is_sharded_like_its_parameter():
    mesh = parse_mesh("", devices=jax.devices()[:1])
    kernel = nnx.Param(jnp.zeros((4, 8)), out_sharding=("embed", "mlp"), eager_sharding=False)
    params = nnx.State({"kernel": kernel, "bias": nnx.Param(jnp.zeros(8))})
    state = optax.adamw(0.1).init(params)
    specs = [sharding.spec for sharding in jax.tree.leaves(state_shardings(state, mesh))]
    assert specs.count(PartitionSpec("fsdp", "tensor")) == 2  # both moments
    assert specs.count(PartitionSpec()) == 3  # the step counter, and both moments of the bias


def test_put_batch_keeps_values():
    batch = {"inputs": np.arange(6, dtype=np.int32).reshape(2, 3)}
    placed = put_batch(batch, parse_mesh("", devices=jax.devices()[:1]))
    np.testing.assert_array_equal(placed["inputs"], batch["inputs"])
