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
    """list the recipes; with a name, its numbers; with two, where they differ"""
    args: RecipesArguments = parser.parse(RecipesArguments, argv, "recipes")
    if args.name is None:
        results = {name: recipes.describe(name) for name in recipes.list_recipes()}
        print(json.dumps(results, indent=1)) if args.json else output.table(
            "", ("recipe", "what it is"), [*results.items()]
        )
    elif args.other is None:
        chosen = recipes.get_recipe(args.name)
        print(
            json.dumps(chosen.to_dict(), indent=1) if args.json else recipes.to_toml(chosen),
            end="\n" if args.json else "",
        )
    else:
        _print_differences(args.name, args.other, as_json=args.json)
    return 0


def _print_differences(a: str, b: str, *, as_json: bool) -> None:
    """Where two recipes differ, in their numbers and their networks, with each value's source."""
    options, traits = recipes.compare(a, b)
    if as_json:
        results = {"options": {d.what: d.to_dict() for d in options}, "networks": {d.what: d.to_dict() for d in traits}}
        print(json.dumps({"recipes": [a, b], **results}, indent=1))
        return
    columns = ("", a, "source", b, "source", "meaning")
    rows = [_difference_row(d, recipes.option(d.what)) for d in options]
    output.table("Numbers", columns, rows, right=len(columns))
    networks = [recipes.get_recipe(name).model for name in (a, b)]
    if traits:
        output.table(
            f"Networks: {' and '.join(networks)}", columns, [_difference_row(d, d.what) for d in traits], right=6
        )
    elif networks[0] != networks[1]:
        print("Networks: " + "   ".join(f"alexnet models {network}" for network in networks))


def _difference_row(difference: recipes.Difference, name: str) -> tuple[str, ...]:
    (a, b), (source_a, source_b) = difference.values, difference.sources
    return name, _shown(a), source_a, _shown(b), source_b, difference.meaning


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value) or "none"
