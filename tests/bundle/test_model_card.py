"""The model card escapes class and dataset names, which come from untrusted files."""

import pytest

from alexnet.bundle.model_card import model_card
from alexnet.models import create_model


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("<script>alert(1)</script>", r"&lt;script&gt;alert\(1\)&lt;/script&gt;"),
        ("[a](javascript:b)", r"\[a\]\(javascript:b\)"),
        ("![a](http://b/c.png)", r"\!\[a\]\(http://b/c.png\)"),
        ("$x$ **b** `c` ~d~", r"\$x\$ \*\*b\*\* \`c\` \~d\~"),
        ("a|b # c \\ d_e", r"a\|b \# c \\ d\_e"),
        ("a\n# title\x1b[31m\u202e", r"a\\x0a\# title\\x1b\[31m\\u202e"),
        ("x" * 10_000, "x" * 99 + "…"),
        ("reference retriever é 猫", "reference retriever é 猫"),
    ],
)
def test_names_in_the_card_are_text(name, text):
    network = create_model("lenet5", num_classes=2)
    card = model_card(network, [name, "other"], {}, {"name": name}, {}, "32")
    assert f"\nClasses: {text}, other.\n" in card
    assert f"\nTrained on {text} with the recipe" in card
