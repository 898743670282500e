"""The command `dreamer_tpu`, without installing it: python main.py --help."""

from dreamer_tpu.__main__ import main

if __name__ == '__main__':
  main()
