"""`python -m dynarank`: the command `dynarank`, where it is not on the path."""

from dynarank.commands.main import main

if __name__ == "__main__":
    main()
