"""Data: any known data set becomes one canonical `Example`, then tokens with a loss mask, then padded batches.

The order of the rooms is the order of the flow: `rows` reads files, `formats` names columns, `convert` makes
canonical rows, `sources` finds and splits data sets, `template` writes a prompt as text, `tokenize` makes ids,
`packing` fills blocks, `collate` makes tensors.
"""
