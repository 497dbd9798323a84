"""`python -m dynarank.export`: the older spelling of `dynarank export`."""

from dynarank.commands.export import main

if __name__ == "__main__":
    main()
