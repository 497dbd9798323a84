"""The front door of a clone: `python train.py task=cola budget=r8`. See dynarank.commands.train."""

from dynarank.commands.train import main

if __name__ == "__main__":
    main()
