"""The command ``recipes``."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional

from alexnet import recipe as recipes
from alexnet.cli import output, parser
from alexnet.cli.parser import Flag, option


@dataclass(frozen=True)
class RecipesArguments:
    """List the recipes, show the hyperparameters of one, or compare two with the source of each value."""

    name: Positional[Annotated[str | None, option("[RECIPE]")]] = None
    """recipe to show"""
    other: Positional[Annotated[str | None, option("[RECIPE]")]] = None
    """recipe to compare it with"""
    json: Flag = False
    """print one JSON object"""


def run(argv: list[str]) -> int:
    """List the recipes, show one, or compare two."""
    args: RecipesArguments = parser.parse(RecipesArguments, argv, "recipes")
    if args.name is None:
        descriptions = {name: recipes.describe(name) for name in recipes.list_recipes()}
        if args.json:
            print(json.dumps(descriptions, indent=1))
        else:
            output.table("", ("recipe", "description"), list(descriptions.items()))
    elif args.other is None:
        recipe = recipes.get_recipe(args.name)
        print(json.dumps(recipe.to_dict(), indent=1) if args.json else recipes.to_toml(recipe).rstrip("\n"))
    else:
        _print_differences(args.name, args.other, as_json=args.json)
    return 0


def _print_differences(a: str, b: str, *, as_json: bool) -> None:
    """Print the hyperparameters in which two recipes differ, with the source of each value."""
    differences = recipes.compare(a, b)
    if as_json:
        print(json.dumps({"recipes": [a, b], "differences": {d.field: d.to_dict() for d in differences}}, indent=1))
        return
    columns = ("option", a, "source", b, "source", "meaning")
    rows = [
        (recipes.option(d.field), _shown(d.values[0]), d.sources[0], _shown(d.values[1]), d.sources[1], d.help)
        for d in differences
    ]
    output.table("", columns, rows, right=len(columns))
    first, second = (recipes.get_recipe(name).model for name in (a, b))
    if first != second:
        print(f"Networks: `alexnet models {first}` and `alexnet models {second}` list their layers;")
        print("docs/models.md compares the AlexNets of 2012 to 2014.")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value) or "none"
