"""`python -m dynarank.report`: the older spelling of `dynarank report`."""

from dynarank.commands.report import main

if __name__ == "__main__":
    main()
