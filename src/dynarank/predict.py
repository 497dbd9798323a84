"""`python -m dynarank.predict`: the older spelling of `dynarank predict`."""

from dynarank.commands.predict import main

if __name__ == "__main__":
    main()
