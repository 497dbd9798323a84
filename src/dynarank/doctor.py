"""`python -m dynarank.doctor`: the older spelling of `dynarank doctor`."""

from dynarank.commands.doctor import main

if __name__ == "__main__":
    main()
