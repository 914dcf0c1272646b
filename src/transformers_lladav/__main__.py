"""`python -m transformers_lladav` is `lladav`."""

from .cli import main

if __name__ == "__main__":
    main()
