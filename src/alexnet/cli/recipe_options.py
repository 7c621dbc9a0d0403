"""The recipe's groups of fields as groups of command line options."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from alexnet.cli.parser import option
from alexnet.recipe import GROUPS, Recipe, help_text
from alexnet.recipe.fields import (
    AugmentationFields,
    DataFields,
    ModelFields,
    OptimizerFields,
    RegularizationFields,
    RuntimeFields,
    ScheduleFields,
)

_ALIASES = {"lr": ("--learning-rate",)}


def _options(fields: type) -> Any:
    """A dataclass with the fields of a recipe group as options; their help texts are the fields' docstrings."""
    options = [
        (
            field.name,
            Annotated[field.type, option(help=help_text()[field.name], aliases=_ALIASES.get(field.name, ()))],
            dataclasses.field(default=field.default),
        )
        for field in dataclasses.fields(fields)
    ]
    namespace = {"__doc__": fields.__doc__}  # the description below the title
    return dataclasses.make_dataclass(fields.__name__, options, bases=(fields,), namespace=namespace, frozen=True)


if TYPE_CHECKING:
    DataGroup = DataFields
    ModelGroup = ModelFields
    AugmentationGroup = AugmentationFields
    OptimizerGroup = OptimizerFields
    ScheduleGroup = ScheduleFields
    RegularizationGroup = RegularizationFields
    RuntimeGroup = RuntimeFields
else:
    DataGroup, ModelGroup, AugmentationGroup, OptimizerGroup, ScheduleGroup, RegularizationGroup, RuntimeGroup = map(
        _options, GROUPS.values()
    )


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """All fields of a recipe but ``recipe``, in their groups. They are checked together by :class:`Recipe` only."""

    data: DataGroup = dataclasses.field(default_factory=DataGroup)
    model: ModelGroup = dataclasses.field(default_factory=ModelGroup)
    augmentation: AugmentationGroup = dataclasses.field(default_factory=AugmentationGroup)
    optimizer: OptimizerGroup = dataclasses.field(default_factory=OptimizerGroup)
    schedule: ScheduleGroup = dataclasses.field(default_factory=ScheduleGroup)
    regularization: RegularizationGroup = dataclasses.field(default_factory=RegularizationGroup)
    runtime: RuntimeGroup = dataclasses.field(default_factory=RuntimeGroup)

    @staticmethod
    def of(recipe: Recipe, **changes: Any) -> "RecipeOptions":
        """The options with the values of ``recipe``; ``changes`` need not be valid values."""
        values, groups = vars(recipe) | changes, vars(RecipeOptions())
        return RecipeOptions(
            **{
                name: dataclasses.replace(group, **{field: values[field] for field in vars(group)})
                for name, group in groups.items()
            }
        )

    def changes(self, base: Recipe) -> dict[str, Any]:
        """The fields whose value differs from ``base``, with that value."""
        values = {name: value for group in vars(self).values() for name, value in vars(group).items()}
        return {name: value for name, value in values.items() if value != getattr(base, name)}
