"""PyTorch's own tools on these networks: exporters, transforms and hooks have what plain modules give them."""

import io
import warnings

import layer_examples
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from alexnet import kernels
from alexnet.errors import ModelError
from alexnet.kernels import linear
from alexnet.models import create_model, fusion, layers
from alexnet.models.layers import AveragePool, Convolution, LocalResponseNorm, MaxPool

NAMES = ["alexnet_small", "lenet5", "cifar_18pct", "cifar_13pct", "residual_8"]
pytestmark = pytest.mark.usefixtures("native")


def network_of(name, **options):
    """Weights large enough that predictions depend on the images."""
    network = create_model(name, num_classes=10, generator=torch.Generator().manual_seed(0), **options).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith("weight") and parameter.dim() > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
    return network


def images_of(network, seed=2, count=2):
    size = network.image_size
    return torch.randn(count, network.in_channels, size, size, generator=torch.Generator().manual_seed(seed)) * 10


def reference(network, images):
    """Its layers one by one, by PyTorch's operations."""
    with torch.no_grad(), kernels.disabled():
        return list(network.outputs(images).values())[-1]


def close(one, other):
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def depends_on_images(right):
    assert not torch.allclose(right[0], right[1], rtol=1e-2)


@pytest.fixture(params=NAMES)
def network(request):
    return network_of(request.param)


@pytest.fixture(params=[torch.no_grad, torch.inference_mode])
def mode(request):
    return request.param


def test_a_traced_network_is_the_network(network, mode):
    right, file = reference(network, images_of(network, 3, 5)), io.BytesIO()
    depends_on_images(right)
    with warnings.catch_warnings(), mode():
        warnings.simplefilter("ignore")  # TracerWarning: sizes become constants; torch.jit's deprecation
        torch.jit.save(torch.jit.trace(network, images_of(network)), file)
        file.seek(0)
        close(torch.jit.load(file)(images_of(network, 3, 5)), right)  # another number of images


def test_an_onnx_file_by_torchscript_is_the_network(network, mode, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    right = reference(network, images_of(network, 3))
    with warnings.catch_warnings(), mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images_of(network),), tmp_path / "network.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (predicted,) = session.run(None, {session.get_inputs()[0].name: images_of(network, 3).numpy()})
    close(torch.tensor(predicted), right)


def test_an_exported_program_is_the_network(network):
    right = reference(network, images_of(network, 3))
    close(torch.export.export(network, (images_of(network),)).module()(images_of(network, 3)), right)


@pytest.mark.parametrize("name", layer_examples.EXAMPLES)
def test_a_traced_layer_file_is_the_network(name):
    network = layer_examples.network(name).eval()
    images, others = images_of(network), images_of(network, 3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right, traced, file = network(others), torch.jit.trace(network, images), io.BytesIO()
        torch.jit.save(traced, file)
        close(traced(others), right)
        close(traced(others), right)  # nothing is drawn anew


def test_an_fx_graph_has_a_node_for_each_layer(network):
    graph = torch.fx.symbolic_trace(network)
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    assert names == [name for name, _ in network.named_children()]
    images = images_of(network, 3)
    with torch.no_grad():
        close(graph(images), reference(network, images))


def test_a_network_inside_a_module_has_an_fx_graph():
    network = network_of("lenet5")
    graph = torch.fx.symbolic_trace(nn.Sequential(network, nn.Softmax(1)))
    images = images_of(network, 3)
    with torch.no_grad():
        close(graph(images), reference(network, images).softmax(1))


def test_an_aten_graph_by_make_fx_is_the_network():
    from torch.fx.experimental.proxy_tensor import make_fx

    network = network_of("alexnet_small")
    images = images_of(network, 3)
    close(make_fx(network)(images_of(network))(images), reference(network, images))


def test_every_multiplication_is_counted():
    """By FlopCounterMode, which sees operations of PyTorch only: a fifth of them was missing."""
    network, counted = network_of("cifar_18pct"), []
    for used in (kernels.using("auto"), kernels.disabled()):
        with used, FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images_of(network))
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 2 * 2 * 10_000_000  # 12.3 M multiplications an image


def test_the_meta_device_gives_sizes(network):
    assert network.to("meta")(images_of(network).to("meta")).shape == (2, 10)


def test_scripting_is_refused_with_a_way_out():
    with warnings.catch_warnings(), pytest.raises(ModelError, match=r"lenet5; use torch\.jit\.trace or torch\.export"):
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Sequential(network_of("lenet5")))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")  # PyTorch's own use of it
def test_transforms_of_functions():
    network = network_of("alexnet_small")
    weights, images = dict(network.named_parameters()), images_of(network)

    def loss(weights, images):
        return torch.func.functional_call(network, weights, (images,)).square().mean()

    value = loss(weights, images)
    value.backward()
    for name, gradient in torch.func.grad(loss)(weights, images).items():
        close(gradient, weights[name].grad)
    each = torch.func.vmap(lambda image: network(image[None])[0])(images)
    close(each, reference(network, images))
    direction = torch.ones_like(images)
    _, along = torch.func.jvp(network, (images,), (direction,))
    with torch.autograd.forward_ad.dual_level():
        dual = network(torch.autograd.forward_ad.make_dual(images, direction))
        close(torch.autograd.forward_ad.unpack_dual(dual).tangent, along)


@pytest.mark.parametrize("name", ["alexnet_small", "cifar_18pct"])
def test_second_derivatives_are_refused_or_right(name):
    """By torch.autograd.grad they were 0 where a kernel computes, without an error."""
    network = network_of(name)
    images = images_of(network, count=1)

    def gradient(images):
        input = images.clone().requires_grad_()
        return input, *torch.autograd.grad(network(input).square().sum(), input, create_graph=True)

    for call in (gradient, lambda images: torch.autograd.functional.hvp(lambda x: network(x).sum(), images, images)):
        with pytest.raises(ModelError, match=r"no second derivatives .*with alexnet\.kernels\.disabled\(\):"):
            call(images)
    with kernels.disabled():
        input, first = gradient(images)
        (row,) = torch.autograd.grad(first[0, 0, 9, 9], input, retain_graph=True)  # two rows of the Hessian
        (other,) = torch.autograd.grad(first[0, 0, 12, 12], input)
    assert row.abs().max() > 0 and row[0, 0, 12, 12].item() == pytest.approx(other[0, 0, 9, 9].item(), rel=0.02)


def doubled(kind):
    return type(f"Doubled{kind.__name__}", (kind,), {"forward": lambda self, input: 2 * kind.forward(self, input)})


RELU = (nn.ReLU, (True,))
CHAINS = [
    [(Convolution, (3, 16, 3)), RELU, (MaxPool, (2, 2))],
    [(Convolution, (3, 16, 3)), RELU, (LocalResponseNorm, ()), (MaxPool, (2, 2))],
    [(Convolution, (3, 16, 3)), (MaxPool, (2, 2)), RELU],
    [(Convolution, (3, 16, 3)), RELU],
    [(LocalResponseNorm, ()), (MaxPool, (2, 2))],
    [(MaxPool, (2, 2)), RELU],
    [RELU, (AveragePool, (2, 2))],
    [RELU, (MaxPool, (2, 2))],
]
PLACES = [(chain, place) for chain in range(len(CHAINS)) for place in range(len(CHAINS[chain]))]


def chained(layers, input):
    layers = list(layers)
    while layers:
        count, input = fusion.forward_fused(layers, input)
        del layers[:count]
    return input


def inputs_for(first):
    channels = 3 if isinstance(first, Convolution) else 16
    return torch.randn(2, channels, 18, 18, generator=torch.Generator().manual_seed(0)) * 10


@pytest.mark.parametrize(("chain", "place"), PLACES)
def test_a_subclass_is_called(chain, place):
    layers = [kind(*arguments) for kind, arguments in CHAINS[chain]]
    kind, arguments = CHAINS[chain][place]
    layers[place] = doubled(kind)(*arguments)
    with torch.no_grad():
        close(chained(layers, inputs_for(CHAINS[chain][0][0](*CHAINS[chain][0][1]))), plain(layers))


def plain(layers):
    input = inputs_for(layers[0])
    for layer in layers:
        input = layer(input.clone())
    return input


def backward_hook(calls):
    return lambda *_: calls.append(1)


HOOKS = {
    "forward": lambda layer, calls: layer.register_forward_hook(lambda *_: calls.append(1)),
    "forward pre": lambda layer, calls: layer.register_forward_pre_hook(lambda *_: calls.append(1)),
    "backward": lambda layer, calls: layer.register_full_backward_hook(backward_hook(calls)),
    "backward pre": lambda layer, calls: layer.register_full_backward_pre_hook(backward_hook(calls)),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("chain", "place"), PLACES)
def test_a_hook_is_called_once(chain, place, hook):
    if "backward" in hook and RELU in CHAINS[chain]:  # PyTorch refuses operations in place behind such a hook
        chain_of = [(kind, ()) if kind is nn.ReLU else (kind, rest) for kind, rest in CHAINS[chain]]
    else:
        chain_of = CHAINS[chain]
    layers, calls = [kind(*arguments) for kind, arguments in chain_of], []
    handle = HOOKS[hook](layers[place], calls)
    input = inputs_for(layers[0]).requires_grad_()
    chained(layers, input * 1).sum().backward()
    handle.remove()
    assert calls == [1]


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
def test_a_hook_of_all_modules_is_called_for_each_layer(kind):
    modules, seen = nn.modules.module, []
    network = network_of("alexnet_small")
    for layer in network:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    handle = getattr(modules, f"register_module_{kind}")(lambda module, *_: seen.append(module))
    try:
        network(images_of(network).requires_grad_()).sum().backward()
    finally:
        handle.remove()
    assert {id(layer) for layer in network} <= set(map(id, seen))


def test_a_replaced_forward_is_called():
    layers = [Convolution(3, 16, 3), nn.ReLU(True), MaxPool(2, 2)]
    layers[1].forward = lambda input: input * 0 + 7
    with torch.no_grad():
        assert (chained(layers, inputs_for(layers[0])) == 7).all()


CHANGES = {
    "parametrization": parametrizations.weight_norm,
    "pruning": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "spectral norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layer", ["conv1", "conv2", "fc6"])
def test_a_changed_weight_is_used(change, layer):
    """Also by the copies that answer, after the weight was changed once more."""
    network = network_of("alexnet_small")
    CHANGES[change](network.get_submodule(layer))
    network.eval()
    images = images_of(network)
    copy = layers.inference_copy(network)
    with torch.inference_mode():
        close(network(images), reference(network, images))
        close(copy(images), reference(network, images))
    with torch.no_grad():
        for parameter in network.get_submodule(layer).parameters():
            parameter.mul_(1.5)
    with torch.inference_mode():
        close(network(images), reference(network, images))
        close(copy(images), reference(network, images))


def test_hooks_of_large_layers_stay_in_the_copies_that_answer():
    calls, large = [], nn.Sequential(nn.Linear(2048, 1024))
    large[0].register_forward_hook(lambda *_: calls.append(1))
    assert list(linear.large_layers(large)) == []
    fusion.BF16Network(large, all_layers=False)(torch.zeros(1, 2048))
    layers.inference_copy(large)(torch.zeros(1, 2048))
    assert calls == [1, 1]


def test_a_layer_that_stands_twice_is_computed_twice():
    network = network_of("lenet5")
    before = len(network)
    network.append(nn.Linear(10, 10))
    network.append(network[before])
    images = images_of(network)
    with torch.no_grad():
        right = nn.Sequential.forward(network, images)
        close(network(images), right)
