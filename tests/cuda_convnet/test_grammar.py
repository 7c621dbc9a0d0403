"""The grammar of layer and parameter files, every refusal with its text, and mutated files that end in one error."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_examples import EXAMPLES, files

from alexnet.cuda_convnet import Data, Files, Tree, build, decode, define
from alexnet.cuda_convnet.grammar import Section, parse
from alexnet.errors import AlexNetError, ModelError


def values(text: str, name: str = "a") -> dict[str, str]:
    section = parse(text, "f.cfg")[name]
    return {key: section.text(key) for key in section.values}


def test_keys_in_any_case_values_as_they_are():
    assert values("[a]\nFilterSize=5\nNAME : Ab c \nx = y = z") == {"filtersize": "5", "name": "Ab c", "x": "y = z"}
    section = parse("[a]\nfilterSIZE=5", "f.cfg")["a"]
    assert section.integer("filterSize") == 5
    assert list(parse("[A]\nx=1\n[a] words behind\nx=2", "f.cfg")) == ["A", "a"]


def test_comments():
    text = "# one\n; two\nrem three\nREM four\n[a] # five\nx=1 ; six\ny=1;2\nz=1 # seven\nremark=8\n;[b]\nv= ;nine"
    assert values(text) == {"x": "1", "y": "1;2", "z": "1 # seven", "remark": "8", "v": ""}
    with pytest.raises(ModelError, match=r"f.cfg, line 2, layer 'a': parameter x is '5 # y'; must be an integer"):
        parse("[a]\nx=5 # y", "f.cfg")["a"].integer("x")


def test_an_indented_line_goes_on_with_the_value():
    assert values("[a]\nx=1,\n  2\n\t; 3\n\ny=4") == {"x": "1,\n2\n; 3", "y": "4"}
    assert parse("[a]\nx=1,\n  2", "f.cfg")["a"].integers("x", 2) == [1, 2]


def test_repeated_sections_merge_and_repeated_keys_overwrite():
    sections = parse("[a]\nx=1\ny=1\n[b]\n[a]\nx=2\nz=3", "f.cfg")
    assert list(sections) == ["a", "b"]
    assert {k: v.text for k, v in sections["a"].values.items()} == {"x": "2", "y": "1", "z": "3"}
    assert sections["a"].values["x"].line == 6
    assert sections["a"].line == 1


def test_defaults_stand_in_for_all_sections_and_are_no_layer():
    sections = parse("[DEFAULT]\nx=1\n[a]\n[b]\nx=2\n[DEFAULT]\ny=3", "f.cfg")
    assert list(sections) == ["a", "b"]
    assert (sections["a"].integer("x"), sections["b"].integer("x"), sections["a"].integer("y")) == (1, 2, 3)


def test_percent():
    assert values("[a]\nx=5%%\ny=<%(x)s>\nz=%(y)s%(x)s") == {"x": "5%", "y": "<5%>", "z": "<5%>5%"}
    nothing = "stands for nothing"
    for text, why in (("5%", "written with %% for %"), ("%(b)s", nothing), ("%(x)s", nothing)):
        with pytest.raises(ModelError, match=why):
            values(f"[a]\nx={text}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x=1", "f.cfg, line 1: 'x=1' stands before the first layer; must be [name]"),
        ("[a]\nx=1\nwords", "f.cfg, line 3: 'words'; must be [name], key=value or a comment"),
        ("[a]\n  x=1", "f.cfg, line 2: '  x=1'; must be [name], key=value or a comment"),
    ],
)
def test_what_is_no_file(text, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        parse(text, "f.cfg")


def test_numbers_and_words():
    section = parse("[a]\nf=.5\ng=1e-3\ni=-3\nb=YES\nc=oFf\nl= 1 , 2,3\nw=,c7\nr=TRUE,1,yes,0", "f.cfg")["a"]
    assert (section.number("f"), section.number("g"), section.number("i"), section.integer("i")) == (0.5, 1e-3, -3, -3)
    assert (section.boolean("b"), section.boolean("c")) == (True, False)
    assert section.integers("l", 3) == [1, 2, 3]
    assert section.words("w") == ["", "c7"]
    assert section.booleans("r", 4) == [True, True, False, False]  # in lists anything else is false
    for key, read, must in (
        ("f", section.integer, "an integer"),
        ("w", section.number, "a finite number"),
        ("i", section.boolean, "one of 1, yes, true, on, 0, no, false, off"),
    ):
        with pytest.raises(ModelError, match=rf"parameter {key} is .*; must be {must}"):
            read(key)
    for word in ("5.0", "1_000", "0x10", "５", "", "nan", "1e999"):
        strange = parse(f"[a]\nx={word}", "f.cfg")["a"]
        with pytest.raises(ModelError, match="integer"):
            strange.integer("x")
        if word != "5.0":
            with pytest.raises(ModelError, match="finite number"):
                strange.number("x")
    with pytest.raises(ModelError, match="one item for each input: 2, not 3"):
        section.integers("l", 2)


def test_bytes():
    assert decode("[é]".encode(), "f") == decode("[é]".encode("latin-1"), "f") == "[é]"
    assert parse("[a]\r\nx=1\r\n", "f.cfg")["a"].text("x") == "1"
    with pytest.raises(ModelError, match="f is no text: it has zero bytes"):
        decode(b"[a]\0", "f")
    with pytest.raises(ModelError, match="f has 1048577 bytes"):
        decode(b"#" * ((1 << 20) + 1), "f")


# A change to one of the example files -> what is said about it.
REFUSED = [
    ("towers", "type=cmrnorm", "type=cmnorm", "line 34, layer 'n1a': parameter type is 'cmnorm'; must be one of data"),
    ("towers", "type=cmrnorm\n", "", "line 33, layer 'n1a': parameter type is missing; must be given"),
    ("towers", "inputs=c1a\n", "inputs=c1z\n", "line 35, layer 'n1a': parameter inputs is 'c1z'; must be names of"),
    ("towers", "inputs=c1a\n", "", "layer 'n1a': parameter inputs is missing"),
    ("towers", "inputs=c1a\n", "inputs=p1a\n", "must be free of cycles: n1a → p1a → n1a"),
    ("towers", "inputs=c1a\n", "inputs=n1a\n", "must be free of cycles: n1a → n1a"),
    (
        "towers",
        "inputs=c1a\n",
        "inputs=m1\n[m1]\ntype=cmrnorm\ninputs=c1a\nchannels=16\nsize=5\n",
        "must be layers defined earlier: 'm1' is in line 36",
    ),
    ("towers", "inputs=c1a\n", "inputs=c1a,c1b\n", "must be 1 layer for type cmrnorm"),
    ("towers", "inputs=labels,probs", "inputs=probs", "must be 2 layers for type cost.logreg"),
    ("towers", "inputs=labels,probs", "inputs=labels,f10", "with a softmax layer second, not a fc layer"),
    ("towers", "inputs=labels,probs", "inputs=data,probs", "with one row first, not the 3072 of 'data'"),
    (
        "towers",
        "[probs]",
        "[c3]\ntype=fc\ninputs=f10\noutputs=3\ninitW=1\n[probs]",
        "line 130, layer 'c3': no layer reads it; must be read by another layer",
    ),
    ("towers", "inputs=f10", "inputs=cost", "layer 'probs': parameter inputs is 'cost'; must be free of cycles: probs"),
    (
        "towers",
        "[probs]",
        "[k]\ntype=cost.sum2\ninputs=f10\n[l]\ntype=cost.sum2\ninputs=k\n[probs]",
        "line 135, layer 'l': parameter inputs is 'k'; must be layers that are no costs: 'k' is one",
    ),
    ("towers", "filters=16", "filters=17", "line 15, layer 'c1a': parameter filters is '17'; must be a multiple of 16"),
    ("towers", "filters=32,32", "filters=32,48", "filters times groups is equal for all inputs, not 32, 48"),
    ("towers", "filters=32,32", "filters=32", "one item for each input: 2, not 1"),
    ("towers", "filterSize=3,3", "filterSize=3,5", "all inputs give maps of one side, not 7, 5"),
    ("towers", "channels=3\n", "channels=5\n", "parameter channels is '5'; must be such that the 3072 outputs"),
    ("towers", "channels=3\n", "channels=6\n", "parameter channels is '6'; must be such that"),
    ("towers", "filterSize=5", "filterSize=33", "must be at most 32, the side of the input and its padding"),
    ("towers", "stride=2", "stride=6", "parameter stride is '6'; must be at most filterSize = 5"),
    ("towers", "stride=2", "stride=0", "parameter stride is '0'; must be at least 1"),
    ("towers", "partialSum=0\n", "", "parameter partialSum is missing"),
    ("towers", "partialSum=7", "partialSum=8", "must be 0 or a divisor of 49, the output's pixels"),
    ("towers", "initW=0.01\n", "", "parameter initW is missing"),
    ("towers", "size=5", "size=17", "parameter size is '17'; must be at most 16, channels"),
    ("towers", "size=5", "size=1", "parameter size is '1'; must be at least 2"),
    ("towers", "sizeX=3", "sizeX=16", "parameter sizeX is '16'; must be at most 15, the side of the input"),
    ("towers", "stride=2\nneuron", "stride=4\nneuron", "parameter stride is '4'; must be at most sizeX = 3"),
    ("towers", "pool=max", "pool=min", "parameter pool is 'min'; must be one of max, maxabs, avg, rand"),
    ("towers", "neuron=relu", "neuron=Relu", "parameter neuron is 'Relu'; must be one of ident, logistic"),
    ("towers", "neuron=relu", "neuron=relu[1]", "must be relu alone"),
    ("towers", "outputs=10", "outputs=0", "parameter outputs is '0'; must be at least 1"),
    ("towers", "outputs=10", "outputs=99999999999", "outputs; must be at most 2,147,483,648"),
    ("towers", "gpu=1", "gpu=-1", "parameter gpu is '-1'; must be at least 0"),
    ("towers", "gpu=1", "gpu=64", "parameter gpu is '64'; must be from 0 to 63"),
    ("towers", "dataIdx=1", "dataIdx=3", "must be 0 (pixels), 1 (class) or 2 (one row for each class)"),
    ("towers", "type=cost.logreg\ninputs=labels,probs", "type=cost.tica\ninputs=probs", "no public source has the"),
    ("spatial", "tanh[1.5,0.7]", "tanh[1.5]", "must be tanh[a,b] with plain decimals"),
    ("spatial", "tanh[1.5,0.7]", "tanh[1.5,7e-1]", "must be tanh[a,b] with plain decimals"),
    ("spatial", "size=4", "size=5", "parameter size is '5'; must be at most 4, the side of the input"),
    ("spatial", "start=-1", "start=-4", "must be such that every window holds a pixel of the 12×12 input"),
    ("spatial", "start=-1", "outputsX=9", "parameter outputsX is '9'; must be such that every window holds a pixel"),
    ("spatial", "channels=16\nsizeX", "channels=4\nsizeX", "must be a multiple of 16 above layers with weights"),
    ("shared", "keep=0.5", "keep=1.5", "parameter keep is '1.5'; must be from 0 to 1"),
    ("shared", "weightSource=f2", "weightSource=f10", "must be an earlier layer: there is none called 'f10' above"),
    ("shared", "weightSource=f2", "weightSource=f2[1]", "must be a matrix of a fc layer on gpu 0"),
    ("shared", "weightSource=f2", "weightSource=f1", "must be a source of shape 64×64, not 192×64"),
    ("shared", "weightSource=f2", "weightSource=f3", "must be an earlier layer, or an earlier input of this one"),
    ("shared", "weightSource=f2", "weightSource=f2\ngpu=1", "must be a matrix of a fc layer on gpu 1"),
    ("shared", "weightSource=f2", "weightSource=f2,f2", "one item for each input: 1, not 2"),
    ("images", "stdev=1", "stdev=0", "parameter stdev is '0'; must be above 0"),
    ("images", "filterSize=5\nstdev", "filterSize=4\nstdev", "must be 3, 5, 7 or 9 and at most 32"),
    ("images", "channels=3\nstride=2", "channels=3\nstride=1", "parameter stride is '1'; must be at least 2"),
    ("images", "type=href\ninputs=t0\nchannels=3", "type=href\ninputs=t0\nchannels=12", "must be from 1 to 3"),
    ("images", "type=concat\ninputs=c1,c2", "type=eltsum\ninputs=c1,m0", "same number of outputs, not 4096, 768"),
    ("images", "type=concat\ninputs=c1,c2", "type=eltmax\ninputs=c1", "must be at least 2 layers for type eltmax"),
    ("sparse", "groups=4", "groups=1", "parameter groups is '1'; must be at least 2 where randSparse is true"),
    ("sparse", "filterChannels=16", "filterChannels=12", "must be a multiple of 4 that divides channels = 32"),
    (
        "sparse",
        "channels=64\nfilters=16\ngroups=2",
        "channels=64\nfilters=16\ngroups=32",
        "a multiple of 4·groups = 128",
    ),
    (
        "sparse",
        "inputs=target,f10",
        "inputs=target,c1",
        "a layer of 10 outputs, one for each class, not 'c1' with 8192",
    ),
]


@pytest.mark.parametrize(("name", "old", "new", "message"), REFUSED, ids=[f"{r[0]}: {r[2][:30]!r}" for r in REFUSED])
def test_a_wrong_file_is_refused_in_its_own_terms(name, old, new, message):
    text = files(name).layers
    assert old in text
    text = text.replace(old, new, 1)
    with pytest.raises(ModelError) as error:
        define(text, Data(EXAMPLES[name][0], classes=10), f"{name}.cfg")
    assert message in str(error.value)
    assert str(error.value).startswith(f"{name}.cfg, line ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("towers", "[c1a]", "[c9]", "has no section for layer 'c1a' (conv, line 11 of the layer file)"),
        ("towers", "epsW=0.01\n", "", "line 3, layer 'c1a': parameter epsW is missing"),
        ("towers", "epsW=0.01\n", "epsW=-1\n", "parameter epsW is '-1'; must be at least 0"),
        ("towers", "epsW=0.01,0.01", "epsW=0.01", "one item for each input: 2, not 1"),
        ("towers", "exp[tgtFactor=100,noiseStdev=0]", "exp[noiseStdev=0,tgtFactor=100]", "must be default, linear["),
        ("towers", "exp[tgtFactor=100,noiseStdev=0]", "cos[1]", "must be default, linear["),
        ("towers", "exp[tgtFactor=100,noiseStdev=0]", "exp[tgtFactor=0,noiseStdev=0]", "tgtFactor above 0"),
        ("shared", "numSteps=4", "numSteps=0", "numSteps from 1 to 10000"),
        ("shared", "numSteps=4", "numSteps=1.5", "numSteps from 1 to 10000"),
        ("shared", "enable=true\n", "", "layer 'h1': parameter enable is missing"),
        ("towers", "topk=5", "topk=11", "parameter topk is '11'; must be at most 10, the classes"),
        ("towers", "coeff=1\n", "", "parameter coeff is missing"),
        ("spatial", "wcNormMin=0.001", "wcNormMin=1", "parameter wcNormMin is '1'; must be at most wcNormMax"),
        ("spatial", "pow=0.75\n", "", "layer 'n1': parameter pow is missing"),
    ],
)
def test_a_wrong_parameter_file_is_refused_in_its_own_terms(name, old, new, message):
    given = files(name)
    assert old in given.parameters
    with pytest.raises(ModelError, match=re.escape(message)):
        build(Files(name, given.layers, given.parameters.replace(old, new, 1)), Data(EXAMPLES[name][0]))


def test_old_dialects_are_read_with_a_note():
    given = files("spatial")
    old = given.layers.replace("size=3", "sizeX=3\nscale=0.5\npow=0.75", 1)
    fewer = given.parameters.replace("[n1]\nscale=5e-05\npow=0.75\n", "")
    assert fewer != given.parameters
    net = build(Files("old", old, fewer), Data(24))
    assert "sizeX read as size" in net.definition.notes[0]
    assert (net.module_of("n1").module.scale, net.module_of("n1").module.size) == (0.5, 3)
    lenient = define(given.layers.replace("gpu=0", ""), Data(24))
    assert "layer 'c1' (line 11): gpu is missing above data, taken as 0" in lenient.notes
    text = files("shared").parameters.replace("tgtFactor=250,noiseStdev=0,numSteps=4", "250,4")
    net = build(Files("old", files("shared").layers, text + "\n[f2]\nsched=exp[3]\n[zz]\nx=1"), Data(8))
    notes = net.parameters_file.notes
    assert "schedW has numbers without names, read as tgtFactor, numSteps (assumed)" in notes[0]
    assert "the key sched of an older program is ignored" in notes[1]
    assert notes[2] == "sections for layers that do not exist, ignored: zz"
    assert net.parameters_file.layers["f1"].weights[0].schedule.steps == 4


def test_too_many_layers_are_refused():
    head = "[data]\ntype=data\ndataIdx=0\n[n0]\ntype=neuron\nneuron=relu\ninputs=data\n"
    text = head + "".join(f"[n{i}]\ntype=neuron\nneuron=relu\ninputs=n{i - 1}\n" for i in range(1, 2000))
    with pytest.raises(ModelError, match=r"f\.cfg defines 2001 layers; must be at most 1000"):
        define(text, Data(8), "f.cfg")
    deep = head + "".join(f"[n{i}]\ntype=neuron\nneuron=relu\ninputs=n{i - 1}\n" for i in range(1, 990))
    deep += "[c]\ntype=cost.sum2\ninputs=n989\n"
    assert len(define(deep, Data(8)).layers) == 992
    with pytest.raises(ModelError, match="no cost tells classes apart"):
        build(Files("deep", deep, "[c]\ncoeff=1"), Data(8))
    with pytest.raises(ModelError, match="defines no layers"):
        define("# nothing\n", Data(8))


def test_classes_that_nobody_tells():
    text = files("sparse").layers.replace("type=fc\ninputs=c3\noutputs=10", "type=fc\ninputs=c3,target\noutputs=10")
    text = text.replace("initW=0.01\ninitB=-5", "initW=0.01,0.01\ninitB=-5")
    with pytest.raises(ModelError, match="layer 'target': the number of classes cannot be told from the file; give"):
        define(text, Data(16))
    assert define(text, Data(16, classes=10)).layers["target"].outputs == 10


def test_flickr_labels_are_a_row_for_each_tag():
    text = files("sparse").layers.replace("dataIdx=2", "dataIdx=1").replace("cost.crossent2", "cost.rflickr")
    assert define(text, Data(16)).layers["target"].outputs == 10


def attempt(text: str, parameters: str, size: int) -> None:
    """Builds, or says in one line why not; never anything else."""
    try:
        build(Files("fuzzed", text, parameters), Data(size, classes=3, tree=Tree([[], [], [], [0, 1, 2]], 3)))
    except AlexNetError as error:
        assert str(error)
        assert "\n" not in str(error)


@given(st.binary(max_size=300))
def test_random_bytes(content):
    try:
        text = decode(content, "f")
    except AlexNetError:
        return
    attempt(text, text, 8)
    attempt("[data]\ntype=data\ndataIdx=0\n[a]\n" + text, text, 8)


WORDS = ["", "0", "-1", "3", "16", "1.5", "x", "data", "c1", "1,2", ",", "%", "%(type)s", "relu", "9" * 12, "[", "é"]


@given(st.data())
def test_mutated_files(data):
    name = data.draw(st.sampled_from(list(EXAMPLES)))
    given = files(name)
    lines, other = given.layers.splitlines(), given.parameters.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        of = data.draw(st.sampled_from([lines, lines, other]))
        i = data.draw(st.integers(0, len(of) - 1))
        change = data.draw(st.sampled_from(["value", "drop", "double", "swap", "type"]))
        if change == "value":
            of[i] = of[i].partition("=")[0] + "=" + data.draw(st.sampled_from(WORDS))
        elif change == "drop" and len(of) > 1:
            del of[i]
        elif change == "double":
            of.insert(data.draw(st.integers(0, len(of))), of[i])
        elif change == "swap":
            j = data.draw(st.integers(0, len(of) - 1))
            of[i], of[j] = of[j], of[i]
        elif of[i].startswith("type="):
            kinds = [
                "conv",
                "local",
                "fc",
                "treefc",
                "pool",
                "cmrnorm",
                "rnorm",
                "cnorm",
                "blur",
                "nailbed",
                "href",
                "resize",
                "rscale",
                "rgb2yuv",
                "rgb2lab",
                "hs",
                "concat",
                "eltsum",
                "eltmax",
                "neuron",
                "softmax",
                "cost.sum2",
                "cost.crossent",
                "cost.msm",
                "cost.tica",
                "data",
            ]
            of[i] = "type=" + data.draw(st.sampled_from(kinds))
    attempt("\n".join(lines), "\n".join(other), EXAMPLES[name][0])


@pytest.mark.parametrize(
    ("leaf", "width"),
    [("x" * 20, 6), ("", 6), ("%%" * 10, 4)],
    ids=["characters", "empty values", "percent signs"],
)
def test_nested_values_are_bounded(leaf, width):
    """Ten levels that each name the next one several times: 6¹⁰ values in under a thousand bytes."""
    levels = [f"k{i}=" + f"%(k{i + 1})s" * width for i in range(9)] + [f"k9={leaf}"]
    section = parse("[conv1]\n" + "\n".join(levels), "layers.cfg")["conv1"]
    with pytest.raises(ModelError, match=r"line 2, layer 'conv1': parameter k0 .* must be (resolvable with )?at most"):
        section.text("k0")


def test_nested_values_within_the_bounds_are_resolved():
    section = parse("[DEFAULT]\na=%(b)s,%(b)s\nb=5%%\n[conv1]\nsize=%(a)s;%(b)s\n", "layers.cfg")["conv1"]
    assert section.text("size") == "5%,5%;5%"


ROWS = "".join(f"[d{i}]\ntype=data\ndataIdx=1\ninputs=%(b)s\n" for i in range(900))
MUCH_WORK = {
    "long values that each row reads": (
        "[DEFAULT]\na=" + "z" * 6000 + "\nb=" + "%(a)s" * 10 + "\n" + ROWS,
        "a file of at most 4,194,304 characters after substitution",
    ),
    "long lists that each row reads": ("[DEFAULT]\nb=" + "a," * 30_000 + "\n" + ROWS, "a list of at most 1,000 items"),
    "a value of many lines": ("[a]\ntype=data\nx=1" + "\n x" * 300_000, "goes on; must be at most 65,536 characters"),
}


@pytest.mark.parametrize("name", MUCH_WORK)
def test_small_files_that_are_much_work_are_refused(name):
    """Each file took a minute or more: work that grows with the square of the sections or lines."""
    text, must = MUCH_WORK[name]
    with pytest.raises(ModelError, match=re.escape(must)):
        define(text, Data(24), "f.cfg")


def test_a_value_is_resolved_once(monkeypatch):
    """900 rows whose inputs are looked up for each other row."""
    calls = []
    resolve = Section._resolve
    monkeypatch.setattr(Section, "_resolve", lambda self, *how: (calls.append(self.name), resolve(self, *how))[1])
    with pytest.raises(ModelError, match="no layer reads it"):
        define("[DEFAULT]\na=x\nb=%(a)s\n" + ROWS, Data(24, classes=3), "f.cfg")
    assert len(calls) < 10 * 900
