"""Layer files of 2012 as networks: sizes, counts, starts, the interface of every other network, one step each."""

import copy

import numpy as np
import pytest
import torch
from layer_examples import EXAMPLES, files, network

from alexnet.cuda_convnet import Data, Files, Tree, build, define, modules
from alexnet.errors import ModelError
from alexnet.training.layer_files import LayerFileOptimizer

# Side and channels of layers as worked out by hand; 0 where the output is no image.
SIZES = {
    "towers": {"c1a": (16, 15), "n1b": (16, 15), "p1a": (16, 7), "c2b": (32, 7), "p2a": (32, 3), "f1a": (64, 0)},
    "spatial": {"c1": (16, 24), "p1": (16, 12), "c2": (32, 12), "p2": (32, 4), "n2": (32, 4), "f10": (10, 0)},
    "local": {"c1": (16, 16), "p1": (16, 8), "l1": (16, 4), "l1_neuron": (16, 4)},
    "shared": {"f1": (64, 0), "h2": (64, 0), "f3_neuron": (64, 0)},
    "images": {"b0": (3, 32), "t0": (3, 16), "m0": (3, 16), "c1": (16, 16), "cat": (32, 16), "p1": (32, 8)},
    "sparse": {"c1": (32, 16), "p1": (32, 8), "c2": (64, 8), "c3": (32, 8)},
}
COUNTS = {
    "towers": {"c1a": 1216, "c1b": 1216, "c2a": 9248, "f1b": 36928, "f10": 1290},
    "spatial": {"c1": 1216, "c2": 12832, "f10": 5130},
    "local": {"c1": 432 + 4096, "l1": 37120, "f10": 2570},
    "shared": {"f1": 12352, "f2": 4160, "f3": 64, "f10": 650},
    "images": {"c1": 1216, "c2": 448, "f10": 20490},
    "sparse": {"c1": 896, "c2": 9280, "c3": 9248, "f10": 20490},
}


def random_images(name: str, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = EXAMPLES[name][0]
    images = torch.randn(count, 3, side, side, generator=generator) * 50
    return images, torch.arange(count) % 10


@pytest.mark.parametrize("name", EXAMPLES)
def test_sizes_and_counts(name):
    net = network(name)
    layers = net.definition.layers
    assert {k: (layers[k].channels, layers[k].side) for k in SIZES[name]} == SIZES[name]
    assert {k: layers[k].parameters for k in COUNTS[name]} == COUNTS[name]
    assert net.definition.parameters == sum(p.numel() for p in net.parameters()) == EXAMPLES[name][1]
    images, _ = random_images(name)
    for layer, value in net.outputs(images).items():
        assert value[0].numel() == layers[layer].outputs, layer
        assert not layers[layer].side or value.shape[2:] == (layers[layer].side,) * 2, layer


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_takes_a_step_that_lowers_its_cost(name):
    net = network(name)
    images, labels = random_images(name)
    rule = LayerFileOptimizer(net)
    before = {key: value.clone() for key, value in net.named_parameters()}
    values = []
    for _ in range(3):
        net.set_generator(torch.Generator().manual_seed(5))  # the same masks and draws each time
        rule.set_progress(0.0)
        scores, cost = net.costs(images / 50, labels)
        assert scores.shape == (3, 10)
        rule.zero_grad()
        cost.backward()
        rule.step()
        values.append(float(cost.detach()))
    assert values[2] < values[0]
    for key, value in net.named_parameters():
        assert not torch.equal(value, before[key]), key


def test_net_145_has_its_numbers():
    with torch.device("meta"):
        net = build(files("net145"), draw=False)
    assert sum(p.numel() for p in net.parameters()) == net.definition.parameters == 60_965_224
    sides = [
        net.definition.layers[f"{n}a"].side
        for n in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    ]
    assert sides == [55, 27, 27, 13, 13, 13, 13, 6]
    assert net.definition.layers["conv1a"].formula == "⌈(224 − 11 + 2·0) / 4⌉ + 1 = 55"
    assert (net.towers, net.num_classes, net.image_size, net.features) == (2, 1000, 224, "hs7a+hs7b")
    assert net.placement["conv1b"] == net.placement["pool5b"] == 1
    assert net.placement["fc8"] == 0
    assert net.placement["data"] == -1


def test_the_start_is_the_files():
    net = network("towers")
    for name, std, bias in (("c1a", 0.01, 0), ("c2b", 0.03, 1), ("f1a", 0.01, 0)):
        for i in range(len(net.definition.layers[name].matrices)):
            assert float(net.weight_of(name, i).detach().std()) == pytest.approx(std, rel=0.05), name
        assert (net.module_of(name).bias == bias).all()
    assert torch.equal(network("towers").weight_of("f10", 1), net.weight_of("f10", 1))
    assert not torch.equal(network("towers", seed=1).weight_of("f10", 1), net.weight_of("f10", 1))


def test_weights_are_drawn_rows_by_columns_in_the_files_layout():
    net, generator = network("local"), torch.Generator().manual_seed(0)
    conv = torch.empty(27, 16).normal_(generator=generator) * 0.05  # row (c·3 + y)·3 + x, a column a filter
    local = torch.empty(16 * 144, 16).normal_(generator=generator) * 0.04
    fully = torch.empty(256, 10).normal_(generator=generator) * 0.01
    assert torch.allclose(net.weight_of("c1")[5, 2, 1, 0], conv[(2 * 3 + 1) * 3 + 0, 5])
    assert torch.allclose(net.weight_of("l1")[7, 20, 3], local[7 * 144 + 20, 3])
    assert torch.allclose(net.weight_of("f10")[4, 9], fully[9, 4])


def test_random_connections_are_permutations_one_after_the_other():
    drawn = network("sparse").module_of("c2").connections0
    assert len(drawn) == 64
    for run in drawn.view(2, 32):
        assert sorted(run.tolist()) == list(range(32))
    assert not torch.equal(drawn[:32], drawn[32:])
    assert not torch.equal(drawn, network("sparse", seed=1).module_of("c2").connections0)
    assert "c2.connections0" in network("sparse").state_dict()  # what a bundle must carry


def test_a_state_dict_makes_an_equal_network():
    for name in ("sparse", "shared"):
        net, other = network(name), network(name, seed=9)
        other.load_state_dict(net.state_dict())
        images, _ = random_images(name)
        assert torch.equal(net.eval()(images), other.eval()(images))
        assert len({value.data_ptr() for value in net.state_dict().values()}) == len(net.state_dict())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_answer_does_not_depend_on_its_neighbors(name):
    net = network(name).eval()
    images, _ = random_images(name)
    together = net(images)
    assert torch.equal(net(images), together)
    assert torch.allclose(torch.cat([net(image[None]) for image in images]), together, atol=1e-4)


def test_scores_are_the_log_of_the_files_probabilities():
    images, labels = random_images("towers")
    net = network("towers").eval()
    p = net(images).softmax(1).detach()
    assert torch.allclose(p, net.outputs(images)["probs"].detach(), atol=1e-6)
    cost, top1, top5 = net.report(images, labels)["cost"]
    assert cost == pytest.approx(-float(p[range(3), labels].log().mean()), rel=1e-5)
    assert top1 == pytest.approx(float((p.argmax(1) != labels).float().mean()))
    assert top5 <= top1
    sparse = network("sparse").eval()
    yes = sparse.outputs(random_images("sparse")[0])["f10_neuron"]  # a probability of its own for each class
    assert torch.allclose(sparse(random_images("sparse")[0]).softmax(1), yes / yes.sum(1, keepdim=True), atol=1e-6)


def test_until_stops_where_it_is_told():
    net = network("towers").eval()
    images, _ = random_images("towers")
    assert net.forward_to(images, "p1a").shape == (3, 16, 7, 7)
    assert net.forward_to(images, net.features).shape == (3, 128)
    assert torch.equal(net.forward_to(images, "f10"), net(images))
    with pytest.raises(ModelError, match="layer 'c9' is not in towers"):
        net.forward_to(images, "c9")
    with pytest.raises(ModelError, match="layer 'labels' holds labels"):
        net.forward_to(images, "labels")


def test_a_copy_shares_what_the_original_shares():
    net = copy.deepcopy(network("shared"))
    assert net.weight_of("f3") is net.weight_of("f2")
    assert net.weight_of("f3") is net.module_of("f2").weight
    assert "f3.weight" not in net.state_dict()


def test_first_filters_by_tower():
    for name, shape in (("towers", (32, 3, 5, 5)), ("shared", (64, 3, 8, 8)), ("sparse", (32, 3, 3, 3))):
        assert network(name).first_filters().shape == shape
    net = network("towers")
    assert torch.equal(net.first_filters()[16:], net.weight_of("c1b"))


NAMES = """
[data]
type=data
dataIdx=0
[labels]
type=data
dataIdx=1
[forward]
type=fc
inputs=data
outputs=4
initW=1
neuron=relu
gpu=0
[a.b]
type=fc
inputs=forward
outputs=4
initW=1
[forward_neuron]
type=fc
inputs=a.b
outputs=3
initW=1
[p]
type=softmax
inputs=forward_neuron
[c]
type=cost.logreg
inputs=labels,p
gpu=0
"""
RATES = "epsW=1\nepsB=1\nmomW=0\nmomB=0\n"


def test_any_name_is_a_layers_name():
    parameters = "".join(f"[{n}]\n{RATES}" for n in ("forward", "a.b", "forward_neuron")) + "[c]\ncoeff=1\n"
    net = build(Files("names", NAMES, parameters), Data(2))
    assert list(net.definition.layers)[:4] == ["data", "labels", "forward", "forward_neuron.1"]
    assert net.definition.layers["a.b"].inputs == ("forward_neuron.1",)  # rewired to the neuron
    assert list(net.outputs(torch.ones(1, 3, 2, 2))) == ["forward", "forward_neuron.1", "a.b", "forward_neuron", "p"]
    assert net.num_classes == 3


def test_the_number_of_classes_is_the_files_unless_the_data_say_otherwise():
    text = files("towers").layers
    assert define(text, Data(32)).data.classes == 10
    with pytest.raises(ModelError, match=r"line 136, layer 'cost': parameter inputs .* a layer of 7 outputs"):
        define(text, Data(32, classes=7))


FLICKR = """
[data]
type=data
dataIdx=0
[labels]
type=data
dataIdx=1
[f]
type=fc
inputs=data
outputs=7
initW=0.1
initB=-5
neuron=logistic
gpu=1
[diff]
inputs=labels,f
type=eltsum
coeffs=1,-1
gpu=1
[sqdiff]
type=cost.sum2
inputs=diff
gpu=1
"""
LEARNING = "[f]\nepsW=1\nepsB=1\nmomW=0\nmomB=0\n"


def test_indicators_compared_by_a_difference():
    """As layers-flickr-105: data row 1 has an indicator for each class where an eltsum compares it with outputs."""
    net = build(Files("flickr", FLICKR, f"{LEARNING}[sqdiff]\ncoeff=2"), Data(2))
    assert (net.num_classes, net.definition.layers["labels"].outputs) == (7, 7)
    x, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 3, 6, 3])
    scores, cost = net.costs(x, labels)
    y = net.outputs(x)["f_neuron"]
    assert torch.allclose(scores.softmax(1), y / y.sum(1, keepdim=True))
    expected = 2 * (torch.nn.functional.one_hot(labels, 7) - y).square().sum() / 4
    assert float(cost.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    with pytest.raises(ModelError, match="layer 'diff': parameter inputs is 'labels,f'; must be layers with the same"):
        define(FLICKR, Data(2, classes=3))


@pytest.mark.parametrize("coeffs", ["1,1", "-1,-1", "0,1"])
def test_a_sum_of_indicators_and_outputs_tells_no_classes(coeffs):
    text = FLICKR.replace("1,-1", coeffs)
    assert define(text, Data(2)).data.classes == 7
    with pytest.raises(ModelError, match=r"no cost tells classes apart; must be .*, or cost.sum2 of indicators less"):
        build(Files("flickr", text, f"{LEARNING}[sqdiff]\ncoeff=2"), Data(2))


@pytest.mark.parametrize(
    "last",
    [
        "type=concat\ninputs=fa,fb",
        "type=concat\ninputs=ha,hb\n[ha]\ntype=hs\ninputs=fa\nkeep=1\n[hb]\ntype=neuron\ninputs=fb\nneuron=abs",
        "type=pool\npool=avg\nchannels=9\nsizeX=3\nstride=1\ninputs=fc",
        "type=conv\nchannels=9\nfilters=9\nfilterSize=3\ninitW=1\npartialSum=0\ninputs=fc",
    ],
)
def test_the_number_of_classes_is_told_whatever_stands_before_the_softmax(last):
    head, _, below = last.partition("\n[")
    wide = head.replace("channels=9", "channels=16").replace("filters=9", "filters=16")
    text = "[data]\ntype=data\ndataIdx=0\n[labels]\ntype=data\ndataIdx=1\n"
    for name, outputs in (("fa", 10), ("fb", 6), ("fc", 16 * 9)):
        if name in last:
            text += f"[{name}]\ntype=fc\ninputs=data\ninitW=1\ngpu=0\noutputs={outputs}\n"
    text += f"{'[' + below if below else ''}\n[last]\n{wide}\n[p]\ntype=softmax\ninputs=last\n"
    text += "[cost]\ntype=cost.logreg\ninputs=labels,p\ngpu=0\n"
    assert define(text, Data(2)).data.classes == 16


def test_a_cost_over_sets_of_classes():
    text = FLICKR.replace("inputs=labels,f\ntype=eltsum", "inputs=labels,f\ntype=cost.msm").replace(
        "neuron=logistic\n", ""
    )
    text = text.partition("[sqdiff]")[0]
    for size, threads, message in ((7, 1, "setSize is '7'; must be from 1 to 6"), (2, 33, "threads is '33'; must be")):
        with pytest.raises(ModelError, match=message):
            build(Files("sets", text, f"{LEARNING}[diff]\ncoeff=1\nsetSize={size}\nthreads={threads}"), Data(2))
    net = build(
        Files("sets", text, f"{LEARNING}[diff]\ncoeff=2\nsetSize=3\nthreads=8"),
        Data(2),
        generator=torch.Generator().manual_seed(0),
    )
    assert (net.num_classes, net.definition.layers["labels"].outputs) == (7, 1)
    x, labels = torch.randn(5, 3, 2, 2), torch.tensor([0, 1, 2, 3, 6])
    scores, cost = net.costs(x, labels)
    assert torch.equal(scores, net.forward_to(x, "f"))
    assert float(cost.detach()) == pytest.approx(2 * float(modules.msm(labels, scores, 3).detach()) / 5)
    value, top1, top3 = net.report(x, labels)["diff"]
    assert value == pytest.approx(float(cost.detach()) / 2)
    order = scores.argsort(1, descending=True)
    assert top1 == pytest.approx(float((order[:, 0] != labels).float().mean()))
    assert top3 == pytest.approx(1 - float((order[:, :3] == labels[:, None]).any(1).float().mean()))


def test_start_values_from_functions_that_are_given():
    text = files("local").layers.replace("initW=0.05", "initW=0.05\ninitWFunc=start.weights(2, x)")
    text = text.replace("outputs=10", "outputs=10\ninitBFunc=start.biases()")
    with pytest.raises(ModelError, match=r"layer 'c1' \(line 11\) starts from the function 'start.weights'"):
        build(Files("local", text, files("local").parameters), Data(16))
    asked = []

    def weights(name, index, shape, params):
        asked.append((name, index, shape, params))
        return np.arange(27 * 16, dtype=np.float32).reshape(27, 16)

    functions = {"start.weights": weights, "start.biases": lambda name, shape, params: np.full(shape, 7)}
    net = build(Files("local", text, files("local").parameters), Data(16), functions=functions)
    assert asked == [("c1", 0, (27, 16), ["2", "x"])]
    assert net.weight_of("c1")[5, 2, 1, 0] == ((2 * 3 + 1) * 3) * 16 + 5
    assert (net.module_of("f10").bias == 7).all()
    functions["start.weights"] = lambda *_, params: np.zeros((1, 2))
    with pytest.raises(ModelError, match=r"initWFunc gave \[1, 2\] numbers; must be of shape \[27, 16\]"):
        build(Files("local", text, files("local").parameters), Data(16), functions=functions)


TREE = Tree(children=[[], [], [], [0, 1], [3, 2]], root=4)  # ((0, 1), 2)


def tree_files() -> Files:
    text = files("shared").layers.replace("type=fc\ninputs=f3\noutputs=10", "type=treefc\ninputs=f3")
    return Files("tree", text, files("shared").parameters.replace("topk=3", "topk=2"))


def test_a_tree_of_classes():
    assert define(tree_files().layers, Data(8, tree=TREE)).data.classes == 3
    with pytest.raises(ModelError, match=r"layer 'f10': type treefc needs the tree of the classes"):
        build(tree_files(), Data(8, classes=3))
    net = build(tree_files(), Data(8, classes=3, tree=TREE), generator=torch.Generator().manual_seed(0))
    weight = net.weight_of("f10")
    assert weight.shape == (5, 64)
    assert not weight[3:].any()
    assert weight[:3].all()
    assert net.definition.layers["f10"].parameters == 5 * 64 + 3
    with torch.no_grad():
        weight.normal_()
    x = torch.randn(2, 64)
    expected = (
        x @ torch.stack([weight[0] + weight[3] + weight[4], weight[1] + weight[3] + weight[4], weight[2] + weight[4]]).T
    )
    assert torch.allclose(net.module_of("f10")([x], [weight], [None]), expected, atol=1e-4)
    with pytest.raises(ModelError, match="the classes' tree"):
        build(tree_files(), Data(8, classes=3, tree=Tree([[], [], [], [0], [3, 2]], 4)))
    with pytest.raises(ModelError, match="node 4 of the classes' tree; must be reached once"):
        build(tree_files(), Data(8, classes=3, tree=Tree([[], [], [], [0, 4], [3, 2]], 4)))
