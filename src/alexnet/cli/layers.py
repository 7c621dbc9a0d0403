"""The verb ``layers``: a layer file as a table and as a drawing."""

import json

from alexnet.cli import arguments, show


def run(words: list[str]) -> int:
    """check a layer file of 2012, list its layers, draw its graph"""
    given: arguments.LayersArguments = arguments.parse(arguments.LayersArguments, words, "layers")
    from alexnet.models.cuda_convnet import Data, define, parameters, table
    from alexnet.training.layer_files import read

    data = Data(given.image_size, given.in_channels, given.num_classes)
    definition = define(read(given.file), data, given.file.name)
    found = parameters.read(read(given.params), definition, given.params.name) if given.params else None
    if given.json:
        print(json.dumps(table.as_dict(definition, found), indent=1))
    else:
        shown = table.render(definition, found)
        show.table(shown.title, shown.columns, [*shown.rows, shown.totals], right=4)
    for note in (*definition.notes, *(found.notes if found else ())):
        show.say(f"note: {note}")
    if given.draw:
        from alexnet.visualize import layer_graph

        show.say(str(layer_graph.draw(definition, given.draw)))
    return 0
