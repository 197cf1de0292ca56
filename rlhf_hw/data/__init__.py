"""Data: any known data set becomes one canonical `Example`, then tokens with a loss mask, then padded batches.

The order of the rooms is the order of the flow: `finding` and `hub` find a set, `rows` reads files, `formats` names
columns, `convert` makes canonical rows, `splits` says which rows go where, `sources` does all this for the sets that the
flags name, `template` writes a prompt as text, `tokenize` makes ids, `packing` fills blocks, `collate` makes tensors.
"""
