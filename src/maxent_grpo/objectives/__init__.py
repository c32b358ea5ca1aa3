"""What a step optimises: utilities and log-probs in, a loss and its statistics out.

Everything here is a pure function of tensors and plain numbers: no configuration, no files, no model.
`catalog` is the public face; every other module holds one ingredient of the published objectives.
"""
