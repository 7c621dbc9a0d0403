"""The command ``layers``: a layer file as a table and as a drawing."""

import json

from alexnet.cli import arguments, output


def run(argv: list[str]) -> int:
    """check a layer file of 2012, list its layers, draw its graph"""
    args: arguments.LayersArguments = arguments.parse(arguments.LayersArguments, argv, "layers")
    from alexnet.cuda_convnet import Data, define, parameters, table
    from alexnet.training.layer_files import read

    data = Data(args.image_size, args.in_channels, args.num_classes)
    definition = define(read(args.file), data, args.file.name)
    result = parameters.read(read(args.params), definition, args.params.name) if args.params else None
    if args.json:
        print(json.dumps(table.as_dict(definition, result), indent=1))
    else:
        text = table.render(definition, result)
        output.table(text.title, text.columns, [*text.rows, text.totals], right=4)
    for note in (*definition.notes, *(result.notes if result else ())):
        output.say(f"note: {note}")
    if args.plot:
        from alexnet.plots import layer_graph

        output.say(str(layer_graph.draw(definition, args.plot)))
    return 0
