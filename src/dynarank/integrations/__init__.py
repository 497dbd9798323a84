"""The same allocation in other people's loops: PEFT, transformers and TRL, Lightning.

Each module imports the library that it is named after, so that none is needed for the others.
"""
