"""`python -m keras_gpt2` is `keras-gpt2`."""

import sys

from keras_gpt2.cli import main

if __name__ == "__main__":
    sys.exit(main())
