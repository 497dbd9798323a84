"""The allocator in other people's training loops: PEFT, transformers and TRL, Lightning.

    integrations.peft            any PEFT LoRA model: `attach`, `get_peft_model`, `finalize`
    integrations.transformers    a callback for transformers' Trainer and for TRL's trainers
    integrations.lightning       a Callback for anybody's LightningModule

Each module imports the library that it is named after, and no other training library.
"""
