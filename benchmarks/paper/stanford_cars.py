"""stanford_cars: its rows of the paper's Table 1, ours beside them; see paper_rows.py."""

from paper_rows import main

if __name__ == "__main__":
    main("stanford_cars")
