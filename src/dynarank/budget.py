"""`python -m dynarank.budget`: the older spelling of `dynarank budget`."""

from dynarank.commands.budget import main

if __name__ == "__main__":
    main()
