"""`python -m dseq_jepa VERB`: the same as `dseq-jepa VERB`, for torchrun."""

from dseq_jepa.cli import main

if __name__ == "__main__":
    main()
