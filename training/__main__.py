"""`python -m training`: every stage in order, from an empty machine to the shipped files."""

from training.run_all import main

if __name__ == "__main__":
    main()
