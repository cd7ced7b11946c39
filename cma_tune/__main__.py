"""``python -m cma_tune`` and ``accelerate launch -m cma_tune``."""

from cma_tune.cli import main

if __name__ == "__main__":
    main()
